"""Queries over small graphs whose relations and nodes have names: rows of text to flat arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from graphkit.datasets.graph_sets import Arrays, index_type, pointer

__all__ = ["Query", "flat_arrays"]


class Query(NamedTuple):
    """A graph and a question.

    Attributes:
        edges: (tail, head, relation) each; nodes are anything that can be told apart.
        source: A node.
        target: Another.
        answer: The relation between them.
        k: Length of the path that gives the answer; -1 where unknown.
    """

    edges: Sequence[tuple[Any, Any, str]]
    source: Any
    target: Any
    answer: str
    k: int = -1


def flat_arrays(queries: Sequence[Query], relations: Sequence[str]) -> Arrays:
    """Lays out queries in flat arrays.

    Args:
        queries: G of them. Nodes are numbered as they come: source first, then the edges', then target.
        relations: All names, in the order of their numbers.

    Returns:
        ``edge_index`` ``[2, E]``, ``edge_type`` ``[E]``, ``ptr`` and ``edge_ptr`` ``[G + 1]``, ``source``,
        ``target`` and ``y`` ``[G]``; ``k`` ``[G]`` if it is known of all.

    Raises:
        KeyError: A relation that isn't listed.
    """
    number = {name: at for at, name in enumerate(relations)}
    tails: list[int] = []
    heads: list[int] = []
    types: list[int] = []
    sizes, query = [], []
    for edges, source, target, answer, _ in queries:
        nodes = {source: 0}
        for tail, head, relation in edges:
            tails.append(nodes.setdefault(tail, len(nodes)))
            heads.append(nodes.setdefault(head, len(nodes)))
            types.append(number[relation])
        query.append((0, nodes.setdefault(target, len(nodes)), number[answer]))
        sizes.append(len(nodes))
    ends = np.array([tails, heads], dtype=index_type(max(sizes, default=0) + 1))
    columns: NDArray[np.int64] = np.array(query, dtype=np.int64).reshape(-1, 3).T
    made: Arrays = {
        "edge_index": ends,
        "edge_type": np.array(types, dtype=np.int16),
        "ptr": pointer(sizes),
        "edge_ptr": pointer([len(one.edges) for one in queries]),
        "source": columns[0].astype(ends.dtype),
        "target": columns[1].astype(ends.dtype),
        "y": columns[2].astype(np.int16),
    }
    lengths = np.array([one.k for one in queries], dtype=np.int16)
    return made if (lengths < 0).any() else made | {"k": lengths}
