"""Random-walk encodings of nodes and of pairs of nodes: as a transform of PyG, as a function, in a batch.

Paper: "Graph Inductive Biases in Transformers without Message Passing", Liheng Ma et al., ICML 2023,
https://arxiv.org/abs/2305.17589, section 3.1.

``K`` steps count the identity: ``K`` numbers say with which probability 0, 1, ..., K - 1 steps lead from one
node to another, so ``K - 1`` steps are walked.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Data
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.transforms import BaseTransform

from graphkit.kernels.random_walks import Duplicates, random_walks
from graphkit.nn.checks import require_positive
from graphkit.nn.node_pairs import NodePairs

__all__ = [
    "RRWP",
    "RelativeEncoder",
    "WalkEncoder",
    "WalkEncoding",
    "WalkKind",
    "WalkStructure",
    "walk_encoding",
    "walk_structure",
]

WalkKind = Literal["rrwp", "spd"]


class WalkEncoding(NamedTuple):
    """What :class:`RRWP` adds to a graph, and what a batch of such graphs has.

    Attributes:
        rrwp: ``[n, K]`` probabilities to be back at a node; zeros with ``kind="spd"``.
        rrwp_index: ``[2, m]`` int64, the pairs that any walk joins: row 0 the node ``j`` that is walked to
            (the key of attention), row 1 the node ``i`` that walks begin at (its query).
        rrwp_val: ``[m, K]`` probabilities to get from ``i`` to ``j``, or with ``kind="spd"`` 1 at the number
            of steps of a shortest path and 0 elsewhere.
        log_deg: ``[n]`` logarithm of 1 + out-degree, the sum of a node's edge weights.
        deg: ``[n]`` int64 out-degree, rounded towards 0.
    """

    rrwp: Tensor
    rrwp_index: Tensor
    rrwp_val: Tensor
    log_deg: Tensor
    deg: Tensor

    @classmethod
    def of(cls, data: Data) -> WalkEncoding:
        """Returns the encoding that a graph or a batch carries.

        Raises:
            ValueError: If a part is missing.
        """
        missing = [name for name in cls._fields if data.get(name) is None]
        if missing:
            raise ValueError(f"data has no {', '.join(missing)}; the transform RRWP adds them")
        return cls(*(data[name] for name in cls._fields))


def walk_encoding(
    edge_index: Tensor,
    steps: int,
    ptr: Tensor,
    edge_weight: Tensor | None = None,
    *,
    kind: WalkKind = "rrwp",
    duplicates: Duplicates = "add",
    dtype: torch.dtype = torch.float32,
) -> WalkEncoding:
    """Computes random-walk encodings of nodes, and of the pairs of nodes of a graph that any walk joins.

    Args:
        edge_index: ``[2, E]`` int64 from source to target; of one graph, or the disjoint union of a batch.
        steps: ``K``, the identity included.
        ptr: ``[B + 1]`` int64, graph ``g`` has nodes ``ptr[g]`` to ``ptr[g + 1] - 1``: ``[0, n]`` for one.
        edge_weight: ``[E]``, ones by default.
        kind: Probabilities of random walks, or 1 at the length of a shortest path.
        duplicates: What becomes of edges that are there several times, see
            :func:`~graphkit.kernels.random_walks.random_walks`.
        dtype: float32 or float64.

    Raises:
        ValueError: If an argument is out of its range.
    """
    if kind not in ("rrwp", "spd"):
        raise ValueError(f"kind is {kind!r}; it must be rrwp or spd")
    walks = random_walks(edge_index, ptr, steps, edge_weight, duplicates=duplicates, dtype=dtype)
    pairs = NodePairs.full(ptr.diff(), edge_index.device)
    own = pairs.loops()
    absolute = walks[own]
    if kind == "spd":
        walks, absolute = _first_steps(walks), torch.zeros_like(absolute)
    joined = (walks != 0).any(1).nonzero().squeeze(1)
    index = torch.stack([pairs.key[joined].long(), pairs.query()[joined]])
    degree = _out_degree(edge_index, pairs.num_nodes, edge_weight, dtype)
    return WalkEncoding(absolute, index, walks[joined], degree.log1p(), degree.long())


def _first_steps(walks: Tensor) -> Tensor:
    """Returns 1 at the first step at which a walk is possible and 0 elsewhere, ``[P, K]``."""
    possible = walks > 0
    return (possible & (possible.cumsum(1) == 1)).to(walks.dtype)


def _out_degree(edge_index: Tensor, num_nodes: int, edge_weight: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Sums the weights of each node's out-going edges, ``[n]``; edges that are there twice count twice."""
    if edge_weight is None:
        return torch.bincount(edge_index[0], minlength=num_nodes).to(dtype)
    weight = edge_weight.detach().to(dtype)
    return weight.new_zeros(num_nodes).index_add(0, edge_index[0], weight)


class WalkEncoder(nn.Linear):
    """Maps walk probabilities ``[*, K]`` to ``[*, d]`` without bias: no walk, no contribution."""

    def __init__(self, walk_steps: int, channels: int) -> None:
        super().__init__(walk_steps, channels, bias=False)

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.weight)


