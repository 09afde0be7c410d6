"""Whole runs with partitioned tables: ranks train, and evaluate, what one process does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from graphkit.config import OptimConfig, RunConfig, TrainConfig
from graphkit.data import Benchmark, DataSpec
from graphkit.distributed.embedding import PartitionedTable
from graphkit.evaluation import GraphEvaluator
from graphkit.experiment import build_model, place_embeddings
from graphkit.registry import TASKS
from graphkit.testing import tiny_graph
from graphkit.train import Trainer

NODES = 31
CASES: dict[str, dict[str, Any]] = {
    "whole graph": {},
    "whole graph, hashed": {"embedding": {"assignment": "hash"}},
    "sampled": {"task": {"fanouts": [2, 2]}},
    "sampled, by a partition": {
        "task": {"fanouts": [2, 2], "workers": 2},
        "embedding": {"assignment": "partition"},
    },
    "sampled in this thread": {
        "task": {"fanouts": [-1, -1], "workers": 0},
        "embedding": {"assignment": "hash"},
    },
    "tensor trains": {"embedding": {"kind": "tensor_train", "rank": 2, "blocks": 4}},
    "tensor trains, sampled": {
        "task": {"fanouts": [2, 2]},
        "embedding": {"kind": "tensor_train", "rank": 2, "blocks": 2},
    },
}

SAMPLED_EVALUATION = "sampled in evaluation too"


def benchmark() -> Benchmark:
    data = tiny_graph(NODES, 60)
    del data.x
    index = torch.randperm(NODES, generator=torch.Generator().manual_seed(0))
    # the last of the four batches of an epoch holds one node
    splits = {"train": {"index": index[:13]}, "valid": {"index": index[13:20]}, "test": {"index": index[20:]}}
    spec = DataSpec(num_nodes=NODES, num_classes=3)
    return Benchmark(
        "tiny", "node", data, splits, spec, "accuracy", True, GraphEvaluator("classes", "accuracy")
    )


def trained(case: str, rule: Any, folder: Any) -> dict[str, Any]:
    """Two epochs in float64; returns the table, the other weights and the metrics."""
    given = CASES.get(case, {"task": {"fanouts": [2, 2], "eval_fanouts": [2, 2]}})
    embedding = {"partitioned": True, "dim": 4, **given.get("embedding", {})}
    options = {"hidden_channels": 6, "num_layers": 2, "dropout": 0.0, "norm": "layer", "embedding": embedding}
    train = TrainConfig(epochs=2, batch_size=4, eval_batch_size=3, eval_every=2)
    config = RunConfig(
        model_name="sage",
        dataset_name="tiny",
        task_name="node",
        seed=3,
        model=options,
        optim=OptimConfig(name="sgd", lr=0.05, rows=rule, clip_norm=1.0),
        train=train,
    )
    bench = benchmark()
    model = build_model(config, bench.spec).double()
    place_embeddings(model, bench, 3, folder)
    task = TASKS.get("node").target(bench, 3, 4, 3, "cpu", **given.get("task", {}))
    task.prepare(model)
    result = Trainer(model, task, config).fit()
    table: Any = model.embedding
    assert isinstance(table, PartitionedTable)
    others: dict[str, Tensor] = {k: v for k, v in model.state_dict().items() if not k.startswith("embedding")}
    return {"table": table.to_dense(), "others": others, "metrics": {**result.valid, **result.test}}


def one_process(cases: list[str], folder: Any) -> dict[str, dict[str, Any]]:
    return {case: trained(case, rule_of(case), folder) for case in cases}


def rule_of(case: str) -> str:
    return "rowwise_adagrad" if "hashed" in case else "same"


def check(cases: list[str], alone: dict[str, dict[str, Any]], folder: Any) -> None:
    for case in cases:
        together = trained(case, rule_of(case), folder)
        torch.testing.assert_close(
            together, alone[case], rtol=1e-9, atol=1e-11, msg=lambda text, case=case: f"{case}: {text}"
        )


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    pytest.importorskip("pymetis")
    return one_process(list(CASES), tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_train_what_one_process_trains(world: int, alone: Any, on_ranks: Any, tmp_path: Any) -> None:
    on_ranks(world, lambda rank, world: check(list(CASES), alone, tmp_path))


@pytest.mark.parametrize("world", [2, 3])
def test_neighbourhoods_sampled_in_evaluation_are_shared_out(
    world: int, on_ranks: Any, tmp_path: Any
) -> None:
    expected = one_process([SAMPLED_EVALUATION], tmp_path)
    on_ranks(world, lambda rank, world: check([SAMPLED_EVALUATION], expected, tmp_path))
