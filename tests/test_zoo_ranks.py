"""Every trained model of the zoo on two and three ranks: what one process computes with the whole batch."""

from __future__ import annotations

import functools
import inspect
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from graphkit.config import OptimConfig, RunConfig, TrainConfig
from graphkit.data import Benchmark, DataSpec
from graphkit.evaluation import GraphEvaluator
from graphkit.evaluation.kgqa import KgqaEvaluator
from graphkit.experiment import build_model
from graphkit.graphs import collate
from graphkit.ppr import KnowledgeGraph, questions_on
from graphkit.registry import MODELS, TASKS
from graphkit.run import Run
from graphkit.tasks.base import Task
from graphkit.testing import on_ranks, tiny_graph
from graphkit.train import Stopped, Trainer, load_best

NODES, CHANNELS, SEED = 30, 4, 3
INDEX = torch.arange(NODES)
SPLITS = {"train": INDEX[:13], "valid": INDEX[13:20], "test": INDEX[20:]}


def _data() -> Data:
    data = tiny_graph(NODES, 50, CHANNELS)
    data.x = data.x.double()
    return data


def _benchmark(
    task: str, data: Data, splits: dict[str, Any], metric: str, evaluator: Any, **spec: Any
) -> Benchmark:
    return Benchmark("tiny", task, data, splits, DataSpec(**spec), metric, True, evaluator)


def node() -> Benchmark:
    data = _data()
    splits = {name: {"index": part} for name, part in SPLITS.items()}
    sizes = {"in_channels": CHANNELS, "num_nodes": NODES, "num_classes": 3}
    return _benchmark("node", data, splits, "accuracy", GraphEvaluator("classes", "accuracy"), **sizes)


def link() -> Benchmark:
    data = _data()
    edges = data.edge_index[:, data.edge_index[0] < data.edge_index[1]]
    splits = {
        name: {"pos_edge_label_index": part, "neg_edge_label_index": part.flip(0).roll(1, 1)}
        for name, part in zip(SPLITS, (edges[:, :13], edges[:, 13:20], edges[:, 20:27]), strict=True)
    }
    data.edge_index = torch.cat([edges[:, :13], edges[:, :13].flip(0)], dim=1)

    def mean_gap(positive: Tensor, negative: Tensor) -> dict[str, float]:
        return {"gap": float(positive.mean() - negative.mean())}

    return _benchmark("link", data, splits, "gap", mean_gap, in_channels=CHANNELS, num_nodes=NODES)


