r"""A model of whole graphs made of convolutions with edge features: what the tuned plain models share.

Paper: "Unlocking the Potential of Classic GNNs for Graph-level Tasks: Simple Architectures Meet Excellence",
Yuankai Luo, Lei Shi, Xiao-Ming Wu, ICML 2025, https://arxiv.org/abs/2502.09263: with edge features,
normalisation, dropout, residual connections, feed-forward blocks and positional encodings the plain
convolutions rival graph transformers. Each of these is an option here, and so is OGB's virtual node
(arXiv:2005.00687), after "Neural Message Passing for Quantum Chemistry", Justin Gilmer et al., ICML 2017,
https://arxiv.org/abs/1704.01212.

Shapes: B graphs, n nodes, E edges, d hidden channels, K steps of walks, L layers, T targets.

    h    = node_features(x) + W norm([M_ii, ..., M^K_ii])                                [n, d]
    L times:
      h    = h + v[graph of the node]               if there is a virtual node           [n, d]
      v    = v + dropout(MLP(v + sum of the graph's h)), but for the last layer          [B, d]
      h, e = h + dropout(relu(norm(conv(h, e)))), e                                      [n, d], [E, d]
      h    = norm(h + W_2 dropout(relu(W_1 h)))     if there are feed-forward blocks     [n, d]
    y    = head(pool(h of the last layer, or the sum of all))                            [B, T]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphkit.kernels.random_walks import random_walk_diagonal
from graphkit.nn.checks import require_positive, require_rate
from graphkit.nn.dropout import DropoutReLU, FastDropout
from graphkit.nn.features import EdgeFeatures, Init, NodeFeatures
from graphkit.nn.graph_conv import EdgeConv, EdgeRows, EdgeStates, make_norm
from graphkit.nn.node import NormName
from graphkit.nn.norm import SafeBatchNorm
from graphkit.nn.readout import MLPHead, Pooling, TaperedHead, pool

__all__ = ["GraphModel"]

Head = Literal["mlp", "san", "node"]
Jumping = Literal["last", "sum"]
MAX_KINDS = 1024  # of edges: as many combinations of categories at most are encoded once, not edge by edge


class GraphModel(nn.Module):
    r"""Stacked convolutions over a batch of graphs, pooled.

    A subclass says which convolution, in :meth:`make_conv`.

    Args:
        in_channels: Width of numeric features of nodes, or ``None``.
        out_channels: Targets, labels or classes ``T``.
        node_categories: Categories of each column of nodes, where they are integers.
        edge_categories: Categories of each column of edges, where they are integers.
        edge_channels: Width of numeric features of edges, or ``None``.
        hidden_channels: Width ``d``.
        num_layers: Number of convolutions ``L``.
        norm: Normalisation in every layer.
        residual: Add a layer's input to its output.
        dropout: Rate after each layer's activation.
        feed_forward: Follow each convolution with a feed-forward block, twice as wide inside.
        virtual_node: Give each graph a state that is added to its nodes and updated from them.
        walk_steps: Probabilities of random walks of 1 to so many steps to be back; 0 for none.
        jumping: What is read of the layers: the last one's states, or the sum of all with the encoder's.
        pooling: How nodes make a graph.
        head: ``san`` halves the width twice, ``mlp`` keeps it, ``node`` is ``mlp`` on nodes, without pooling.
        head_layers: Linear maps of ``mlp`` and ``node``.
        head_l2norm: Divide their hidden rows by their 2-norm, as GraphGym's heads do.
        shared_edges: One encoder of edges for all layers, instead of one for each.
        feature_init: Of the tables of categories: OGB's encoders use ``xavier_uniform``.

    Shapes:
        ``x`` ``[n, F]`` floating point or ``[n, C]`` integers or ``None``; ``edge_index`` ``[2, E]`` int64 of
        a disjoint union, from source to target; ``edge_attr`` ``[E, D]`` or ``None``; ``batch`` ``[n]``
        int64, the graph of each node, ascending (one graph by default); ``sizes`` ``[B]`` int64, the number
        of nodes of each graph (counted by default). Result ``[B, T]``, or ``[n, T]`` with the head ``node``.
    """

    carries_edges = False
    """Whether convolutions update the features of edges, so that only the first gets encoded ones."""

    def __init__(
        self,
        in_channels: int | None,
        out_channels: int | None,
        node_categories: Sequence[int] | None = None,
        edge_categories: Sequence[int] | None = None,
        edge_channels: int | None = None,
        *,
        hidden_channels: int = 128,
        num_layers: int = 5,
        norm: NormName = "batch",
        residual: bool = True,
        dropout: float = 0.1,
        feed_forward: bool = False,
        virtual_node: bool = False,
        walk_steps: int = 0,
        jumping: Jumping = "last",
        pooling: Pooling = "mean",
        head: Head = "mlp",
        head_layers: int = 1,
        head_l2norm: bool = False,
        shared_edges: bool = False,
        feature_init: Init = "normal",
    ) -> None:
        super().__init__()
        if out_channels is None:
            raise ValueError("out_channels is None; this data set has no graph targets")
        require_positive("out_channels", out_channels)
        require_positive("hidden_channels", hidden_channels)
        require_positive("num_layers", num_layers)
        require_rate("dropout", dropout)
        for name, value, allowed in (
            ("jumping", jumping, Jumping),
            ("pooling", pooling, Pooling),
            ("head", head, Head),
        ):
            if value not in get_args(allowed):
                raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(get_args(allowed))}")
        if walk_steps < 0:
            raise ValueError(f"walk_steps is {walk_steps}; it must be at least 0")
        d = hidden_channels
        self.hidden_channels, self.num_layers, self.norm, self.dropout = d, num_layers, norm, dropout
        self.residual, self.walk_steps, self.jumping = residual, walk_steps, jumping
        self.pooling, self.head_name = pooling, head
        self.node_features = NodeFeatures(
            d, in_channels=in_channels, categories=node_categories, init=feature_init
        )
        # The floor of the deviation, 0.1, bounds values to 10: rare rings would otherwise become enormous.
        self.walks = (
            nn.Sequential(SafeBatchNorm(walk_steps, eps=0.01), nn.Linear(walk_steps, d))
            if walk_steps
            else None
        )
        self.edge_kinds = _EdgeKinds(edge_categories)
        encoders = 1 if shared_edges or self.carries_edges else num_layers
        self.edge_features = nn.ModuleList(
            EdgeFeatures(
                d,
                edge_channels=edge_channels,
                categories=edge_categories,
                constant=self.carries_edges,
                init=feature_init,
            )
            for _ in range(encoders)
        )
        self.has_edges = self.edge_features[0].encoder is not None
        self.convs = nn.ModuleList(self.make_conv(d, layer == num_layers - 1) for layer in range(num_layers))
        self.norms = nn.ModuleList(make_norm(norm, d) for _ in range(num_layers))
        self.activation = DropoutReLU(dropout)
        blocks = num_layers if feed_forward else 0
        self.feed_forwards = nn.ModuleList(FeedForward(d, norm, dropout) for _ in range(blocks))
        self.virtual_node = VirtualNode(d, num_layers - 1, norm, dropout) if virtual_node else None
        self.head: nn.Module
        if head == "san":
            self.head = TaperedHead(d, out_channels)
        else:
            self.head = MLPHead(d, out_channels, head_layers, l2norm=head_l2norm)

    def make_conv(self, channels: int, last: bool) -> EdgeConv:
        """Returns a convolution; :attr:`has_edges` tells whether edges have features."""
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """Draws all parameters anew."""
        for module in self.modules():
            reset = getattr(module, "reset_parameters", None)
            if module is not self and callable(reset):
                reset()

    def forward(
        self,
        x: Tensor | None,
        edge_index: Tensor,
        edge_attr: Tensor | None = None,
        batch: Tensor | None = None,
        sizes: Tensor | None = None,
    ) -> Tensor:
        batch, sizes = _graphs(x, edge_index, batch, sizes)
        rows = EdgeRows.from_edge_index(edge_index, batch.numel())
        h = self.encode(x, edge_index, sizes, batch.numel())
        h = self._propagate(h, rows, edge_attr, batch, sizes.numel())
        if self.head_name != "node":
            h = pool(h, batch, sizes.numel(), self.pooling)
        out: Tensor = self.head(h)
        return out

    def encode(self, x: Tensor | None, edge_index: Tensor, sizes: Tensor, num_nodes: int) -> Tensor:
        """Returns the nodes' first states, ``[n, d]``."""
        h: Tensor = self.node_features(x, num_nodes)
        if self.walks is None:
            return h
        ptr = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        precise = torch.float64 if h.dtype == torch.float64 else torch.float32
        back = random_walk_diagonal(edge_index, ptr, self.walk_steps + 1, dtype=precise)
        return h + self.walks(back[:, 1:])

    def _propagate(
        self, h: Tensor, rows: EdgeRows, edge_attr: Tensor | None, batch: Tensor, num_graphs: int
    ) -> Tensor:
        """Returns what the head reads of the nodes, ``[n, d]``."""
        inputs = self._edge_inputs(edge_attr, rows)
        edges: EdgeStates | None = None
        state = None if self.virtual_node is None else self.virtual_node.first(num_graphs)
        total = h
        for layer, conv in enumerate(self.convs):
            if layer < len(self.edge_features):
                edges = self._encode_edges(layer, *inputs)
            if self.virtual_node is not None and state is not None:
                h = h + state.index_select(0, batch).to(h.dtype)
                if layer < self.num_layers - 1:
                    state = self.virtual_node(layer, state, h, batch)
            assert isinstance(conv, EdgeConv)
            out, edges = conv.propagate(h, rows, edges)
            out = self.activation(self.norms[layer](out))
            h = h + out if self.residual else out
            if len(self.feed_forwards):
                h = self.feed_forwards[layer](h)
            total = total + h if self.jumping == "sum" else h
        return total

    def _edge_inputs(self, edge_attr: Tensor | None, rows: EdgeRows) -> tuple[Tensor | None, Tensor | None]:
        """Returns what the encoders of edges read, and which of its rows each entry has."""
        if not self.has_edges:
            return None, None
        if self.edge_features[0].constant:
            return None, torch.zeros_like(rows.col)
        if edge_attr is None:
            raise ValueError("edge_attr is None, but this model was built for edges with attributes")
        wide = edge_attr if edge_attr.dim() == 2 else edge_attr[:, None]
        if wide.size(0) != rows.num_edges:
            raise ValueError(f"edge_attr has {wide.size(0)} rows for {rows.num_edges} edges")
        if self.edge_kinds.one_hot is None:
            return wide.index_select(0, rows.entry), None
        kind = self.edge_kinds(wide).index_select(0, rows.entry)
        return self.edge_kinds.one_hot, kind.to(torch.int32)

    def _encode_edges(self, layer: int, read: Tensor | None, kind: Tensor | None) -> EdgeStates | None:
        """Returns the features of edges that a layer's encoder gives."""
        features = self.edge_features[layer]
        if self.edge_kinds.one_hot is not None:  # a product of small matrices costs less than gathers
            weight = features.get_parameter("encoder.weight")
            return EdgeStates(self.edge_kinds.one_hot.to(weight.dtype) @ weight, kind)
        encoded = features(read, 1 if read is None else read.size(0))
        return None if encoded is None else EdgeStates(encoded, kind)


