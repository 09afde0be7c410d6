"""Instructions: what a question asks for, step by step, and how what was found changes them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from graphkit.nn.checks import require_positive
from graphkit.nn.dropout import FastDropout

__all__ = ["InstructionDecoder", "InstructionUpdate"]


class InstructionDecoder(nn.Module):
    r"""Reads K instructions off the tokens of a question, one after the other, as ReaRev does.

    .. math::
        q = W^k_q\, c, \quad z = W_c [i_{k-1}; q; q - i_{k-1}; q \odot i_{k-1}], \quad
        a_j = \mathrm{softmax}_j\, (w_a \cdot (z \odot x_j) + b_a), \quad i_k = \sum_j a_j x_j

    with :math:`i_0 = 0`, dropout before each of the three maps.

    Args:
        channels: D.
        instructions: K.
        dropout: Rate of dropping.
    """

    def __init__(self, channels: int, instructions: int, dropout: float = 0.0) -> None:
        super().__init__()
        require_positive("instructions", instructions)
        self.question = nn.ModuleList(nn.Linear(channels, channels) for _ in range(instructions))
        self.combine = nn.Linear(4 * channels, channels)
        self.attention = nn.Linear(channels, 1)
        self.dropout = FastDropout(dropout)

    def forward(self, x: Tensor, c: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the instructions ``[B, K, D]`` and where each looks ``[B, K, L]``.

        Args:
            x: ``[B, L, D]`` states of tokens.
            c: ``[B, D]`` state of the whole question.
            mask: ``[B, L]`` bool, which are tokens; a question without any is looked at evenly.
        """
        i = torch.zeros_like(c)
        instructions, looks = [], []
        for question in self.question:
            q = question(self.dropout(c))  # [B, D]
            z = self.combine(self.dropout(torch.cat([i, q, q - i, q * i], 1)))
            score = self.attention(self.dropout(z[:, None] * x)).squeeze(2)  # [B, L]
            a = score.masked_fill(~mask, torch.finfo(score.dtype).min).softmax(1)
            i = (a[:, None] @ x).squeeze(1)
            instructions.append(i)
            looks.append(a)
        return torch.stack(instructions, 1), torch.stack(looks, 1)


class InstructionUpdate(nn.Module):
    r"""Changes each instruction by what is known about the seeds, as ReaRev does.

    .. math:: y = [i_k; e; i_k - e], \quad g = \sigma(G_k y), \quad
        i_k \leftarrow g \odot V_k y + (1 - g) \odot i_k

    Args:
        channels: D.
        instructions: K, each with its own maps, computed in one product.
    """

    def __init__(self, channels: int, instructions: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.empty(instructions, 3 * channels, channels))
        self.gate = nn.Parameter(torch.empty(instructions, 3 * channels, channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = 1 / math.sqrt(self.gate.size(1))  # as nn.Linear
        nn.init.uniform_(self.value, -bound, bound)
        nn.init.uniform_(self.gate, -bound, bound)

    def forward(self, i: Tensor, e: Tensor) -> Tensor:
        """Returns the new instructions, ``[B, K, D]``, given those before and the seeds' state ``[B, D]``."""
        e = e[:, None].expand_as(i)
        y = torch.cat([i, e, i - e], 2).transpose(0, 1)  # [K, B, 3D]
        g = torch.bmm(y, self.gate).sigmoid()
        i = i.transpose(0, 1)
        return torch.lerp(i, torch.bmm(y, self.value), g).transpose(0, 1)

    def extra_repr(self) -> str:
        instructions, width, channels = self.gate.shape
        return f"{width} -> {channels}, instructions={instructions}"
