"""Knowledge graphs with facts missing, as they are in practice: how well are questions answered then?

Which facts are missing is decided by a hash of each and of the seed. So a fact that is missing from the graph
is missing from every question's subgraph, whichever is thinned out first, and a rate's missing facts are
among those of a higher one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from graphkit.errors import UserError
from graphkit.graphs import ragged_index
from graphkit.kernels.spmm import to_numpy
from graphkit.questions import QuestionSet, pointer

__all__ = ["Scope", "incomplete", "kept_facts"]

Scope = Literal["global", "per_question", "published"]
"""What facts go missing together: see :func:`incomplete`."""


def kept_facts(edge_index: Tensor, edge_type: Tensor, rate: float, seed: int = 0) -> Tensor:
    """Returns which facts of a graph stay, ``[F]`` bool; equal facts share their fate.

    Args:
        edge_index: ``[2, F]`` integers, entities of the whole graph, row 0 heads and row 1 tails.
        edge_type: ``[F]`` integers, relations.
        rate: Share of the facts that go missing, on average, at least 0 and below 1.
        seed: Another one, other facts.

    Raises:
        UserError: A rate out of range.
    """
    _check(rate)
    head, tail = to_numpy(edge_index.cpu())
    return _stay((head, to_numpy(edge_type.cpu()), tail), rate, seed)


def incomplete(questions: QuestionSet, rate: float, seed: int = 0, scope: Scope = "global") -> QuestionSet:
    """Returns the questions with facts missing from their subgraphs; entities and answers stay.

    Args:
        questions: Complete ones.
        rate: Share of the facts that go missing, on average, at least 0 and below 1.
        seed: Another one, other facts.
        scope: ``global``: a fact is missing everywhere or nowhere, as if the graph itself lacked it.
            ``per_question``: each question loses facts of its own, whatever others keep; questions stop
            sharing subgraphs, so that memory grows (tenfold for ``countries``). ``published``: every other
            fact of each list, the first one first, which is how ReaRev's authors halve MetaQA; the rate must
            be 0.5.

    Raises:
        UserError: A rate or scope out of range.
    """
    _check(rate)
    if scope not in get_args(Scope):
        raise UserError(f"unknown scope '{scope}'; it is one of: {', '.join(get_args(Scope))}")
    if scope == "published" and rate not in (0.0, 0.5):
        raise UserError(f"incomplete rate {rate} with scope 'published': that one is 0.5")
    if rate == 0:
        return questions
    if scope == "per_question":
        questions = _apart(questions)
    counts = questions.fact_ptr.diff()
    owner = torch.repeat_interleave(torch.arange(questions.num_graphs), counts)
    place = torch.arange(owner.numel()) - questions.fact_ptr[owner]
    if scope == "published":
        kept = place % 2 == 1
    elif scope == "per_question":
        kept = _stay((owner.numpy(), place.numpy()), rate, seed)
    else:
        first = questions.ptr[owner]
        head, tail = (
            questions.entity[first + end.long()].numpy() for end in (questions.head, questions.tail)
        )
        kept = _stay((head, to_numpy(questions.relation), tail), rate, seed)
    return replace(
        questions,
        head=questions.head[kept],
        tail=questions.tail[kept],
        relation=questions.relation[kept],
        fact_ptr=pointer(torch.bincount(owner[kept], minlength=questions.num_graphs)),
    )


def _check(rate: float) -> None:
    if not 0 <= rate < 1:
        raise UserError(f"incomplete rate is {rate}; it must be at least 0 and below 1")


def _apart(questions: QuestionSet) -> QuestionSet:
    """Returns the questions with a subgraph each."""
    graph = questions.graph.long()
    nodes, ptr = ragged_index(questions.ptr, graph)
    facts, fact_ptr = ragged_index(questions.fact_ptr, graph)
    return replace(
        questions,
        entity=questions.entity[nodes],
        ptr=ptr,
        num_seeds=questions.num_seeds[graph],
        head=questions.head[facts],
        tail=questions.tail[facts],
        relation=questions.relation[facts],
        fact_ptr=fact_ptr,
        graph=torch.arange(len(questions), dtype=torch.int32),
    )


def _stay(columns: tuple[npt.NDArray[np.integer], ...], rate: float, seed: int) -> Tensor:
    """Returns which rows stay: those whose hash, a number from 0 to 1, isn't below the rate."""
    mixed = np.full(columns[0].shape, seed, dtype=np.int64).astype(np.uint64)
    for column in columns:
        mixed = _mixed(mixed ^ _mixed(column.astype(np.int64).astype(np.uint64)))
    return torch.from_numpy((mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53 >= rate)


def _mixed(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Spreads the bits of 64-bit numbers: the output step of the generator SplitMix64."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
