"""States of pairs in attention with relative features: folded norm, recomputed layers, weights to see."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch_geometric.utils import softmax

from graphkit.nn.node_pairs import NodePairs
from graphkit.nn.norm import SafeBatchNorm, total_across

__all__ = ["PairBatchNorm", "PairState", "attention_weights", "layers_per_group", "run_layers"]


class PairState(NamedTuple):
    """States of pairs before a batch normalisation, and what that comes to: ``e = value * scale + shift``.

    Who reads pairs scales and shifts them on the way, so that ``e`` is never written.

    Attributes:
        value: ``[P, d]``.
        scale: ``[d]``, ones where it is ``None``.
        shift: ``[d]``, zeros where it is ``None``.
    """

    value: Tensor
    scale: Tensor | None = None
    shift: Tensor | None = None

    def normalised(self) -> Tensor:
        """Returns ``e`` ``[P, d]``."""
        e = self.value if self.scale is None else self.value * self.scale
        return e if self.shift is None else e + self.shift


class PairBatchNorm(SafeBatchNorm):
    """Batch normalisation of pairs from the sums that were taken while they were written.

    Called with ``[P, d]`` it is an ordinary batch normalisation; weights, running statistics and their names
    are those of ``nn.BatchNorm1d``.
    """

    def fold(self, moments: Tensor, count: int) -> tuple[Tensor, Tensor]:
        r"""Returns scale :math:`\gamma / \sigma` and shift :math:`\beta - \mu \gamma / \sigma`, ``[d]`` each.

        In training the statistics are those of the batch, and running statistics follow them; a batch of
        one pair, or none, is taken by these.

        Args:
            moments: ``[2, d]`` float64, sum and sum of squares of all pairs.
            count: The number of pairs.
        """
        assert self.running_mean is not None
        assert self.running_var is not None
        if self.training and (self.across is not None or count > 1):
            every = torch.cat([moments.reshape(-1), moments.new_tensor([count])])
            every = total_across(every, self.across)
            rows, enough = every[-1], every[-1] > 1
            first, second = every[:-1].view_as(moments) / rows.clamp(min=1)
            spread = (second - first.square()).clamp(min=0)
            self.follow(first, spread, rows)
            mean = torch.where(enough, first, self.running_mean.double())
            var = torch.where(enough, spread, self.running_var.double())
        else:
            mean, var = self.running_mean.double(), self.running_var.double()
        scale = self.weight.double() * (var + self.eps).rsqrt()
        shift = self.bias.double() - mean * scale
        return scale.to(self.weight.dtype), shift.to(self.weight.dtype)


def attention_weights(
    q: Tensor,
    k: Tensor,
    e: Tensor,
    pairs: NodePairs,
    pair_weight: Tensor,
    pair_bias: Tensor,
    score_weight: Tensor,
    activation: Literal["relu", "none"] = "relu",
    clamp: float | None = 5.0,
) -> tuple[Tensor, Tensor]:
    """Computes the weights that :func:`~graphkit.kernels.relative_attention.relative_attention` never keeps.

    Args:
        q: ``[n, d]``, like the other arguments as there.
        k: ``[n, d]``.
        e: ``[P, d]``, scaled and shifted.
        pairs: Which pairs there are.
        pair_weight: ``[2 d, d]``.
        pair_bias: ``[2 d]``.
        score_weight: ``[c, H]``.
        activation: ``relu`` or ``none``.
        clamp: Bound on the scores, or ``None``.

    Returns:
        Weights ``[P, H]``, which sum to 1 over the keys of a query, and updated pairs before their output
        map, ``[P, d]``.
    """
    c, heads = score_weight.shape
    gain, offset = F.linear(e, pair_weight, pair_bias).view(-1, heads, 2, c).unbind(2)  # [P, H, c]
    t = (q[pairs.query()] + k[pairs.key.long()]).view(-1, heads, c) * gain
    hat = torch.copysign(t.abs().sqrt(), t) + offset
    hat = hat.relu() if activation == "relu" else hat
    score = torch.einsum("phc,ch->ph", hat, score_weight)
    score = score if clamp is None else score.clamp(-clamp, clamp)
    return softmax(score, ptr=pairs.rowptr, dim=0), hat.flatten(1)


def layers_per_group(num_layers: int, layer_bytes: int, memory_bytes: int | None) -> int:
    """Chooses how many layers to recompute together so that what is kept for the gradient fits.

    Groups of ``g`` among ``L`` layers keep the input of every group and, one group at a time, that of each of
    its layers: ``L / g + g`` layers' worth.

    Args:
        num_layers: ``L``.
        layer_bytes: What a layer keeps.
        memory_bytes: What may be kept; ``None`` for any amount.

    Returns:
        ``L``, nothing being recomputed, where all fits; else the largest ``g`` that does, and if none does
        the one that keeps least.
    """
    if memory_bytes is None or num_layers * layer_bytes <= memory_bytes:
        return num_layers
    kept = {g: (-(-num_layers // g) + g) * layer_bytes for g in range(1, num_layers + 1)}
    fitting = [g for g, amount in kept.items() if amount <= memory_bytes]
    return max(fitting) if fitting else min(kept, key=lambda g: (kept[g], -g))


def run_layers(
    layers: Iterable[nn.Module], x: Tensor, state: PairState, *args: Any, group: int | None = None
) -> tuple[Tensor, PairState]:
    """Runs ``x, state = layer(x, state, *args)`` for each layer; all groups but the last are recomputed.

    The result, its gradients and what happens to running statistics and to torch's random numbers are the
    same whatever the group.

    Args:
        layers: In order.
        x: ``[n, d]``.
        state: Of pairs.
        *args: What every layer takes beside these.
        group: Layers of a group; all by default, so that nothing is recomputed.
    """
    layers = list(layers)
    size = group or max(len(layers), 1)
    for start in range(0, len(layers), size):
        part = layers[start : start + size]
        if start + size >= len(layers) or not torch.is_grad_enabled():
            x, state = _run(part, x, state, *args)
        else:
            x, state = checkpoint(
                _run,
                part,
                x,
                state,
                *args,
                use_reentrant=False,
                context_fn=functools.partial(_contexts, part),
            )
    return x, state


def _run(layers: Sequence[nn.Module], x: Tensor, state: PairState, *args: Any) -> tuple[Tensor, PairState]:
    for layer in layers:
        x, state = layer(x, state, *args)
    return x, state


def _contexts(layers: Sequence[nn.Module]) -> tuple[Any, Any]:
    """Returns what surrounds the first run of a group, and the second."""
    return contextlib.nullcontext(), _frozen_statistics(layers)


@contextlib.contextmanager
def _frozen_statistics(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Lets layers run again without their running statistics moving a second time."""
    norms = [m for layer in layers for m in layer.modules() if isinstance(m, nn.BatchNorm1d)]
    # copies take their place for a while; writing the old values back would count as a change in place
    kept = [(norm, name, buffer) for norm in norms for name, buffer in norm.named_buffers()]
    for norm, name, buffer in kept:
        setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, name, buffer in kept:
            setattr(norm, name, buffer)
