"""Arrays and graphs on disk: the same as in memory, whole or absent, damage noticed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import warnings
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from graphkit import mapped
from graphkit.errors import UserError
from graphkit.mapped import Chunks, build_mapped_csr, map_array, open_mapped_csr
from graphkit.sampling import NeighborSampler
from graphkit.sparse import Adjacency


def random_edges(num_nodes: int, num_edges: int, seed: int = 0) -> Tensor:
    """Edges with repetitions, loops and a hub."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy((num_nodes * rng.random((2, num_edges)) ** 2).astype(np.int64))


def pieces(edges: Tensor, size: int) -> Chunks:
    return lambda: edges.split(size, dim=1)


@settings(max_examples=40)
@given(
    st.integers(1, 40),
    st.integers(0, 300),
    st.booleans(),
    st.integers(1, 70),
    st.sampled_from([4, 40, 4000]),
    st.integers(0, 10**6),
)
def test_equals_the_graph_in_memory(
    tmp_path_factory: pytest.TempPathFactory,
    n: int,
    count: int,
    undirected: bool,
    size: int,
    buffer: int,
    seed: int,
) -> None:
    edges = random_edges(n, count, seed)
    both = torch.cat([edges, edges.flip(0)], 1) if undirected else edges
    expected = Adjacency.from_edge_index(both, n)
    graph = build_mapped_csr(
        pieces(edges, size),
        n,
        tmp_path_factory.mktemp("g"),
        key="k",
        undirected=undirected,
        buffer_bytes=buffer,
    )
    assert torch.equal(graph.rowptr, expected.rowptr)
    assert torch.equal(graph.col, expected.col)
    assert graph.rowptr.dtype == torch.int64
    assert graph.col.dtype == torch.int32
    assert graph.num_cols == n
    assert graph.symmetric == undirected


def test_threads_do_not_change_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphkit.mapped.num_parts", lambda work: 3)
    edges = random_edges(300, 5000)
    graph = build_mapped_csr(pieces(edges, 999), 300, tmp_path, key="k", undirected=False)
    expected = Adjacency.from_edge_index(edges, 300)
    assert torch.equal(graph.rowptr, expected.rowptr)
    assert torch.equal(graph.col, expected.col)


def test_no_nodes_and_no_edges(tmp_path: Path) -> None:
    none = torch.empty(2, 0, dtype=torch.int64)
    for n in (0, 3):
        graph = build_mapped_csr(pieces(none, 1), n, tmp_path / str(n), key="k", undirected=True)
        assert graph.num_rows == n
        assert graph.col.numel() == 0


def test_samples_from_disk_equal_samples_from_memory(tmp_path: Path) -> None:
    edges, seeds = random_edges(500, 8000), torch.arange(0, 500, 25)
    graph = build_mapped_csr(pieces(edges, 1000), 500, tmp_path, key="k", undirected=False)
    batches = [
        NeighborSampler(g, [5, 3]).sample(seeds, 0, 0) for g in (graph, Adjacency.from_edge_index(edges, 500))
    ]
    assert torch.equal(batches[0].n_id, batches[1].n_id)
    assert torch.equal(batches[0].col, batches[1].col)


def test_is_built_once(tmp_path: Path) -> None:
    calls = []

    def chunks() -> Iterable[Tensor]:
        calls.append(1)
        return [torch.tensor([[0, 1], [1, 2]])]

    build_mapped_csr(chunks, 3, tmp_path, key="a", undirected=False)
    assert len(calls) == 2  # counting, placing
    again = build_mapped_csr(chunks, 3, tmp_path, key="a", undirected=False)
    assert len(calls) == 2
    assert torch.equal(again.col, open_mapped_csr(tmp_path, "a", verify=True).col)
    with pytest.warns(UserWarning, match="another graph.*replaced"):
        build_mapped_csr(chunks, 3, tmp_path, key="b", undirected=True)
    assert open_mapped_csr(tmp_path, "b").col.numel() == 4
    with pytest.raises(UserError, match="another graph"):
        open_mapped_csr(tmp_path, "a")


