r"""Convolutions with edge features, for batches of small graphs.

Each can be used alone in PyG's way, ``conv(x, edge_index, edge_attr) -> [n, H]``. Those who run several on
the same edges sort them once, into :class:`EdgeRows`, and call :meth:`EdgeConv.propagate`.

Legend: ``x_i`` a node's state ``[F]``, ``N(i)`` its in-neighbours (an edge that is there twice counts twice,
a self loop counts), ``e_ij`` the features of the edge from ``j`` to ``i``, ``d_i`` the number of
in-neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphkit.kernels.edge_gate import edge_gate_mean
from graphkit.kernels.edge_relu import Loops, edge_relu_sum
from graphkit.kernels.scaled import scaled_spmm
from graphkit.kernels.spmm import entry_rows, transpose_csr
from graphkit.nn.dropout import DropoutReLU
from graphkit.nn.node import NormName
from graphkit.nn.norm import SafeBatchNorm

__all__ = [
    "EdgeConv",
    "EdgeRows",
    "EdgeStates",
    "GCNEdgeLayer",
    "GINELayer",
    "GatedGCNLayer",
    "make_norm",
]

_NORMS = {"batch": SafeBatchNorm, "layer": nn.LayerNorm, "none": nn.Identity}


def make_norm(name: NormName, channels: int) -> nn.Module:
    """Returns a normalisation of rows ``[*, channels]``.

    Raises:
        ValueError: If there is none of that name.
    """
    if name not in _NORMS:
        raise ValueError(f"norm is {name!r}; it must be one of {', '.join(_NORMS)}")
    return _NORMS[name](channels)


@dataclass(frozen=True)
class EdgeRows:
    """Edges sorted by target, each kept, in the order in which they came within a target.

    Attributes:
        rowptr: ``[n + 1]`` int64; the edges into ``i`` are entries ``rowptr[i]`` to ``rowptr[i + 1] - 1``.
        col: ``[E]`` int32 source of each entry.
        entry: ``[E]`` int32, which of the edges given each entry is.
    """

    rowptr: Tensor
    col: Tensor
    entry: Tensor
    _factors: dict[torch.dtype, tuple[Tensor, Tensor]] = field(
        default_factory=dict, repr=False, compare=False
    )

    @classmethod
    def from_edge_index(cls, edge_index: Tensor, num_nodes: int) -> EdgeRows:
        """Sorts ``edge_index`` ``[2, E]`` int64, sources above targets, in linear time (on CPU).

        Raises:
            ValueError: If the shape is wrong, or (on CPU) a target is out of range; sources are checked when
                they are read.
        """
        if edge_index.dim() != 2 or edge_index.size(0) != 2:
            raise ValueError(f"edge_index has shape {tuple(edge_index.shape)}; it must be [2, E]")
        source, target = edge_index.to(torch.int32)
        one_row = torch.tensor([0, target.numel()], device=target.device)
        rowptr, _, order = transpose_csr(one_row, target.contiguous(), num_nodes)
        return cls(rowptr, source.index_select(0, order), order.to(torch.int32))

    @property
    def num_nodes(self) -> int:
        return self.rowptr.numel() - 1

    @property
    def num_edges(self) -> int:
        return self.col.numel()

    def gcn_factors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Returns one over the root of ``d + 1`` of each node, and the product of both ends' of each entry.

        Args:
            dtype: float32 or float64.

        Returns:
            ``[n]`` and ``[E]``; computed once.
        """
        if dtype not in self._factors:
            factor = (self.rowptr.diff() + 1).to(dtype).rsqrt()
            target = entry_rows(self.rowptr, self.num_edges)
            self._factors[dtype] = factor, factor.index_select(0, self.col) * factor.index_select(0, target)
        return self._factors[dtype]


