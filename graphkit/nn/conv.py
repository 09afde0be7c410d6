r"""Graph convolutions for node tasks, on sorted rows: a whole graph, a sampled block or a range of rows.

Each layer computes the states of R target nodes from those of C source nodes, whose in-neighbours an
:class:`~graphkit.sparse.Adjacency` lists; the targets are R consecutive sources, all in a whole graph.
Legend: ``h_u`` is a source's state ``[F]``, ``h_v`` a target's own, ``N(v)`` its in-neighbours, ``d``
in-degrees in the whole graph. Where only ``k_v`` of ``d_v`` neighbours were sampled, sums are multiplied by
``d_v / k_v``, which leaves them unbiased; nothing changes where all are present.

Messages are never materialised: aggregation is a product with the rows, at whichever of the two widths is
smaller where a linear map stands beside it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.utils import segment

from graphkit.kernels import scaled_spmm, spmm
from graphkit.nn.checks import require_positive
from graphkit.nn.dropout import FastDropout
from graphkit.nn.norm import SafeBatchNorm
from graphkit.sparse import Adjacency, SparseRows

__all__ = [
    "Conv",
    "GATLayer",
    "GCNLayer",
    "GINLayer",
    "LinearLayer",
    "SAGELayer",
    "aggregate",
]


def aggregate(x: Tensor, graph: Adjacency, mean: bool = False) -> Tensor:
    r"""Sums the in-neighbours' rows, :math:`\frac{d_v}{k_v} \sum_{u \in N(v)} x_u`, or takes their mean.

    Args:
        x: ``[C, F]`` states of the sources.
        graph: R rows over C sources.
        mean: :math:`\frac{1}{k_v} \sum_{u \in N(v)} x_u` instead.

    Returns:
        ``[R, F]``, zero where there is no neighbour.
    """
    dtype = _precise(x)
    row = graph.count().clamp(min=1).to(dtype).reciprocal() if mean else _unbiased(graph, dtype)
    return scaled_spmm(graph.rowptr, graph.col, x, row=row, symmetric=graph.symmetric)


def _precise(x: Tensor) -> torch.dtype:
    """Returns float32 for half precision, which can't hold large degrees and their sums."""
    return torch.promote_types(x.dtype, torch.float32)


def _unbiased(graph: Adjacency, dtype: torch.dtype) -> Tensor | None:
    """Returns ``d / k`` of each row, ``[R]``, or ``None`` where all neighbours are there."""
    if graph.target_degree is None:
        return None
    return (graph.target_degree / graph.count().clamp(min=1)).to(dtype)


class Conv(nn.Module):
    """Base of the layers: ``layer(h, graph)``, in two halves for those who go through the rows in portions.

    Shapes:
        ``h`` ``[C, F]`` dense or :class:`SparseRows`; ``graph`` R rows over C sources, the targets being
        sources ``start`` to ``start + R - 1``; result ``[R, H]``.
    """

    def forward(self, h: Tensor | SparseRows, graph: Adjacency, start: int = 0) -> Tensor:
        return self.combine(self.prepare(h), h, graph, start)

    def prepare(self, h: Tensor | SparseRows) -> Tensor:
        """Returns what is read of each source, ``[C, *]``, whatever the rows are."""
        raise NotImplementedError

    def combine(self, sources: Tensor, h: Tensor | SparseRows, graph: Adjacency, start: int = 0) -> Tensor:
        """Returns the targets' states from what :meth:`prepare` gave, ``[R, H]``."""
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """Draws the parameters anew: matrices as Glorot and Bengio propose, zeros else."""
        for module in self.children():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
        for parameter in self.parameters(recurse=False):
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
            else:
                nn.init.zeros_(parameter)


def _project(x: Tensor | SparseRows, weight: Tensor) -> Tensor:
    """Returns ``x W`` for dense or sparse rows."""
    return x @ weight if isinstance(x, Tensor) else spmm(x.rowptr, x.col, x.value, weight)


def _own(x: Tensor | SparseRows, weight: Tensor, graph: Adjacency, start: int) -> Tensor:
    """Returns ``x W`` for the targets alone."""
    stop = start + graph.num_rows
    if isinstance(x, Tensor):
        return x[start:stop] @ weight
    if graph.num_rows == x.size(0):
        return _project(x, weight)
    rowptr = x.rowptr[start : stop + 1]
    first, last = int(rowptr[0]), int(rowptr[-1])
    return spmm(rowptr - first, x.col[first:last], x.value[first:last], weight)


