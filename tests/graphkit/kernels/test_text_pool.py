"""Attention over tokens against torch's softmax, text by text."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from graphkit.kernels.text_pool import text_pool, text_pool_torch

T, L, E = 5, 4, 3


def texts() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    hidden = torch.randn(T, L, E).double()
    mask = torch.rand(T, L) < 0.7
    mask[0], mask[1] = True, False  # a full text, and one without a token
    return hidden, mask, torch.tensor([3, 0, 1, 4, 0]), torch.randn(E).double().requires_grad_()


def test_texts_are_pooled_by_the_softmax_of_their_tokens() -> None:
    hidden, mask, text, v = texts()
    expected = []
    for i in text.tolist():
        states = hidden[i][mask[i]]
        expected.append((states @ v).softmax(0) @ states if mask[i].any() else hidden[i].mean(0))
    weight = torch.randn(5, E).double()
    wanted = torch.stack(expected)
    gradient = torch.autograd.grad((wanted * weight).sum(), v)
    for form in (text_pool, text_pool_torch):
        y = form(hidden, mask, text, v)
        torch.testing.assert_close(y, wanted)
        torch.testing.assert_close(torch.autograd.grad((y * weight).sum(), v), gradient)


def test_states_that_want_a_gradient_get_it() -> None:
    hidden, mask, text, v = texts()
    hidden.requires_grad_()
    text_pool(hidden, mask, text, v).square().sum().backward()
    assert hidden.grad is not None
    assert not hidden.grad[~mask & mask.any(1, keepdim=True)].any()
    assert not hidden.grad[2].any()  # not asked for


def test_narrow_states_are_widened_for_the_texts_that_are_asked_for() -> None:
    hidden, mask, text, v = texts()
    y = text_pool(hidden.half(), mask, text, v)
    torch.testing.assert_close(y, text_pool(hidden.half().double(), mask, text, v))


def test_straight_gradients_pass_through_texts_without_tokens() -> None:
    hidden, mask, _, v = texts()
    empty = torch.tensor([1])
    torch.testing.assert_close(
        text_pool_torch(hidden, mask, empty, v, straight=True), text_pool(hidden, mask, empty, v)
    )
    found = torch.autograd.grad(text_pool_torch(hidden, mask, empty, v, straight=True).sum(), v)[0]
    flow = hidden[1].sum(1)
    expected = ((flow - flow.mean()) / L) @ hidden[1]
    torch.testing.assert_close(found, expected)


@pytest.mark.usefixtures("threads")
def test_the_number_of_threads_changes_no_bit() -> None:
    hidden, mask, v = torch.randn(300, 9, 128), torch.rand(300, 9) < 0.5, torch.randn(128)
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        leaf = v.clone().requires_grad_()
        y = text_pool(hidden, mask, torch.arange(300), leaf)
        found.append([y, *torch.autograd.grad(y.square().sum(), leaf)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_what_does_not_fit_is_refused() -> None:
    hidden, mask, text, v = texts()
    with pytest.raises(ValueError, match="hidden"):
        text_pool(hidden, mask, text, v[1:])
    with pytest.raises(ValueError, match="mask"):
        text_pool(hidden, mask[1:], text, v)
    with pytest.raises(ValueError, match="text"):
        text_pool(hidden, mask, text + T, v)
