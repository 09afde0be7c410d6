"""Flat arrays of graphs: checks, texts, archives of raw files, and pickles that can't run anything."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given
from hypothesis import strategies as st

from graphkit.datasets.archives import raw_files
from graphkit.datasets.graph_sets import Texts, check_graphs, index_type, join_texts, pointer, with_inverse
from graphkit.datasets.pickles import SparseParts, read_pickle, read_tensors
from graphkit.errors import UserError

LINE = st.text(st.characters(exclude_characters="\n", exclude_categories=("Cs",)), max_size=8)


# --- Flat arrays ---


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=8))
def test_the_inverse_follows_each_edge(edges: list[tuple[int, int]]) -> None:
    both = with_inverse(np.array(edges, dtype=np.int16).reshape(-1, 2).T)
    assert both.T.tolist() == [list(pair) for a, b in edges for pair in ((a, b), (b, a))]
    assert both.dtype == np.int16


@pytest.mark.parametrize(
    ("limit", "kind"), [(0, "i1"), (128, "i1"), (129, "i2"), (32769, "i4"), (2**31 + 1, "i8")]
)
def test_ids_take_as_little_room_as_they_can(limit: int, kind: str) -> None:
    assert index_type(limit) == np.dtype(kind)


@given(st.lists(LINE, max_size=6))
def test_texts_come_back_from_bytes(texts: list[str]) -> None:
    found = Texts(torch.from_numpy(join_texts(texts).copy()))
    assert list(found) == texts
    assert found[1:] == texts[1:]
    assert len(found) == len(texts)
    if texts:
        assert found[-1] == texts[-1]
    for wrong in (len(texts), -len(texts) - 1):
        with pytest.raises(IndexError):
            found[wrong]


def test_a_text_is_one_line() -> None:
    with pytest.raises(ValueError, match="line break"):
        join_texts(["C\nC"])


def flat() -> dict[str, Any]:
    """Two graphs of 2 and 3 nodes."""
    return {
        "ptr": pointer([2, 3]),
        "edge_ptr": pointer([1, 2]),
        "edge_index": np.array([[0, 0, 2], [1, 1, 0]]),
        "x": np.array([[0], [1], [2], [0], [1]]),
        "edge_attr": np.array([[0.5], [1.0], [2.0]]),
    }


def test_sound_arrays_pass() -> None:
    check_graphs("f", flat(), (3,), None)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ptr", pointer([2, 4]), "f: the graphs' nodes don't add up: 6 of 5"),
        ("edge_ptr", pointer([1, 1]), "f: the graphs' edges don't add up: 2 of 3"),
        ("edge_ptr", pointer([4, -1]), "the graphs' edges don't add up"),
        ("ptr", pointer([2, 2, 1]), "f: 3 graphs by nodes, 2 by edges"),
        ("edge_index", np.array([[0, 0, 3], [1, 1, 0]]), r"f: graph 1 has 3 nodes, and an edge \[3, 0\]"),
        ("edge_index", np.array([[2, 0, 2], [1, 1, 0]]), r"f: graph 0 has 2 nodes, and an edge \[2, 1\]"),
        ("edge_index", np.array([[0, 0, -1], [1, 1, 0]]), r"f: graph 1 has 3 nodes, and an edge \[-1, 0\]"),
        ("x", np.array([[0], [1], [3], [0], [1]]), "f: column 0 of x holds 3; known are 0 to 2"),
        ("x", np.array([[0], [1], [-3], [0], [1]]), "f: column 0 of x holds -3; known are 0 to 2"),
        ("x", np.zeros((5, 2), dtype=int), r"f: x has shape \[5, 2\]; 1 columns were expected"),
        ("edge_attr", np.array([[0.5], [np.inf], [1]]), "f: edge_attr holds values that aren't finite"),
    ],
)
def test_wrong_arrays_are_named(name: str, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_graphs("f", {**flat(), name: value}, (3,), None)


# --- Archives ---


def archive(**files: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name, content in files.items():
            file.writestr(f"top/../deep/{name}", content)
    return out.getvalue()


def test_files_in_place_come_first(tmp_path: Path) -> None:
    for folder in ("b", "c"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.txt").write_text(folder)
    (tmp_path / "b" / "y.txt").write_text("b")
    folders = [tmp_path / name for name in ("a", "c", "b")]
    found = raw_files(folders, ["x.txt", "y.txt"], "http://127.0.0.1:9", "z.zip")
    assert found == [tmp_path / "b" / "x.txt", tmp_path / "b" / "y.txt"]
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("place", ["home", "home/raw", "fetched"])
def test_an_archive_is_unpacked_without_its_folders(tmp_path: Path, place: str) -> None:
    home = tmp_path / "home" / "raw"
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    at = tmp_path / place / "z.zip"
    at.write_bytes(archive(**{"x.txt": b"1", "y.txt": b"2", "other": b"3"}))
    for _ in range(2):
        found = raw_files([home], ["x.txt"], at.as_uri(), "z.zip", optional=["y.txt", "absent"])
        assert found == [home / "x.txt"]
    assert (home / "y.txt").read_bytes() == b"2"
    names = {path.name for path in home.iterdir() if path.name[0] != "."}
    assert names == {"x.txt", "y.txt"} | ({"z.zip"} if place == "home/raw" else set())
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize("damage", ["no zip", "cut", "flipped", "else"])
def test_a_bad_archive_is_named_and_leaves_nothing(tmp_path: Path, damage: str) -> None:
    whole = archive(**{"x.txt": b"contents" * 20})
    content = {
        "no zip": b"<html>",
        "cut": whole[:60],
        "flipped": whole.replace(b"contentsc", b"contantsc", 1),
        "else": archive(y=b""),
    }
    (tmp_path / "z.zip").write_bytes(content[damage])
    with pytest.raises(UserError, match=r"z.zip (is damaged|holds no x.txt)") as caught:
        raw_files([tmp_path / "raw"], ["x.txt"], "http://127.0.0.1:9", "z.zip")
    assert "\n" not in str(caught.value)
    assert [path.name for path in (tmp_path / "raw").iterdir()] == [".fetch.lock"]


def test_without_network_the_files_and_their_place_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        raw_files([tmp_path / "raw"], ["x", "y"], "http://127.0.0.1:9/z", "z.zip", hint="do without")
    text = str(caught.value)
    assert "\n" not in text
    assert (
        f"put the file at {tmp_path}/raw/z.zip or unpack it, so that {tmp_path}/raw holds x, y; do without"
        in text
    )


# --- Pickles ---


def test_plain_data_is_read(tmp_path: Path) -> None:
    matrix = scipy.sparse.coo_matrix(np.array([[1.0, 1.0], [0.0, 1.0]]))
    data = {
        "a": np.arange(3),
        "b": [torch.arange(4).view(2, 2), 1.5, None],
        "c": OrderedDict(x=np.float32(2)),
    }
    for protocol in (2, 4):
        (tmp_path / "p").write_bytes(pickle.dumps({**data, "m": [matrix]}, protocol))
        found = read_pickle(tmp_path / "p")
        assert found["a"].tolist() == [0, 1, 2]
        assert found["b"][0].tolist() == [[0, 1], [2, 3]]
        assert found["b"][1:] == [1.5, None]
        assert found["c"]["x"] == 2
        assert isinstance(found["m"][0], SparseParts)
        row, column, size = found["m"][0].coordinates()
        assert (row.tolist(), column.tolist(), size) == ([0, 0, 1], [0, 1, 1], 2)


class Evil:
    """What runs a function when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_nothing_in_a_pickle_is_run(tmp_path: Path) -> None:
    evil = [Evil(tmp_path / "ran")]
    (tmp_path / "p").write_bytes(pickle.dumps(evil))
    with pytest.raises(UserError, match=r"p is damaged or no pickle of data: it asks for .*mkdir"):
        read_pickle(tmp_path / "p")
    torch.save(evil, tmp_path / "t")
    with pytest.raises(UserError, match="t is damaged or no file of tensors"):
        read_tensors(tmp_path / "t")
    storage = io.BytesIO()
    torch.save(evil, storage, _use_new_zipfile_serialization=False)
    assert read_bytes(tmp_path, pickle.dumps(torch.arange(2))).tolist() == [0, 1]
    call = b"\x80\x02ctorch.storage\n_load_from_bytes\nB" + len(storage.getvalue()).to_bytes(4, "little")
    with pytest.raises(UserError, match="damaged"):
        read_bytes(tmp_path, call + storage.getvalue() + b"\x85R.")
    assert not (tmp_path / "ran").exists()