class EdgeStates(NamedTuple):
    """Features of the entries of :class:`EdgeRows`: entry ``k`` has row ``kind[k]``.

    Attributes:
        rows: ``[U, F]``.
        kind: ``[E]`` int32, or ``None`` where entry ``k`` has row ``k``.
    """

    rows: Tensor
    kind: Tensor | None = None

    def expand(self) -> Tensor:
        """Returns the features of each entry, ``[E, F]``."""
        return self.rows if self.kind is None else self.rows.index_select(0, self.kind)


class EdgeConv(nn.Module):
    """Base of the layers.

    Shapes:
        ``x`` ``[n, F]``, ``edge_index`` ``[2, E]`` int64 from source to target, ``edge_attr`` ``[E, *]``
        floating point, of the width that the layer names, or ``None``; result ``[n, H]``.
    """

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None = None) -> Tensor:
        rows = EdgeRows.from_edge_index(edge_index, x.size(0))
        if edge_attr is None:
            return self.propagate(x, rows)[0]
        if edge_attr.dim() != 2 or edge_attr.size(0) != rows.num_edges:
            raise ValueError(
                f"edge_attr has shape {tuple(edge_attr.shape)}; it must be [{rows.num_edges}, *]"
            )
        return self.propagate(x, rows, EdgeStates(edge_attr, rows.entry))[0]

    def propagate(
        self, x: Tensor, rows: EdgeRows, edges: EdgeStates | None = None
    ) -> tuple[Tensor, EdgeStates | None]:
        """Returns the nodes' states ``[n, H]`` and those of edges, where the layer updates them."""
        raise NotImplementedError


