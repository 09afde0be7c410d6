"""What the completion task refuses, and the likeliest new facts about an entity."""

from __future__ import annotations

import argparse
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from graphkit.data import Benchmark, DataSpec
from graphkit.errors import UserError
from graphkit.tasks.kgc import KGCTask

RELATIONS, ENTITIES, OTHERS = 3, 20, 4
NAMES = ["anna", "bert", "cleo", "dora"]


def benchmark(**changes: Any) -> Benchmark:
    """A ring to learn from; in the other graph anna knows bert, and bert likes cleo."""
    ring = torch.arange(ENTITIES)
    train = torch.stack([ring, ring % RELATIONS, ring.roll(1)])
    other, test = torch.tensor([[0, 1], [0, 1], [1, 2]]), torch.tensor([[0], [2], [3]])
    data = Data(edge_index=train[[0, 2]], edge_type=train[1], num_nodes=ENTITIES)
    data.inference_edge_index, data.inference_edge_type = other[[0, 2]], other[1]
    data.inference_num_nodes = OTHERS
    made = {
        "name": "few facts",
        "task": "kgc",
        "data": data,
        "splits": {"train": {"triple": train}, "valid": {"triple": train[:, :3]}, "test": {"triple": test}},
        "spec": DataSpec(num_relations=RELATIONS),
        "metric": "mrr",
        "maximize": True,
        "evaluator": dict,
        "node_names": NAMES,
        "target_names": ["knows", "likes", "fears"],
    }
    return Benchmark(**{**made, **changes})


def task(of: Benchmark | None = None, **options: Any) -> KGCTask:
    return KGCTask(of or benchmark(), 0, 4, 4, **options)


class Numbers(nn.Module):
    """Scores an entity by its number, backwards for inverse relations."""

    def propagate(self, edge_index: Tensor, edge_type: Tensor, head: Tensor, *, num_nodes: int) -> int:
        return num_nodes

    def score_all(self, state: int, s_index: Tensor, relation: Tensor) -> Tensor:
        sign = torch.where(relation < RELATIONS, 1.0, -1.0)
        return sign[:, None] * torch.arange(state)


def options(**given: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"head": None, "tail": None, "relation": None, "top": 10, **given})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"head": "anna", "relation": "knows"}, [("anna", "dora"), ("anna", "cleo")]),
        ({"head": "anna", "relation": "likes", "top": 2}, [("anna", "dora"), ("anna", "cleo")]),
        ({"tail": "bert", "relation": "knows"}, [("cleo", "bert"), ("dora", "bert")]),
        ({"tail": "cleo", "relation": "fears", "top": 1}, [("anna", "cleo")]),
    ],
)
def test_likeliest_new_facts_come_first(given: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    header, rows = task().predict(Numbers(), options(**given))
    assert header == ["head", "relation", "tail", "score"]
    assert [(row[0], row[2]) for row in rows] == expected
    assert {row[1] for row in rows} == {given["relation"]}


def test_entities_and_relations_without_names_are_numbers() -> None:
    made = task(benchmark(node_names=None, target_names=None))
    assert made.predict(Numbers(), options(head="0", relation="1", top=1))[1] == [["0", "1", "3", "3.000000"]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give --head ENTITY or --tail ENTITY, and --relation NAME"),
        ({"head": "anna"}, "and --relation NAME"),
        ({"head": "anna", "tail": "bert", "relation": "knows"}, "give --head ENTITY or --tail ENTITY"),
        ({"head": "ana", "relation": "knows"}, "--head: the graph has no entity 'ana'; did you mean 'anna'?"),
        ({"tail": "anna", "relation": "know"}, "--relation: the graph has no relation 'know'; did you mean"),
        ({"head": "anna", "relation": "knows", "top": 0}, "--top is 0; it must be at least 1"),
    ],
)
def test_request_that_cannot_be_met_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        task().predict(Numbers(), options(**given))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "hinge"}, "task.loss is 'hinge'; it must be bce, margin or softmax"),
        ({"remove": "all"}, "task.remove is 'all'; it must be fact, pair or none"),
        ({"negatives": 0}, "task.negatives is 0; it must be at least 1"),
        ({"states_at_once": 0}, "task.states_at_once is 0"),
        ({"margin": -1.0}, "task.margin is -1.0; it must be at least 0"),
        ({"adversarial_temperature": math.nan}, "task.adversarial_temperature is nan"),
    ],
)
def test_option_out_of_range_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task(**options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spec": DataSpec()}, "few facts doesn't say how many relations it has"),
        ({"spec": DataSpec(num_relations=1)}, "few facts has relations outside 0 to 0"),
        ({"train": torch.zeros(3, 0).long()}, "few facts has no training facts"),
        ({"valid": torch.tensor([[ENTITIES], [0], [0]])}, "triples of valid hold entities outside 0 to 19"),
        ({"test": torch.tensor([[0], [0], [OTHERS]])}, "triples of test hold entities outside 0 to 3"),
        ({"test": torch.zeros(2, 4).long()}, r"triples of test have shape \[2, 4\]; not \[3, n\]"),
        ({"test": torch.tensor([[0], [RELATIONS], [1]])}, "has relations outside 0 to 2"),
    ],
)
def test_data_that_cannot_be_read_are_refused(changes: dict[str, Any], message: str) -> None:
    of = benchmark()
    for name, value in changes.items():
        if name == "spec":
            of.spec = value
        else:
            of.splits[name] = {"triple": value}
    with pytest.raises(UserError, match=message):
        task(of)
