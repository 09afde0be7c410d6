"""Predicted classes of nodes as a table."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from graphkit.errors import UserError

if TYPE_CHECKING:
    from graphkit.tasks.node import NodeTask

__all__ = ["add_arguments", "predict"]


def add_arguments(parser: argparse._ActionsContainer) -> None:
    """Adds ``--nodes`` and ``--split``."""
    parser.add_argument("--nodes", metavar="NODES", help="ids or names of nodes, separated by commas")
    parser.add_argument("--split", help="all nodes of a split: train, valid or test")


def predict(
    task: NodeTask, model: nn.Module, options: argparse.Namespace
) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows: node, likeliest class and its probability, or a column a label.

    Raises:
        UserError: Not exactly one of ``--nodes`` and ``--split``, or a node or split that isn't there.
    """
    if (options.nodes is None) == (options.split is None):
        raise UserError("predict: give either --nodes NODES or --split SPLIT")
    if options.split is not None:
        task.check_split(options.split)
        nodes = task.benchmark.splits[options.split]["index"]
    else:
        nodes = _numbers(task, options.nodes)
    probability = task.probabilities(model, nodes)
    names = task.benchmark.node_names
    named = [str(node) if names is None else names[node] for node in nodes.tolist()]
    if not task.multi_class:
        header = ["node", *(f"label {k}" for k in range(probability.size(1)))]
        rows = [
            [name, *(f"{p:.6f}" for p in row)] for name, row in zip(named, probability.tolist(), strict=True)
        ]
        return header, rows
    best = probability.max(dim=1) if probability.numel() else None
    values = [] if best is None else zip(named, best.indices.tolist(), best.values.tolist(), strict=True)
    return ["node", "class", "probability"], [[name, str(c), f"{p:.6f}"] for name, c, p in values]


def _numbers(task: NodeTask, text: str) -> Tensor:
    """Reads ids or names, separated by commas."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    names = task.benchmark.node_names
    if names is not None:
        index = {name: number for number, name in enumerate(names)}
        for word in words:
            if word not in index:
                raise UserError(f"--nodes: the graph has no node '{word}'")
        return torch.tensor([index[word] for word in words], dtype=torch.int64)
    last = task.num_nodes - 1
    for word in words:
        if not word.removeprefix("-").isdecimal():
            raise UserError(f"--nodes: '{word}' is no node id")
        if not 0 <= int(word) <= last:
            raise UserError(f"--nodes: {word} is no node; the graph has ids 0 to {last}")
    return torch.tensor([int(word) for word in words], dtype=torch.int64)
