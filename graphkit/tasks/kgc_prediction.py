"""The likeliest new facts about an entity, as a table."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from graphkit.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from graphkit.tasks.kgc import KGCTask

__all__ = ["add_arguments", "predict"]


def add_arguments(parser: argparse._ActionsContainer) -> None:
    """Adds ``--head``, ``--tail``, ``--relation`` and ``--top``."""
    parser.add_argument("--head", metavar="ENTITY", help="name (or number) of an entity: its likeliest tails")
    parser.add_argument("--tail", metavar="ENTITY", help="the same for its likeliest heads")
    parser.add_argument("--relation", metavar="NAME", help="in which relation")
    parser.add_argument("--top", type=int, default=10, metavar="K", help="how many of them (default 10)")


def predict(
    task: KGCTask, model: nn.Module, options: argparse.Namespace
) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows: head, relation, tail and score of facts that the test's graph doesn't have.

    Raises:
        UserError: Not exactly one of ``--head`` and ``--tail``, no ``--relation``, an unknown name.
    """
    if (options.head is None) == (options.tail is None) or options.relation is None:
        raise UserError("predict: give --head ENTITY or --tail ENTITY, and --relation NAME")
    if options.top < 1:
        raise UserError(f"--top is {options.top}; it must be at least 1")
    entities = _names(task.benchmark.node_names, task.test_graph.num_nodes)
    relations = _names(task.benchmark.target_names, task.relations)
    backwards = options.head is None
    flag, given = ("--tail", options.tail) if backwards else ("--head", options.head)
    entity = _number(entities, given, flag, "entity")
    relation = _number(relations, options.relation, "--relation", "relation")
    found = task.top(model, entity, relation + task.relations * backwards, options.top)
    rows = []
    for other, score in zip(*(column.tolist() for column in found), strict=True):
        head, tail = (other, entity) if backwards else (entity, other)
        rows.append([entities[head], relations[relation], entities[tail], f"{score:.6f}"])
    return ["head", "relation", "tail", "score"], rows


def _names(names: Sequence[str] | None, count: int) -> list[str]:
    return [str(number) for number in range(count)] if names is None else list(names)


def _number(names: Sequence[str], name: str, flag: str, what: str) -> int:
    if name not in names:
        # thousands of entities: only close ones are worth the search, and a long list is none
        hint = did_you_mean(name, names) if len(names) <= 1000 else ""
        raise UserError(f"{flag}: the graph has no {what} '{name}'{hint}")
    return names.index(name)
