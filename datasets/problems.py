"""Reasoning problems of chosen depth and width: which relation do all facts together leave?

A problem is a graph with two ends, every path between which has k edges, in b branches, and only one relation
can hold between the ends (arXiv:2407.17396). Branches of up to four edges are plain chains. Longer ones begin
as a chain of half the length, in which some edges are replaced by bundles of chains that entail the same
relation together, but not one by one. No chain alone need decide, so paths have to be followed *and* what
they say has to be intersected.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphkit.datasets.algebra import Algebra, exact_answers, path_answers
from graphkit.datasets.graph_sets import Arrays, pointer
from graphkit.datasets.relation_graphs import graph_keys, join_graphs, take_graphs
from graphkit.errors import UserError

__all__ = ["Conditions", "chain_tables", "make_problems"]

Tables = tuple[NDArray[Any], ...]
MOST_K, MOST_B = 64, 64
ATTEMPTS = 10_000
"""Graphs refused one after the other before a relation is given up."""
BATCH = 500
"""Graphs drawn at once where some are refused."""


@cache
def chain_tables(algebra: Algebra) -> Tables:
    """Enumerates the chains that problems are made of.

    Returns:
        ``pair_ptr`` ``[R + 1]``, ``pair_label`` ``[P, 2]`` and ``pair_mask`` ``[P]``: pairs of labels by each
        relation that their composition contains. ``chain_ptr`` ``[3, R + 1]`` and ``chain_label``
        ``[3, C, 4]``: chains of 2, 3 and 4 labels by the only relation that they entail.
    """
    size = len(algebra)
    relations = np.arange(size)
    labels = np.stack(np.meshgrid(relations, relations, indexing="ij"), -1).reshape(-1, 2)
    masks = algebra.composition.reshape(-1)
    # A pair that leaves everything open says nothing; the published problems have none either.
    relation, pair = np.nonzero((masks >> relations[:, None] & 1) * (masks != algebra.full))
    pairs = pointer(np.bincount(relation, minlength=size)), labels[pair], masks[pair]

    found = []
    for length in (2, 3, 4):
        if length > 2:
            labels = np.column_stack([labels.repeat(size, 0), np.tile(relations, len(labels))])
            masks = algebra.columns[masks].reshape(-1).astype(np.int64)
        only = np.flatnonzero(algebra.sizes[masks] == 1)
        answer = algebra.columns[masks[only], algebra.identity]  # the same mask
        order = only[np.argsort(answer, kind="stable")]
        counts = np.array([(answer == 1 << r).sum() for r in relations])
        found.append((pointer(counts), labels[order]))
    chains = np.zeros((3, max(len(rows) for _, rows in found), 4), dtype=np.int64)
    for at, (_, rows) in enumerate(found):
        chains[at, : len(rows), : at + 2] = rows
    return (*pairs, np.stack([ptr for ptr, _ in found]), chains)


@dataclass(frozen=True)
class Conditions:
    """What a problem must be to be kept.

    Attributes:
        dedupe: No graph occurs twice in a cell, in whatever numbering. Small cells then have fewer problems:
            RCC-8 has 27 chains of two edges.
        require_multipath: No path alone gives the answer.
        max_identity_share: The share of a graph's edges that may be identities.
    """

    dedupe: bool = False
    require_multipath: bool = False
    max_identity_share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.max_identity_share <= 1:
            raise UserError(f"max_identity_share is {self.max_identity_share}; it must lie above 0, up to 1")

    def kept(self, graphs: Arrays, algebra: Algebra, seen: list[NDArray[np.int64]]) -> NDArray[np.int64]:
        """Returns which graphs meet the conditions, ascending; the keys of new ones are added to ``seen``."""
        keep = np.ones(len(graphs["y"]), dtype=bool)
        if self.max_identity_share < 1:
            same = np.add.reduceat(
                graphs["edge_type"] == algebra.identity, graphs["edge_ptr"][:-1], dtype=np.int64
            )
            keep &= same <= self.max_identity_share * np.diff(graphs["edge_ptr"])
        if self.require_multipath:
            keep &= algebra.sizes[path_answers(graphs, algebra)] > 1
        ids = np.flatnonzero(keep)
        if self.dedupe and ids.size:
            keys, first = np.unique(graph_keys(graphs)[ids], return_index=True)
            new = ~np.isin(keys, np.concatenate(seen)) if seen else np.ones(len(keys), dtype=bool)
            seen.append(keys[new])
            ids = ids[np.sort(first[new])]
        return ids


def make_problems(
    algebra: Algebra,
    k: Sequence[int],
    b: Sequence[int],
    rows: int,
    seed: int = 0,
    conditions: Conditions | None = None,
) -> Arrays:
    """Makes problems for all combinations of k and b, equally many of each relation.

    Each relation of each cell (k, b) has its own stream of random numbers, so a cell is the same whatever
    other cells are made. Every problem is solved by algebraic closure before it is handed out.

    Args:
        algebra: The relations.
        k: Lengths of paths, each 2 to 64.
        b: Numbers of branches, each 1 to 64.
        rows: Problems of each relation in a cell.
        seed: Seeds the problems, 0 or more.
        conditions: What problems must be. A relation that can't be had is left out of a cell: in RCC-8
            nothing is EQ unless a path says so.

    Returns:
        Flat arrays of G graphs, cell by cell and relation by relation: ``edge_index`` ``[2, E]`` int16,
        ``edge_type`` ``[E]`` int8, ``ptr`` and ``edge_ptr`` ``[G + 1]`` int64, ``source``, ``target``, ``k``
        and ``b`` ``[G]`` int16, ``y`` ``[G]`` int8.

    Raises:
        UserError: A value out of range, or a cell without any graph that meets the conditions.
    """
    for name, values, least, most in (("k", k, 2, MOST_K), ("b", b, 1, MOST_B)):
        if not values:
            raise UserError(f"{name} is empty; it must hold numbers from {least} to {most}")
        for value in values:
            if not least <= value <= most:
                raise UserError(f"{name} is {value}; it must lie between {least} and {most}")
    if rows < 1:
        raise UserError(f"{rows} problems of each relation were asked for; it must be at least 1")
    if seed < 0:
        raise UserError(f"the problems' seed is {seed}; it must be at least 0")
    cells = itertools.product(k, b)
    made = join_graphs([_cell(algebra, *cell, rows, seed, conditions or Conditions()) for cell in cells])
    wrong = exact_answers(made, algebra) != 1 << made["y"].astype(np.int64)
    if wrong.any():  # pragma: no cover - a mistake in the loops
        raise RuntimeError(f"{wrong.sum()} problems don't have the answer that they were made for")
    return made


def _cell(algebra: Algebra, k: int, b: int, rows: int, seed: int, conditions: Conditions) -> Arrays:
    """Makes the problems of one cell."""
    free = conditions == Conditions()
    parts: list[Arrays] = []
    for relation in range(len(algebra)):
        state = np.random.SeedSequence([seed, k, b, relation]).generate_state(1, np.uint64).astype(np.uint64)
        seen: list[NDArray[np.int64]] = []
        have = refused = 0
        while have < rows and refused < ATTEMPTS:
            wanted = rows - have
            drawn = _draw(algebra, relation, k, b, wanted if free else max(wanted, BATCH), state)
            keep = conditions.kept(drawn, algebra, seen)[:wanted]
            refused = 0 if keep.size else refused + len(drawn["y"])
            have += keep.size
            if keep.size or not parts:
                parts.append(drawn if free else take_graphs(drawn, keep))
    made = join_graphs(parts)
    if len(made["y"]) == 0:
        default = asdict(Conditions())
        told = [f"{name}={value}" for name, value in asdict(conditions).items() if value != default[name]]
        raise UserError(f"there are no problems with k = {k} and b = {b} under {', '.join(told)}")
    return made


def _draw(algebra: Algebra, relation: int, k: int, b: int, rows: int, state: NDArray[np.uint64]) -> Arrays:
    """Draws problems of one relation and cell."""
    from graphkit.datasets import _problem_loops as loops

    drawn = loops.draw_graphs(relation, k, b, rows, algebra.full, chain_tables(algebra), state)
    nodes, counts, edges, types = drawn
    return {
        "edge_index": edges,
        "edge_type": types,
        "ptr": pointer(nodes),
        "edge_ptr": pointer(counts),
        "source": np.zeros(rows, dtype=np.int16),
        "target": (nodes - 1).astype(np.int16),
        "y": np.full(rows, relation, dtype=np.int8),
        "k": np.full(rows, k, dtype=np.int16),
        "b": np.full(rows, b, dtype=np.int16),
    }
