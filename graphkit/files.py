"""Files that are whole or absent: atomic writes, locks between processes, hashes, downloads."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any

from graphkit.errors import UserError

__all__ = ["atomic_write", "fetch", "lock", "make_folder", "sha256", "sync_folder"]

_CHUNK = 1 << 20


def make_folder(path: str | Path) -> Path:
    """Creates a folder and its parents.

    Raises:
        UserError: If it can't be created, or a file of that name is in the way.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create the folder {folder}: {error.strerror or error}") from error
    return folder


def sync_folder(folder: Path) -> None:
    """Flushes the names in a folder to disk, after a rename, where the file system offers that."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def atomic_write(path: str | Path, data: bytes | str) -> None:
    """Writes a file under a temporary name, flushes it to disk, and renames it into place.

    A reader sees the old content or the new, never a part; after a crash at any moment likewise.

    Args:
        path: The file; its folder is created if need be.
        data: The content; text is stored as UTF-8.

    Raises:
        UserError: If the folder can't be written or the disk is full. The old file is then untouched.
    """
    target = Path(path)
    content = data.encode() if isinstance(data, str) else data
    make_folder(target.parent)
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except BaseException as error:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        if isinstance(error, OSError):
            raise UserError(f"cannot write {target}: {error.strerror or error}") from error
        raise
    sync_folder(target.parent)


def _umask() -> int:
    """Returns the process's umask without changing it for longer than the two calls take."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def lock(path: str | Path, timeout: float = 600.0) -> Iterator[None]:
    """Holds an exclusive lock between processes (and threads) for the length of a ``with`` block.

    The operating system drops it when its holder ends, however it ends, so it is never stale. The lock file
    itself stays; it is empty but for the holder's process id.

    Args:
        path: The lock file, created if need be.
        timeout: Seconds to wait for another holder.

    Raises:
        UserError: If the file can't be opened, the file system has no locks, or the wait was too long.
    """
    try:
        import fcntl
    except ImportError as error:  # pragma: no cover - Windows
        raise UserError("locks between processes need a POSIX system (Linux, macOS, WSL)") from error

    target = Path(path)
    make_folder(target.parent)
    try:
        handle = os.open(target, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"cannot open the lock {target}: {error.strerror or error}") from error
    try:
        give_up = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= give_up:
                    holder = os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
                    raise UserError(
                        f"process {holder} still holds {target} after {timeout:g} s; wait for it or end it"
                    ) from None
                time.sleep(0.05)
            except OSError as error:
                raise UserError(f"no file locks on {target}: {error.strerror or error}") from error
        with contextlib.suppress(OSError):
            os.ftruncate(handle, 0)
            os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)  # drops the lock


def sha256(path: str | Path) -> str:
    """Returns the SHA-256 of a file as 64 hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


class _Stopped(Exception):
    """A download that ended early; what came so far is in the ``.part`` file."""


def fetch(
    url: str, path: str | Path, sha256: str | None = None, *, hint: str = "", timeout: float = 30.0
) -> Path:
    """Downloads a file, unless it is there already.

    It arrives as ``<path>.part`` under a lock and takes its name when it is complete and its hash agrees. An
    interrupted download with a known hash goes on where it stopped; others start again. Nothing is asked;
    progress goes to standard error if that is a terminal.

    Args:
        url: ``https://...`` (or any scheme of :mod:`urllib`).
        path: Where it goes. An existing file is returned as it is, unread.
        sha256: The expected hash, 64 hex digits.
        hint: Ends the error message: what to do without a network.
        timeout: Seconds without an answer that end an attempt.

    Raises:
        UserError: No network, an answer other than the file, a wrong hash, or an unwritable folder.
    """
    target = Path(path)
    if target.is_file():
        return target
    make_folder(target.parent)
    part = target.with_name(target.name + ".part")
    with lock(target.with_name(f".{target.name}.lock"), timeout=3600.0):
        if target.is_file():  # another process was faster
            return target
        if sha256 is None:
            part.unlink(missing_ok=True)
        try:
            resumed = _download(url, part, timeout)
            if sha256 is not None and resumed and _hash(part) != sha256:
                part.unlink()  # the remains were of something else
                _download(url, part, timeout)
        except (OSError, HTTPException, _Stopped, ValueError) as error:
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
            advice = f"put the file at {target}" + (f" {hint}" if hint else "")
            raise UserError(f"cannot download {url} ({reason}); {advice}") from error
        if sha256 is not None and (found := _hash(part)) != sha256:
            part.unlink()
            raise UserError(
                f"{url} has the SHA-256 {found[:16]}..., not {sha256[:16]}...: not the known file"
            )
        os.replace(part, target)
        sync_folder(target.parent)
    return target


_hash = sha256  # under a name that the argument of ``fetch`` doesn't cover


def _download(url: str, part: Path, timeout: float) -> bool:
    """Appends what is missing to ``part``; returns whether it went on from an earlier attempt."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "graphkit", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is missing; the hash decides
            return True
        raise
    with answer:
        resumed = bool(have) and getattr(answer, "status", None) == 206
        size = answer.headers.get("Content-Length")
        total = int(size) + (have if resumed else 0) if size else None
        with open(part, "ab" if resumed else "wb") as file:
            _copy(answer, file, have if resumed else 0, total, part.name.removesuffix(".part"))
            file.flush()
            os.fsync(file.fileno())
            if total is not None and file.tell() != total:
                raise _Stopped(f"{file.tell()} of {total} bytes came")
    return resumed


def _copy(source: Any, file: IO[bytes], done: int, total: int | None, name: str) -> None:
    """Copies a stream, with a line of progress twice a second on a terminal."""
    show = sys.stderr.isatty()
    shown = 0.0
    while chunk := source.read(_CHUNK):
        file.write(chunk)
        done += len(chunk)
        if show and time.monotonic() - shown > 0.5:
            shown = time.monotonic()
            of = f" of {total / 1e6:.1f}" if total else ""
            print(f"\r{name}: {done / 1e6:.1f}{of} MB", end="", file=sys.stderr, flush=True)
    if show and shown:
        print(f"\r{name}: {done / 1e6:.1f} MB{' ' * 16}", file=sys.stderr)