def read_bytes(folder: Path, content: bytes) -> Any:
    (folder / "bytes").write_bytes(content)
    return read_pickle(folder / "bytes")


@pytest.mark.parametrize("read", [read_pickle, read_tensors])
def test_damaged_and_missing_files_are_named(tmp_path: Path, read: Any) -> None:
    whole = pickle.dumps(np.arange(100), 2)
    for content in (b"", whole[: len(whole) // 2], b"<html>"):
        (tmp_path / "p").write_bytes(content)
        with pytest.raises(UserError, match=r"p is damaged") as caught:
            read(tmp_path / "p")
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"cannot read .*absent"):
        read(tmp_path / "absent")


def test_a_sparse_matrix_out_of_range_is_refused() -> None:
    for parts in (
        {"row": [0, 2], "col": [0, 1], "_shape": (2, 2)},
        {"row": [0, -1], "col": [0, 1], "_shape": (2, 2)},
        {"row": [0], "col": [0, 1], "_shape": (2, 2)},
        {"row": [0], "col": [0], "_shape": (2, 3)},
        {"row": [0.5], "col": [0], "_shape": (2, 2)},
    ):
        matrix = SparseParts()
        matrix.__dict__.update(parts)
        with pytest.raises(ValueError, match="sparse matrix"):
            matrix.coordinates()
