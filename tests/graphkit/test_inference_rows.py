"""Runs of partitioned tables, opened in one process: mapped, not copied, and written out by id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from torch import Tensor, nn

import graphkit
from graphkit import testing
from graphkit.commands.export import export, plain_weights
from graphkit.distributed.embedding import PartitionedEmbedding
from graphkit.distributed.mapped import MappedEmbedding
from graphkit.errors import UserError
from graphkit.experiment import build
from graphkit.inference import _put_in
from graphkit.nn.embedding import DenseEmbedding, TTEmbedding
from graphkit.nn.embedding.elsewhere import table_device, without_tables
from graphkit.parsing import resolve
from graphkit.run import Run
from graphkit.train.checkpoint import CheckpointStore, Snapshot, open_best
from graphkit.train.sharded import partitioned_parameters
from graphkit.train.streaming import Streamed, stream_tensors
from graphkit.train.tensors import load_tensors

FLAGS = [
    *("--model.hidden_channels", "8", "--model.embedding.kind", "dense", "--model.embedding.dim", "4"),
    *("--model.embedding.partitioned", "true"),
]


class Model(nn.Module):
    """A table and a layer, as many models have them."""

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"table": embedding})
        self.head = nn.Linear(4, 2)


def order(rows: int) -> Tensor:
    return torch.randperm(rows, generator=torch.Generator().manual_seed(1))


def partitioned(assignment: str, rows: int = 11) -> PartitionedEmbedding:
    made = PartitionedEmbedding(rows, 4, assignment=assignment)
    if assignment == "partition":
        made.set_order(order(rows))
    made.set_table_(torch.arange(rows * 4.0).reshape(rows, 4))
    return made


def snapshot(model: nn.Module) -> Snapshot:
    state = {"state": {}, "position": 0}
    ranges = partitioned_parameters(model)
    return Snapshot(model.state_dict(), None, state, {}, model.state_dict(), True, ranges)


def saved(world: int, folder: Path, make: Any) -> CheckpointStore:
    def work(rank: int) -> None:
        torch.manual_seed(3)
        CheckpointStore(folder / "checkpoints").save(snapshot(make()), 1)

    if world == 1:
        work(0)
    else:
        assert testing.on_ranks(world, work, folder) == [0] * world
    return CheckpointStore(folder / "checkpoints")


@pytest.mark.parametrize("assignment", ["blocks", "hash", "partition"])
@pytest.mark.parametrize("world", [1, 3])
def test_rows_stay_in_their_files(assignment: str, world: int, tmp_path: Path) -> None:
    store = saved(world, tmp_path, lambda: Model(partitioned(assignment)))
    with without_tables(), table_device():
        embedding = PartitionedEmbedding(11, 4, assignment=assignment)
    assert embedding.table.is_meta
    model = Model(embedding)
    best = open_best(store.folder)
    _put_in(model, best, torch.device("cpu"))
    table = model.encoder["table"]
    expected = torch.arange(44.0).reshape(11, 4)
    ids = torch.tensor([[10, 0, 3], [3, 7, 10]])
    torch.testing.assert_close(table(ids), expected[ids], rtol=0, atol=0)
    torch.testing.assert_close(table.to_dense(), expected, rtol=0, atol=0)
    assert table(ids[:0]).shape == (0, 3, 4)
    files = {part.data_ptr() for _, part, _ in best.rows["encoder.table.table"].parts}
    assert {part.data_ptr() for part in table.parameters()} == files
    assert isinstance(table, MappedEmbedding) == (world > 1)
    assert table.num_parameters == 44


def test_a_mapped_table_answers_like_the_one_it_stands_for(tmp_path: Path) -> None:
    store = saved(2, tmp_path, lambda: Model(partitioned("partition")))
    model, like = Model(partitioned("partition")), Model(partitioned("partition"))
    _put_in(model, open_best(store.folder), torch.device("cpu"))
    assert isinstance(model.encoder["table"], MappedEmbedding)
    state, expected = model.state_dict(), Model(partitioned("partition")).state_dict()
    assert state.keys() == expected.keys()
    assert torch.equal(state["encoder.table.table"], expected["encoder.table.table"])
    assert torch.equal(state["encoder.table.position"], expected["encoder.table.position"])
    assert torch.equal(model.encoder["table"].rows(2, 9), like.encoder["table"].rows(2, 9))
    with pytest.raises(IndexError, match="rows 0 to 10"):
        model.encoder["table"](torch.tensor([11]))
    with pytest.raises(RuntimeError, match="those of its files"):
        model.encoder["table"].reset_parameters()
    with pytest.raises(ValueError, match=r"together they must be \[11, 4\]"):
        MappedEmbedding(like.encoder["table"], [torch.zeros(3, 4)])


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    store = saved(2, tmp_path, lambda: Model(partitioned("blocks")))
    best = open_best(store.folder)
    with pytest.raises(RuntimeError, match=r"has shape \[11, 4\], not \[12, 4\]"):
        _put_in(Model(partitioned("blocks", 12)), best, torch.device("cpu"))
    del best.tensors["head.bias"]
    best.tensors["tail"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match=r"missing are \['head.bias'\], unexpected \['tail'\]"):
        _put_in(Model(partitioned("blocks")), best, torch.device("cpu"))


@pytest.mark.parametrize("assignment", ["blocks", "hash", "partition"])
def test_exported_rows_are_in_the_order_of_ids(assignment: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("graphkit.commands.export._ROWS", 4)
    store = saved(2, tmp_path, lambda: Model(partitioned(assignment)))
    model = Model(partitioned(assignment))
    _put_in(model, open_best(store.folder), torch.device("cpu"))
    stream_tensors(tmp_path / "w.safetensors", plain_weights(model))
    found = load_tensors(tmp_path / "w.safetensors")
    assert found.keys() == {"encoder.table.table", "head.weight", "head.bias"}
    assert torch.equal(found["encoder.table.table"], torch.arange(44.0).reshape(11, 4))
    assert torch.equal(found["head.weight"], model.head.weight)


def test_compressed_tables_are_exported_as_they_are_or_in_full(tmp_path: Path) -> None:
    embedding = TTEmbedding(11, 4, rank=2)
    embedding.set_order(torch.arange(11))
    model = Model(embedding)
    assert plain_weights(model).keys() == model.state_dict().keys()
    stream_tensors(tmp_path / "w.safetensors", plain_weights(model, dense=True))
    found = load_tensors(tmp_path / "w.safetensors")
    assert found.keys() == {"encoder.table.table", "head.weight", "head.bias"}
    assert torch.equal(found["encoder.table.table"], embedding.to_dense())
    alone = DenseEmbedding(3, 2)
    assert plain_weights(alone, dense=True).keys() == {"table"}


def test_buffers_that_are_not_saved_are_not_exported() -> None:
    model = Model(DenseEmbedding(3, 4))
    model.register_buffer("cache", torch.ones(2), persistent=False)
    model.head.register_buffer("kept", torch.ones(2))
    assert plain_weights(model).keys() == model.state_dict().keys()


def test_a_streamed_file_is_read_by_safetensors_whatever_the_types(tmp_path: Path) -> None:
    tensors = {
        "odd": torch.arange(3, dtype=torch.uint8),
        "wide": torch.randn(5, 2, dtype=torch.float64),
        "half": torch.randn(5).to(torch.bfloat16),
        "scalar": torch.tensor(7),
        "mask": torch.tensor([True, False]),
        "none": torch.empty(0, 4),
        "strided": torch.randn(4, 6).t(),
    }
    streamed = {
        name: Streamed(t.dtype, tuple(t.shape), lambda t=t: t.split(2) if t.dim() else [t])
        for name, t in tensors.items()
    }
    path = tmp_path / "new" / "t.safetensors"
    stream_tensors(path, streamed)
    with safetensors.safe_open(path, framework="pt") as file:
        assert set(file.keys()) == tensors.keys()
        for name, tensor in tensors.items():
            assert torch.equal(file.get_tensor(name), tensor), name
    assert [file.name for file in path.parent.iterdir()] == ["t.safetensors"]


@pytest.mark.parametrize(
    ("tensor", "blocks", "message"),
    [
        (torch.zeros(3), [torch.zeros(2)], "'a' has 8 bytes instead of 12"),
        (torch.zeros(3), [torch.zeros(3).double()], r"'a' has a block of torch.float64, not torch.float32"),
        (torch.zeros(3).cfloat(), [], "'a' is torch.complex64, which"),
    ],
)
def test_blocks_that_are_not_what_was_announced(
    tensor: Tensor, blocks: list[Tensor], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "t.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(UserError, match=message):
        stream_tensors(path, {"a": Streamed(tensor.dtype, tuple(tensor.shape), lambda: blocks)})
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["t.safetensors"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose partitioned table was saved by two ranks."""
    runs = tmp_path_factory.mktemp("runs")
    config = resolve("tt-gnn", "digits", FLAGS)
    run = Run.create(runs, config)

    def work(rank: int) -> None:
        made = build(config, data_root=runs)
        CheckpointStore(run.checkpoints).save(snapshot(made.model), 1)

    assert testing.on_ranks(2, work, runs) == [0, 0]
    return run.folder


def test_a_run_of_two_ranks_is_opened_and_used(folder: Path) -> None:
    predictor = graphkit.load(folder, data_root=folder.parents[1])
    assert isinstance(predictor.model.embedding, MappedEmbedding)
    assert not any(parameter.is_meta for parameter in predictor.model.parameters())
    config = resolve("tt-gnn", "digits", FLAGS)
    expected = build(config, data_root=folder.parents[1])
    assert predictor.evaluate() == expected.task.evaluate(expected.model.eval(), "test")


def test_a_run_is_exported(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "weights.safetensors"
    root = ["--data-root", str(folder.parents[1])]
    assert export([str(folder), str(path), *root]) == 0
    assert f"written to {path}" in capsys.readouterr().out
    found = load_tensors(path)
    model = graphkit.load(folder, data_root=folder.parents[1]).model
    assert torch.equal(found["embedding.table"], model.embedding.to_dense())
    with pytest.raises(UserError, match=r"the file is called weights\.bin"):
        export([str(folder), str(tmp_path / "weights.bin"), *root])