def _matrix(rows: int, columns: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(rows, columns))


def _narrows(h: Tensor | SparseRows, weight: Tensor) -> bool:
    """Whether to map before aggregation: where that is the narrower width, and sparse rows always."""
    return isinstance(h, SparseRows) or weight.size(1) < weight.size(0)


def _narrowed(h: Tensor | SparseRows, weight: Tensor) -> Tensor:
    """Returns ``h W`` or ``h`` accordingly."""
    return _project(h, weight) if not isinstance(h, Tensor) or _narrows(h, weight) else h


class LinearLayer(Conv):
    r"""No convolution: :math:`h'_v = W h_v + b`; the layer of an MLP.

    Args:
        in_channels: Width ``F``.
        out_channels: Width ``H``.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight, self.bias = _matrix(in_channels, out_channels), nn.Parameter(torch.empty(out_channels))
        self.reset_parameters()

    def prepare(self, h: Tensor | SparseRows) -> Tensor:
        return self.bias  # nothing is read of other nodes

    def combine(self, sources: Tensor, h: Tensor | SparseRows, graph: Adjacency, start: int = 0) -> Tensor:
        return _own(h, self.weight, graph, start) + self.bias


class GCNLayer(Conv):
    r"""Graph convolution (Kipf and Welling, arXiv 1609.02907, equation 2).

    .. math:: h'_v = \frac{1}{\sqrt{d_v + 1}} \Big( \frac{W h_v}{\sqrt{d_v + 1}}
              + \sum_{u \in N(v)} \frac{W h_u}{\sqrt{d_u + 1}} \Big) + b

    Args:
        in_channels: Width ``F``.
        out_channels: Width ``H``.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight, self.bias = _matrix(in_channels, out_channels), nn.Parameter(torch.empty(out_channels))
        self.reset_parameters()

    def prepare(self, h: Tensor | SparseRows) -> Tensor:
        return _narrowed(h, self.weight)

    def combine(self, sources: Tensor, h: Tensor | SparseRows, graph: Adjacency, start: int = 0) -> Tensor:
        dtype = _precise(sources)
        source, target = ((degree + 1).to(dtype).rsqrt() for degree in graph.degrees())
        factor = _unbiased(graph, dtype)
        total = scaled_spmm(
            graph.rowptr,
            graph.col,
            sources,
            source=source,
            row=target if factor is None else target * factor,
            own=target.square(),
            start=start,
            symmetric=graph.symmetric,
        )
        if _narrows(h, self.weight):
            return total + self.bias
        return torch.addmm(self.bias, total, self.weight)


class SAGELayer(Conv):
    r"""GraphSAGE with the mean (Hamilton, Ying and Leskovec, arXiv 1706.02216, section 3.3).

    .. math:: h'_v = W_1 h_v + W_2\, \frac{1}{k_v} \sum_{u \in N(v)} h_u + b

    Args:
        in_channels: Width ``F``.
        out_channels: Width ``H``.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.own, self.neighbour = _matrix(in_channels, out_channels), _matrix(in_channels, out_channels)
        self.bias = nn.Parameter(torch.empty(out_channels))
        self.reset_parameters()

    def prepare(self, h: Tensor | SparseRows) -> Tensor:
        return _narrowed(h, self.neighbour)

    def combine(self, sources: Tensor, h: Tensor | SparseRows, graph: Adjacency, start: int = 0) -> Tensor:
        own = _own(h, self.own, graph, start) + self.bias
        mean = aggregate(sources, graph, mean=True)
        return own + mean if _narrows(h, self.neighbour) else torch.addmm(own, mean, self.neighbour)


class GINLayer(Conv):
    r"""Graph isomorphism layer (Xu, Hu, Leskovec and Jegelka, arXiv 1810.00826, equation 4.1).

    .. math:: h'_v = \mathrm{MLP}\Big((1 + \epsilon)\, h_v + \sum_{u \in N(v)} h_u\Big),
              \qquad \mathrm{MLP} = W_2\, \mathrm{ReLU}(\mathrm{BatchNorm}(W_1 \,\cdot\,))

    Args:
        in_channels: Width ``F``.
        out_channels: Width ``H``.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight, self.bias = _matrix(in_channels, out_channels), nn.Parameter(torch.empty(out_channels))
        self.epsilon = nn.Parameter(torch.empty(1))
        self.norm = SafeBatchNorm(out_channels)
        self.second = nn.Linear(out_channels, out_channels)
        self.reset_parameters()

    def prepare(self, h: Tensor | SparseRows) -> Tensor:
        return _narrowed(h, self.weight)

    def combine(self, sources: Tensor, h: Tensor | SparseRows, graph: Adjacency, start: int = 0) -> Tensor:
        own = sources[start : start + graph.num_rows]
        total = (1 + self.epsilon) * own + aggregate(sources, graph)
        narrow = _narrows(h, self.weight)
        hidden = total + self.bias if narrow else torch.addmm(self.bias, total, self.weight)
        out: Tensor = self.second(F.relu(self.norm(hidden)))
        return out


