"""Files: whole or absent, one writer at a time, downloads that resume and are checked."""

from __future__ import annotations

import hashlib
import http.server
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from graphkit import files
from graphkit.errors import UserError
from graphkit.files import atomic_write, fetch, lock, sha256

CONTENT = bytes(range(256)) * 4000
HASH = hashlib.sha256(CONTENT).hexdigest()


def test_atomic_write(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    atomic_write(path, "é")
    assert path.read_bytes() == "é".encode()
    atomic_write(path, b"\0\1")
    assert path.read_bytes() == b"\0\1"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]
    assert path.stat().st_mode & 0o444 == 0o444 & ~files._umask()


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    atomic_write(path, "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(UserError, match=r"cannot write .*No space left"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_unwritable_folders_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for call in (
        lambda: atomic_write(tmp_path / "file" / "x", ""),
        lambda: fetch("https://x.invalid/y", tmp_path / "file" / "x"),
        lambda: lock(tmp_path / "file" / "x").__enter__(),
    ):
        with pytest.raises(UserError, match="cannot create the folder") as caught:
            call()
        assert "\n" not in str(caught.value)


def run(code: str, *args: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


HOLD = """
import sys, time
from graphkit.files import lock
with lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_lock_excludes_processes_and_dies_with_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder = run(HOLD, path)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    try:
        with pytest.raises(UserError, match=f"process {holder.pid} still holds"), lock(path, timeout=0.2):
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with lock(path, timeout=5), pytest.raises(UserError), lock(path, timeout=0):
        pass
    with lock(path, timeout=0):
        pass


COUNT = """
import sys, time
from pathlib import Path
from graphkit.files import atomic_write, lock
path = Path(sys.argv[1])
for _ in range(30):
    with lock(path.with_suffix(".lock")):
        atomic_write(path, str(int(path.read_text()) + 1))
"""


def test_lock_serialises(tmp_path: Path) -> None:
    path = tmp_path / "count"
    path.write_text("0")
    workers = [run(COUNT, path) for _ in range(2)]
    assert [worker.communicate()[1] for worker in workers] == ["", ""]
    assert path.read_text() == "60"


class Server(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT, ranges too; ``cut`` ends that many answers half-way."""

    cut = 0
    requests: list[str]

    def do_GET(self) -> None:
        self.requests.append(self.headers.get("Range", ""))
        if self.path != "/file":
            self.send_error(404, "Not Found")
            return
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(found[1]) if found else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        body = CONTENT[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if Server.cut:
            Server.cut -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    Server.cut, Server.requests = 0, []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/file"
        server.shutdown()
        thread.join()


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir() if not p.name.startswith(".")}


@pytest.mark.parametrize("known", [HASH, None])
def test_fetch(tmp_path: Path, url: str, known: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    path = fetch(url, tmp_path / "raw" / "file", known)
    assert sha256(path) == HASH
    assert names(path.parent) == {"file"}
    path.write_text("mine")
    assert fetch(url, path, known).read_text() == "mine"  # a file in place is the user's
    assert Server.requests == [""]
    assert capsys.readouterr().err == ""  # not a terminal


@pytest.mark.parametrize("known", [HASH, None])
def test_an_interrupted_download_goes_on_or_starts_again(tmp_path: Path, url: str, known: str | None) -> None:
    Server.cut = 1
    with pytest.raises(UserError, match=r"cannot download .*put the file at"):
        fetch(url, tmp_path / "file", known)
    assert not (tmp_path / "file").exists()
    fetch(url, tmp_path / "file", known)
    assert sha256(tmp_path / "file") == HASH
    assert Server.requests == ["", f"bytes={len(CONTENT) // 2}-" if known else ""]
    assert names(tmp_path) == {"file"}


def test_remains_of_something_else_are_dropped(tmp_path: Path, url: str) -> None:
    for remains in (b"x" * 1000, b"x" * len(CONTENT)):
        (tmp_path / "file.part").write_bytes(remains)
        fetch(url, tmp_path / "file", HASH)
        assert sha256(tmp_path / "file") == HASH
        (tmp_path / "file").unlink()


def test_a_wrong_hash_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(UserError, match="not the known file"):
        fetch(url, tmp_path / "file", "0" * 64)
    assert names(tmp_path) == set()


def test_errors_say_where_the_file_goes(tmp_path: Path, url: str) -> None:
    with pytest.raises(UserError, match=r"Not Found.*; put the file at .*/a or use digits") as caught:
        fetch(url + "s", tmp_path / "a", hint="or use digits")
    assert "\n" not in str(caught.value)
    closed = "http://127.0.0.1:9/file"
    with pytest.raises(UserError, match="Connection refused"):
        fetch(closed, tmp_path / "a")
    with pytest.raises(UserError, match="unknown url type"):
        fetch("nonsense", tmp_path / "a")


FETCH = "import sys; from graphkit.files import fetch; fetch(sys.argv[1], sys.argv[2], sys.argv[3])"


def test_two_processes_download_once(tmp_path: Path, url: str) -> None:
    workers = [run(FETCH, url, tmp_path / "file", HASH) for _ in range(2)]
    assert [worker.communicate()[1] for worker in workers] == ["", ""]
    assert sha256(tmp_path / "file") == HASH
    assert len(Server.requests) == 1


def test_progress_on_a_terminal(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(time, "monotonic", iter(range(1000)).__next__)
    fetch(url, tmp_path / "file")
    assert "file: 1.0 of 1.0 MB" in capsys.readouterr().err
