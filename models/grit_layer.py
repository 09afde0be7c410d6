"""The attention layer of GRIT.

Paper: "Graph Inductive Biases in Transformers without Message Passing", Liheng Ma et al., ICML 2023,
https://arxiv.org/abs/2305.17589, section 3.2. Symbols and shapes are in :mod:`graphkit.models.grit`.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphkit.kernels.relative_attention import relative_attention
from graphkit.nn.checks import require_positive, require_rate
from graphkit.nn.dropout import dropout_relu, fast_dropout
from graphkit.nn.node_pairs import NodePairs
from graphkit.nn.norm import SafeBatchNorm
from graphkit.nn.relative import PairBatchNorm, PairState, attention_weights

__all__ = ["GRITLayer"]


class GRITLayer(nn.Module):
    """One layer of GRIT (paper section 3.2), in any code that has states of nodes and of pairs.

    Args:
        channels: Width ``d``.
        heads: ``H``, which divides ``d``.
        dropout: Rate on attention's result, inside the FFN, and on updated pairs before their output map.
        attention_dropout: Rate on attention weights.
        norm: Batch or layer normalisation, of nodes and pairs.
        pair_norm: Whether pairs are normalised.
        pair_map: Whether updated pairs go through a linear map.
        edge_enhance: Whether attention also sums pairs, not only values.
        degree_scaler: Whether attention's result is scaled by degrees.
        update_pairs: Whether pairs are updated; else they are returned as they came.
        unused_parameters: Keep the weights of the update of pairs where there is none.
        clamp: Bound on scores; ``None`` for none.
        use_bias: Give keys and values a bias.
        activation: Of the FFN.
        attention_activation: Of updated pairs.
        bn_momentum: Of batch normalisation.
        sqrt_floor: The derivative of the signed root is that at ``|t| = sqrt_floor`` below it: an inexact
            gradient that low precision can bear. 0 for the exact one, with 0 at 0.

    Shapes:
        ``x`` ``[n, d]``; ``pair`` ``[P, d]``, or a :class:`~graphkit.nn.relative.PairState` whose
        normalisation is still to come; ``pairs`` P rows; ``log_degree`` ``[n]`` with ``degree_scaler``.
        Returns the next ``x`` and ``pair``, the latter in the form that it came in.
    """

    def __init__(
        self,
        channels: int,
        heads: int = 8,
        *,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        norm: Literal["batch", "layer"] = "batch",
        pair_norm: bool = True,
        pair_map: bool = True,
        edge_enhance: bool = True,
        degree_scaler: bool = True,
        update_pairs: bool = True,
        unused_parameters: bool = False,
        clamp: float | None = 5.0,
        use_bias: bool = False,
        activation: Literal["relu", "gelu"] = "relu",
        attention_activation: Literal["relu", "none"] = "relu",
        bn_momentum: float = 0.1,
        sqrt_floor: float = 0.0,
    ) -> None:
        super().__init__()
        require_positive("channels", channels)
        require_positive("heads", heads)
        if channels % heads:
            raise ValueError(f"channels is {channels}; it must be a multiple of heads, {heads}")
        require_rate("dropout", dropout, below_one=True)
        require_rate("attention_dropout", attention_dropout, below_one=True)
        for name, value, allowed in (
            ("norm", norm, ("batch", "layer")),
            ("activation", activation, ("relu", "gelu")),
            ("attention_activation", attention_activation, ("relu", "none")),
        ):
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; it must be {' or '.join(allowed)}")
        self.heads, self.dropout, self.attention_dropout = heads, dropout, attention_dropout
        self.update_pairs, self.clamp, self.sqrt_floor = update_pairs, clamp, sqrt_floor
        self.activation, self.attention_activation = activation, attention_activation
        d, c = channels, channels // heads

        def normalisation(pairs: bool) -> nn.Module:
            if norm == "layer":
                return nn.LayerNorm(d)
            return (PairBatchNorm if pairs else SafeBatchNorm)(d, momentum=bn_momentum)

        self.query = nn.Linear(d, d)
        self.key, self.value = nn.Linear(d, d, bias=use_bias), nn.Linear(d, d, bias=use_bias)
        self.pair = nn.Linear(d, 2 * d)  # rows ordered (head, w or b, channel)
        self.score = nn.Parameter(torch.empty(c, heads))
        self.relation = nn.Parameter(torch.empty(c, heads, c)) if edge_enhance else None
        self.degree = nn.Parameter(torch.empty(2, d)) if degree_scaler else None
        self.out = nn.Linear(d, d)
        self.norm = normalisation(False)
        self.ffn_in, self.ffn_out, self.ffn_norm = (
            nn.Linear(d, 2 * d),
            nn.Linear(2 * d, d),
            normalisation(False),
        )
        has_pairs = update_pairs or unused_parameters
        self.pair_out = nn.Linear(d, d) if pair_map and has_pairs else None
        self.pair_norm = normalisation(True) if pair_norm and has_pairs else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for module in self.children():
            module.reset_parameters()  # type: ignore[operator]
        for linear in (self.query, self.key, self.value, self.pair):
            nn.init.xavier_normal_(linear.weight)
        c, heads = self.score.shape
        # Glorot and Bengio's, as torch counts the fans of kernels of these shapes
        nn.init.normal_(self.score, std=math.sqrt(2 / (heads + c)))
        if self.relation is not None:
            nn.init.normal_(self.relation, std=math.sqrt(2 / (heads * c + c * c)))
        if self.degree is not None:
            nn.init.normal_(self.degree, std=math.sqrt(2 / (2 * heads * c + 2)))

    def forward(
        self, x: Tensor, pair: Tensor | PairState, pairs: NodePairs, log_degree: Tensor | None = None
    ) -> tuple[Tensor, Tensor | PairState]:
        state = pair if isinstance(pair, PairState) else PairState(pair)
        o, following = self.attend(x, state, pairs)
        h = fast_dropout(o, self.dropout, self.training)
        if self.degree is not None:
            if log_degree is None:
                raise ValueError("log_degree is None, but this layer scales by degrees")
            h = h * (self.degree[0] + log_degree[:, None] * self.degree[1])
        h = self.norm(x + self.out(h))
        h = self.ffn_norm(h + self.ffn_out(self._activated(self.ffn_in(h))))
        return h, following if isinstance(pair, PairState) else following.normalised()

    def attend(self, x: Tensor, state: PairState, pairs: NodePairs) -> tuple[Tensor, PairState]:
        """Returns attention's result before the degree scaler, ``[n, d]``, and the next pairs."""
        drop = (self.attention_dropout, self.dropout) if self.training else (0.0, 0.0)
        seed = torch.randint(2**63 - 1, (1,)).to(x.device) if max(drop) > 0 else None
        mapped = self.pair_out if self.update_pairs else None
        found = relative_attention(
            self.query(x),
            self.key(x),
            self.value(x),
            state.value,
            pairs.rowptr,
            pairs.key,
            self.pair.weight,
            self.pair.bias,
            self.score,
            None if mapped is None else mapped.weight,
            None if mapped is None else mapped.bias,
            scale=state.scale,
            shift=state.shift,
            update=self.update_pairs,
            activation=self.attention_activation,
            clamp=self.clamp,
            dropout=drop[0],
            pair_dropout=drop[1],
            seed=seed,
            sqrt_floor=self.sqrt_floor,
        )
        o = found.value
        if self.relation is not None:
            c, heads = self.score.shape
            summed = found.relation.view(-1, heads, c)
            o = o + torch.einsum("nhc,chd->nhd", summed, self.relation).reshape(o.shape)
        if found.pair is None or found.moments is None:
            return o, state
        if isinstance(self.pair_norm, PairBatchNorm):
            return o, PairState(found.pair, *self.pair_norm.fold(found.moments, found.pair.size(0)))
        return o, PairState(found.pair if self.pair_norm is None else self.pair_norm(found.pair))

    def attention(self, x: Tensor, pair: Tensor | PairState, pairs: NodePairs) -> tuple[Tensor, Tensor]:
        """Returns, to look at, attention weights ``[P, H]`` and pairs before their output map ``[P, d]``."""
        e = pair.normalised() if isinstance(pair, PairState) else pair
        parts = (self.pair.weight, self.pair.bias, self.score, self.attention_activation, self.clamp)
        return attention_weights(self.query(x), self.key(x), e, pairs, *parts)

    def _activated(self, h: Tensor) -> Tensor:
        if self.activation == "relu":
            return dropout_relu(h, self.dropout, self.training)
        return fast_dropout(F.gelu(h), self.dropout, self.training)