class RelativeEncoder(WalkEncoder):
    r"""Encodes pairs: :math:`e_{ij} = W_r P_{ij} + \sum_{j \to i} \text{edge features}`, at least in float32.

    Shapes:
        ``walks`` ``[P, K]``; with edges ``edge_row`` ``[E]``, the row of pair (target, source) of each, and
        ``edge`` ``[E, d]``. Result ``[P, d]``.
    """

    def forward(self, walks: Tensor, edge_row: Tensor | None = None, edge: Tensor | None = None) -> Tensor:
        with torch.autocast(walks.device.type, enabled=False):
            pair = F.linear(walks, self.weight.to(walks.dtype))
            if edge is not None and edge_row is not None:
                pair.index_add_(0, edge_row, edge.to(pair.dtype))
            return pair


@functional_transform("add_rrwp")
class RRWP(BaseTransform):
    """Adds the parts of :class:`WalkEncoding` to a graph, by their names; edge weights are ``edge_weight``.

    PyG's batches renumber ``rrwp_index``, as they do everything with "index" in its name. To store these
    encodings takes 4 K + 16 bytes a pair, which soon is more than a data set itself; :func:`walk_structure`
    computes them in the batch.

    Args:
        steps: ``K``, the identity included.
        kind: ``rrwp``, or ``spd`` for shortest paths.
        duplicates: ``add`` or ``overwrite``.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(self, steps: int = 21, kind: WalkKind = "rrwp", duplicates: Duplicates = "add") -> None:
        require_positive("steps", steps)
        if kind not in ("rrwp", "spd"):
            raise ValueError(f"kind is {kind!r}; it must be rrwp or spd")
        if duplicates not in ("add", "overwrite"):
            raise ValueError(f"duplicates is {duplicates!r}; it must be add or overwrite")
        self.steps, self.kind, self.duplicates = steps, kind, duplicates

    def forward(self, data: Any) -> Any:
        ptr = data.get("ptr")  # of a batch
        if ptr is None:
            ptr = torch.tensor([0, data.num_nodes])
        made = walk_encoding(
            data.edge_index,
            self.steps,
            ptr,
            data.get("edge_weight"),
            kind=self.kind,
            duplicates=self.duplicates,
        )
        for name, value in made._asdict().items():
            data[name] = value
        return data

    def __repr__(self) -> str:
        return f"RRWP(steps={self.steps}, kind={self.kind!r})"


class WalkStructure(NamedTuple):
    """What a model reads of the edges of a batch.

    Attributes:
        pairs: Who attends to whom.
        absolute: ``[n, K]`` walk probabilities of each node with itself.
        relative: ``[P, K]`` those of each pair.
        edge_row: ``[E]`` the row of pair (target, source) of each edge.
        log_degree: ``[n]``.
        degree: ``[n]`` int64.
    """

    pairs: NodePairs
    absolute: Tensor
    relative: Tensor
    edge_row: Tensor
    log_degree: Tensor
    degree: Tensor


@torch.compiler.disable  # sizes decide shapes: nothing that a compiler could trace
def walk_structure(
    edge_index: Tensor,
    sizes: Tensor,
    steps: int,
    *,
    kind: WalkKind = "rrwp",
    duplicates: Duplicates = "add",
    full: bool = True,
    dtype: torch.dtype = torch.float32,
    given: WalkEncoding | None = None,
) -> WalkStructure:
    """Computes the walks of a batch, or takes them as given, and lays them out in the rows of its pairs.

    Args:
        edge_index: ``[2, E]`` int64 of the batch.
        sizes: ``[B]`` int64 nodes of each graph; on the CPU, so that nothing waits for a device.
        steps: ``K``, the identity included.
        kind: Probabilities, or 1 at the length of a shortest path.
        duplicates: ``add`` or ``overwrite``.
        full: All pairs of nodes of a graph; else those that an edge or a walk joins, and every node itself.
        dtype: float32 or float64.
        given: Encodings of this batch that were computed before.

    Raises:
        ValueError: If an argument is out of its range, or ``given`` has another number of steps.
    """
    source, target = edge_index
    degree = None
    if given is None:
        ptr = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        walks = random_walks(edge_index, ptr, steps, duplicates=duplicates, dtype=dtype)
        pairs = NodePairs.full(sizes, edge_index.device)
        absolute = walks[pairs.loops()]
        degree = _out_degree(edge_index, pairs.num_nodes, None, dtype)
        log_degree = degree.log1p()
        if kind == "spd":
            walks, absolute = _first_steps(walks), torch.zeros_like(absolute)
        if not full:
            keep = (walks != 0).any(1)
            keep[pairs.find(target, source)] = True
            pairs, rows = pairs.select(keep)
            walks = walks[rows]
    else:
        if given.rrwp_val.size(1) != steps:
            raise ValueError(f"the walks given have {given.rrwp_val.size(1)} steps; they must have {steps}")
        key, query = given.rrwp_index
        nodes = given.rrwp.size(0)
        if full:
            pairs = NodePairs.full(sizes, edge_index.device)
        else:
            own = torch.arange(nodes, device=edge_index.device)
            pairs = NodePairs.of(torch.cat([query, target, own]), torch.cat([key, source, own]), nodes)
        values = given.rrwp_val.to(dtype)
        walks = values.new_zeros(pairs.num_pairs, steps).index_add(0, pairs.find(query, key), values)
        absolute, log_degree, degree = given.rrwp.to(dtype), given.log_deg.to(dtype), given.deg
    return WalkStructure(pairs, absolute, walks, pairs.find(target, source), log_degree, degree.long())
