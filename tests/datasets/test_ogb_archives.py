"""OGB's archives: fetched or in place, unpacked whole or not at all, and never outside of their folder."""

from __future__ import annotations

import io
import multiprocessing
import shutil
import stat
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from graphkit.data import Benchmark, load_dataset
from graphkit.datasets import ogb_raw
from graphkit.datasets.ogb import ARXIV, PRODUCTS, PROTEINS, read_csv_benchmark
from graphkit.datasets.ogb_mag import MAG
from graphkit.datasets.ogb_papers import PAPERS
from graphkit.datasets.ogb_raw import Source
from graphkit.errors import UserError

NODES = 30  # as in conftest.py
SOURCES = (ARXIV, PRODUCTS, PROTEINS, PAPERS, MAG)


def arxiv(root: Path, *, features: bool = True, undirected: bool = True, mapped: bool = False) -> Benchmark:
    return read_csv_benchmark(ARXIV, root, features, undirected, None, mapped=mapped)


def zipped(home: Path, top: str) -> bytes:
    """Packs ``raw`` and ``split`` as OGB does, under one folder."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(f"{top}/RELEASE_v1.txt", "release")
        for path in sorted(home.rglob("*.gz")):
            archive.write(path, f"{top}/{path.relative_to(home)}")
    return out.getvalue()


@pytest.fixture
def packed(tiny_ogb: Any, tmp_path: Path) -> bytes:
    """A tiny archive of ogbn-arxiv."""
    tiny_ogb.write(tmp_path / "made")
    content = zipped(tmp_path / "made", "arxiv")
    shutil.rmtree(tmp_path / "made")
    return content


def test_an_archive_is_fetched_and_unpacked(
    tmp_path: Path, packed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "arxiv.zip").write_bytes(packed)
    monkeypatch.setattr(ogb_raw, "URL", tmp_path.as_uri())
    root = tmp_path / "root"
    assert arxiv(root).data.num_nodes == NODES
    assert {p.name for p in (root / "ogbn_arxiv").iterdir() if p.name[0] != "."} == {
        *("raw", "split", "processed", "RELEASE_v1.txt")
    }
    monkeypatch.setattr(ogb_raw, "URL", "http://127.0.0.1:9")
    assert arxiv(root).data.num_nodes == NODES


@pytest.mark.parametrize("place", [".", "ogbn_arxiv", "ogb"])
def test_an_archive_in_place_is_used_and_kept(tmp_path: Path, packed: bytes, place: str) -> None:
    path = tmp_path / place / "arxiv.zip"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(packed)
    assert arxiv(tmp_path).info["raw"] == str(tmp_path / "ogbn_arxiv" / "raw")
    assert path.read_bytes() == packed


def test_files_in_place_are_never_replaced(tmp_path: Path, packed: bytes) -> None:
    home = tmp_path / "ogbn_arxiv"
    (home / "raw").mkdir(parents=True)  # an empty one is in nobody's way
    (home / ".unpack-killed").mkdir()
    (home / "RELEASE_v1.txt").write_text("mine")
    (home / "arxiv.zip").write_bytes(packed)
    assert arxiv(tmp_path).data.num_nodes == NODES
    assert (home / "RELEASE_v1.txt").read_text() == "mine"
    assert not list(home.glob(".unpack-*"))
    for path in (home / "raw").iterdir():
        if path.name != "node-feat.csv.gz":
            path.unlink()
    with pytest.raises(UserError, match=r"raw has none of edge.csv.gz, .*: complete it, or move it away"):
        arxiv(tmp_path)
    assert (home / "raw" / "node-feat.csv.gz").exists()


@pytest.mark.parametrize("name", ["../outside", "arxiv/../../outside", "/outside", "C:\\outside", "arxiv\\x"])
def test_an_archive_that_reaches_outside_is_refused(tmp_path: Path, packed: bytes, name: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "arxiv.zip").write_bytes(packed)
    with zipfile.ZipFile(root / "arxiv.zip", "a") as archive:
        archive.writestr(zipfile.ZipInfo(name), "x")
    with pytest.raises(UserError, match="is refused: its entry"):
        arxiv(root)
    assert not list(tmp_path.rglob("outside"))
    assert not (root / "ogbn_arxiv" / "raw").exists()


def test_an_archive_with_a_link_is_refused(tmp_path: Path, packed: bytes) -> None:
    (tmp_path / "arxiv.zip").write_bytes(packed)
    with zipfile.ZipFile(tmp_path / "arxiv.zip", "a") as archive:
        link = zipfile.ZipInfo("arxiv/raw/link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc")
    with pytest.raises(UserError, match="its entry 'arxiv/raw/link' is no plain file"):
        arxiv(tmp_path)


@pytest.mark.parametrize("damage", ["no zip", "cut", "flipped", "other folder", "two folders"])
def test_a_bad_archive_leaves_nothing(tmp_path: Path, packed: bytes, damage: str) -> None:
    content = bytearray(packed)
    if damage == "no zip":
        content = bytearray(b"<html>")
    elif damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        content[packed.index(b"edge.csv.gz") + 60] ^= 0xFF
    elif damage == "other folder":
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr("something/else", "x")
        content = bytearray(out.getvalue())
    (tmp_path / "arxiv.zip").write_bytes(content)
    if damage == "two folders":
        with zipfile.ZipFile(tmp_path / "arxiv.zip", "a") as archive:
            archive.writestr("other/raw/edge.csv.gz", "x")
    with pytest.raises(UserError, match=r"arxiv.zip (is damaged|isn't an archive of OGB)") as caught:
        arxiv(tmp_path)
    assert "\n" not in str(caught.value)
    assert [p.name for p in (tmp_path / "ogbn_arxiv").iterdir()] == [".fetch.lock"]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_offline_is_one_clear_line(tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    assert source.url.startswith("https://snap.stanford.edu/ogb/data/nodeproppred/")
    monkeypatch.setattr(ogb_raw, "URL", "http://127.0.0.1:9")
    with pytest.raises(UserError) as caught:
        load_dataset(source.name, root=tmp_path)
    text, home = str(caught.value), tmp_path / source.folder
    assert "\n" not in text
    assert f"put the file at {home}/{source.archive}.zip or unpack it, so that {home}/raw and" in text
    assert "'cora' (task node) is small, and 'digits' needs no download" in text
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and not p.name.startswith(".")]


def load_once(root: Path, start: Any, out: Any) -> None:
    torch.set_num_threads(1)  # a forked process has no thread pool
    start.wait()
    out.put(int(arxiv(root, mapped=True).data.edge_index.sum()))


def test_two_processes_at_once(tmp_path: Path, packed: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "arxiv.zip").write_bytes(packed)
    monkeypatch.setattr(ogb_raw, "URL", tmp_path.as_uri())
    context = multiprocessing.get_context("fork")
    start, out = context.Barrier(2), context.Queue()
    workers = [context.Process(target=load_once, args=(tmp_path / "root", start, out)) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert out.get(timeout=60) == out.get(timeout=60)
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert not list((tmp_path / "root").rglob("*.tmp"))