def graph() -> Benchmark:
    graphs = [tiny_graph(3 + k % 5, 8, CHANNELS, seed=k) for k in range(NODES)]
    for item in graphs:
        item.x = item.x.double()
        del item.y
    data = collate(graphs)
    data.y = torch.randn(NODES, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    splits = {name: {"index": part} for name, part in SPLITS.items()}
    sizes = {"in_channels": CHANNELS, "out_channels": 1}
    made = _benchmark("graph", data, splits, "mae", GraphEvaluator("regression", "mae"), **sizes)
    made.maximize, made.targets = False, "regression"
    return made


def relation() -> Benchmark:
    """Paths of two edges, whose relations add up modulo 3."""
    graphs = []
    for k in range(NODES):
        one, two = k % 3, k // 3 % 3
        item = Data(
            edge_index=torch.tensor([[0, 1], [1, 2]]), edge_type=torch.tensor([one, two]), num_nodes=3
        )
        item.source, item.target = torch.tensor([0]), torch.tensor([2])
        item.y, item.node_on_path = torch.tensor([(one + two) % 3]), torch.ones(3, dtype=torch.bool)
        graphs.append(item)
    splits = {name: {"index": part} for name, part in SPLITS.items()}
    evaluator = GraphEvaluator("classes", "accuracy")
    return _benchmark("relation", collate(graphs), splits, "accuracy", evaluator, num_relations=3)


def _facts(count: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    ends, kinds = torch.randint(NODES, (2, count), generator=draw), torch.randint(3, (count,), generator=draw)
    return torch.stack([ends[0], kinds, ends[1]]).unique(dim=1)


def kgc() -> Benchmark:
    train = _facts(13, 0)
    data = Data(edge_index=train[[0, 2]], edge_type=train[1], num_nodes=NODES)
    data.known_triple = train
    splits = {"train": {"triple": train}, "valid": {"triple": _facts(7, 1)}, "test": {"triple": _facts(8, 2)}}
    return _benchmark("kgc", data, splits, "mrr", dict, num_relations=3)


def kgqa() -> Benchmark:
    train = _facts(60, 5)
    edges, types = train[[0, 2]].contiguous(), train[1].contiguous()
    answers = [
        [int(edges[1][edges[0] == k][0])] if bool((edges[0] == k).any()) else [k] for k in range(NODES)
    ]
    asked = questions_on(
        KnowledgeGraph(edges, types, NODES), [[k] for k in range(NODES)], answers, [1] * NODES, max_entities=9
    )
    values = asked.tensors()
    data = Data(num_nodes=NODES, kg_edge_index=edges, kg_edge_type=types, **values)
    made = _benchmark(
        "kgqa",
        data,
        {name: {"index": part} for name, part in SPLITS.items()},
        "hits@1",
        KgqaEvaluator(),
        num_relations=3,
    )
    made.node_names = [f"n{k}" for k in range(NODES)]
    made.target_names = ["likes", "knows", "sees"]
    made.questions = [f"who does n{k} like" for k in range(NODES)]
    return made


MAKERS: dict[str, Callable[[], Benchmark]] = {
    "node": node,
    "link": link,
    "graph": graph,
    "relation": relation,
    "kgc": kgc,
    "kgqa": kgqa,
}
OPTIONS: dict[str, dict[str, Any]] = {"kgqa": {"encoder": "hash:16"}}
OF_TASK = {"kgc": {"inverse": True, "readout": "forward"}}
SMALL = {"hidden_channels": 8, "num_layers": 2, "layers": 2, "heads": 2, "facets": 2, "facet_channels": 3}


def _build(name: str, task: str, table: str, batch: int) -> tuple[nn.Module, Task]:
    """A small model without dropout, whose draws would differ between ranks."""
    accepted = inspect.signature(MODELS.get(name).target).parameters
    still = {key: 0.0 for key in accepted if key.endswith("dropout")}
    small = {key: value for key, value in (SMALL | OF_TASK.get(task, {})).items() if key in accepted}
    benchmark = MAKERS[task]()
    made: Task = TASKS.get(task).target(benchmark, SEED, batch, 4, "cpu", **OPTIONS.get(task, {}))
    if table:
        small["embedding"] = {"init": "gaussian", "order": "identity", **PARTITIONED[table]}
    config = RunConfig(
        model_name=name, dataset_name="tiny", task_name=task, seed=SEED, model={**small, **still}
    )
    model = build_model(config, benchmark.spec).double()
    made.prepare(model)
    return model, made


UNTRAINED = ("aa", "cn", "ra", "fingerprint")  # without parameters, or fitted without gradients
PARTITIONED: dict[str, dict[str, Any]] = {
    "partitioned rows": {"kind": "dense", "partitioned": True, "assignment": "hash"},
    "partitioned trains": {"kind": "tensor_train", "partitioned": True, "blocks": 3, "rank": 2, "dim": 8},
}
"""Tables of which each rank holds a part; the rest of the model is on all of them."""
Case = tuple[str, str, str]
TABLES: list[Case] = [("tt-gnn", "node", table) for table in PARTITIONED]
TRAINED: list[Case] = [
    *((n, task, "") for n in MODELS.names() if n not in UNTRAINED for task in MODELS.get(n).tasks),
    *TABLES,
]


CONFIG = {
    "dataset_name": "tiny",
    "seed": SEED,
    "optim": OptimConfig(name="sgd", lr=0.05, clip_norm=1.0),
    "train": TrainConfig(epochs=2, batch_size=4, eval_every=2),  # the last weights are the best
}


def _trained(case: Case, folder: Path, stop: bool = False) -> dict[str, Any]:
    """Two epochs, where need be from where a run stopped; an epoch's last of four batches holds one example.

    Args:
        case: Model, task and table.
        folder: Of the run; it may be there.
        stop: End after the first epoch, by a signal.
    """
    name, task, _ = case
    model, made = _build(*case, 4)
    config = RunConfig(model_name=name, task_name=task, **CONFIG)  # type: ignore[arg-type]
    run = Run(folder / "-".join(case), config)
    run.folder.mkdir(parents=True, exist_ok=True)
    if stop:
        draw = made.batch

        def batch(epoch: int, step: int) -> Any:
            if epoch == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return draw(epoch, step)

        made.batch = batch  # type: ignore[method-assign]
    result = Trainer(model, made, config, run).fit()
    losses = [line["loss"] for line in run.metrics if line["split"] == "train"]
    best = load_best(run.checkpoints)
    return {"weights": best, "valid": result.valid, "test": result.test, "losses": losses}


@functools.cache
def on(world: int, folder: Path) -> dict[Case, dict[str, Any]]:
    """All models on so many ranks, in one set of processes; what rank 0 found."""
    if world == 1:
        return {case: _trained(case, folder / "1") for case in TRAINED}

    def work(rank: int) -> None:
        found = {case: _trained(case, folder / str(world)) for case in TRAINED}
        if rank == 0:
            torch.save(found, folder / f"found-{world}.pt")

    assert on_ranks(world, work, folder) == [0] * world
    found: dict[Case, dict[str, Any]] = torch.load(folder / f"found-{world}.pt", weights_only=False)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


def assert_same(together: dict[str, Any], alone: dict[str, Any]) -> None:
    assert together["losses"] == pytest.approx(alone["losses"], rel=1e-10, abs=1e-12)
    for key, value in alone["weights"].items():
        difference = float((together["weights"][key] - value).abs().max())
        assert difference <= 1e-12 + 1e-10 * float(value.abs().max()), key
    assert together["valid"] == pytest.approx(alone["valid"], rel=1e-9)
    assert together["test"] == pytest.approx(alone["test"], rel=1e-9)


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("case", TRAINED, ids="-".join)
def test_ranks_train_what_one_process_trains(case: Case, world: int, folder: Path) -> None:
    assert_same(on(world, folder)[case], on(1, folder)[case])


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 3)])
@pytest.mark.parametrize("case", [("ncn", "link", ""), *TABLES], ids="-".join)
def test_a_run_goes_on_with_other_ranks(
    case: Case, before: int, after: int, folder: Path, tmp_path: Path
) -> None:
    def stopped(rank: int) -> None:
        with pytest.raises(Stopped):
            _trained(case, tmp_path, stop=True)

    def resumed(rank: int) -> None:
        found = _trained(case, tmp_path)
        if rank == 0:
            torch.save(found, tmp_path / "found.pt")

    assert on_ranks(before, stopped, tmp_path) == [0] * before
    assert on_ranks(after, resumed, tmp_path) == [0] * after
    assert_same(torch.load(tmp_path / "found.pt", weights_only=False), on(1, folder)[case])
