"""Every trained model of the zoo on two and three ranks: what one process computes with the whole batch."""

from __future__ import annotations

import functools
import inspect
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
from graphkit.train import Trainer

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


def _build(name: str, task: str, batch: int) -> tuple[nn.Module, Task]:
    """A small model without dropout, whose draws would differ between ranks."""
    accepted = inspect.signature(MODELS.get(name).target).parameters
    still = {key: 0.0 for key in accepted if key.endswith("dropout")}
    small = {key: value for key, value in (SMALL | OF_TASK.get(task, {})).items() if key in accepted}
    benchmark = MAKERS[task]()
    made: Task = TASKS.get(task).target(benchmark, SEED, batch, 4, "cpu", **OPTIONS.get(task, {}))
    config = RunConfig(
        model_name=name, dataset_name="tiny", task_name=task, seed=SEED, model={**small, **still}
    )
    model = build_model(config, benchmark.spec).double()
    made.prepare(model)
    return model, made


UNTRAINED = ("aa", "cn", "ra", "fingerprint")  # without parameters, or fitted without gradients
TRAINED = [(n, task) for n in MODELS.names() if n not in UNTRAINED for task in MODELS.get(n).tasks]


def _trained(name: str, task: str, folder: Path, batch: int) -> dict[str, Any]:
    """Two epochs; the last of the four batches of an epoch holds one example."""
    model, made = _build(name, task, batch)
    config = RunConfig(
        model_name=name,
        dataset_name="tiny",
        task_name=task,
        seed=SEED,
        optim=OptimConfig(name="sgd", lr=0.05, clip_norm=1.0),
        train=TrainConfig(epochs=2, batch_size=4, eval_every=2),  # the last weights are the best
    )
    run = Run(folder / f"{name}-{task}", config)
    run.folder.mkdir(parents=True, exist_ok=True)
    result = Trainer(model, made, config, run).fit()
    losses = [line["loss"] for line in run.metrics if line["split"] == "train"]
    return {"weights": dict(model.state_dict()), "valid": result.valid, "test": result.test, "losses": losses}


@functools.cache
def on(world: int, folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """All models on so many ranks, in one set of processes; what rank 0 found."""
    if world == 1:
        return {(name, task): _trained(name, task, folder / "1", 4) for name, task in TRAINED}

    def work(rank: int) -> None:
        found = {(name, task): _trained(name, task, folder / str(world), 4) for name, task in TRAINED}
        if rank == 0:
            torch.save(found, folder / f"found-{world}.pt")

    assert on_ranks(world, work, folder) == [0] * world
    return torch.load(folder / f"found-{world}.pt", weights_only=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize(("name", "task"), TRAINED)
def test_ranks_train_what_one_process_trains(name: str, task: str, world: int, folder: Path) -> None:
    alone, together = on(1, folder)[name, task], on(world, folder)[name, task]
    assert together["losses"] == pytest.approx(alone["losses"], rel=1e-10, abs=1e-12)
    for key, value in alone["weights"].items():
        difference = float((together["weights"][key] - value).abs().max())
        assert difference <= 1e-12 + 1e-10 * float(value.abs().max()), key
    assert together["valid"] == pytest.approx(alone["valid"], rel=1e-9)
    assert together["test"] == pytest.approx(alone["test"], rel=1e-9)
