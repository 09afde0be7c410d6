"""Answers to queries over a user's own facts, as a table and as a picture; or those of a split."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from graphkit.errors import UserError, did_you_mean
from graphkit.files import atomic_write
from graphkit.graphs import collate
from graphkit.nn.paths import path_nodes
from graphkit.tables import read_rows
from graphkit.tasks.relation_queries import QuerySet

if TYPE_CHECKING:
    from graphkit.tasks.relation import RelationTask

__all__ = ["Fact", "Query", "add_arguments", "ask", "predict", "read_facts", "relevant_facts"]

_HEADERS = ("relation", "rel", "label", "predicate", "type", "edge_type", "r")
_DRAWN = 40  # nodes at most in a picture


class Fact(NamedTuple):
    """``relation`` holds from ``head`` to ``tail``: an arrow between nodes by the user's names."""

    head: str
    relation: str
    tail: str


class Query(NamedTuple):
    """Which relation holds from ``source`` to ``target``?"""

    source: str
    target: str


def add_arguments(parser: argparse._ActionsContainer) -> None:
    """Adds ``--facts``, ``--query``, ``--draw`` and ``--split``."""
    parser.add_argument(
        "--facts", metavar="FILE", help="your facts, a table of head, relation, tail; goes with --query"
    )
    parser.add_argument(
        "--query", nargs="+", action="extend", metavar="A,B", help="which relation holds from A to B?"
    )
    parser.add_argument(
        "--draw", metavar="FILE", help="draw facts, path and what follows along it (.svg, .png)"
    )
    parser.add_argument("--split", help="all queries of a split: train, valid or test")


def predict(
    task: RelationTask, model: nn.Module, options: argparse.Namespace
) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows: source, target, relation, probability, the likeliest relation first.

    Probabilities are the softmax of the model's scores; nothing has calibrated them. Of a split there is one
    row a query, with the likeliest relation.

    Raises:
        UserError: Not exactly one of ``--facts`` with ``--query`` and ``--split``; facts, queries or a file
            to draw that can't be used.
    """
    if (options.facts is None) == (options.split is None) or (options.facts is None) != (
        options.query is None
    ):
        raise UserError("predict: give --facts FILE with --query A,B, or --split SPLIT")
    names = task.relation_names
    if options.split is not None:
        if options.draw is not None:
            raise UserError("predict: --draw takes one query, given by --facts and --query")
        return _split_table(task, model, options.split)
    facts = read_facts(Path(options.facts), names)
    queries = [_read_query(text) for text in options.query]
    if options.draw is not None and len(queries) != 1:
        raise UserError(f"predict: --draw takes one query, and there are {len(queries)}")
    probability = ask(task, model, facts, queries)
    if options.draw is not None:
        _draw(task, model, facts, queries[0], probability[0], options.draw)
    rows = []
    for query, row in zip(queries, probability, strict=True):
        order = row.sort(descending=True, stable=True)
        for r, p in zip(order.indices.tolist(), order.values.tolist(), strict=True):
            rows.append([*query, names[r], f"{p:.6f}"])
    return ["source", "target", "relation", "probability"], rows


def read_facts(path: Path, relations: Sequence[str]) -> list[Fact]:
    """Reads facts, in order.

    Args:
        path: Head, relation and tail, separated by tabs, commas, semicolons or blanks; a header counts as
            such if its second column is called ``relation`` or the like and no relation is.
        relations: The names that relations may have.

    Raises:
        UserError: The file can't be read or is empty; a line isn't a fact, or its relation is unknown; names
            file, line and the closest relation.
    """
    rows = list(read_rows(path))
    known = set(relations)
    if rows and len(rows[0].cells) == 3:
        middle = rows[0].cells[1]
        if middle not in known and middle.lower().replace(" ", "_") in _HEADERS:
            rows = rows[1:]
    if not rows:
        raise UserError(f"{path} holds no fact")
    facts = []
    for line, cells in rows:
        where = f"{path}, line {line}"
        if len(cells) != 3 or not all(cells):
            shown = ", ".join(cells)[:60]
            raise UserError(f"{where}: a fact has three columns, head, relation and tail; got {shown}")
        fact = Fact(*cells)
        if fact.relation not in known:
            raise UserError(
                f"{where}: unknown relation '{fact.relation}'{did_you_mean(fact.relation, known)}"
            )
        facts.append(fact)
    return facts


def ask(task: RelationTask, model: nn.Module, facts: Sequence[Fact], queries: Sequence[Query]) -> Tensor:
    """Returns the probability of each relation for each query, ``[q, R]``: the softmax of the scores.

    Args:
        task: Says which relations there are.
        model: Put into evaluation mode.
        facts: What is known.
        queries: Each is answered by itself, from :func:`relevant_facts`.

    Raises:
        UserError: A node that no fact names, or no chain of facts from source to target.
    """
    number = {name: r for r, name in enumerate(task.relation_names)}
    graphs = []
    for query in queries:
        used = relevant_facts(facts, query, task.benchmark.info.get("converse"))
        nodes, edges = _numbered(used)
        ends = [torch.tensor([nodes[name]]) for name in query]
        types = torch.tensor([number[fact.relation] for fact in used])
        made = Data(edge_index=edges, edge_type=types, num_nodes=len(nodes))
        made.source, made.target = ends
        graphs.append(made)
    store = QuerySet(collate(graphs))
    return task.scores(model, torch.arange(len(store)), store).softmax(-1)


def relevant_facts(
    facts: Sequence[Fact], query: Query, converse: Mapping[str, str] | None = None
) -> list[Fact]:
    """Returns the facts that lie on a chain of arrows from source to target; others entail nothing for it.

    Where arrows lead to the target against their direction only, facts are turned to lead away from the
    source if relations have a converse.

    Args:
        facts: What is known.
        query: Its ends.
        converse: The converse of each relation, where relations have one.

    Raises:
        UserError: A node that no fact names, or no chain from source to target.
    """
    names = {name for fact in facts for name in (fact.head, fact.tail)}
    for name in query:
        if name not in names:
            raise UserError(f"no fact names '{name}'{did_you_mean(name, names)}")
    source, target = query
    if source == target:
        raise UserError(f"a query asks about two nodes, not about '{source}' and itself")
    distance = _distances(source, [*_arrows(facts), *((b, a) for a, b in _arrows(facts))])
    if target not in distance:
        raise UserError(f"there is no path between '{source}' and '{target}': no chain of facts joins them")
    used = _between(facts, source, target)
    if not used and converse is not None:
        turned = [
            Fact(fact.tail, converse[fact.relation], fact.head)
            if distance.get(fact.tail, 0) < distance.get(fact.head, 0)
            else fact
            for fact in facts
        ]
        used = _between(turned, source, target)
    if not used:
        raise UserError(
            f"facts join '{source}' and '{target}', but no chain leads from the one to the other along the "
            "arrows: state some facts the other way round, or ask the other way round"
        )
    return used


def _between(facts: Sequence[Fact], source: str, target: str) -> list[Fact]:
    """Returns the facts on directed walks from source to target that don't come back to the source."""
    inner = [fact for fact in facts if fact.tail != source and fact.head != target]
    after = _distances(source, _arrows(inner))
    before = _distances(target, [(b, a) for a, b in _arrows(inner)])
    return [fact for fact in inner if fact.head in after and fact.tail in before]