def _graphs(
    x: Tensor | None, edge_index: Tensor, batch: Tensor | None, sizes: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Returns the graph of each node and the size of each graph, whichever of them is given."""
    device = edge_index.device
    if batch is None:
        if sizes is None:
            if x is None:
                raise ValueError("x, batch and sizes are None; one of them must say how many nodes there are")
            sizes = torch.tensor([x.size(0)])
        batch = torch.repeat_interleave(torch.arange(sizes.numel()), sizes.cpu()).to(device)
    elif sizes is None:
        sizes = torch.bincount(batch).cpu()
    if x is not None and x.size(0) != batch.numel():
        raise ValueError(f"x has {x.size(0)} rows; the graphs have {batch.numel()} nodes")
    return batch, sizes


class _EdgeKinds(nn.Module):
    """Numbers the combinations of a few categories, so that each is encoded once and not for every edge."""

    one_hot: Tensor | None
    sizes: Tensor
    stride: Tensor

    def __init__(self, categories: Sequence[int] | None) -> None:
        super().__init__()
        few = categories is not None and 0 < math.prod(categories) <= MAX_KINDS
        columns = [torch.arange(size) for size in categories] if categories is not None and few else []
        one_hot = None
        if columns:  # [combinations, categories of all columns]: what adds up a combination's rows
            table = torch.cartesian_prod(*columns).view(-1, len(columns))
            one_hot = torch.cat([F.one_hot(c, s.numel()) for c, s in zip(table.T, columns, strict=True)], 1)
        self.register_buffer("one_hot", None if one_hot is None else one_hot.float(), persistent=False)
        sizes = torch.tensor([column.numel() for column in columns], dtype=torch.int64)
        self.register_buffer("sizes", sizes, persistent=False)
        self.register_buffer("stride", sizes.flip(0).cumprod(0).flip(0) // sizes, persistent=False)

    def forward(self, edge_attr: Tensor) -> Tensor:
        """Returns the number of each edge's combination, ``[E]`` int64."""
        if edge_attr.is_floating_point() or edge_attr.size(1) != self.sizes.numel():
            raise ValueError(
                f"edge_attr is {edge_attr.dtype} {list(edge_attr.shape)}; it must be integers "
                f"[E, {self.sizes.numel()}]"
            )
        columns = edge_attr.long()
        if columns.device.type == "cpu" and not torch.compiler.is_compiling():
            wrong = ((columns < 0) | (columns >= self.sizes)).nonzero()
            if wrong.numel():
                row, column = (int(i) for i in wrong[0])
                raise ValueError(
                    f"edge {row} has category {int(columns[row, column])} in column {column}; known are 0 to "
                    f"{int(self.sizes[column]) - 1}"
                )
        return (columns * self.stride).sum(1)


class FeedForward(nn.Module):
    """A feed-forward block with its residual: ``norm(h + dropout(W_2 dropout(relu(W_1 h))))``.

    Args:
        channels: Width ``d``; ``2 d`` inside.
        norm: Normalisation of the result.
        dropout: Rate.
    """

    def __init__(self, channels: int, norm: NormName, dropout: float) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(channels, 2 * channels), nn.Linear(2 * channels, channels)
        self.activation, self.dropout = DropoutReLU(dropout), FastDropout(dropout)
        self.norm = make_norm(norm, channels)

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = self.norm(h + self.dropout(self.second(self.activation(self.first(h)))))
        return out


class VirtualNode(nn.Module):
    """A state for each graph: ``v + dropout(relu(norm(W_2 relu(norm(W_1 (v + sum of h))))))``, first zeros.

    Args:
        channels: Width ``d``; ``2 d`` inside.
        updates: How often it is updated, with weights of its own each time.
        norm: Normalisation within the MLPs.
        dropout: Rate.
    """

    def __init__(self, channels: int, updates: int, norm: NormName, dropout: float) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.empty(channels))
        self.mlps = nn.ModuleList(
            nn.Sequential(
                nn.Linear(channels, 2 * channels),
                make_norm(norm, 2 * channels),
                nn.ReLU(),
                nn.Linear(2 * channels, channels),
                make_norm(norm, channels),
                DropoutReLU(dropout),
            )
            for _ in range(updates)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.start)

    def first(self, num_graphs: int) -> Tensor:
        """Returns the state before the first layer, ``[B, d]``."""
        return self.start.expand(num_graphs, -1)

    def forward(self, update: int, state: Tensor, h: Tensor, batch: Tensor) -> Tensor:
        """Returns the next state, ``[B, d]``, from the nodes' ``h`` ``[n, d]``."""
        total = pool(h, batch, state.size(0)).to(state.dtype)
        return state + self.mlps[update](state + total)
