"""From a configuration to benchmark, task and model; embeddings that follow the graph."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from graphkit.data import Benchmark, DataSpec
from graphkit.errors import UserError
from graphkit.experiment import build, choose_task, place_embeddings, sizes_from_data
from graphkit.nn.embedding import EmbeddingConfig, make_embedding
from graphkit.parsing import resolve
from graphkit.partition import hierarchical_order
from graphkit.registry import DATASETS, MODELS
from graphkit.sparse import Adjacency
from graphkit.testing import tiny_graph

NODES = 24


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def benchmark(*, rows: bool = False) -> Benchmark:
    data = tiny_graph(NODES, 60)
    graph = Adjacency.from_edge_index(data.edge_index, NODES) if rows else None
    content = Data(num_nodes=NODES) if rows else data
    spec = DataSpec(NODES, None, 3)
    return Benchmark("tiny", "node", content, {}, spec, "accuracy", True, dict, adjacency=graph)


def embedding(num: int = NODES, **options: Any) -> nn.Module:
    config = EmbeddingConfig(**{"kind": "tensor_train", "dim": 8, "rank": 2, **options})
    return make_embedding(config, num, 8)


def placed(made: nn.Module, folder: Path, seed: int = 0, rows: bool = False) -> Tensor | None:
    place_embeddings(nn.ModuleDict({"inner": made}), benchmark(rows=rows), seed, folder)
    return made.position


# --- Places of embeddings ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("order", ["hierarchical", "one_level", "random"])
def test_embedding_gets_the_order_that_it_was_configured_with(tmp_path: Path, order: Any, rows: bool) -> None:
    made = embedding(order=order)
    expected = hierarchical_order(benchmark().data.edge_index, NODES, made.row_factors, method=order, seed=5)
    assert torch.equal(placed(made, tmp_path, seed=5, rows=rows).long(), expected.long())


def test_order_is_computed_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = placed(embedding(), tmp_path)
    assert list(tmp_path.iterdir()) != []
    monkeypatch.setattr("graphkit.partition.hierarchical_order", None)
    assert torch.equal(placed(embedding(), tmp_path), first)


def test_order_has_the_runs_seed_unless_it_has_its_own(tmp_path: Path) -> None:
    assert not torch.equal(
        placed(embedding(order="random"), tmp_path, 0), placed(embedding(order="random"), tmp_path, 1)
    )
    fixed = {"order": "random", "order_seed": 3}
    assert torch.equal(placed(embedding(**fixed), tmp_path, 0), placed(embedding(**fixed), tmp_path, 1))


def test_order_of_ids_and_tables_of_another_size_are_left_alone(tmp_path: Path) -> None:
    assert placed(embedding(order="identity"), tmp_path) is None
    assert placed(embedding(NODES + 1), tmp_path) is None
    assert placed(embedding(kind="dense"), tmp_path) is None


def test_start_that_can_not_be_computed_is_told_in_one_line(tmp_path: Path) -> None:
    made = make_embedding(EmbeddingConfig(kind="dense", dim=NODES, init="spectral"), NODES, NODES)
    with pytest.raises(UserError, match="embedding: init spectral needs a width below the number of nodes"):
        placed(made, tmp_path)


def test_model_without_embeddings_needs_no_graph(tmp_path: Path) -> None:
    place_embeddings(nn.Linear(2, 2), benchmark(), 0, tmp_path / "orders")
    assert list(tmp_path.iterdir()) == []


# --- All of it ---------------------------------------------------------------------------------------------

FLAGS = ["--model.hidden_channels", "8", "--data.k", "3"]
TT = ["--model.embedding.dim", "8", "--model.embedding.rank", "2"]


@pytest.mark.parametrize(("model", "flags"), [("gcn", []), ("tt-gnn", TT)])
def test_renumbered_task_gives_the_same_logits(model: str, flags: list[str], tmp_path: Path) -> None:
    found = []
    for reorder in ("false", "true"):
        config = resolve(model, "digits", [*FLAGS, *flags, "--task.reorder", reorder])
        made = build(config, data_root=tmp_path)
        assert (made.task._old is not None) == (reorder == "true")
        found.append(made.task.logits(made.model, torch.arange(200)))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)


def test_built_twice_is_the_same_model_at_the_same_places(tmp_path: Path) -> None:
    config = resolve("tt-gnn", "digits", [*FLAGS, *TT])
    first, second = (build(config, data_root=tmp_path / name).model.state_dict() for name in "ab")
    assert first.keys() == second.keys()
    assert "embedding.position" in first
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--task.target_share", "0"], r"task 'node': task.target_share is 0.0; it must lie in \(0, 1\]"),
        (["--task.fanouts", "[0, 1]"], r"task 'node': fanouts is \[0, 1\]"),
        (["--model.jumping", "true"], "model 'gcn': jumping needs linear_head"),
    ],
)
def test_argument_out_of_range_is_a_users_error(flags: list[str], message: str, tmp_path: Path) -> None:
    config = resolve("gcn", "digits", [*FLAGS, *flags])
    with pytest.raises(UserError, match=message):
        build(config, data_root=tmp_path)


def test_task_is_one_that_model_and_data_set_share() -> None:
    digits = DATASETS.get("digits")
    assert choose_task(MODELS.get("ncn"), digits) == "link"
    assert choose_task(MODELS.get("gcn"), digits) == "node"
    with pytest.raises(UserError, match="model 'gcn' is for node prediction; data set 'digits' serves link"):
        choose_task(MODELS.get("gcn"), digits, "link")


def test_sizes_that_the_data_decides() -> None:
    assert sizes_from_data(MODELS.get("gcn")) == ["in_channels", "num_classes", "num_nodes"]
    assert sizes_from_data(MODELS.get("tt-gnn")) == ["num_classes", "num_nodes"]


def without_metis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymetis", None)


def test_an_order_is_not_needed_where_stored_weights_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = resolve("tt-gnn", "digits", [*FLAGS, *TT, "--task.reorder", "true"])
    state = build(config, data_root=tmp_path / "a").model.state_dict()
    without_metis(monkeypatch)
    made = build(config, data_root=tmp_path / "b", orders=False)
    made.model.load_state_dict(state)
    assert torch.equal(made.model.embedding.position, state["embedding.position"])


@pytest.mark.parametrize(
    ("model", "flags", "advice"),
    [
        ("tt-gnn", TT, "take --model.embedding.order random, or identity"),
        ("gcn", ["--task.reorder", "true"], "leave task.reorder and task.cluster at their defaults"),
    ],
)
def test_without_metis_a_line_says_what_goes_without(
    model: str, flags: list[str], advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_metis(monkeypatch)
    with pytest.raises(
        UserError, match=f"need METIS, which isn't installed: pip install pymetis; or {advice}"
    ):
        build(resolve(model, "digits", [*FLAGS, *flags]), data_root=tmp_path)


def test_the_task_takes_the_order_of_an_embedding_that_follows_the_graph(tmp_path: Path) -> None:
    cluster = ["--task.fanouts", "[2, 2]", "--task.cluster", "4"]
    made = build(resolve("tt-gnn", "digits", [*FLAGS, *TT, *cluster]), data_root=tmp_path)
    assert torch.equal(made.task._position, made.model.embedding.position.long())
    flags = [*FLAGS, *TT, *cluster, "--model.embedding.order", "random"]
    made = build(resolve("tt-gnn", "digits", flags), data_root=tmp_path)
    assert not torch.equal(made.task._position, made.model.embedding.position.long())