def _arrows(facts: Iterable[Fact]) -> list[tuple[str, str]]:
    return [(fact.head, fact.tail) for fact in facts]


def _distances(start: str, arrows: Iterable[tuple[str, str]]) -> dict[str, int]:
    """Returns the number of arrows from a node to each that can be reached."""
    following: dict[str, list[str]] = {}
    for a, b in arrows:
        following.setdefault(a, []).append(b)
    distance, ring = {start: 0}, [start]
    while ring:
        found = []
        for a in ring:
            for b in following.get(a, ()):
                if b not in distance:
                    distance[b] = distance[a] + 1
                    found.append(b)
        ring = found
    return distance


def _numbered(facts: Sequence[Fact]) -> tuple[dict[str, int], Tensor]:
    """Numbers the nodes of facts by their first occurrence, and returns the arrows ``[2, E]``."""
    nodes: dict[str, int] = {}
    for name in (name for fact in facts for name in (fact.head, fact.tail)):
        nodes.setdefault(name, len(nodes))
    return nodes, torch.tensor([[nodes[a] for a, _ in _arrows(facts)], [nodes[b] for _, b in _arrows(facts)]])


def _read_query(text: str) -> Query:
    """Reads ``A,B``; a name with a comma stands in quotation marks, as in CSV."""
    ends = [cell.strip() for cell in next(csv.reader([text], skipinitialspace=True), [])]
    if len(ends) != 2 or not all(ends):
        raise UserError(f"--query is '{text}'; it must be two nodes, A,B")
    return Query(*ends)


def _split_table(task: RelationTask, model: nn.Module, split: str) -> tuple[list[str], list[list[str]]]:
    task.check_split(split)
    names, index = task.relation_names, task.benchmark.splits[split]["index"]
    best = task.scores(model, index).softmax(-1).max(1)
    columns = (index.tolist(), best.indices.tolist(), best.values.tolist())
    rows = [[str(graph), names[r], f"{p:.6f}"] for graph, r, p in zip(*columns, strict=True)]
    return ["graph", "relation", "probability"], rows


def _draw(
    task: RelationTask, model: nn.Module, facts: Sequence[Fact], query: Query, answer: Tensor, file: str
) -> None:
    """Draws the facts around a query; at each node of the path, what the model says it is to the source."""
    from graphkit.pictures import Arrow, Spot, draw_paths, picture_format

    kind, names = picture_format(file), task.relation_names
    used = relevant_facts(facts, query, task.benchmark.info.get("converse"))
    nodes, edges = _numbered(used)
    ends = (torch.tensor([nodes[name]]) for name in query)
    found = set(path_nodes(edges, *ends, num_nodes=len(nodes)).node.tolist())
    steps = _distances(query.source, [*_arrows(facts), *((b, a) for a, b in _arrows(facts))])
    path = sorted((name for name, number in nodes.items() if number in found), key=steps.__getitem__)
    beliefs = ask(task, model, facts, [Query(query.source, name) for name in path[1:-1]] or [query])
    notes = {
        name: f"{names[int(row.argmax())]} {float(row.max()):.2f}"
        for name, row in [*zip(path[1:-1], beliefs, strict=False), (query.target, answer)]
    }
    shown = [*path, *(name for name in nodes if name not in path)]
    shown = [*shown, *(name for name in steps if name not in nodes)][: max(_DRAWN, len(path))]
    place = {name: number for number, name in enumerate(shown)}
    spots = [Spot(name, steps[name], notes.get(name, ""), name in path) for name in shown]
    along = set(pairwise(path))
    arrows = [
        Arrow(
            place[f.head], place[f.tail], f.relation, (f.head, f.tail) in along or (f.tail, f.head) in along
        )
        for f in facts
        if f.head in place and f.tail in place
    ]
    title = f"{query.source} ? {query.target}: {notes[query.target]}"
    if len(steps) > len(shown):
        title += f"   ({len(shown)} of {len(steps)} nodes)"
    atomic_write(file, draw_paths(spots, arrows, title=title, format=kind))