def test_a_map_in_use_survives_a_rebuild(tmp_path: Path) -> None:
    old = build_mapped_csr(pieces(torch.tensor([[0], [1]]), 1), 2, tmp_path, key="a", undirected=False)
    with pytest.warns(UserWarning, match="replaced"):
        build_mapped_csr(pieces(torch.tensor([[1], [0]]), 1), 2, tmp_path, key="b", undirected=False)
    assert old.rowptr.tolist() == [0, 0, 1]
    assert old.col.tolist() == [0]


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterable[Tensor]:
        yield torch.tensor([[0], [1]])
        raise RuntimeError("the download stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        build_mapped_csr(broken, 2, tmp_path, key="k", undirected=False)
    assert [p.name for p in tmp_path.iterdir()] == [".csr.lock"]
    with pytest.raises(UserError, match="no finished graph"):
        open_mapped_csr(tmp_path, "k")


def die(*args: object, **kwargs: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("moment", ["sorting", "names", "manifest"])
def test_a_killed_build_is_not_taken_for_a_finished_one(tmp_path: Path, moment: str) -> None:
    chunks = pieces(torch.tensor([[0, 1], [1, 2]]), 1)
    build_mapped_csr(pieces(torch.tensor([[2], [0]]), 1), 3, tmp_path, key="old", undirected=False)
    child = os.fork()
    if not child:
        try:
            publish = mapped._ArrayFile.publish
            if moment == "names":
                mapped._ArrayFile.publish = lambda self: (publish(self), die())  # type: ignore[method-assign]
            if moment == "manifest":
                mapped.atomic_write = die  # type: ignore[assignment]
            report = die if moment == "sorting" else None
            build_mapped_csr(chunks, 3, tmp_path, key="new", undirected=True, report=report)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    with pytest.raises(UserError):
        open_mapped_csr(tmp_path, "new")
    if moment == "sorting":
        assert open_mapped_csr(tmp_path, "old", verify=True).col.tolist() == [2]
    build_mapped_csr(chunks, 3, tmp_path, key="new", undirected=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".csr.lock", "col.npy", "csr.json", "rowptr.npy"]
    assert open_mapped_csr(tmp_path, "new", verify=True).col.tolist() == [1, 0, 2, 1]


def damage_manifest(folder: Path) -> None:
    path = folder / "csr.json"
    path.write_text(path.read_text().replace('"num_nodes": 3', '"num_nodes": 2'))


def cut_manifest(folder: Path) -> None:
    path = folder / "csr.json"
    path.write_text(path.read_text()[:40])


def cut_entries(folder: Path) -> None:
    os.truncate(folder / "col.npy", os.path.getsize(folder / "col.npy") - 4)


def remove_rows(folder: Path) -> None:
    (folder / "rowptr.npy").unlink()


def swap_shape(folder: Path) -> None:
    """A manifest that vouches for files of another graph."""
    path = folder / "csr.json"
    facts = json.loads(path.read_text())
    del facts["self"]
    facts["num_entries"] += 1
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({"self": digest, **facts}))


@pytest.mark.parametrize("damage", [damage_manifest, cut_manifest, cut_entries, remove_rows, swap_shape])
def test_damage_is_noticed_and_mended(tmp_path: Path, damage: object) -> None:
    chunks = pieces(torch.tensor([[0, 1], [1, 2]]), 5)
    build_mapped_csr(chunks, 3, tmp_path, key="k", undirected=False)
    damage(tmp_path)  # type: ignore[operator]
    with pytest.raises(UserError, match=r"damaged|can't be read|fit together"):
        open_mapped_csr(tmp_path, "k")
    with pytest.warns(UserWarning, match="replaced"):
        built = build_mapped_csr(chunks, 3, tmp_path, key="k", undirected=False)
    assert built.col.tolist() == [0, 1]


def test_a_changed_byte_is_found_by_verifying(tmp_path: Path) -> None:
    build_mapped_csr(pieces(torch.tensor([[0, 1], [1, 2]]), 5), 3, tmp_path, key="k", undirected=False)
    content = bytearray((tmp_path / "col.npy").read_bytes())
    content[-4] ^= 1
    (tmp_path / "col.npy").write_bytes(content)
    open_mapped_csr(tmp_path, "k")
    with pytest.raises(UserError, match="hash"):
        open_mapped_csr(tmp_path, "k", verify=True)


def test_bad_edges_are_refused(tmp_path: Path) -> None:
    def build(chunks: Chunks, nodes: int = 3) -> None:
        build_mapped_csr(chunks, nodes, tmp_path, key="k", undirected=True)

    for bad in ([[0], [3]], [[-1], [0]], [[7], [7]]):
        with pytest.raises(ValueError, match="outside"):
            build(pieces(torch.tensor(bad), 1))
    with pytest.raises(ValueError, match="a chunk is"):
        build(pieces(torch.zeros(2, 1, dtype=torch.int32), 1))
    with pytest.raises(ValueError, match="a chunk is"):
        build(pieces(torch.zeros(3, 1, dtype=torch.int64), 1))
    with pytest.raises(ValueError, match="num_nodes is"):
        build(pieces(torch.zeros(2, 1, dtype=torch.int64), 1), 2**31)
    with pytest.raises(ValueError, match="buffer_bytes is"):
        build_mapped_csr(lambda: [], 3, tmp_path, key="k", undirected=True, buffer_bytes=0)


@pytest.mark.parametrize(
    "later", [[[0, 1], [1, 1]], [[0, 2, 1], [1, 1, 0]], [[0], [1]], [[1, 2], [2, 5]], [[-4, 9], [9, -4]]]
)
def test_edges_that_change_between_calls_are_refused(tmp_path: Path, later: list[list[int]]) -> None:
    calls = iter([torch.tensor([[0, 1], [1, 2]]), torch.tensor(later)])
    with pytest.raises(ValueError, match="same each time"):
        build_mapped_csr(lambda: [next(calls)], 3, tmp_path, key="k", undirected=True)


def test_progress_is_reported(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    build_mapped_csr(
        pieces(random_edges(20, 100), 60),
        20,
        tmp_path,
        key="k",
        undirected=False,
        report=lambda *facts: told.append(facts),
        buffer_bytes=200,
    )
    assert told[:2] == [("counting edges", 60, 0), ("counting edges", 100, 0)]
    passes = [what for what, done, total in told[2:] if (done, total) == (100, 100)]
    assert len(passes) > 1
    assert passes[0] == f"sorting rows, pass 1 of {len(passes)}"


def test_progress_is_logged_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = iter(range(0, 1000, 6))
    monkeypatch.setattr(mapped, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    report = mapped._logged(interval=10)
    with caplog.at_level("INFO", logger="graphkit"):
        for done in (1_000_000, 2_000_000, 3_000_000):
            report("counting edges", done, 0)
        report("sorting rows", 3_000_000, 4_000_000)
    assert caplog.messages == ["counting edges: 2 million", "sorting rows: 3 of 4 million"]


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        build_mapped_csr(lambda: [], 3, tmp_path / "file", key="k", undirected=True)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.float32, np.float16, np.uint8, np.bool_])
@pytest.mark.parametrize("shape", [(7,), (3, 5), (0, 4), ()])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_mapped_array_equals_the_saved_one(
    tmp_path: Path, dtype: type, shape: tuple[int, ...], order: str
) -> None:
    array = np.asarray(np.arange(int(np.prod(shape))).reshape(shape).astype(dtype), order=order)  # type: ignore[call-overload]
    np.save(tmp_path / "a.npy", array)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph = map_array(tmp_path / "a.npy")
    assert torch.equal(graph, torch.from_numpy(array))
    assert graph.dtype == torch.from_numpy(array).dtype


def test_writing_to_a_map_leaves_the_file_alone(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(5))
    graph = map_array(tmp_path / "a.npy")
    graph.add_(1)
    assert graph.tolist() == [1, 2, 3, 4, 5]
    assert np.load(tmp_path / "a.npy").tolist() == [0, 1, 2, 3, 4]


def test_a_file_may_be_larger_than_memory(tmp_path: Path) -> None:
    size = 1 << 42  # 4 TiB, none of which is written
    path = tmp_path / "large.npy"
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (size,)})
        start = file.tell()
    try:
        os.truncate(path, start + size)
    except OSError:
        pytest.skip("this file system has no files of that size")
    graph = map_array(path)
    assert graph.numel() == size
    assert graph[[0, size // 2, size - 1]].tolist() == [0, 0, 0]


def test_files_that_are_no_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "cut.npy", np.arange(9))
    os.truncate(tmp_path / "cut.npy", 150)
    with pytest.raises(UserError, match="cut short"):
        map_array(tmp_path / "cut.npy")
    with pytest.raises(UserError, match="cannot map"):
        map_array(tmp_path / "absent.npy")
    (tmp_path / "text.npy").write_text("not an array at all")
    np.save(tmp_path / "names.npy", np.array(["a", "b"]))
    np.save(tmp_path / "objects.npy", np.array([{}, None], dtype=object))
    np.save(tmp_path / "swapped.npy", np.arange(3).astype(">i8"))
    for name in ("text", "names", "objects", "swapped"):
        with pytest.raises(UserError, match="no array that can be mapped"):
            map_array(tmp_path / f"{name}.npy")
