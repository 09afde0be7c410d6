"""Hierarchical orders: positions for nodes, so that neighbours in the graph share leading digits.

A position is a mixed-radix number with radices ``p_1, ..., p_d`` (row factors of a compressed embedding), its
first digit the most significant. Nodes with the same first k digits form a *cell* of level k; the cells of
level d - 1, with ``p_d`` slots each, are the *leaves*. An embedding that shares parameters within cells
follows the graph if the cells do: the first digit is a part of the graph, the second a part of that part, and
so on, as in Yin et al., "Nimble GNN Embedding with Tensor-Train Decomposition", KDD 2022
(arXiv:2206.10581). Parts come from METIS, through pymetis; ids, and the user's graph, stay as they are.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from graphkit.data import Processed, cached
from graphkit.metis import Rows, metis_parts, metis_version, undirected_rows, within_capacity
from graphkit.sparse import Adjacency, CSRGraph

__all__ = [
    "METHODS",
    "Method",
    "OrderStatistics",
    "cached_order",
    "hierarchical_order",
    "order_statistics",
    "place_new_nodes",
]

Method = Literal["hierarchical", "one_level", "random", "identity"]
METHODS: tuple[Method, ...] = ("hierarchical", "one_level", "random", "identity")

Progress = Callable[[str], None]

_FORMAT = 1  # of stored orders; a change of the algorithm raises it
_SECONDS_PER_STEP = 1.1e-7  # METIS, for each entry and bisection, while the graph fits the processor's caches
_SAMPLED, _BLOCK = 1 << 28, 1 << 18  # entries from which on rows are hashed in 64 blocks, of so many
_QUIET = 2.0  # seconds between two lines of progress


def hierarchical_order(
    graph: Adjacency | CSRGraph | Tensor,
    num_nodes: int,
    factors: Sequence[int],
    *,
    method: Method = "hierarchical",
    seed: int = 0,
    progress: Progress | None = None,
) -> Tensor:
    """Returns a position for each node, neighbours near each other.

    ``hierarchical`` splits the nodes into ``p_1`` parts with few edges between them, every part into ``p_2``,
    down to leaves of at most ``p_d`` nodes; there the last digit counts up with the id. A part of level k
    never holds more nodes than its cell has positions, ``p_{k+1} * ... * p_d``, so that digits and parts
    agree exactly; where padding leaves a choice, parts are equal. Nodes without neighbours fill the emptiest
    leaves. ``one_level`` is a single partition into ``p_1`` parts whose nodes get consecutive positions, so
    that parts drift across the digits' borders. ``random`` and ``identity`` don't look at the graph: a
    permutation of ``0 .. N - 1``, and the ids themselves.

    A method, a seed and an installed pymetis give the same order each time. It takes one thread, and memory
    of about 50 bytes for each edge and direction.

    Args:
        graph: Edges as ``[2, E]`` int64 or as rows; directions, loops and repetitions don't matter.
        num_nodes: N.
        factors: ``p_1, ..., p_d``, with a product of at least N.
        method: See above.
        seed: Seeds METIS or the permutation.
        progress: Called with a line of text every few seconds.

    Returns:
        ``[N]`` int64, distinct, in ``[0, p_1 * ... * p_d)``, on the CPU.

    Raises:
        ValueError: A factor below 1, too few positions, an unknown method, or a graph of another size.
        UserError: pymetis is wanted and isn't installed.
    """
    radices = _check_factors(factors, num_nodes)
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; it must be one of {', '.join(METHODS)}")
    if method == "identity":
        return torch.arange(num_nodes)
    if method == "random":
        return torch.randperm(num_nodes, generator=torch.Generator().manual_seed(seed))
    rows = undirected_rows(graph, num_nodes)
    tell = progress or (lambda line: None)
    compute = _nested_positions if method == "hierarchical" else _one_level_positions
    return torch.from_numpy(compute(rows, radices, seed, tell))


def cached_order(
    folder: str | Path,
    graph: Adjacency | CSRGraph | Tensor,
    num_nodes: int,
    factors: Sequence[int],
    *,
    method: Method = "hierarchical",
    seed: int = 0,
    progress: Progress | None = None,
) -> Tensor:
    """Returns :func:`hierarchical_order`, computed once and kept in ``folder``.

    Processes that ask together compute it once. What is stored counts for the same undirected edges, factors,
    method, seed and version of pymetis. ``random`` and ``identity`` aren't stored.

    Args:
        folder: Where orders lie, created if need be.
        graph: See :func:`hierarchical_order`, as the other arguments.
        num_nodes: N.
        factors: ``p_1, ..., p_d``.
        method: How positions are found.
        seed: Seeds METIS or the permutation.
        progress: Called with a line of text every few seconds while it is computed.
    """
    radices = _check_factors(factors, num_nodes)
    if method not in ("hierarchical", "one_level"):
        return hierarchical_order(graph, num_nodes, radices, method=method, seed=seed)
    known = isinstance(graph, Adjacency) and graph.symmetric and graph.col.numel() > _SAMPLED
    digest = hashlib.blake2b(digest_size=16)
    if known:  # rows of this size are hashed in places, and not read through at every start
        assert isinstance(graph, Adjacency)
        for array in (graph.rowptr.numpy(), graph.col.numpy()):
            for at in np.linspace(0, max(array.size - _BLOCK, 0), 64).astype(np.int64):
                digest.update(np.ascontiguousarray(array[at : at + _BLOCK]).data)
    else:
        rows = undirected_rows(graph, num_nodes)
        for part in rows:
            digest.update(np.ascontiguousarray(part).data)

    def build() -> Processed:
        rows = undirected_rows(graph, num_nodes)
        symmetric = Adjacency(torch.from_numpy(rows.start), torch.from_numpy(rows.col), num_nodes, True)
        position = hierarchical_order(
            symmetric, num_nodes, radices, method=method, seed=seed, progress=progress
        )
        narrow = torch.int32 if math.prod(radices) < 2**31 else torch.int64
        return Processed({"position": position.to(narrow)}, {})

    key = f"{method} {'x'.join(map(str, radices))} seed {seed} of {digest.hexdigest()}, format {_FORMAT}, "
    made = cached(folder, key + f"pymetis {metis_version()}", build, timeout=7 * 86400.0)
    return made.tensors["position"].long()


class OrderStatistics(NamedTuple):
    """How well an order follows a graph.

    Attributes:
        shared: For ``k = 1 .. d - 1`` the share of edges whose ends have the first k digits in common.
        purity: For the same k the share of labelled nodes that have their cell's most frequent label;
            ``None`` without labels.
        leaves: Leaves that hold a node.
        padding: Positions without a node, as a share of the nodes.
    """

    shared: tuple[float, ...]
    purity: tuple[float, ...] | None
    leaves: int
    padding: float


def order_statistics(
    position: Tensor,
    graph: Adjacency | CSRGraph | Tensor,
    factors: Sequence[int],
    y: Tensor | None = None,
) -> OrderStatistics:
    """Measures how many edges stay inside the cells of each level, and how pure the cells' labels are.

    Args:
        position: ``[N]`` integer positions.
        graph: Edges as ``[2, E]`` int64 or as rows; loops don't count. Without an edge all shares are NaN.
        factors: ``p_1, ..., p_d``.
        y: ``[N]`` or ``[N, 1]`` integer labels; nodes with negative ones don't count.

    Raises:
        ValueError: If the positions don't fit the factors, or the labels aren't one a node.
    """
    where = position.detach().cpu().long()
    radices = _check_factors(factors, where.numel())
    _check_positions(where, radices)
    if y is not None and (y.numel() != where.numel() or y.is_floating_point()):
        raise ValueError(f"y is {y.dtype} {list(y.shape)}; it must be [{where.numel()}] integers")
    cells = [math.prod(radices[level:]) for level in range(1, len(radices))]
    inside, edges = [0] * len(cells), 0
    for source, target in _edge_portions(graph):
        proper = source != target
        source, target = where[source[proper]], where[target[proper]]
        edges += source.numel()
        for level, cell in enumerate(cells):
            inside[level] += int((source // cell == target // cell).sum())
    classes = None if y is None else y.detach().cpu().reshape(-1).long()
    return OrderStatistics(
        tuple(count / edges if edges else math.nan for count in inside),
        None if classes is None else tuple(_purity(where // cell, classes) for cell in cells),
        int(torch.unique(where // radices[-1]).numel()),
        math.prod(radices) / max(1, where.numel()) - 1,
    )


def _edge_portions(graph: Adjacency | CSRGraph | Tensor, entries: int = 1 << 24) -> Iterator[Tensor]:
    """Yields the edges in ``[2, k]`` portions of about so many: large rows are never expanded whole."""
    if isinstance(graph, Tensor):
        yield from (portion.cpu() for portion in graph.split(entries, dim=1))
        return
    rowptr = graph.rowptr.cpu()
    bounds = torch.searchsorted(rowptr, torch.arange(0, max(int(rowptr[-1]), 1), entries), right=True) - 1
    cuts = torch.unique(torch.cat([bounds, torch.tensor([0, rowptr.numel() - 1])])).tolist()
    for start, stop in pairwise(cuts):
        rows = torch.repeat_interleave(torch.arange(start, stop), rowptr[start : stop + 1].diff())
        yield torch.stack([graph.col[int(rowptr[start]) : int(rowptr[stop])].cpu().long(), rows])


def place_new_nodes(position: Tensor, factors: Sequence[int], edge_index: Tensor, num_new: int) -> Tensor:
    """Finds positions for nodes that joined the graph after its order was made.

    A node goes to the leaf where most of its neighbours are (of several, the emptiest). If that is full, it
    goes to the emptiest leaf of the smallest cell around it that has room. Neighbours that are new themselves
    count once they have a place. A node that is joined to none goes to the emptiest leaf of all. Where
    nodes compete, the smaller id comes first.

    Args:
        position: ``[N]`` integer positions of the nodes ``0 .. N - 1``.
        factors: ``p_1, ..., p_d``.
        edge_index: ``[2, E]`` int64 edges, in any direction, among nodes ``0 .. N + num_new - 1``; those
            between old nodes don't matter.
        num_new: Number of new nodes, ``N .. N + num_new - 1``.

    Returns:
        ``[num_new]`` int64, distinct and different from ``position``.

    Raises:
        ValueError: If there is no room, or positions, ids or ``num_new`` are out of range.
    """
    if num_new < 0:
        raise ValueError(f"num_new is {num_new}; it must be at least 0")
    old = position.detach().cpu().long()
    total = old.numel() + num_new
    radices = _check_factors(factors, total)
    _check_positions(old, radices)
    edges = edge_index.detach().cpu().numpy()
    if edges.size and not (edges.min() >= 0 and edges.max() < total):
        raise ValueError(
            f"edge_index holds ids from {edges.min()} to {edges.max()}; [0, {total}) are allowed"
        )
    source, target = np.concatenate([edges, edges[::-1]], 1)
    joins = (source >= old.numel()) & (source != target)
    source, target = source[joins], target[joins]

    leaf = np.full(total, -1, np.int64)
    leaf[: old.numel()] = old.numpy() // radices[-1]
    count = np.bincount(leaf[: old.numel()], minlength=math.prod(radices[:-1]))
    while (ready := leaf[target] >= 0).any():
        nodes, wanted = _majority_leaves(source[ready], leaf[target[ready]], count)
        leaf[nodes] = _seat_near(wanted, count, radices)
        waits = leaf[source] < 0
        source, target = source[waits], target[waits]
    alone = np.flatnonzero(leaf < 0)
    leaf[alone] = _seat(np.zeros_like(alone), count, count.size, radices[-1])
    return torch.from_numpy(_free_slots(leaf[old.numel() :], old.numpy(), radices[-1]))


def _nested_positions(rows: Rows, radices: tuple[int, ...], seed: int, tell: Progress) -> np.ndarray:
    """Splits level by level; the sets of a level lie one behind the other, each of them a range of rows."""
    position = np.empty(rows.size, np.int64)
    joined = np.flatnonzero(np.diff(rows.start))
    alone = np.flatnonzero(np.diff(rows.start) == 0)
    if alone.size:
        rows = rows.induced(joined, np.zeros(rows.size, np.int8))
    nodes, base, bound = joined, np.zeros(1, np.int64), np.array([0, joined.size])
    for level, parts in enumerate(radices[:-1], 1):
        capacity = math.prod(radices[level:])
        if parts == 1 or not joined.size:
            continue
        title = f"level {level} of {len(radices) - 1}"
        part = _split_all(rows, bound, parts, capacity, seed, tell, title)
        cell = np.repeat(np.arange(bound.size - 1), np.diff(bound)) * parts + part
        order = np.argsort(cell, kind="stable")  # ids stay ascending inside a cell
        rows, nodes, cell = rows.induced(order, cell), nodes[order], cell[order]
        first = np.flatnonzero(np.diff(cell, prepend=-1))
        base = base[cell[first] // parts] + cell[first] % parts * capacity
        bound = np.append(first, nodes.size)
    inside = np.arange(nodes.size) - np.repeat(bound[:-1], np.diff(bound))
    position[nodes] = np.repeat(base, np.diff(bound)) + inside
    if alone.size:
        taken = position[joined]
        count = np.bincount(taken // radices[-1], minlength=math.prod(radices[:-1]))
        leaf = _seat(np.zeros_like(alone), count, count.size, radices[-1])
        position[alone] = _free_slots(leaf, taken, radices[-1])
    return position


def _one_level_positions(rows: Rows, radices: tuple[int, ...], seed: int, tell: Progress) -> np.ndarray:
    """Sorts by part and id; k-way METIS, as the paper's published code does."""
    tell(_announce("one level", rows, 1, radices[0]))
    part = metis_parts(rows, radices[0], seed, recursive=False)
    position = np.empty(rows.size, np.int64)
    position[np.argsort(part, kind="stable")] = np.arange(rows.size)
    return position


