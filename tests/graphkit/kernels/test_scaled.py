"""Neighbourhood sums with factors, against a loop in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from graphkit.kernels import scaled_spmm, scaled_spmm_torch

FACTORS = ("source", "row", "own")
COMBINATIONS = [
    pytest.param(chosen, id="+".join(chosen) or "no factor")
    for size in range(4)
    for chosen in itertools.combinations(FACTORS, size)
]


def random_csr(rows: int, cols: int, entries: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A structure with repeated and unsorted columns, empty rows and one row of many entries."""
    rng = np.random.default_rng(seed)
    row = np.sort(np.where(rng.random(entries) < 0.3, 0, rng.integers(0, rows, entries)))
    rowptr = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=rows))])
    return torch.from_numpy(rowptr), torch.from_numpy(rng.integers(0, cols, entries).astype(np.int32))


def symmetric_csr(nodes: int, pairs: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A structure that holds every entry's reverse; the last node has none."""
    rng = np.random.default_rng(seed)
    ends = rng.integers(0, nodes - 1, (2, pairs))
    dense = np.zeros((nodes, nodes), bool)
    dense[ends[0], ends[1]] = dense[ends[1], ends[0]] = True
    rowptr = np.concatenate([[0], np.cumsum(dense.sum(1))])
    return torch.from_numpy(rowptr), torch.from_numpy(np.nonzero(dense)[1].astype(np.int32))


def factors(
    chosen: tuple[str, ...], rows: int, cols: int, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    sizes = {"source": cols, "row": rows, "own": rows}
    return {name: torch.rand(sizes[name], dtype=torch.float64).add(0.5).to(dtype) for name in chosen}


def naive(rowptr: Tensor, col: Tensor, x: Tensor, start: int = 0, **given: Tensor) -> Tensor:
    """The formula, one entry after the other."""
    rows = rowptr.numel() - 1
    x = x.double()
    source = given.get("source", torch.ones(x.size(0))).double()
    row = given.get("row", torch.ones(rows)).double()
    own = given.get("own", torch.zeros(rows)).double()
    y = torch.zeros(rows, x.size(1), dtype=torch.float64)
    for r in range(rows):
        for c in col[rowptr[r] : rowptr[r + 1]].tolist():
            y[r] += source[c] * x[c]
        y[r] *= row[r]
        if "own" in given:
            y[r] += own[r] * x[start + r]
    return y


@pytest.mark.parametrize("chosen", COMBINATIONS)
@pytest.mark.parametrize("width", [1, 3, 17])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_equal_the_formula(chosen: tuple[str, ...], width: int, dtype: torch.dtype) -> None:
    rowptr, col = random_csr(13, 31, 90)
    x, scales = torch.randn(31, width, dtype=dtype), factors(chosen, 13, 31, dtype)
    start = 7 if "own" in chosen else 0
    y = scaled_spmm(rowptr, col, x, start=start, **scales)
    assert y.dtype == dtype
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(
        y.double(), naive(rowptr, col, x, start, **scales), atol=tolerance, rtol=tolerance
    )


@settings(max_examples=40)
@given(
    st.integers(0, 6), st.integers(1, 8), st.integers(0, 20), st.integers(0, 5), st.integers(0, 7), st.data()
)
def test_compiled_loops_equal_tensor_operations(
    rows: int, extra: int, entries: int, width: int, mask: int, data: st.DataObject
) -> None:
    cols = rows + extra
    start = data.draw(st.integers(0, extra))
    rowptr, col = random_csr(rows, cols, entries if rows else 0, mask)
    scales = factors(tuple(name for bit, name in enumerate(FACTORS) if mask >> bit & 1), rows, cols)
    x = torch.randn(cols, width, dtype=torch.float64)
    torch.testing.assert_close(
        scaled_spmm(rowptr, col, x, start=start, **scales),
        scaled_spmm_torch(rowptr, col, scales.get("source"), scales.get("row"), scales.get("own"), x, start),
    )


@pytest.mark.parametrize("chosen", COMBINATIONS)
@pytest.mark.parametrize("start", [0, 4])
def test_gradient_of_a_range_of_rows(chosen: tuple[str, ...], start: int) -> None:
    """Five targets among nine sources, which aren't symmetric."""
    rowptr, col = random_csr(5, 9, 14)
    scales = factors(chosen, 5, 9)
    x = torch.randn(9, 2, dtype=torch.float64, requires_grad=True)

    def total(x: Tensor) -> Tensor:
        return scaled_spmm(rowptr, col, x, start=start, **scales)

    assert torch.autograd.gradcheck(total, x)
    assert torch.autograd.gradgradcheck(total, x)


@pytest.mark.parametrize("chosen", COMBINATIONS)
@pytest.mark.parametrize("promised", [False, True])
def test_gradient_on_a_symmetric_structure(chosen: tuple[str, ...], promised: bool) -> None:
    rowptr, col = symmetric_csr(7, 8)
    scales = factors(chosen, 7, 7)
    x = torch.randn(7, 2, dtype=torch.float64, requires_grad=True)

    def total(x: Tensor) -> Tensor:
        return scaled_spmm(rowptr, col, x, symmetric=promised, **scales)

    assert torch.autograd.gradcheck(total, x)
    assert torch.autograd.gradgradcheck(total, x)


def test_promise_of_symmetry_changes_no_gradient() -> None:
    rowptr, col = symmetric_csr(40, 120)
    scales, x = factors(FACTORS, 40, 40), torch.randn(40, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(40, 6, dtype=torch.float64)
    gradients = [
        torch.autograd.grad((scaled_spmm(rowptr, col, x, symmetric=promised, **scales) * weight).sum(), x)[0]
        for promised in (False, True)
    ]
    torch.testing.assert_close(*gradients)


def test_factors_are_constants() -> None:
    rowptr, col = random_csr(4, 4, 6)
    x = torch.randn(4, 2, requires_grad=True)
    row = torch.rand(4, requires_grad=True)
    scaled_spmm(rowptr, col, x, row=row, own=row, source=row).sum().backward()
    assert x.grad is not None
    assert row.grad is None


@pytest.mark.parametrize("symmetric", [False, True])
def test_rows_without_entries_have_their_own_row_alone(symmetric: bool) -> None:
    rowptr, col = torch.zeros(4, dtype=torch.int64), torch.empty(0, dtype=torch.int32)
    x, own = torch.randn(3, 5, requires_grad=True), torch.rand(3)
    assert torch.equal(scaled_spmm(rowptr, col, x, symmetric=symmetric), torch.zeros(3, 5))
    y = scaled_spmm(rowptr, col, x, own=own, symmetric=symmetric)
    torch.testing.assert_close(y, own[:, None] * x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, own[:, None].expand(3, 5))


@pytest.mark.parametrize(("rows", "cols", "width"), [(0, 0, 4), (0, 3, 4), (3, 3, 0)])
def test_nothing_to_sum(rows: int, cols: int, width: int) -> None:
    rowptr, col = torch.zeros(rows + 1, dtype=torch.int64), torch.empty(0, dtype=torch.int32)
    x = torch.randn(cols, width, requires_grad=True)
    y = scaled_spmm(rowptr, col, x, **factors(FACTORS, rows, cols))
    y.sum().backward()
    assert y.shape == (rows, width)
    assert x.grad is not None
    assert not x.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    rowptr, col = random_csr(10, 10, 80)
    scales = factors(FACTORS, 10, 10, torch.float32)
    x = torch.randn(10, 5).to(dtype).requires_grad_()
    y = scaled_spmm(rowptr, col, x, **scales)
    assert y.dtype == dtype
    assert torch.equal(y, scaled_spmm(rowptr, col, x.float(), **scales).to(dtype))
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype


def test_threads_do_not_change_a_bit(threads: None) -> None:
    rowptr, col = random_csr(3000, 3000, 60000)
    scales, x = factors(FACTORS, 3000, 3000, torch.float32), torch.randn(3000, 24)
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        leaf = x.clone().requires_grad_()
        y = scaled_spmm(rowptr, col, leaf, **scales)
        results.append((y, *torch.autograd.grad(y.square().sum(), leaf)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_not_contiguous_input() -> None:
    rowptr, col = random_csr(6, 8, 30)
    x = torch.randn(5, 8, dtype=torch.float64).t()
    source = torch.rand(16, dtype=torch.float64)[::2]
    torch.testing.assert_close(
        scaled_spmm(rowptr, col, x, source=source), naive(rowptr, col, x, source=source)
    )


def test_nan_and_infinity_are_passed_on() -> None:
    x = torch.tensor([[1.0], [float("nan")], [float("inf")]])
    rowptr, col = torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 2], dtype=torch.int32)
    y = scaled_spmm(rowptr, col, x, source=torch.ones(3), own=torch.ones(3))
    assert torch.equal(y.isnan(), x.isnan())
    assert y[2].isinf()


def test_compiles_without_graph_breaks() -> None:
    rowptr, col = random_csr(12, 12, 50)
    scales, x = factors(FACTORS, 12, 12, torch.float32), torch.randn(12, 4, requires_grad=True)

    def step(x: Tensor) -> Tensor:
        return scaled_spmm(rowptr, col, x.sigmoid(), **scales).relu().sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(x), x), torch.autograd.grad(step(x), x))


@pytest.mark.parametrize("chosen", [(), FACTORS])
def test_op_registration(chosen: tuple[str, ...]) -> None:
    rowptr, col = random_csr(5, 7, 9)
    scales = factors(chosen, 5, 7, torch.float32)
    x = torch.randn(7, 3, requires_grad=True)
    torch.library.opcheck(
        torch.ops.graphkit.scaled_spmm.default,
        (rowptr, col, *(scales.get(name) for name in FACTORS), x, 1, False),
    )


def test_bad_input_is_refused() -> None:
    rowptr, col = random_csr(4, 4, 6)
    x = torch.randn(4, 2)
    with pytest.raises(ValueError, match="rowptr is"):
        scaled_spmm(rowptr.int(), col, x)
    with pytest.raises(ValueError, match="col is"):
        scaled_spmm(rowptr, col.long(), x)
    with pytest.raises(ValueError, match="x is"):
        scaled_spmm(rowptr, col, x[:, 0])
    with pytest.raises(ValueError, match="x is"):
        scaled_spmm(rowptr, col, x.long())
    with pytest.raises(ValueError, match=r"source has shape \(3,\); it must be \[4\]"):
        scaled_spmm(rowptr, col, x, source=torch.ones(3))
    with pytest.raises(ValueError, match="row has shape"):
        scaled_spmm(rowptr, col, x, row=torch.ones(4, 1))
    with pytest.raises(ValueError, match="own has shape"):
        scaled_spmm(rowptr, col, x, own=torch.ones(5))
    with pytest.raises(ValueError, match="square"):
        scaled_spmm(rowptr, col, torch.randn(9, 2), symmetric=True)
    with pytest.raises(ValueError, match="outside"):
        scaled_spmm(rowptr, col + 4, x)
    with pytest.raises(ValueError, match="outside"):
        scaled_spmm(rowptr, col - 4, x)
    with pytest.raises(ValueError, match="ascend"):
        scaled_spmm(rowptr.flip(0), col, x)


@pytest.mark.parametrize("start", [-1, 4])
def test_targets_must_be_rows_of_x(start: int) -> None:
    rowptr, col = random_csr(2, 5, 6)
    with pytest.raises(ValueError, match=f"start is {start}; with 2 rows of 5 it must be 0 to 3"):
        scaled_spmm(rowptr, col, torch.randn(5, 2), own=torch.ones(2), start=start)