class GINELayer(EdgeConv):
    r"""Graph isomorphism layer with edge features (Hu et al., arXiv 1905.12265; Xu et al., arXiv 1810.00826).

    .. math:: x'_i = \mathrm{MLP}\Big((1 + \epsilon)\, x_i + \sum_{j \in N(i)} m_{ij}\Big), \qquad
              m_{ij} = \mathrm{ReLU}(x_j + e_{ij}), \qquad
              \mathrm{MLP} = W_2\,\mathrm{ReLU}(\mathrm{norm}(W_1\,\cdot\,))

    Without edge features :math:`m_{ij} = x_j`: the plain layer.

    Args:
        in_channels: Width ``F``, also of edge features.
        out_channels: Width ``H``.
        hidden_channels: Width within the MLP, ``H`` by default.
        norm: Normalisation within the MLP.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        hidden_channels: int | None = None,
        norm: NormName = "batch",
    ) -> None:
        super().__init__()
        hidden = out_channels if hidden_channels is None else hidden_channels
        self.epsilon = nn.Parameter(torch.empty(1))
        bias = norm != "batch"  # which would take it away again
        self.first, self.norm = nn.Linear(in_channels, hidden, bias=bias), make_norm(norm, hidden)
        self.second = nn.Linear(hidden, out_channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.epsilon)
        _reset(self)

    def propagate(
        self, x: Tensor, rows: EdgeRows, edges: EdgeStates | None = None
    ) -> tuple[Tensor, EdgeStates | None]:
        factor = 1 + self.epsilon
        if edges is None:
            total = torch.addcmul(scaled_spmm(rows.rowptr, rows.col, x), x, factor.to(x.dtype))
        else:
            total = edge_relu_sum(rows.rowptr, rows.col, x, edges.rows, kind=edges.kind, own=factor)
        return self.second(F.relu(self.norm(self.first(total)))), edges


class GCNEdgeLayer(EdgeConv):
    r"""Graph convolution (Kipf and Welling, arXiv 1609.02907), edge features as in OGB (arXiv 2005.00687).

    .. math:: x'_i = \sum_{j \in N(i)} \frac{\mathrm{ReLU}(h_j + e_{ij})}{\sqrt{(d_i + 1)(d_j + 1)}}
              + \frac{\mathrm{ReLU}(h_i + e_0)}{d_i + 1}, \qquad h = W x + b

    with a learnt row :math:`e_0` for a node's own edge. Without edge features there are neither ReLU nor
    :math:`e_0`: the plain layer.

    Args:
        in_channels: Width ``F``.
        out_channels: Width ``H``, also of edge features.
        edges: Whether edges have features.
    """

    def __init__(self, in_channels: int, out_channels: int, *, edges: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels, out_channels)
        self.own = nn.Parameter(torch.empty(out_channels)) if edges else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        _reset(self)
        if self.own is not None:
            nn.init.normal_(self.own)

    def propagate(
        self, x: Tensor, rows: EdgeRows, edges: EdgeStates | None = None
    ) -> tuple[Tensor, EdgeStates | None]:
        h = self.linear(x)
        factor, weight = rows.gcn_factors(torch.promote_types(h.dtype, torch.float32))
        loop = factor.square()
        if self.own is None:
            if edges is not None:
                raise ValueError("edge_attr is given, but this layer was built for edges without features")
            return scaled_spmm(rows.rowptr, rows.col, h, source=factor, row=factor, own=loop), None
        if edges is None:
            raise ValueError("edge_attr is None, but this layer was built for edges with features")
        loops = Loops(self.own, loop)
        total = edge_relu_sum(
            rows.rowptr, rows.col, h, edges.rows, kind=edges.kind, weight=weight, loops=loops
        )
        return total, edges


class GatedGCNLayer(EdgeConv):
    r"""Gated graph convolution (Bresson and Laurent, arXiv 1711.07553; in the form of arXiv 2003.00982).

    .. math:: z_{ij} = C e_{ij} + D x_i + E x_j, \qquad
              x'_i = A x_i + \frac{\sum_{j \in N(i)} \sigma(z_{ij}) \odot B x_j}
              {\sum_{j \in N(i)} \sigma(z_{ij}) + 10^{-6}}, \qquad
              e'_{ij} = e_{ij} + \mathrm{dropout}(\mathrm{ReLU}(\mathrm{norm}(z_{ij})))

    Called in PyG's way it returns the nodes' states; :meth:`propagate` returns both. Without edge features
    ``C e`` is 0.

    Args:
        in_channels: Width ``F``, also of edge features.
        out_channels: Width ``H``, also of new edge features. Where it isn't ``F`` these have no residual.
        update_edges: Whether to compute new edge features; after a last layer nobody reads them.
        norm: Normalisation of edges.
        dropout: Rate on edges.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        update_edges: bool = True,
        norm: NormName = "batch",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.nodes = nn.Linear(in_channels, 4 * out_channels)  # A, B, D, E
        self.edges = nn.Linear(in_channels, out_channels, bias=False)  # C
        self.edge_norm = make_norm(norm, out_channels) if update_edges else None
        self.activation = DropoutReLU(dropout)

    def reset_parameters(self) -> None:
        """Draws all parameters anew."""
        _reset(self)

    def propagate(
        self, x: Tensor, rows: EdgeRows, edges: EdgeStates | None = None
    ) -> tuple[Tensor, EdgeStates | None]:
        nodes = self.nodes(x)  # [n, 4 H]
        if edges is None:
            mapped = nodes.new_zeros(1, nodes.size(1) // 4)
            kind: Tensor | None = torch.zeros_like(rows.col)
        else:
            mapped, kind = self.edges(edges.rows), edges.kind
        y, z = edge_gate_mean(rows.rowptr, rows.col, nodes, mapped, kind=kind)
        if self.edge_norm is None:
            return y, None
        new = self.activation(self.edge_norm(z))
        if edges is not None and edges.rows.size(1) == new.size(1):
            new = edges.expand() + new
        return y, EdgeStates(new)


def _reset(module: nn.Module) -> None:
    """Draws the parameters of a module's parts anew."""
    for part in module.children():
        reset = getattr(part, "reset_parameters", None)
        if callable(reset):
            reset()
