"""The neighbourhood sum of relational graphs, against loops and torch operations."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from graphkit.kernels.relation_sum import relation_sum, relation_sum_torch


def problem(
    rows: int, columns: int, kinds: int, entries: int, width: int, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    row = torch.randint(rows, (entries,), generator=draw).sort().values
    rowptr = torch.zeros(rows + 1, dtype=torch.int64)
    rowptr[1:] = torch.bincount(row, minlength=rows).cumsum(0)
    col = torch.randint(columns, (entries,), generator=draw, dtype=torch.int32)
    kind = torch.randint(kinds, (entries,), generator=draw, dtype=torch.int32)
    x = torch.randn(columns, width, generator=draw, dtype=torch.float64)
    weight = torch.randn(kinds, width, generator=draw, dtype=torch.float64)
    return rowptr, col, kind, x, weight


@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 6),
    kinds=st.integers(1, 4),
    entries=st.integers(0, 20),
    width=st.integers(1, 9),
    seed=st.integers(0, 2**31),
)
def test_sum_and_gradients_are_those_of_torch(seed: int, **sizes: int) -> None:
    rowptr, col, kind, x, weight = problem(**sizes, seed=seed)
    mine, theirs = [(x.clone().requires_grad_(), weight.clone().requires_grad_()) for _ in range(2)]
    found, expected = relation_sum(rowptr, col, kind, *mine), relation_sum_torch(rowptr, col, kind, *theirs)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    back = torch.randn(found.shape, dtype=torch.float64)
    grads = torch.autograd.grad(found, mine, back), torch.autograd.grad(expected, theirs, back)
    for got, wanted in zip(*grads, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def test_sum_is_that_of_a_loop() -> None:
    rowptr, col, kind, x, weight = problem(4, 5, 3, 11, 6, 0)
    expected = torch.zeros(4, 6, dtype=torch.float64)
    for row in range(4):
        for e in range(int(rowptr[row]), int(rowptr[row + 1])):
            expected[row] += x[int(col[e])] * weight[int(kind[e])]
    torch.testing.assert_close(relation_sum(rowptr, col, kind, x, weight), expected)


def test_threads_change_no_bit() -> None:
    structure = problem(500, 400, 7, 20_000, 48, 1)
    rowptr, col, kind, x, weight = structure
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            leaves = x.float().requires_grad_(), weight.float().requires_grad_()
            y = relation_sum(rowptr, col, kind, *leaves)
            results.append((y, *torch.autograd.grad(y.square().sum(), leaves)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single_and_rounded_once(dtype: torch.dtype) -> None:
    rowptr, col, kind, x, weight = problem(4, 5, 3, 60, 6, 2)
    x, weight = x.to(dtype), weight.to(dtype)
    found = relation_sum(rowptr, col, kind, x, weight)
    assert found.dtype == dtype
    assert torch.equal(found, relation_sum(rowptr, col, kind, x.float(), weight.float()).to(dtype))


def test_operator_passes_torchs_own_checks() -> None:
    rowptr, col, kind, x, weight = problem(4, 5, 3, 11, 6, 3)
    arguments = (rowptr, col, kind, x.requires_grad_(), weight.requires_grad_())
    torch.library.opcheck(torch.ops.graphkit.relation_sum.default, arguments)


def test_what_does_not_fit_is_refused() -> None:
    rowptr, col, kind, x, weight = problem(4, 5, 3, 11, 6, 4)
    with pytest.raises(ValueError, match=r"they must be \[m, d\] and \[T, d\]"):
        relation_sum(rowptr, col, kind, x, weight[:, :5])
    with pytest.raises(ValueError, match=r"kind is torch.int64 \[11\]; it must be int32 \[11\]"):
        relation_sum(rowptr, col, kind.long(), x, weight)
    with pytest.raises(ValueError, match=r"col is torch\.int64"):
        relation_sum(rowptr, col.long(), kind, x, weight)
    with pytest.raises(ValueError, match="col is out of range"):
        relation_sum(rowptr, col + 5, kind, x, weight)
    with pytest.raises(ValueError, match="kind is out of range"):
        relation_sum(rowptr, col, kind - 3, x, weight)
    with pytest.raises(ValueError, match="rowptr must ascend"):
        relation_sum(rowptr + 1, col, kind, x, weight)
