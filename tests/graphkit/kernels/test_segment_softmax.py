"""Softmax of segments against torch's, one segment after the other."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graphkit.kernels.segment_softmax import segment_softmax, segment_softmax_torch


@settings(max_examples=25)
@given(sizes=st.lists(st.integers(0, 5), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_each_segment_has_the_softmax_of_what_is_allowed(sizes: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    ptr = torch.tensor([0, *sizes]).cumsum(0)
    score = (9 * torch.randn(sum(sizes)).double()).requires_grad_()
    mask, weight = torch.rand(sum(sizes)) < 0.7, torch.randn(sum(sizes)).double()
    expected = torch.zeros(sum(sizes)).double()
    for a, b in pairwise(ptr):
        own = torch.arange(int(a), int(b))[mask[a:b]]
        expected = expected.index_put((own,), score[own].softmax(0))
    for p in (segment_softmax(score, ptr, mask), segment_softmax_torch(score, ptr, mask)):
        torch.testing.assert_close(p, expected)
        if mask.any():
            found = torch.autograd.grad((p * weight).sum(), score)
            torch.testing.assert_close(
                found, torch.autograd.grad((expected * weight).sum(), score, retain_graph=True)
            )


def test_large_scores_neither_overflow_nor_vanish() -> None:
    score = torch.tensor([1e4, 1e4, -1e4, -torch.inf, -torch.inf])
    ptr, mask = torch.tensor([0, 3, 5]), torch.ones(5, dtype=torch.bool)
    for form in (segment_softmax, segment_softmax_torch):
        assert form(score, ptr, mask).tolist() == [0.5, 0.5, 0, 0, 0]


def test_a_nan_stays_in_its_segment_and_is_not_hidden() -> None:
    score = torch.tensor([0.0, torch.nan, 1.0, 2.0])
    ptr, mask = torch.tensor([0, 2, 4]), torch.ones(4, dtype=torch.bool)
    for form in (segment_softmax, segment_softmax_torch):
        assert form(score, ptr, mask).isnan().tolist() == [True, True, False, False]


def test_what_does_not_fit_is_refused() -> None:
    score, ptr, mask = torch.zeros(3), torch.tensor([0, 3]), torch.ones(3, dtype=torch.bool)
    with pytest.raises(ValueError, match="score"):
        segment_softmax(score[None], ptr, mask)
    with pytest.raises(ValueError, match="mask"):
        segment_softmax(score, ptr, mask[1:])
    for wrong in (ptr.int(), torch.tensor([0, 4]), torch.tensor([0, 2, 1, 3])):
        with pytest.raises(ValueError, match="ptr"):
            segment_softmax(score, wrong, mask)
