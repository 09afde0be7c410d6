r"""GRIT: a graph transformer whose inductive bias is in its features, without message passing.

Paper: "Graph Inductive Biases in Transformers without Message Passing", Liheng Ma, Chen Lin, Derek Lim,
Adriana Romero-Soriano, Puneet K. Dokania, Mark Coates, Philip Torr, Ser-Nam Lim, ICML 2023,
https://arxiv.org/abs/2305.17589.

Where this departs from the authors' code: random walks are computed in the batch and never stored, and an
edge that is there twice counts twice in them (``duplicates="overwrite"`` follows theirs, whose probabilities
then sum to less than 1); pairs that nobody reads aren't computed, those after the last layer and, without
``update_pairs``, all (``unused_parameters`` keeps their weights, with which the published numbers of
parameters are reached); a batch normalisation of one row uses running statistics. Switches that no published
configuration uses (both norms in one layer, norms on encodings, learnt residual weights) are left out.

Shapes: B graphs, n nodes, E edges, P pairs of nodes of one graph, d hidden channels, H heads of c = d / H
channels, K steps of walks, T targets. Pair (i, j): query i attends to key j.

    x_i  = node_features(x_i) + W_a P_ii                                               [n, d]
    e_ij = W_r P_ij + sum over edges j -> i of edge_features                           [P, d]
    L times:
      (w, b) = E e_ij;  t = (Q x_i + K x_j) * w
      ehat   = relu(sign(t) sqrt|t| + b)                                               [P, d]
      alpha  = softmax over j of clamp(A ehat)                                         [P, H]
      o_i    = sum_j alpha_ij (V x_j + R ehat_ij)                                      [n, d]
      h_i    = norm(x_i + O (theta_1 o_i + theta_2 log(1 + deg_i) o_i))                [n, d]
      x_i    = norm(h_i + FFN h_i)                                                     [n, d]
      e_ij   = norm(e_ij + O_e ehat_ij)                                                [P, d]
    y    = head(pool x)                                                                [B, T]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from graphkit.kernels.random_walks import Duplicates
from graphkit.models.grit_layer import GRITLayer
from graphkit.models.grit_official import from_official
from graphkit.nn.checks import require_positive
from graphkit.nn.features import EdgeFeatures, Init, NodeFeatures
from graphkit.nn.readout import MLPHead, Pooling, TaperedHead, pool
from graphkit.nn.relative import PairState, layers_per_group, run_layers
from graphkit.nn.walks import (
    RRWP,
    RelativeEncoder,
    WalkEncoder,
    WalkEncoding,
    WalkKind,
    WalkStructure,
    walk_structure,
)
from graphkit.registry import register_model

__all__ = ["GRIT", "RRWP", "GRITLayer", "RelativeEncoder", "WalkEncoder", "WalkEncoding", "from_official"]

MAX_DEGREE = 149  # of the optional encoding of degrees; larger ones count as this


@register_model("grit", task="graph", paper="arXiv:2305.17589")
class GRIT(nn.Module):
    """GRIT (arXiv:2305.17589) for predictions of graphs, or of the nodes of many graphs.

    Args:
        in_channels: Width of numeric features of nodes, or ``None``.
        out_channels: Targets, labels or classes ``T``.
        node_categories: Categories of each column of nodes, where they are integers.
        edge_categories: Categories of each column of edges, where they are integers.
        edge_channels: Width of numeric features of edges, or ``None``.
        hidden_channels: Width ``d``.
        num_layers: ``L``.
        heads: ``H``.
        walk_steps: ``K``, the identity included.
        walk_kind: Probabilities of random walks, or lengths of shortest paths.
        duplicates: Whether an edge that is there twice counts twice in walks (``add``).
        full_attention: Attend to all nodes of the graph, or only to those that an edge or a walk reaches.
        dropout: Rate in the layers, see :class:`GRITLayer`.
        attention_dropout: Rate on attention weights.
        norm: Batch or layer normalisation.
        pair_norm: Normalise pairs.
        pair_map: Send updated pairs through a linear map.
        edge_enhance: Sum pairs in attention, not only values.
        degree_scaler: Scale attention's result by degrees.
        update_pairs: Update pairs in every layer but the last, after which nobody reads them.
        clamp: Bound on attention's scores; ``None`` for none.
        use_bias: Give keys and values a bias.
        activation: Of FFNs and of the head ``san``.
        attention_activation: Of updated pairs.
        bn_momentum: Of batch normalisation.
        sqrt_floor: Below it the derivative of the signed root is bounded; 0 for the exact one.
        degree_encoding: Add a learnt row of each node's out-degree, as Graphormer does.
        constant_edges: Edges without features share a learnt row.
        feature_init: Of the tables of categories: OGB's encoders use ``xavier_uniform``.
        pooling: How nodes make a graph.
        head: ``san`` halves the width twice, ``mlp`` keeps it, ``node`` is ``mlp`` on nodes, without pooling.
        head_layers: Linear maps of ``mlp`` and ``node``.
        head_l2norm: Divide their hidden rows by their 2-norm, as the published figures on MNIST, CIFAR10,
            PATTERN, CLUSTER and peptides-struct have it.
        unused_parameters: Keep weights that nothing reads (the update of pairs where there is none, the
            encoder of nodes' walks with ``spd``): published numbers of parameters count them.
        memory_bytes: Recompute groups of layers in backward so that the states of pairs that are kept take no
            more, as far as that goes; ``None`` recomputes nothing.
    """

    def __init__(
        self,
        in_channels: int | None,
        out_channels: int | None,
        node_categories: Sequence[int] | None = None,
        edge_categories: Sequence[int] | None = None,
        edge_channels: int | None = None,
        *,
        hidden_channels: int = 64,
        num_layers: int = 10,
        heads: int = 8,
        walk_steps: int = 21,
        walk_kind: WalkKind = "rrwp",
        duplicates: Duplicates = "add",
        full_attention: bool = True,
        dropout: float = 0.0,
        attention_dropout: float = 0.2,
        norm: Literal["batch", "layer"] = "batch",
        pair_norm: bool = True,
        pair_map: bool = True,
        edge_enhance: bool = True,
        degree_scaler: bool = True,
        update_pairs: bool = True,
        clamp: float | None = 5.0,
        use_bias: bool = False,
        activation: Literal["relu", "gelu"] = "relu",
        attention_activation: Literal["relu", "none"] = "relu",
        bn_momentum: float = 0.1,
        sqrt_floor: float = 0.0,
        degree_encoding: bool = False,
        constant_edges: bool = True,
        feature_init: Init = "normal",
        pooling: Pooling = "sum",
        head: Literal["san", "mlp", "node"] = "san",
        head_layers: int = 1,
        head_l2norm: bool = False,
        unused_parameters: bool = False,
        memory_bytes: int | None = None,
    ) -> None:
        super().__init__()
        if out_channels is None:
            raise ValueError("out_channels is None; this data set has no graph targets")
        require_positive("out_channels", out_channels)
        require_positive("num_layers", num_layers)
        require_positive("walk_steps", walk_steps)
        if memory_bytes is not None:
            require_positive("memory_bytes", memory_bytes)
        for name, value, allowed in (
            ("walk_kind", walk_kind, get_args(WalkKind)),
            ("duplicates", duplicates, get_args(Duplicates)),
            ("pooling", pooling, get_args(Pooling)),
            ("head", head, ("san", "mlp", "node")),
        ):
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
        self.walk_steps, self.walk_kind, self.duplicates = walk_steps, walk_kind, duplicates
        self.full_attention, self.pooling = full_attention, pooling
        self.per_node, self.memory_bytes = head == "node", memory_bytes
        self._kept = 2 if norm == "layer" and pair_norm else 1  # tensors of pairs that a layer keeps
        d = hidden_channels
        self.node_features = NodeFeatures(
            d, in_channels=in_channels, categories=node_categories, init=feature_init
        )
        self.edge_features = EdgeFeatures(
            d,
            edge_channels=edge_channels,
            categories=edge_categories,
            constant=constant_edges,
            init=feature_init,
        )
        absolute = walk_kind == "rrwp" or unused_parameters
        self.absolute = WalkEncoder(walk_steps, d) if absolute else None
        self.relative = RelativeEncoder(walk_steps, d)
        self.degrees = nn.Embedding(MAX_DEGREE + 1, d) if degree_encoding else None
        self.layers = nn.ModuleList(
            GRITLayer(
                d,
                heads,
                dropout=dropout,
                attention_dropout=attention_dropout,
                norm=norm,
                pair_norm=pair_norm,
                pair_map=pair_map,
                edge_enhance=edge_enhance,
                degree_scaler=degree_scaler,
                update_pairs=update_pairs and layer < num_layers - 1,
                unused_parameters=unused_parameters,
                clamp=clamp,
                use_bias=use_bias,
                activation=activation,
                attention_activation=attention_activation,
                bn_momentum=bn_momentum,
                sqrt_floor=sqrt_floor,
            )
            for layer in range(num_layers)
        )
        self.head = (
            TaperedHead(d, out_channels, activation)
            if head == "san"
            else MLPHead(d, out_channels, head_layers, l2norm=head_l2norm)
        )

    def forward(
        self,
        x: Tensor | None,
        edge_index: Tensor,
        edge_attr: Tensor | None = None,
        batch: Tensor | None = None,
        sizes: Tensor | None = None,
        walks: WalkEncoding | None = None,
    ) -> Tensor:
        """Predicts ``[B, T]``, or ``[n, T]`` with the head ``node``.

        Args:
            x: ``[n, F]`` numbers, ``[n, C]`` integers, or ``None`` (then ``batch`` or ``sizes`` is needed).
            edge_index: ``[2, E]`` int64 from source to target, of the disjoint union.
            edge_attr: ``[E, D]`` numbers or integers, or ``None``.
            batch: ``[n]`` int64 sorted graph of each node; one graph by default.
            sizes: ``[B]`` int64 nodes of each graph, best on the CPU; counted by default.
            walks: Encodings computed before, by :class:`RRWP`; by default they are computed here.
        """
        sizes = self._sizes(x, batch, sizes)
        structure = self.structure(edge_index, sizes, walks)
        h, state = self.encode(x, edge_attr, structure)
        kept = state.value.numel() * state.value.element_size() * self._kept
        group = layers_per_group(len(self.layers), kept, self.memory_bytes)
        h, _ = run_layers(self.layers, h, state, structure.pairs, structure.log_degree, group=group)
        return self.readout(h, batch, sizes)

    def structure(
        self, edge_index: Tensor, sizes: Tensor, walks: WalkEncoding | None = None
    ) -> WalkStructure:
        """Lays out the pairs of a batch and computes their walks, or takes those given."""
        weight = self.relative.weight
        return walk_structure(
            edge_index,
            sizes,
            self.walk_steps,
            kind=self.walk_kind,
            duplicates=self.duplicates,
            full=self.full_attention,
            dtype=torch.promote_types(weight.dtype, torch.float32),
            given=walks,
        )

    def encode(
        self, x: Tensor | None, edge_attr: Tensor | None, structure: WalkStructure
    ) -> tuple[Tensor, PairState]:
        """Returns the states that the first layer reads."""
        h = self.node_features(x, structure.pairs.num_nodes)  # [n, d]
        if self.absolute is not None and self.walk_kind == "rrwp":
            h = h + self.absolute(structure.absolute)
        if self.degrees is not None:
            h = h + self.degrees(structure.degree.clamp(max=MAX_DEGREE))
        edge = self.edge_features(edge_attr, structure.edge_row.numel())
        return h, PairState(self.relative(structure.relative, structure.edge_row, edge))

    def readout(self, h: Tensor, batch: Tensor | None, sizes: Tensor) -> Tensor:
        """Returns the prediction from the last layer's nodes."""
        if self.per_node:
            return self.head(h)
        if batch is None:
            graph = torch.arange(sizes.numel(), device=h.device)
            batch = torch.repeat_interleave(graph, sizes.to(h.device), output_size=h.size(0))
        return self.head(pool(h, batch, sizes.numel(), self.pooling))

    @torch.no_grad()
    def pair_attention(
        self,
        x: Tensor | None,
        edge_index: Tensor,
        edge_attr: Tensor | None = None,
        batch: Tensor | None = None,
        sizes: Tensor | None = None,
        walks: WalkEncoding | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Returns who attends to whom in every layer, without dropout, by plain torch operations.

        Args:
            x: As in :meth:`forward`, like the other arguments.
            edge_index: ``[2, E]``.
            edge_attr: ``[E, D]`` or ``None``.
            batch: ``[n]``.
            sizes: ``[B]``.
            walks: Encodings computed before.

        Returns:
            Pairs ``[2, P]`` int64, keys above queries, and weights ``[L, P, H]``, which sum to 1 over the
            keys of a query.
        """
        was_training = self.training
        self.eval()
        try:
            structure = self.structure(edge_index, self._sizes(x, batch, sizes), walks)
            h, state = self.encode(x, edge_attr, structure)
            weights = []
            for layer in self.layers:
                assert isinstance(layer, GRITLayer)
                weights.append(layer.attention(h, state, structure.pairs)[0])
                h, state = layer(h, state, structure.pairs, structure.log_degree)
            return structure.pairs.edge_index(), torch.stack(weights)
        finally:
            self.train(was_training)

    def reset_parameters(self) -> None:
        """Draws all parameters anew."""
        parts = [self.node_features, self.edge_features, self.absolute, self.relative, self.degrees]
        for part in (*parts, *self.layers, *self.head.layers):
            if part is not None:
                part.reset_parameters()

    @staticmethod
    def _sizes(x: Tensor | None, batch: Tensor | None, sizes: Tensor | None) -> Tensor:
        """Returns the number of nodes of each graph."""
        if sizes is None:
            if batch is not None:
                return torch.bincount(batch)
            if x is None:
                raise ValueError("x, batch and sizes are None; one of them must say how many nodes there are")
            return torch.tensor([x.size(0)])
        count = x if x is not None else batch
        if sizes.device.type != "cpu" or torch.compiler.is_compiling():
            return sizes
        if count is not None and int(sizes.sum()) != count.size(0):
            raise ValueError(f"sizes sum to {int(sizes.sum())}; there are {count.size(0)} nodes")
        return sizes
