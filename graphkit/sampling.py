"""Samples for training: negative pairs, the order of seed nodes, neighbourhoods, batches made ahead.

Everything is a pure function of a seed and a position in training. Neighbourhoods are sampled by
:class:`~graphkit.neighbors.NeighborSampler`, at home in a file of its own.

No negative pair is drawn and thrown away. With the taken keys ``t_0 < t_1 < ...`` of all candidates
``0 .. S-1`` in a row, the free candidate of rank ``r`` is ``r`` plus the number of taken keys before it;
``t_i - i`` free ones lie before ``t_i``, so one binary search finds it. A dense graph costs no more than a
sparse one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from graphkit.errors import UserError
from graphkit.neighbors import NeighborSampler, SampledBatch
from graphkit.seeds import generator as seeded

__all__ = [
    "NegativeSampler",
    "NeighborSampler",
    "SampledBatch",
    "clustered_order",
    "distinct_ranks",
    "free_keys",
    "pair_keys",
    "prefetch",
    "seed_order",
]

T = TypeVar("T")


def free_keys(ranks: Tensor, taken: Tensor) -> Tensor:
    """Returns the keys of the free candidates of given ranks.

    Args:
        ranks: ``[B]`` int64, each in ``[0, S - M)``.
        taken: ``[M]`` int64, ascending and distinct keys in ``[0, S)``.

    Returns:
        ``[B]`` int64 keys in ``[0, S)``, none of them taken.
    """
    before = taken - torch.arange(taken.numel(), device=taken.device)
    return ranks + torch.searchsorted(before, ranks, right=True)


def _row_starts(num_nodes: int, device: torch.device) -> Tensor:
    """Returns the key of the first pair ``(i, i+1)`` of each row of the upper triangle, ``[N]`` int64."""
    i = torch.arange(num_nodes, device=device)
    return i * (2 * num_nodes - i - 1) // 2


def pair_keys(pairs: Tensor, num_nodes: int) -> Tensor:
    """Numbers the pairs ``i < j`` row by row: (0,1), (0,2), ..., (1,2), ...

    Args:
        pairs: ``[2, B]`` int64 with ``pairs[0] < pairs[1]``.
        num_nodes: N.

    Returns:
        ``[B]`` int64 keys in ``[0, N(N-1)/2)``.
    """
    low, high = pairs
    return low * (2 * num_nodes - low - 1) // 2 + high - low - 1


def _pairs(keys: Tensor, num_nodes: int) -> Tensor:
    """Inverts :func:`pair_keys`, exactly, ``[B] -> [2, B]``."""
    starts = _row_starts(num_nodes, keys.device)
    low = torch.searchsorted(starts[: max(num_nodes - 1, 1)].contiguous(), keys, right=True) - 1
    return torch.stack([low, keys - starts[low] + low + 1])


def distinct_ranks(total: int, count: int, generator: torch.Generator) -> Tensor:
    """Draws ``count`` distinct numbers of ``[0, total)``, every ordered choice equally likely.

    Memory grows with ``count``, not with ``total``, unless most numbers are asked for.

    Args:
        total: How many there are.
        count: How many to draw, at most ``total``.
        generator: A CPU generator.

    Returns:
        ``[count]`` int64.
    """
    if 4 * count >= total:
        return torch.randperm(total, generator=generator)[:count]
    drawn = torch.empty(0, dtype=torch.int64)
    while drawn.numel() < count:
        missing = count - drawn.numel()
        more = torch.randint(total, (missing + missing // 8 + 16,), generator=generator)
        drawn = _first_of_each(torch.cat([drawn, more]))
    return drawn[:count]


def _first_of_each(values: Tensor) -> Tensor:
    """Drops repetitions, keeping first occurrences in their order."""
    ordered, position = torch.sort(values, stable=True)
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return values[position[first].sort().values]


class NegativeSampler:
    """Draws node pairs that are no edges of a graph; preparation once, any number of draws.

    Args:
        edges: ``[2, M]`` int64, in any order; repetitions and self loops don't matter.
        num_nodes: N.
        directed: Draw ordered pairs ``i != j`` such that ``(i, j)`` isn't among the edges, instead of pairs
            ``i < j`` that aren't adjacent in either direction.
    """

    def __init__(self, edges: Tensor, num_nodes: int, *, directed: bool = False) -> None:
        self.num_nodes = num_nodes
        self.directed = directed
        if directed:
            loops = torch.arange(num_nodes, device=edges.device) * (num_nodes + 1)
            self._taken = torch.unique(torch.cat([edges[0] * num_nodes + edges[1], loops]))
            self.available = num_nodes * num_nodes - self._taken.numel()
        else:
            pairs = torch.stack([torch.minimum(*edges), torch.maximum(*edges)])
            self._taken = torch.unique(pair_keys(pairs[:, pairs[0] < pairs[1]], num_nodes))
            self.available = num_nodes * (num_nodes - 1) // 2 - self._taken.numel()

    def draw(self, count: int, generator: torch.Generator, *, distinct: bool = True) -> Tensor:
        """Draws uniformly among the non-edges.

        Args:
            count: Number of pairs.
            generator: A CPU generator; nothing else decides the result.
            distinct: Without replacement.

        Returns:
            ``[2, count]`` int64 on the edges' device.

        Raises:
            UserError: If the graph has too few non-edges.
        """
        if count < 0:
            raise ValueError(f"count is {count}; it must be at least 0")
        if count > (self.available if distinct else self.available * count):
            raise UserError(
                f"{count} negative pairs asked for, but this graph of {self.num_nodes} nodes has only "
                f"{self.available} pairs without an edge"
            )
        if distinct:
            ranks = distinct_ranks(self.available, count, generator)
        else:
            ranks = torch.randint(max(self.available, 1), (count,), generator=generator)
        return self.of_rank(ranks.to(self._taken.device))

    def of_rank(self, ranks: Tensor) -> Tensor:
        """Returns the non-edges of given ranks in row-by-row order, ``[B]`` int64 ``-> [2, B]``."""
        keys = free_keys(ranks, self._taken)
        if self.directed:
            n = max(self.num_nodes, 1)
            return torch.stack([keys // n, keys % n])
        return _pairs(keys, self.num_nodes)


def seed_order(index: Tensor, seed: int, epoch: int) -> Tensor:
    """Returns ``index`` ``[n]`` in a random order, a function of (seed, epoch)."""
    order = torch.randperm(index.numel(), generator=seeded(seed, "seed order", epoch))
    return index[order.to(index.device)]


def clustered_order(index: Tensor, position: Tensor, block: int, seed: int, epoch: int) -> Tensor:
    """Returns nodes in a random order of blocks whose members lie close to each other in the graph.

    The nodes are sorted by position and cut into blocks of consecutive ones, which are shuffled; where the
    cutting starts differs between epochs. Batches of a multiple of ``block`` nodes then hold whole blocks;
    the nodes that are left over, others each epoch, come last. Close seeds share neighbours, so their
    batches have fewer nodes (and fewer distinct prefixes of a tensor-train table) than those of
    :func:`seed_order`.

    Args:
        index: ``[n]`` int64 node ids.
        position: ``[N]`` integer positions of all nodes: close ones are of one part of a partition.
        block: Nodes of a block.
        seed: Selects the order, together with the epoch.
        epoch: Each epoch has another order.

    Returns:
        ``[n]`` int64.

    Raises:
        ValueError: If ``block`` isn't positive.
    """
    if block < 1:
        raise ValueError(f"block is {block}; it must be at least 1")
    ordered = index[torch.argsort(position[index], stable=True)]
    draw = seeded(seed, "block order", epoch)
    ordered = ordered.roll(-int(torch.randint(max(ordered.numel(), 1), (1,), generator=draw)))
    whole = ordered.numel() // block * block
    blocks = ordered[:whole].view(-1, block)
    order = torch.randperm(blocks.size(0), generator=draw)
    return torch.cat([blocks[order.to(blocks.device)].flatten(), ordered[whole:]])


def prefetch(make: Callable[[int], T], steps: Iterable[int], workers: int) -> Generator[T, None, None]:
    """Yields ``make(step)`` for each step, in order, computed ahead of time by threads.

    ``make`` must be a pure function of the step: the number of workers then changes nothing but time. At
    most two results a worker wait. An exception is raised in the place of its item. The threads end with
    the iterator, be it exhausted, closed or dropped; that waits for what they are doing.

    Args:
        make: Makes an item; what takes long in it should release the interpreter lock, as torch and the
            compiled loops here do.
        steps: E.g. a range.
        workers: Number of threads; 0 computes each item when it is asked for.

    Raises:
        ValueError: If ``workers`` is negative.
    """
    if workers < 0:
        raise ValueError(f"workers is {workers}; it must be at least 0")
    return _ahead(make, steps, workers)


def _ahead(make: Callable[[int], T], steps: Iterable[int], workers: int) -> Generator[T, None, None]:
    if not workers:
        yield from map(make, steps)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="graphkit-prefetch")
    waiting: deque[Future[T]] = deque()
    try:
        for step in steps:
            waiting.append(pool.submit(make, step))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
