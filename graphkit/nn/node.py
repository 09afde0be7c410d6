r"""A node classifier made of convolutions: what the tuned plain models share.

Paper: "Classic GNNs are Strong Baselines: Reassessing GNNs for Node Classification", Yuankai Luo, Lei Shi,
Xiao-Ming Wu, NeurIPS 2024, https://arxiv.org/abs/2406.08993: with normalisation, residual connections and
dropout the plain convolutions rival graph transformers. Each of these is an option here.

Shapes: N nodes, F features, H hidden channels, C classes, L layers.

    h_0 = dropout(x) or rows of the embedding                                        [N, F]
    h_l = dropout(relu(norm(conv_l(h_{l-1}) + residual_l(h_{l-1}))))                 [N, H]
    out = conv_L(h_{L-1}), or head(h_L), or head(h_1 + ... + h_L)                    [N, C]
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from graphkit.nn.checks import require_positive, require_rate
from graphkit.nn.conv import Conv, LinearLayer
from graphkit.nn.dropout import DropoutReLU, FastDropout
from graphkit.nn.embedding import EmbeddingConfig, make_embedding
from graphkit.nn.norm import SafeBatchNorm
from graphkit.sparse import Adjacency, CSRGraph, SparseRows, as_adjacency

__all__ = ["NodeModel"]

NormName = Literal["batch", "layer", "none"]
_NORMS = {"batch": SafeBatchNorm, "layer": nn.LayerNorm, "none": nn.Identity}


class NodeModel(nn.Module):
    r"""Stacked convolutions over a whole graph, over sampled blocks, or layer by layer over ranges of rows.

    A subclass says which convolution, in :meth:`make_conv`.

    Args:
        in_channels: Width ``F`` of the features, or ``None`` for learnt embeddings of ``num_nodes`` ids.
        num_classes: Classes (or tasks) ``C``.
        num_nodes: Number of nodes, needed without features only.
        hidden_channels: Width ``H`` of every hidden layer.
        num_layers: Number of convolutions ``L``.
        norm: Normalisation of hidden layers.
        residual: Add a linear map of a hidden layer's input to its output.
        jumping: Add up all hidden layers' outputs before the head; needs ``linear_head``.
        linear_head: End with a linear map; otherwise the last convolution gives the classes.
        dropout: Rate after each hidden layer.
        feature_dropout: Rate on the features, or on the embedding's rows.
        embedding: What stands behind learnt rows where there are no features.

    Shapes:
        ``x`` ``[N, F]`` dense or :class:`~graphkit.sparse.SparseRows`, or ``None``; ``graph`` an
        ``edge_index`` ``[2, E]`` from source to target, rows, or one block of rows for each layer, the
        outermost first; ``n_id`` ``[N]`` int64 ids of the nodes, where they aren't all nodes in order.
        Result ``[N, C]`` logits, of the last block's targets where there are blocks.
    """

    def __init__(
        self,
        in_channels: int | None,
        num_classes: int | None,
        num_nodes: int | None = None,
        *,
        hidden_channels: int = 256,
        num_layers: int = 3,
        norm: NormName = "batch",
        residual: bool = False,
        jumping: bool = False,
        linear_head: bool = False,
        dropout: float = 0.5,
        feature_dropout: float = 0.0,
        embedding: EmbeddingConfig = EmbeddingConfig(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__()
        if num_classes is None:
            raise ValueError("num_classes is None; this data set has no classes to predict")
        require_positive("num_classes", num_classes)
        require_positive("hidden_channels", hidden_channels)
        require_positive("num_layers", num_layers)
        require_rate("dropout", dropout)
        require_rate("feature_dropout", feature_dropout)
        if norm not in _NORMS:
            raise ValueError(f"norm is {norm!r}; it must be one of {', '.join(_NORMS)}")
        if jumping and not linear_head:
            raise ValueError("jumping needs linear_head: a sum of hidden layers has their width")
        self.num_layers, self.jumping = num_layers, jumping
        width = in_channels
        self.uses_features = in_channels is not None
        self.embedding: nn.Module | None = None
        if in_channels is None:
            if num_nodes is None:
                raise ValueError("in_channels is None, so num_nodes must say how many node ids there are")
            config = EmbeddingConfig.of(embedding)
            made = make_embedding(config, num_nodes, config.dim or hidden_channels)
            self.embedding, width = made, made.embedding_dim
        assert width is not None
        self.input_dropout = FastDropout(feature_dropout)
        hidden = num_layers if linear_head else num_layers - 1
        self.convs = nn.ModuleList()
        for layer in range(num_layers):
            last = layer == hidden  # only without a head
            inputs = width if layer == 0 else hidden_channels
            self.convs.append(self.make_conv(inputs, num_classes if last else hidden_channels, last))
        self.residuals = nn.ModuleList()
        for layer in range(hidden if residual else 0):
            inputs = width if layer == 0 else hidden_channels
            self.residuals.append(LinearLayer(inputs, hidden_channels))
        self.norms = nn.ModuleList(_NORMS[norm](hidden_channels) for _ in range(hidden))
        self.activation = DropoutReLU(dropout)
        self.head = nn.Linear(hidden_channels, num_classes) if linear_head else None

    def make_conv(self, in_channels: int, out_channels: int, last: bool) -> Conv:
        """Returns a convolution; ``last`` where its result are the classes."""
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """Draws all parameters anew."""
        for module in self.modules():
            reset = getattr(module, "reset_parameters", None)
            if module is not self and callable(reset):
                reset()

    def forward(
        self,
        x: Tensor | SparseRows | None,
        graph: Tensor | CSRGraph | Adjacency | Sequence[Adjacency],
        n_id: Tensor | None = None,
    ) -> Tensor:
        h = self.embed(x, n_id)
        return self._propagate(h, self._blocks(graph, h))

    def _propagate(self, h: Tensor | SparseRows, blocks: Sequence[Adjacency]) -> Tensor:
        total: Tensor | None = None
        for layer, block in enumerate(blocks):
            h = self.layer(layer, h, block)
            if self.jumping:
                total = h if total is None else total[: h.size(0)] + h
        assert isinstance(h, Tensor)
        return self.finish(h if total is None else total)

    def embed(self, x: Tensor | SparseRows | None, n_id: Tensor | None = None) -> Tensor | SparseRows:
        """Returns the input of the first layer: features, or the embedding's rows of ``n_id``."""
        if self.embedding is not None:
            rows: Tensor = self.embedding(n_id)
            return self.input_dropout(rows)
        if x is None:
            raise ValueError("x is None, but this model was built with in_channels")
        if isinstance(x, SparseRows):  # a dropped zero is a zero
            return x._replace(value=self.input_dropout(x.value))
        return self.input_dropout(x)

    def layer(self, index: int, h: Tensor | SparseRows, graph: Adjacency) -> Tensor:
        """Computes one layer of the R targets among C sources, ``[C, *] -> [R, *]``."""
        conv = self.convs[index]
        assert isinstance(conv, Conv)
        return self._rows(index, conv.prepare(h), h, graph, 0)

    def _rows(
        self, index: int, sources: Tensor, h: Tensor | SparseRows, graph: Adjacency, start: int
    ) -> Tensor:
        """Computes the rows of a layer whose targets are sources ``start`` and following."""
        conv = self.convs[index]
        assert isinstance(conv, Conv)
        out = conv.combine(sources, h, graph, start)
        if index >= len(self.norms):
            return out
        if len(self.residuals):
            out = out + self.residuals[index](h, graph, start)
        active: Tensor = self.activation(self.norms[index](out))
        return active

    def finish(self, h: Tensor) -> Tensor:
        """Returns the logits ``[R, C]`` of the last layer's states."""
        return h if self.head is None else self.head(h)

    @torch.no_grad()
    def inference(
        self,
        x: Tensor | SparseRows | None,
        graph: Tensor | CSRGraph | Adjacency,
        n_id: Tensor | None = None,
        *,
        rows: int | None = None,
        each: Callable[[Sequence[int], Callable[[int], Tensor]], list[Tensor]] | None = None,
    ) -> Tensor:
        """Computes all nodes' logits exactly, one layer after the other, some rows at a time.

        Beside the states of a layer's input, what is read of them and those of its output, memory is that of
        ``rows`` targets. Every neighbour takes part, whatever was sampled in training.

        Args:
            x: As in :meth:`forward`.
            graph: The whole graph.
            n_id: As in :meth:`forward`.
            rows: Targets at a time; all by default.
            each: Goes through the portions of a layer: ``each(starts, work)`` returns ``work(start)`` of
                each, in order; perhaps with the help of other processes. By default one after the other.

        Returns:
            ``[N, C]``.
        """
        was_training = self.training
        self.eval()
        try:
            h = self.embed(x, n_id)
            whole = self._blocks(graph, h)[0]
            step = rows or max(whole.num_rows, 1)
            if step >= whole.num_rows:
                return self._propagate(h, [whole] * self.num_layers)
            total: Tensor | None = None
            for layer, conv in enumerate(self.convs):
                assert isinstance(conv, Conv)
                sources = conv.prepare(h)
                portion = functools.partial(self._portion, layer, sources, h, whole, step)
                starts = range(0, whole.num_rows, step)
                h = _joined(map(portion, starts) if each is None else each(starts, portion), whole.num_rows)
                h = h.to(sources.device)
                if self.jumping:
                    total = h if total is None else total + h
            assert isinstance(h, Tensor)
            return self.finish(h if total is None else total)
        finally:
            self.train(was_training)

    def _portion(
        self, index: int, sources: Tensor, h: Tensor | SparseRows, graph: Adjacency, step: int, start: int
    ) -> Tensor:
        """Computes ``step`` rows of a layer from ``start`` on."""
        stop = min(start + step, graph.num_rows)
        return self._rows(index, sources, h, graph.rows(start, stop), start)

    def _blocks(
        self, graph: Tensor | CSRGraph | Adjacency | Sequence[Adjacency], h: Tensor | SparseRows
    ) -> Sequence[Adjacency]:
        if isinstance(graph, Tensor | CSRGraph | Adjacency):
            return [as_adjacency(graph, h)] * self.num_layers
        if len(graph) != self.num_layers:
            raise ValueError(
                f"{len(graph)} blocks for {self.num_layers} layers; sample one hop for each layer"
            )
        return graph


def _joined(parts: Iterable[Tensor], rows: int) -> Tensor:
    """Returns the portions ``[n, H]`` as one tensor ``[rows, H]``, holding no more than one beside it."""
    out, start = None, 0
    for part in parts:
        out = part.new_empty(rows, part.size(1)) if out is None else out
        out[start : start + part.size(0)] = part
        start += part.size(0)
    assert out is not None
    return out
