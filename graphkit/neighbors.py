"""Mini-batches of large graphs: seed nodes and a sample of the nodes whose states theirs depend on.

A hop draws, for every node found at the hop before, up to ``k`` of its in-neighbours uniformly without
replacement, by Floyd's algorithm: for ``i = 0 .. k-1`` draw ``t`` from ``0 .. d-k+i`` and take it, or
``d-k+i`` if ``t`` was taken before (Bentley and Floyd, "A sample of brilliance", CACM 1987). The ``i``-th
number of node ``v`` is output number ``2^32 v + i + 1`` of the SplitMix64 sequence that (seed, epoch, step)
selects (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014). So what a node
draws doesn't depend on the other seeds of its batch, nor on the number of threads, nor on the form of the
code: compiled loops for a graph in CPU memory, tensor operations for any other device.

Memory beyond the graph's own 8 (N + 1) + 4 E bytes: 4 N bytes (the local id of every node) for each batch
that is sampled at the same time, kept for the next one, and a batch's own arrays. Nothing else of size N or E
is made, and nothing is sorted.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from graphkit.kernels.spmm import check_structure
from graphkit.seeds import derive_seed
from graphkit.sparse import Adjacency

__all__ = ["NeighborSampler", "SampledBatch"]

_UNSET = 2**31 - 1  # the local id of a node that isn't in the batch


def _signed(constant: int) -> int:
    """Returns the int64 of the same 64 bits."""
    return constant - (1 << 64) if constant >> 63 else constant


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST, _SECOND = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


class SampledBatch(NamedTuple):
    """Seeds, the nodes sampled around them, and the sampled entries, in ids of their own from 0 on.

    Nodes are numbered as they are found: the seeds, then hop by hop. Each one is expanded once, at the hop
    after the one that found it; those of the last hop aren't.

    Attributes:
        n_id: ``[n]`` int64 global ids; the first ``batch_size`` are the seeds.
        batch_size: Number of seeds.
        rowptr: ``[R + 1]`` int64; the R expanded nodes' entries: those of ``v`` are
            ``rowptr[v] .. rowptr[v + 1] - 1``.
        col: ``[e]`` int32 local ids of the entries' sources.
        e_id: ``[e]`` int64 positions of the entries in the whole graph's ``col``.
        num_nodes_by_hop: Nodes found up to hop 0 (the seeds), 1, .., L.
        num_entries_by_hop: Entries drawn up to hop 0 (none), 1, .., L.
        degree: ``[n]`` int64 in-degrees in the whole graph.
    """

    n_id: Tensor
    batch_size: int
    rowptr: Tensor
    col: Tensor
    e_id: Tensor
    num_nodes_by_hop: tuple[int, ...]
    num_entries_by_hop: tuple[int, ...]
    degree: Tensor

    @property
    def edge_index(self) -> Tensor:
        """The entries as ``[2, e]`` int64 local ids, sources above targets, in the order of ``e_id``."""
        rows = torch.arange(self.rowptr.numel() - 1, device=self.col.device)
        target = torch.repeat_interleave(rows, self.rowptr.diff(), output_size=self.col.numel())
        return torch.stack([self.col.long(), target])

    def blocks(self) -> list[Adjacency]:
        """Returns the rows that each of L layers needs, the layer on the outermost nodes first; no copies.

        Block ``l`` computes the nodes of hops ``0 .. L-1-l`` from those of hops ``0 .. L-l``::

            h = x[batch.n_id]
            for layer, block in zip(layers, batch.blocks()):
                h = layer(h, block, h[: block.num_rows])   # block.num_cols == h.size(0)
        """
        nodes, entries = self.num_nodes_by_hop, self.num_entries_by_hop
        return [
            Adjacency(
                self.rowptr[: nodes[hop] + 1],
                self.col[: entries[hop + 1]],
                nodes[hop + 1],
                False,
                self.degree[: nodes[hop + 1]],
                self.degree[: nodes[hop]],
            )
            for hop in reversed(range(len(nodes) - 1))
        ]

    def to(self, device: torch.device | str) -> SampledBatch:
        """Returns the batch on another device."""
        names = ("n_id", "rowptr", "col", "e_id", "degree")
        return self._replace(**{name: getattr(self, name).to(device) for name in names})

    def to_data(self, x: Tensor | None = None, y: Tensor | None = None) -> Any:
        """Returns a ``torch_geometric.data.Data`` like those of PyG's ``NeighborLoader``.

        Args:
            x: ``[N, F]`` features of all nodes; the batch's are gathered.
            y: ``[N, ...]`` labels of all nodes, likewise.
        """
        from torch_geometric.data import Data

        data = Data(
            edge_index=self.edge_index,
            n_id=self.n_id,
            e_id=self.e_id,
            batch_size=self.batch_size,
            num_nodes=self.n_id.numel(),
        )
        for name, whole in (("x", x), ("y", y)):
            if whole is not None:
                data[name] = whole.index_select(0, self.n_id.to(whole.device))
        return data


class NeighborSampler:
    """Samples the neighbourhoods of seed nodes; a pure function of (seed, epoch, step, seeds).

    Any number of threads may share one.

    Args:
        graph: In-neighbours of every node. Memory-mapped rows do: only what is drawn is read.
        fanouts: How many in-neighbours to draw at each hop from the seeds on; -1 takes all.
        seed: Selects the samples, together with epoch and step.
        compiled: Whether to run compiled loops, which need the graph in CPU memory. By default they run where
            it is; the tensor operations draw the same samples.

    Raises:
        ValueError: If the graph isn't square, is too large for int32 ids or has wrong dtypes, or a fan-out is
            bad.
    """

    def __init__(
        self, graph: Adjacency, fanouts: Sequence[int], *, seed: int = 0, compiled: bool | None = None
    ) -> None:
        check_structure(graph.rowptr, graph.col)
        if graph.num_rows != graph.num_cols:
            raise ValueError(
                f"graph has {graph.num_rows} targets of {graph.num_cols} nodes; it must be whole"
            )
        if graph.num_rows >= _UNSET:
            raise ValueError(f"graph has {graph.num_rows} nodes; int32 ids allow {_UNSET - 1}")
        if not fanouts or any(k != -1 and not 1 <= k < _UNSET for k in fanouts):
            raise ValueError(f"fanouts is {list(fanouts)}; it must hold a number >= 1 a hop, or -1 for all")
        on_cpu = graph.device.type == "cpu"
        if compiled and not on_cpu:
            raise ValueError(f"compiled loops need a graph on the CPU; this one is on {graph.device}")
        self.graph = graph
        self.fanouts = tuple(int(k) for k in fanouts)
        self.seed = seed
        self.compiled = on_cpu if compiled is None else compiled
        self._rowptr, self._col = graph.rowptr.contiguous(), graph.col.contiguous()
        self._spare: list[Tensor] = []
        self._lock = threading.Lock()

    def sample(self, seeds: Tensor, epoch: int, step: int) -> SampledBatch:
        """Samples around distinct nodes.

        Args:
            seeds: ``[B]`` int64 global ids.
            epoch: Position in training, like ``step``: each (epoch, step) draws anew.
            step: Step within the epoch.

        Raises:
            ValueError: If seeds repeat, are out of range or no int64 vector. Also if the graph turns out to
                hold bad row pointers or ids (in tensor operations an IndexError or RuntimeError of torch).
        """
        if seeds.dtype != torch.int64 or seeds.dim() != 1:
            raise ValueError(f"seeds is {seeds.dtype} {tuple(seeds.shape)}; it must be int64 [B]")
        seeds = seeds.to(self._col.device).contiguous()
        key = derive_seed(self.seed, "neighbours", epoch, step)
        with self._local_ids() as local_of:
            run = self._sample_compiled if self.compiled else self._sample_torch
            batch = run(seeds, key, local_of)
        if self.graph.source_degree is not None:
            return batch._replace(degree=self.graph.source_degree.index_select(0, batch.n_id))
        return batch

    @contextmanager
    def _local_ids(self) -> Iterator[Tensor]:
        """Lends a ``[N]`` int32 tensor of unset ids, to be given back unset."""
        with self._lock:
            spare = self._spare.pop() if self._spare else None
        if spare is None:
            spare = torch.full((self.graph.num_rows,), _UNSET, dtype=torch.int32, device=self._col.device)
        yield spare
        with self._lock:  # not after an error, which leaves ids set
            self._spare.append(spare)

    def _sample_compiled(self, seeds: Tensor, key: int, local_of: Tensor) -> SampledBatch:
        import numpy as np

        from graphkit.kernels import _sample_loops as loops

        rowptr, col, scratch = self._rowptr.numpy(), self._col.numpy(), local_of.numpy()
        n_id = seeds.numpy()
        _check_seeds(loops.enter(n_id, scratch), scratch.size)
        degree, starts = np.empty(0, np.int64), np.zeros(1, np.int64)
        nodes, entries, parts = [0, n_id.size], [0], []
        for k in self.fanouts:
            first, last = nodes[-2:]
            degree, starts = _longer(degree, last), _longer(starts, last + 1)
            if loops.count_draws(rowptr, col.size, n_id, first, last, k, degree, starts):
                raise ValueError("rowptr must ascend from 0 to the number of entries of col")
            entries.append(int(starts[last]))
            drawn = entries[-1] - entries[-2]
            e_id, local = np.empty(drawn, np.int64), np.empty(drawn, np.int32)
            loops.draw(rowptr, n_id, first, last, k, np.uint64(key), starts, e_id)
            n_id = _longer(n_id[:last], last + min(drawn, scratch.size - last) + 1)
            nodes.append(loops.relabel(col, e_id, scratch, n_id, last, local))
            if nodes[-1] < 0:
                raise ValueError(f"col holds an id outside [0, {scratch.size})")
            parts.append((e_id, local))
        first, last = nodes[-2:]
        degree = _longer(degree, last)
        loops.degrees(rowptr, n_id, first, last, degree)
        loops.forget(n_id, last, scratch)
        e_id, local = (np.concatenate(part) for part in zip(*parts, strict=True))
        tensors = map(torch.from_numpy, (n_id[:last], starts, local, e_id, degree))
        return _batch(*tensors, nodes=nodes, entries=entries)

    def _sample_torch(self, seeds: Tensor, key: int, local_of: Tensor) -> SampledBatch:
        """The same in tensor operations, for any device."""
        if seeds.numel() and not (int(seeds.min()) >= 0 and int(seeds.max()) < local_of.numel()):
            _check_seeds(1, local_of.numel())
        if _number(seeds, local_of, 0)[0].numel() < seeds.numel():
            _check_seeds(2, local_of.numel())
        frontier, nodes, entries = seeds, [0, seeds.numel()], [0]
        found, counts, degrees, parts = [seeds], [], [], []
        for k in self.fanouts:
            start = self._rowptr.index_select(0, frontier)
            degree = self._rowptr.index_select(0, frontier + 1) - start
            count = degree if k < 0 else degree.clamp(max=k)
            end = count.cumsum(0)
            drawn = int(end[-1]) if end.numel() else 0
            if nodes[-1] + drawn >= _UNSET:
                raise ValueError(f"a hop of {drawn} entries is too large for int32 ids; take smaller batches")
            at = end - count
            e_id = torch.repeat_interleave(start - at, count, output_size=drawn)
            e_id += torch.arange(drawn, device=seeds.device)
            if k >= 0:
                many = (degree > k).nonzero().squeeze(1)
                _floyd(frontier[many], degree[many], start[many], at[many], k, key, e_id)
            frontier, local = _number(self._col.index_select(0, e_id).long(), local_of, nodes[-1])
            nodes.append(nodes[-1] + frontier.numel())
            entries.append(entries[-1] + drawn)
            found.append(frontier)
            counts.append(count)
            degrees.append(degree)
            parts.append((e_id, local))
        degrees.append(self._rowptr.index_select(0, frontier + 1) - self._rowptr.index_select(0, frontier))
        n_id, degree = torch.cat(found), torch.cat(degrees)
        local_of.index_fill_(0, n_id, _UNSET)
        rowptr = torch.zeros(nodes[-2] + 1, dtype=torch.int64, device=seeds.device)
        torch.cumsum(torch.cat(counts), 0, out=rowptr[1:])
        e_id, local = (torch.cat(part) for part in zip(*parts, strict=True))
        return _batch(n_id, rowptr, local, e_id, degree, nodes=nodes, entries=entries)


def _batch(*tensors: Tensor, nodes: list[int], entries: list[int]) -> SampledBatch:
    n_id, rowptr, col, e_id, degree = tensors
    return SampledBatch(n_id, nodes[1], rowptr, col, e_id, tuple(nodes[1:]), tuple(entries), degree)


def _check_seeds(fault: int, num_nodes: int) -> None:
    if fault == 1:
        raise ValueError(f"seeds holds an id outside [0, {num_nodes})")
    if fault == 2:
        raise ValueError("seeds holds a node twice; they must be distinct")


def _longer(array: Any, size: int) -> Any:
    """Returns a copy of a numpy vector with room for ``size`` elements."""
    import numpy as np

    out = np.empty(size, array.dtype)
    out[: array.size] = array
    return out


def _floyd(nodes: Tensor, degree: Tensor, start: Tensor, at: Tensor, k: int, key: int, e_id: Tensor) -> None:
    """Draws ``k`` of more than ``k`` entries for each of M nodes, in ``k`` steps over all nodes at once.

    Args:
        nodes: ``[M]`` global ids.
        degree: ``[M]`` row lengths, each above ``k``.
        start: ``[M]`` first entries.
        at: ``[M]`` where a node's draws begin in ``e_id``.
        k: The fan-out.
        key: Selects the random numbers.
        e_id: Output.
    """
    if not nodes.numel():
        return
    counter = nodes << 32
    taken = torch.empty((k, nodes.numel()), dtype=torch.int64, device=nodes.device)
    for i in range(k):
        last = degree - (k - i)
        pick = (_uniform(counter + (i + 1), key) * (last + 1)).long()
        if i:
            again = (taken[:i] == pick).any(0)
            pick = torch.where(again, last, pick)
        taken[i] = pick
    e_id.index_copy_(
        0, (at + torch.arange(k, device=at.device)[:, None]).flatten(), (taken + start).flatten()
    )


def _uniform(counter: Tensor, key: int) -> Tensor:
    """Returns the numbers of a SplitMix64 sequence at given places, as float64 in [0, 1) with 53 bits.

    Args:
        counter: ``[M]`` int64 places; overwritten.
        key: The sequence's seed.
    """
    z = counter.mul_(_GOLDEN).add_(key)
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        z.bitwise_xor_((z >> shift).bitwise_and_((1 << (64 - shift)) - 1)).mul_(factor)
    z.bitwise_xor_((z >> 31).bitwise_and_((1 << 33) - 1))
    return (z >> 11).bitwise_and_((1 << 53) - 1).double().mul_(2.0**-53)


def _number(ids: Tensor, local_of: Tensor, known: int) -> tuple[Tensor, Tensor]:
    """Numbers new nodes in the order of their first occurrence.

    Args:
        ids: ``[e]`` int64 global ids, possibly repeated.
        local_of: ``[N]`` int32 local ids below ``known``, or unset; those of new nodes are written.
        known: Number of nodes before.

    Returns:
        ``[m]`` int64 global ids of the new nodes and ``[e]`` int32 local ids.
    """
    # A new node is first tried with `known` + place. The smallest wins on any device: its first occurrence,
    # or the number it had before.
    tried = torch.arange(known, known + ids.numel(), dtype=torch.int32, device=ids.device)
    local_of.scatter_reduce_(0, ids, tried, "amin")
    new = ids[local_of.index_select(0, ids) == tried]
    numbers = torch.arange(known, known + new.numel(), dtype=torch.int32, device=ids.device)
    local_of.index_copy_(0, new, numbers)
    return new, local_of.index_select(0, ids)
