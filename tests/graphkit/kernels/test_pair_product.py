"""The product of two rows: equal to gathers and a multiplication, forward, backward and twice."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from graphkit.kernels import pair_product, pair_product_torch


def case(nodes: int, pairs: int, width: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return torch.randn(nodes, width, dtype=dtype, requires_grad=True), torch.randint(nodes, (2, pairs))


@pytest.mark.parametrize("width", [1, 7, 64])
@pytest.mark.parametrize("pairs", [0, 1, 500])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_gathers_and_a_product_forward_and_backward(
    width: int, pairs: int, dtype: torch.dtype
) -> None:
    h, ends = case(20, pairs, width, dtype)
    out, expected = pair_product(h, ends), pair_product_torch(h, ends)
    torch.testing.assert_close(out, expected)
    weight = torch.randn_like(out)
    (ours,) = torch.autograd.grad((out * weight).sum(), h)
    (theirs,) = torch.autograd.grad((expected * weight).sum(), h)
    torch.testing.assert_close(ours, theirs)


def test_gradients_of_self_pairs_and_repeated_pairs_add_up() -> None:
    h = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    ends = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 0]])
    assert torch.autograd.gradcheck(lambda x: pair_product(x, ends), (h,))
    assert torch.autograd.gradgradcheck(lambda x: pair_product(x, ends), (h,))


def test_the_number_of_threads_changes_no_bit() -> None:
    h, ends = case(50, 9000, 96, torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            out = pair_product(h, ends)
            results.append((out.detach(), torch.autograd.grad((out * out).sum(), h)[0]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_rows_need_not_be_contiguous() -> None:
    h = torch.randn(8, 10, dtype=torch.float64).t()
    ends = torch.randint(10, (6, 2)).t()
    torch.testing.assert_close(pair_product(h, ends), pair_product_torch(h, ends))


def test_half_precision_goes_through() -> None:
    h = torch.randn(5, 4).to(torch.bfloat16)
    ends = torch.randint(5, (2, 7))
    assert torch.equal(pair_product(h, ends), pair_product_torch(h, ends))


@pytest.mark.parametrize("ends", [[[0, 5], [1, 1]], [[0, -1], [1, 1]]])
def test_ids_out_of_range_are_refused(ends: list[list[int]]) -> None:
    with pytest.raises(ValueError, match=r"must lie in \[0, 5\)"):
        pair_product(torch.randn(5, 2), torch.tensor(ends))


def test_compiles_without_a_graph_break() -> None:
    h, ends = case(6, 9, 4, torch.float32)
    compiled = torch.compile(pair_product, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(h, ends), pair_product_torch(h, ends))
