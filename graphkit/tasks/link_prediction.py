"""Predicted links as a table: the likeliest new neighbours of a node, or the scores of listed pairs."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from graphkit.errors import UserError
from graphkit.tables import read_pairs

if TYPE_CHECKING:
    from graphkit.tasks.link import LinkTask

__all__ = ["add_arguments", "predict"]


def add_arguments(parser: argparse._ActionsContainer) -> None:
    """Adds ``--source``, ``--top`` and ``--pairs``."""
    parser.add_argument(
        "--source", metavar="NODE", help="id or name of a node whose likeliest new links are listed"
    )
    parser.add_argument("--top", type=int, default=10, metavar="K", help="how many of them (default 10)")
    parser.add_argument(
        "--pairs", metavar="FILE", help="two node ids or names a line, as CSV, TSV or separated by blanks"
    )


def predict(
    task: LinkTask, model: nn.Module, options: argparse.Namespace
) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows: source, target, logit and probability, best first or as listed.

    A model without parameters was never fitted to a probability: its rows end with a plain ``score``.

    Raises:
        UserError: Not exactly one of ``--source`` and ``--pairs``, an unknown node, a malformed file.
    """
    if (options.source is None) == (options.pairs is None):
        raise UserError("predict: give either --source NODE or --pairs FILE")
    if options.top < 1:
        raise UserError(f"--top is {options.top}; it must be at least 1")
    nodes = _Nodes(task)
    if options.source is not None:
        source = nodes.number(options.source, "--source")
        targets, scores = task.top(model, source, options.top)
        pairs = [(source, int(target)) for target in targets]
    else:
        pairs = nodes.pairs(Path(options.pairs))
        scores = task.score(model, torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).t())
    named = [[nodes.name(i), nodes.name(j)] for i, j in pairs]
    if not any(True for _ in model.parameters()):
        rows = [[*names, f"{float(score):.6f}"] for names, score in zip(named, scores, strict=True)]
        return ["source", "target", "score"], rows
    rows = [
        [*names, f"{float(logit):.6f}", f"{float(probability):.6f}"]
        for names, logit, probability in zip(named, scores, scores.double().sigmoid(), strict=True)
    ]
    return ["source", "target", "logit", "probability"], rows


class _Nodes:
    """Nodes by the user's names, or by their numbers where they have no others."""

    def __init__(self, task: LinkTask) -> None:
        names = task.benchmark.node_names
        self._names = None if names is None else list(names)
        self._index = None if names is None else {name: number for number, name in enumerate(names)}

    def name(self, number: int) -> str:
        return str(number) if self._names is None else self._names[number]

    def number(self, text: str, where: str) -> int:
        if self._index is None:
            if re.fullmatch(r"-?[0-9]+", text) is None:
                raise UserError(f"{where}: '{text}' is no node id")
            return int(text)
        if text not in self._index:
            raise UserError(f"{where}: the graph has no node '{text}'")
        return self._index[text]

    def pairs(self, path: Path) -> list[tuple[int, int]]:
        numbered = self._names is None or all(re.fullmatch("[0-9]+", name) for name in self._names)
        return [
            (self.number(a, f"{path}, line {line}"), self.number(b, f"{path}, line {line}"))
            for line, (a, b) in read_pairs(path, numbered=numbered)
        ]