class GATLayer(Conv):
    r"""Graph attention (Veličković et al., arXiv 1710.10903, equations 1 to 6), each node its own neighbour.

    .. math:: h'_v = \big\Vert_{k=1}^{K} \sum_{u \in N(v) \cup \{v\}} \alpha^k_{vu} W^k h_u + b, \qquad
              \alpha^k_{vu} = \mathrm{softmax}_u\,\sigma(a^k_1 \cdot W^k h_v + a^k_2 \cdot W^k h_u)

    with LeakyReLU for :math:`\sigma`.

    Args:
        in_channels: Width ``F``.
        out_channels: Width ``H`` of the result.
        heads: ``K``.
        concat: Heads side by side, each ``H / K`` wide; otherwise each is ``H`` wide and they are averaged.
        slope: LeakyReLU's slope below zero.
        dropout: Rate on the attention weights :math:`\alpha` in training, each head by itself.

    Raises:
        ValueError: If heads are concatenated and ``H`` isn't a multiple of ``K``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        heads: int = 1,
        *,
        concat: bool = True,
        slope: float = 0.2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        require_positive("heads", heads)
        if concat and out_channels % heads:
            raise ValueError(f"out_channels is {out_channels}; it must be a multiple of heads, {heads}")
        self.heads, self.concat, self.slope = heads, concat, slope
        self.dropout = FastDropout(dropout)
        self.width = out_channels // heads if concat else out_channels  # of one head
        self.weight = _matrix(in_channels, heads * self.width)
        self.target_weight, self.source_weight = _matrix(heads, self.width), _matrix(heads, self.width)
        self.bias = nn.Parameter(torch.empty(out_channels))
        self.reset_parameters()

    def prepare(self, h: Tensor | SparseRows) -> Tensor:
        """Returns each source's heads and its scores as source and as target, ``[C, K W + 2 K]``."""
        mapped = _project(h, self.weight)
        heads = mapped.unflatten(1, (self.heads, self.width))  # [C, K, W]
        scores = [(heads * weight).sum(-1) for weight in (self.source_weight, self.target_weight)]
        return torch.cat([mapped, *scores], dim=1)

    def combine(self, sources: Tensor, h: Tensor | SparseRows, graph: Adjacency, start: int = 0) -> Tensor:
        mapped, source, target = sources.split([self.heads * self.width, self.heads, self.heads], dim=1)
        source, target = source.to(_precise(sources)), target.to(_precise(sources))
        stop = start + graph.num_rows
        rows = torch.arange(graph.num_rows, device=graph.device)
        row = torch.repeat_interleave(rows, graph.count(), output_size=graph.col.numel())
        to = target[start:stop]  # [R, K]
        score = F.leaky_relu(to[row] + source[graph.col.long()], self.slope)  # [E, K]
        loop = F.leaky_relu(to + source[start:stop], self.slope)  # [R, K]
        # softmax over a row and its loop; subtracting the largest score changes nothing but the range
        top = loop.detach()
        if score.numel():
            largest = torch.maximum(top, segment(score.detach(), graph.rowptr, reduce="max"))
            # the maximum of no score is given as 0, which must not stand above a loop's
            top = torch.where(graph.count()[:, None] > 0, largest, top)
        weight, own_weight = (score - top[row]).exp(), (loop - top).exp()
        norm = own_weight + torch.zeros_like(own_weight).index_add(0, row, weight)  # [R, K]
        weight, own_weight = self.dropout(weight), self.dropout(own_weight)
        heads = mapped.split(self.width, dim=1)
        total = torch.stack(
            [
                spmm(graph.rowptr, graph.col, weight[:, k].contiguous(), part)
                + own_weight[:, k : k + 1] * part[start:stop]
                for k, part in enumerate(heads)
            ],
            dim=1,
        )  # [R, K, W]
        out = (total / norm.unsqueeze(-1)).to(sources.dtype)
        return (out.flatten(1) if self.concat else out.mean(1)) + self.bias
