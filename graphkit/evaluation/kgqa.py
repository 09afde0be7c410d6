r"""Answers retrieved by their probability, and metrics of them, as ReaRev's authors report theirs.

Of a question's entities the seeds are dropped, and those below :math:`(1 - \epsilon) / N`, where N is
the most entities that any question of the split has. What remains is sorted by probability, and the shortest
prefix whose sum exceeds :math:`\epsilon = 0.95` is retrieved: nothing is renormalised. With gold answers G,
all of them, those outside the subgraph too, and the retrieved set A,

.. math:: P = |A \cap G| / |A|, \quad R = |A \cap G| / |G|, \quad F_1 = 2 P R / (P + R),

and Hits@1 asks whether the first is gold. A question without gold answers counts as a hit, with
:math:`F_1 = P = 1` if nothing was retrieved, else 0; with gold and an empty A, P = 1 and the others are 0.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from graphkit.errors import UserError
from graphkit.evaluation.metrics import check_scores

__all__ = [
    "EPSILON",
    "KgqaEvaluator",
    "QuestionScores",
    "Retrieved",
    "rescore",
    "retrieve",
    "score_retrieved",
]

EPSILON = 0.95


class Retrieved(NamedTuple):
    """The retrieved sets of B questions.

    Attributes:
        node: ``[k]`` int64, entities in the numbering of the probabilities, question by question, each
            question's likeliest first.
        ptr: ``[B + 1]`` int64, where each question's begin.
    """

    node: Tensor
    ptr: Tensor


class QuestionScores(NamedTuple):
    """Metrics of each of B questions, ``[B]`` float64, and ``size`` ``[B]`` int64, of its retrieved set.

    ``any_hit`` is 1 where any gold answer was retrieved.
    """

    hit: Tensor
    f1: Tensor
    precision: Tensor
    recall: Tensor
    any_hit: Tensor
    size: Tensor

    @classmethod
    def join(cls, parts: Sequence[QuestionScores]) -> QuestionScores:
        """Returns the scores of several portions of questions."""
        return cls(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def retrieve(
    probability: Tensor, ptr: Tensor, seed: Tensor, *, max_entities: int, eps: float = EPSILON
) -> Retrieved:
    """Returns the retrieved set of each question.

    Args:
        probability: ``[n]`` of every entity of every question.
        ptr: ``[B + 1]`` int64, where each question's entities begin.
        seed: ``[S]`` int64, the entities that are seeds: never retrieved.
        max_entities: N, the most entities of a question of the *split*, which decides the threshold.
        eps: The probability to exceed.

    Raises:
        UserError: Probabilities that aren't finite.
    """
    if not 0 < eps < 1:
        raise ValueError(f"eps is {eps}; it must lie between 0 and 1")
    if max_entities < 1:
        raise ValueError(f"max_entities is {max_entities}; it must be at least 1")
    ptr, p = ptr.cpu().long(), probability.detach().cpu().double()
    if p.numel():
        check_scores(p, "probabilities")
    keep = p >= (1 - eps) / max_entities
    keep[seed.cpu()] = False
    node = keep.nonzero().squeeze(1)
    node = node[p[node].sort(descending=True, stable=True).indices]
    question = torch.searchsorted(ptr, node, right=True) - 1
    question, order = question.sort(stable=True)
    node = node[order]
    count = torch.bincount(question, minlength=ptr.numel() - 1)
    place = torch.arange(node.numel()) - (count.cumsum(0) - count)[question]
    # A row a question: sums run along it one after the other, so they are those of a plain loop.
    table = torch.zeros(count.numel(), int(count.max()) if count.numel() else 0, dtype=torch.float64)
    table[question, place] = p[node]
    before = torch.from_numpy(table.numpy().cumsum(1))[question, place - 1]
    taken = (place == 0) | (before <= eps)
    sizes = torch.bincount(question[taken], minlength=count.numel())
    return Retrieved(node[taken], torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]))


def score_retrieved(
    retrieved: Retrieved, entity: Tensor, answer: Tensor, answer_ptr: Tensor
) -> QuestionScores:
    """Compares retrieved sets with gold answers.

    Args:
        retrieved: Of B questions.
        entity: ``[n]`` ids of the entities that ``retrieved.node`` numbers.
        answer: ``[A]`` ids of all gold answers, question by question.
        answer_ptr: ``[B + 1]`` int64, where each question's begin.
    """
    entity, answer, answer_ptr = entity.cpu().long(), answer.cpu().long(), answer_ptr.cpu().long()
    size, gold = retrieved.ptr.diff(), answer_ptr.diff()
    questions = torch.arange(size.numel())
    of_answer = torch.repeat_interleave(questions, gold)
    of_node = torch.repeat_interleave(questions, size)
    ids = entity[retrieved.node]
    span = 1 + max((int(t.max()) for t in (ids, answer) if t.numel()), default=0)
    right = torch.isin(of_node * span + ids, of_answer * span + answer)
    hits = torch.zeros(size.numel(), dtype=torch.float64).index_add(0, of_node, right.double())
    first = torch.zeros(size.numel(), dtype=torch.bool)
    some = size > 0
    first[some] = right[retrieved.ptr[:-1][some]]
    none = gold == 0
    empty = (~some).double()
    precision = torch.where(some, hits / size.clamp(min=1), 1.0)
    recall = hits / gold.clamp(min=1)
    f1 = torch.where(hits > 0, 2 * precision * recall / (precision + recall).clamp(min=1e-300), 0.0)
    return QuestionScores(
        hit=torch.where(none, 1.0, first.double()),
        f1=torch.where(none, empty, f1),
        precision=torch.where(none, empty, precision),
        recall=torch.where(none, 1.0, recall),
        any_hit=(hits > 0).double(),
        size=size,
    )


class KgqaEvaluator:
    """Means of :class:`QuestionScores`: ``hits@1``, ``f1``, ``precision``, ``recall`` and ``any_hit``."""

    metrics = ("hits@1", "f1", "precision", "recall", "any_hit")

    def __call__(self, scores: QuestionScores, hop: Tensor | None = None) -> dict[str, float]:
        """Returns the means over all questions, and over those of each hop as ``hits@1@hop2``, ``f1@hop2``.

        Args:
            scores: Of B questions.
            hop: ``[B]`` integers, how many facts lie between seeds and answers; 0 where nobody knows.

        Raises:
            UserError: No question.
        """
        if scores.hit.numel() == 0:
            raise UserError("there is nothing to score: the split has no questions")
        columns = (scores.hit, scores.f1, scores.precision, scores.recall, scores.any_hit)
        result = {name: float(c.mean()) for name, c in zip(self.metrics, columns, strict=True)}
        for h in [] if hop is None else hop.unique().tolist():
            if h > 0:
                chosen = hop == h
                result[f"hits@1@hop{h}"] = float(scores.hit[chosen].mean())
                result[f"f1@hop{h}"] = float(scores.f1[chosen].mean())
        return result


def rescore(file: str | Path | Iterable[str], *, eps: float = EPSILON) -> dict[str, float]:
    """Returns the metrics of a file of predictions in the form that ReaRev's authors publish.

    Args:
        file: JSON lines with ``answers`` and ``cand``, pairs of entity and probability, maybe gzipped. Or the
            lines themselves. Candidates below the threshold are taken to be left out already.
        eps: The probability to exceed.

    Returns:
        What :class:`KgqaEvaluator` gives, and ``questions``.

    Raises:
        UserError: A file that can't be read, or a line that isn't of this form.
    """
    where = str(file) if isinstance(file, str | Path) else "predictions"
    entity: list[int] = []
    answer: list[int] = []
    values: list[float] = []
    ptr, answer_ptr = [0], [0]
    for number, line in enumerate(_lines(file), 1):
        try:
            row: dict[str, Any] = json.loads(line)
            names: dict[str, int] = {}
            answer += [names.setdefault(str(name), len(names)) for name in row["answers"]]
            for name, p in row["cand"]:
                entity.append(names.setdefault(str(name), len(names)))
                values.append(float(p))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{where}, line {number}: no prediction with 'answers' and 'cand'") from error
        ptr.append(len(entity))
        answer_ptr.append(len(answer))
    found = retrieve(
        torch.tensor(values, dtype=torch.float64),
        torch.tensor(ptr),
        torch.zeros(0, dtype=torch.int64),
        max_entities=1 << 62,
        eps=eps,
    )
    ids = torch.tensor(entity, dtype=torch.int64)
    scores = score_retrieved(found, ids, torch.tensor(answer, dtype=torch.int64), torch.tensor(answer_ptr))
    return {**KgqaEvaluator()(scores), "questions": float(len(ptr) - 1)}


def _lines(file: str | Path | Iterable[str]) -> Iterable[str]:
    if not isinstance(file, str | Path):
        return file
    opened: Any = gzip.open if str(file).endswith(".gz") else open
    try:
        with opened(file, "rt", encoding="utf-8") as text:
            return list(text)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"can't read {file}: {error}") from error
