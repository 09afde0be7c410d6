"""Predicted classes of nodes: probabilities in Python, tables for the command."""

from __future__ import annotations

import argparse
from typing import Any

import pytest
import torch
from torch import nn
from torch_geometric.data import Data

from graphkit.data import Benchmark, DataSpec
from graphkit.errors import UserError
from graphkit.evaluation.metrics import NodeEvaluator
from graphkit.registry import MODELS
from graphkit.tasks.node import NodeTask
from graphkit.testing import tiny_graph

NODES, CHANNELS, CLASSES = 30, 5, 3


def benchmark(*, labels: int = 0, names: bool = False) -> Benchmark:
    """Thirty nodes with a class each, or with ``labels`` binary ones."""
    data = tiny_graph(NODES, 70, CHANNELS, CLASSES)
    y = torch.randint(2, (NODES, labels)).float() if labels else data.y
    train, valid, test = torch.randperm(NODES).split([16, 6, 8])
    return Benchmark(
        "thirty",
        "node",
        Data(x=data.x, y=y, edge_index=data.edge_index, num_nodes=NODES),
        {"train": {"index": train}, "valid": {"index": valid}, "test": {"index": test}},
        DataSpec(NODES, CHANNELS, labels or CLASSES),
        "accuracy",
        True,
        NodeEvaluator(),
        node_names=[f"n{number}" for number in range(NODES)] if names else None,
    )


def task(of: Benchmark | None = None, **options: Any) -> NodeTask:
    return NodeTask(of or benchmark(), 0, 6, 7, **options)


def model(classes: int = CLASSES) -> nn.Module:
    return MODELS.create("sage", in_channels=CHANNELS, num_classes=classes, hidden_channels=8).eval()


def test_probabilities_of_classes_add_up_to_one() -> None:
    nodes, net = task(), model()
    asked = torch.tensor([29, 3, 3])
    found = nodes.probabilities(net, asked)
    torch.testing.assert_close(found, nodes.logits(net, asked).softmax(1))
    torch.testing.assert_close(found.sum(1), torch.ones(3))


def test_probabilities_of_labels_stand_for_themselves() -> None:
    nodes, net = task(benchmark(labels=4)), model(4)
    found = nodes.probabilities(net, torch.tensor([1, 2]))
    torch.testing.assert_close(found, nodes.logits(net, torch.tensor([1, 2])).sigmoid())


@pytest.mark.parametrize("bad", [[-1], [0, 30]])
def test_probabilities_of_unknown_nodes_are_refused(bad: list[int]) -> None:
    with pytest.raises(UserError, match=r"nodes are .*; the graph has ids 0 to 29"):
        task().probabilities(model(), torch.tensor(bad))


def predict(made: NodeTask, net: nn.Module, **options: str) -> tuple[list[str], list[list[str]]]:
    return made.predict(net, argparse.Namespace(**{"nodes": None, "split": None, **options}))


@pytest.mark.parametrize("names", [False, True])
def test_predicted_class_is_the_likeliest(names: bool) -> None:
    nodes, net = task(benchmark(names=names)), model()
    header, rows = predict(nodes, net, nodes="n4, n0" if names else "4, 0")
    assert header == ["node", "class", "probability"]
    probability = nodes.probabilities(net, torch.tensor([4, 0]))
    assert [row[0] for row in rows] == (["n4", "n0"] if names else ["4", "0"])
    assert [int(row[1]) for row in rows] == probability.argmax(1).tolist()
    assert [float(row[2]) for row in rows] == pytest.approx(probability.max(1).values.tolist(), abs=1e-6)
    assert len(predict(nodes, net, split="valid")[1]) == 6


@pytest.mark.parametrize("options", [{}, {"fanouts": [2, 2, 2], "eval_fanouts": [2, 2, 2]}])
@pytest.mark.parametrize("labels", [0, 4])
def test_prediction_of_no_node_is_a_table_without_rows(labels: int, options: dict[str, Any]) -> None:
    made = task(benchmark(labels=labels), **options)
    header, rows = predict(made, model(labels or CLASSES), nodes=",")
    assert header == (
        ["node", *(f"label {k}" for k in range(4))] if labels else ["node", "class", "probability"]
    )
    assert rows == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either --nodes NODES or --split SPLIT"),
        ({"nodes": "1", "split": "test"}, "give either --nodes NODES or --split SPLIT"),
        ({"nodes": "1,x"}, "--nodes: 'x' is no node id"),
        ({"nodes": "²"}, "--nodes: '²' is no node id"),
        ({"nodes": "99999999999999999999"}, "the graph has ids 0 to 29"),
        ({"nodes": "-1"}, "the graph has ids 0 to 29"),
        ({"split": "tset"}, "can't be evaluated on split 'tset'"),
    ],
)
def test_request_that_can_not_be_met_is_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        predict(task(), model(), **options)


def test_unknown_name_is_refused() -> None:
    with pytest.raises(UserError, match="the graph has no node '4'"):
        predict(task(benchmark(names=True)), model(), nodes="n1,4")