def _split_all(
    rows: Rows, bound: np.ndarray, parts: int, capacity: int, seed: int, tell: Progress, title: str
) -> np.ndarray:
    """Returns each node's part within its set, ``[n]``; set ``i`` begins at row ``bound[i]``."""
    tell(_announce(title, rows, bound.size - 1, parts))
    part = np.empty(rows.size, np.int64)
    begun = shown = time.monotonic()
    for done, (first, last) in enumerate(pairwise(bound.tolist())):
        now = time.monotonic()
        if done and now - shown > _QUIET:
            share = rows.start[first] / max(1, rows.start[-1])
            left = f", {_duration((now - begun) * (1 / share - 1))} left" if share > 0 else ""
            tell(f"{title}: {done:,} of {bound.size - 1:,} sets are split{left}")
            shown = now
        here = rows.range(first, last)
        part[first:last] = within_capacity(metis_parts(here, parts, seed), here, parts, capacity)
    return part


def _seat(cell: np.ndarray, count: np.ndarray, width: int, slots: int) -> np.ndarray:
    """Seats nodes in the emptiest leaves of their cells, in order, as long as there is room.

    Args:
        cell: ``[m]`` the cell that each node waits at.
        count: ``[leaves]`` nodes in each leaf; those seated are added.
        width: Leaves of a cell.
        slots: Nodes that a leaf holds.

    Returns:
        ``[m]`` leaf, -1 where the cell was full.
    """
    cells, index, waiting = np.unique(cell, return_inverse=True, return_counts=True)
    leaf = (cells[:, None] * width + np.arange(width)).reshape(-1)
    room = np.minimum(slots - count[leaf], np.repeat(waiting, width))
    leaf = np.repeat(leaf, room)
    level = count[leaf] + np.arange(leaf.size) - np.repeat(np.cumsum(room) - room, room)
    leaf = leaf[np.lexsort((leaf, level, leaf // width))]  # of each cell the lowest free level first
    free = room.reshape(-1, width).sum(1)
    turn = _rank_within(index)
    seated = turn < free[index]
    out = np.full(cell.shape[0], -1, np.int64)
    out[seated] = leaf[(np.cumsum(free) - free)[index[seated]] + turn[seated]]
    count += np.bincount(out[seated], minlength=count.size)
    return out


def _seat_near(leaf: np.ndarray, count: np.ndarray, radices: tuple[int, ...]) -> np.ndarray:
    """Seats nodes in the wanted leaves ``[m]``, or in the smallest cells around them that have room."""
    out = np.full(leaf.shape[0], -1, np.int64)
    for level in range(len(radices) - 1, -1, -1):
        width = math.prod(radices[level:-1])
        waiting = np.flatnonzero(out < 0)
        if waiting.size:
            out[waiting] = _seat(leaf[waiting] // width, count, width, radices[-1])
    return out


def _majority_leaves(
    source: np.ndarray, leaf: np.ndarray, count: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distinct sources, and for each the leaf most often beside it (of several the emptiest)."""
    key, times = np.unique(source * count.size + leaf, return_counts=True)
    source, leaf = key // count.size, key % count.size
    order = np.lexsort((leaf, count[leaf], -times, source))
    source, leaf = source[order], leaf[order]
    first = np.flatnonzero(np.diff(source, prepend=-1))
    return source[first], leaf[first]


def _free_slots(leaf: np.ndarray, taken: np.ndarray, slots: int) -> np.ndarray:
    """Returns positions for nodes that were given leaves ``[m]``: the leaves' free slots, ascending."""
    touched, index = np.unique(leaf, return_inverse=True)
    used = np.zeros((touched.size, slots), bool)
    inside = np.isin(taken // slots, touched)
    used[np.searchsorted(touched, taken[inside] // slots), taken[inside] % slots] = True
    free_first = np.argsort(used, axis=1, kind="stable")
    return leaf * slots + free_first[index, _rank_within(index)]


def _rank_within(group: np.ndarray) -> np.ndarray:
    """Returns how many equal entries of ``[m]`` come before each."""
    order = np.argsort(group, kind="stable")
    count = np.bincount(group)
    rank = np.empty(group.shape[0], np.int64)
    rank[order] = np.arange(group.shape[0]) - np.repeat(np.cumsum(count) - count, count)
    return rank


def _check_factors(factors: Sequence[int], num_nodes: int) -> tuple[int, ...]:
    radices = tuple(int(p) for p in factors)
    if not radices or min(radices) < 1:
        raise ValueError(f"factors are {radices}; there must be at least one, each at least 1")
    if math.prod(radices) < num_nodes:
        raise ValueError(f"factors {radices} give {math.prod(radices):,} positions for {num_nodes:,} nodes")
    return radices


def _check_positions(position: Tensor, radices: tuple[int, ...]) -> None:
    ordered = position.sort().values
    if ordered.numel() and (
        int(ordered[0]) < 0 or int(ordered[-1]) >= math.prod(radices) or bool((ordered.diff() == 0).any())
    ):
        raise ValueError(f"position must hold distinct numbers in [0, {math.prod(radices)})")


def _purity(cell: Tensor, y: Tensor) -> float:
    """Returns the share of labelled nodes with the most frequent label of their cell."""
    labelled = y >= 0
    cell, y = torch.unique(cell[labelled], return_inverse=True)[1], y[labelled]
    if not y.numel():
        return math.nan
    key, times = torch.unique(cell * (int(y.max()) + 1) + y, return_counts=True)
    most = torch.zeros(int(cell.max()) + 1, dtype=torch.int64)
    most.scatter_reduce_(0, key // (int(y.max()) + 1), times, "amax")
    return float(most.sum() / y.numel())


def _announce(title: str, rows: Rows, sets: int, parts: int) -> str:
    """Says what is about to be split, and how long METIS takes at the least if that is long."""
    least = rows.col.size * math.log2(max(2, parts)) * _SECONDS_PER_STEP
    wait = f", at least {_duration(least)}" if least > _QUIET else ""
    of = f"{rows.size:,} nodes and {rows.col.size // 2:,} edges" + (f" in {sets:,} sets" if sets > 1 else "")
    return f"{title}: {of}, into {parts:,} parts{' each' if sets > 1 else ''}{wait}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
