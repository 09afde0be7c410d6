"""Facts with their inverses, and the right and wrong answers to queries."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from graphkit.tasks.base import generator
from graphkit.tasks.kgc_facts import Answers, Facts

RELATIONS = 3


def test_inverse_edges_come_after_the_others() -> None:
    graph = Facts.of(torch.tensor([[0, 1], [2, 0]]), torch.tensor([1, 2]), 3, RELATIONS)
    assert graph.edge_index.tolist() == [[0, 1, 2, 0], [2, 0, 0, 1]]
    assert graph.edge_type.tolist() == [1, 2, 4, 5]
    kept = graph.without(torch.tensor([True, False, True, False]))
    assert kept.edge_index.tolist() == [[1, 0], [0, 1]]
    assert kept.edge_type.tolist() == [2, 5]


@given(entities=st.integers(3, 9), count=st.integers(1, 12), seed=st.integers(0, 2**31))
def test_wrong_answers_are_drawn_among_all_and_only_wrong_ones(entities: int, count: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    ends = torch.randint(entities, (2, count), generator=draw)
    known = torch.stack([ends[0], torch.randint(RELATIONS, (count,), generator=draw), ends[1]])
    answers = Answers(known, entities, RELATIONS)
    right: dict[tuple[int, int], set[int]] = {}
    for h, r, t in known.t().tolist():
        right.setdefault((h, r), set()).add(t)
    if max(map(len, right.values())) == entities:
        return
    begin, tails = answers.of(known[0], known[1])
    drawn = answers.wrong(known[0], known[1], 150, draw)
    for i, (h, r, _) in enumerate(known.t().tolist()):
        assert set(tails[begin[i] : begin[i + 1]].tolist()) == right[h, r]
        assert set(drawn[i].tolist()) == set(range(entities)) - right[h, r]


def test_wrong_answers_are_drawn_evenly() -> None:
    known = torch.tensor([[0, 0, 0], [1, 1, 1], [2, 5, 6]])
    drawn = Answers(known, 10, RELATIONS).wrong(known[0, :1], known[1, :1], 70_000, generator(0, "x"))
    share = torch.bincount(drawn.flatten(), minlength=10) / 70_000
    wrong = torch.tensor([0, 1, 3, 4, 7, 8, 9])
    torch.testing.assert_close(share[wrong], torch.full((7,), 1 / 7), atol=0.01, rtol=0)
    assert float(share[[2, 5, 6]].sum()) == 0
