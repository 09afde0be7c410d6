r"""Whether the paths that lead to an answer are what a model goes by: it is asked again without them.

Most that is sent to an entity need not be why it is likely: what all iterations do with it decides. So let
:math:`G_u` be the subgraph in which an answer t keeps the facts that join it to u alone, and
:math:`G_u \setminus \pi` the same without the facts along the path :math:`\pi = (s, \dots, u, t)` before its
last step (without those between s and t, if it has one step). The support of :math:`\pi` is

.. math:: p(t \mid G_u) - p(t \mid G_u \setminus \pi):

the first term is small where coming from u doesn't speak for t, the second is large where t is likely
without the path.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from graphkit.questions import QuestionBatch
from graphkit.tasks.kgqa_paths import Reason
from graphkit.text import TokenStates

if TYPE_CHECKING:
    from graphkit.tasks.kgqa import KgqaTask

__all__ = ["supports"]

_ENTITIES = 20_000  # asked about at once


@torch.no_grad()
def supports(
    task: KgqaTask, model: nn.Module, union: QuestionBatch, states: TokenStates, reasons: Sequence[Reason]
) -> list[float]:
    """Returns the support of each path, in [-1, 1].

    Args:
        task: Puts questions to the model.
        model: In evaluation mode.
        union: One question with its subgraph.
        states: Of the question's text.
        reasons: Paths of one step or more in this subgraph.
    """
    if not reasons:
        return []
    kept = torch.stack([mask for reason in reasons for mask in _with_and_without(union.edge_index, reason)])
    ends = torch.tensor([reason.nodes[-1] for reason in reasons]).repeat_interleave(2)
    at_once = max(1, _ENTITIES // union.entity.numel())
    parts = zip(kept.split(at_once), ends.split(at_once), strict=True)
    p = torch.cat([_asked(task, model, union, states, *part) for part in parts]).view(-1, 2)
    return (p[:, 0] - p[:, 1]).tolist()


def _with_and_without(edge_index: Tensor, reason: Reason) -> tuple[Tensor, Tensor]:
    """Returns which facts there are in both of a path's graphs, ``[F]`` bool each."""
    head, tail = edge_index

    def between(a: int, b: int) -> Tensor:
        return ((head == a) & (tail == b)) | ((head == b) & (tail == a))

    *before, last = (between(a, b) for a, b in zip(reason.nodes, reason.nodes[1:], strict=False))
    target = reason.nodes[-1]
    kept = last | ((head != target) & (tail != target))
    path = torch.stack(before).any(0) if before else last
    return kept, kept & ~path


def _asked(
    task: KgqaTask, model: nn.Module, union: QuestionBatch, states: TokenStates, kept: Tensor, ends: Tensor
) -> Tensor:
    """Returns the probability of an entity in each of some graphs, ``[B]``, all in one batch."""
    count, n = kept.size(0), union.entity.numel()
    first = torch.arange(count) * n
    graph, fact = kept.nonzero(as_tuple=True)
    several = QuestionBatch(
        union.edge_index[:, fact] + first[graph],
        union.edge_type[fact],
        torch.arange(count + 1) * n,
        (union.seed + first[:, None]).flatten(),
        union.entity.repeat(count),
        union.answer.repeat(count),
        union.ids.repeat(count),
    )
    texts = TokenStates(*(part.expand(count, *part.shape[1:]) for part in states))
    return task.probabilities(model, several.to(task.device), texts).cpu()[first + ends]
