from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from torch import Tensor

from graphkit.kernels import sddmm, sddmm_torch, spmm, spmm_torch, transpose_csr, transpose_csr_torch


def random_csr(rows: int, cols: int, entries: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A structure with repeated and unsorted columns, empty rows and one row of many entries."""
    rng = np.random.default_rng(seed)
    row = np.sort(np.where(rng.random(entries) < 0.3, 0, rng.integers(0, rows, entries)))
    rowptr = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=rows))])
    return torch.from_numpy(rowptr), torch.from_numpy(rng.integers(0, cols, entries).astype(np.int32))


def dense(rowptr: Tensor, col: Tensor, value: Tensor, cols: int) -> Tensor:
    matrix = sparse.csr_matrix(
        (value.detach().numpy(), col.numpy(), rowptr.numpy()), (rowptr.numel() - 1, cols)
    )
    return torch.from_numpy(matrix.toarray())


@pytest.mark.parametrize("width", [1, 3, 16, 67])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_spmm_equals_dense_product(width: int, weighted: bool, dtype: torch.dtype) -> None:
    rowptr, col = random_csr(23, 31, 200)
    value = torch.randn(200, dtype=dtype)
    x = torch.randn(31, width, dtype=dtype)
    y = spmm(rowptr, col, value if weighted else None, x)
    expected = dense(rowptr, col, (value if weighted else torch.ones(200)).double(), 31) @ x.double()
    tolerance = 1e-12 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(y.double(), expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(
        y, spmm_torch(rowptr, col, value if weighted else None, x), atol=1e-4, rtol=1e-4
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 30), st.integers(0, 5), st.integers(0, 10**6))
def test_spmm_and_transpose_on_small_structures(
    rows: int, cols: int, entries: int, width: int, seed: int
) -> None:
    rowptr, col = random_csr(rows, cols, entries, seed)
    x = torch.randn(cols, width, dtype=torch.float64)
    torch.testing.assert_close(spmm(rowptr, col, None, x), spmm_torch(rowptr, col, None, x))
    for ours, theirs in zip(
        transpose_csr(rowptr, col, cols), transpose_csr_torch(rowptr, col, cols), strict=True
    ):
        assert torch.equal(ours, theirs)
        assert ours.dtype == theirs.dtype


@pytest.mark.parametrize("symmetric", [False, True])
def test_gradients_of_spmm(symmetric: bool) -> None:
    pairs = torch.tensor([[0, 0, 1, 3], [1, 2, 2, 4]])
    row, col = torch.cat([pairs, pairs.flip(0)], 1)
    order = torch.argsort(row * 6 + col)
    rowptr = torch.zeros(7, dtype=torch.int64)
    rowptr[1:] = torch.bincount(row, minlength=6).cumsum(0)
    col = col[order].int()
    value = torch.randn(8, dtype=torch.float64, requires_grad=True)
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    for inputs in ((None, x), (value, x), (value, x.detach()), (value.detach(), x)):
        needed = [t for t in inputs if t is not None and t.requires_grad]

        def product(*_: Tensor, inputs: tuple[Tensor | None, Tensor] = inputs) -> Tensor:
            return spmm(rowptr, col, inputs[0], inputs[1], symmetric=symmetric)

        assert torch.autograd.gradcheck(product, needed)
        assert torch.autograd.gradgradcheck(product, needed)


def test_sddmm_and_its_gradients() -> None:
    rowptr, col = random_csr(5, 7, 20)
    left = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    right = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(sddmm(rowptr, col, left, right), sddmm_torch(rowptr, col, left, right))
    assert torch.autograd.gradcheck(lambda a, b: sddmm(rowptr, col, a, b), (left, right))


def test_gradient_equals_autograd_of_the_torch_path() -> None:
    rowptr, col = random_csr(40, 40, 300)
    value = torch.rand(300, dtype=torch.float64, requires_grad=True)
    x = torch.randn(40, 9, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(40, 9, dtype=torch.float64)
    ours = torch.autograd.grad((spmm(rowptr, col, value, x) * weight).sum(), (value, x))
    theirs = torch.autograd.grad((spmm_torch(rowptr, col, value, x) * weight).sum(), (value, x))
    torch.testing.assert_close(ours, theirs)


def test_half_precision_is_computed_in_float32() -> None:
    rowptr, col = random_csr(10, 10, 80)
    x = torch.randn(10, 5).bfloat16().requires_grad_()
    y = spmm(rowptr, col, None, x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, spmm(rowptr, col, None, x.float()).bfloat16())
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16


def test_threads_do_not_change_a_bit(threads: None) -> None:
    rowptr, col = random_csr(3000, 3000, 60000)
    value, x = torch.rand(60000), torch.randn(3000, 32)
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        leaf, scale = x.clone().requires_grad_(), value.clone().requires_grad_()
        y = spmm(rowptr, col, scale, leaf)
        results.append((y, *torch.autograd.grad(y.square().sum(), (leaf, scale))))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_not_contiguous_input() -> None:
    rowptr, col = random_csr(6, 8, 30)
    x = torch.randn(5, 8, dtype=torch.float64).t()
    torch.testing.assert_close(spmm(rowptr, col, None, x), spmm_torch(rowptr, col, None, x))


def test_nan_is_passed_on() -> None:
    x = torch.tensor([[1.0], [float("nan")], [float("inf")]])
    y = spmm(torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 2], dtype=torch.int32), None, x)
    assert torch.equal(y.isnan(), x.isnan())
    assert y[2].isinf()


def test_compiles_without_graph_breaks() -> None:
    rowptr, col = random_csr(12, 12, 50)
    value, x = torch.rand(50, requires_grad=True), torch.randn(12, 4, requires_grad=True)

    def step(value: Tensor, x: Tensor) -> Tensor:
        return spmm(rowptr, col, value.sigmoid(), x).relu().sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    ours = torch.autograd.grad(compiled(value, x), (value, x))
    torch.testing.assert_close(ours, torch.autograd.grad(step(value, x), (value, x)))


@pytest.mark.parametrize("name", ["spmm", "sddmm", "transpose_csr"])
def test_op_registration(name: str) -> None:
    rowptr, col = random_csr(5, 5, 9)
    x = torch.randn(5, 3, requires_grad=True)
    arguments = {
        "spmm": (rowptr, col, torch.rand(9, requires_grad=True), x, False),
        "sddmm": (rowptr, col, x, x.detach().clone().requires_grad_()),
        "transpose_csr": (rowptr, col, 5),
    }
    torch.library.opcheck(getattr(torch.ops.graphkit, name).default, arguments[name])


def test_bad_input_is_refused() -> None:
    rowptr, col = random_csr(4, 4, 6)
    x = torch.randn(4, 2)
    with pytest.raises(ValueError, match="rowptr is"):
        spmm(rowptr.int(), col, None, x)
    with pytest.raises(ValueError, match="col is"):
        spmm(rowptr, col.long(), None, x)
    with pytest.raises(ValueError, match="x is"):
        spmm(rowptr, col, None, x[:, 0])
    with pytest.raises(ValueError, match="value has shape"):
        spmm(rowptr, col, torch.ones(3), x)
    with pytest.raises(ValueError, match="square"):
        spmm(rowptr, col, None, torch.randn(9, 2), symmetric=True)
    with pytest.raises(ValueError, match="outside"):
        spmm(rowptr, col + 4, None, x)
    with pytest.raises(ValueError, match="outside"):
        spmm(rowptr, col - 4, None, x)
    with pytest.raises(ValueError, match="ascend"):
        spmm(rowptr.flip(0), col, None, x)
    with pytest.raises(ValueError, match="outside"):
        transpose_csr(rowptr, col + 4, 4)
