from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from graphkit.kernels import tt_lookup, tt_lookup_torch


def random_cores(
    p: list[int], q: list[int], inner: list[int], dtype: torch.dtype = torch.float64, seed: int = 0
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    r = [1, *inner, 1]
    return [
        torch.randn(p[k], r[k], q[k], r[k + 1], dtype=dtype, generator=generator).requires_grad_()
        for k in range(len(p))
    ]


def entry_by_entry(cores: list[Tensor], position: Tensor) -> Tensor:
    """The definition: a product of slices for every row and column."""
    p, q = [core.size(0) for core in cores], [core.size(2) for core in cores]
    rows = []
    for value in position.tolist():
        row = []
        for column in range(math.prod(q)):
            i, j, product = value, column, torch.ones(1, 1, dtype=torch.float64)
            for core, radix, width in reversed(list(zip(cores, p, q, strict=True))):
                product = core[i % radix, :, j % width, :].double() @ product
                i, j = i // radix, j // width
            row.append(product.squeeze())
        rows.append(torch.stack(row))
    return torch.stack(rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("p", "q", "inner"),
    [
        ([3, 4], [2, 3], [4]),
        ([2, 3, 4], [2, 3, 2], [3, 2]),
        ([2, 2, 3, 2], [1, 2, 3, 1], [2, 5, 3]),
        ([3, 1, 2], [4, 5, 1], [1, 16]),
    ],
)
def test_rows_are_products_of_slices(
    p: list[int], q: list[int], inner: list[int], dtype: torch.dtype
) -> None:
    cores = random_cores(p, q, inner, dtype)
    position = torch.tensor([0, math.prod(p) - 1, 2, 1, 2, 2])
    tolerance = 1e-12 if dtype == torch.float64 else 1e-4
    expected = entry_by_entry(cores, position)
    for lookup in (tt_lookup, tt_lookup_torch):
        torch.testing.assert_close(lookup(cores, position).double(), expected, atol=tolerance, rtol=tolerance)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 19)), min_size=2, max_size=4),
    st.integers(0, 60),
    st.integers(0, 10**6),
)
def test_rows_and_gradients_equal_the_torch_path(
    sizes: list[tuple[int, int, int]], batch: int, seed: int
) -> None:
    p, q, ranks = (list(values) for values in zip(*sizes, strict=True))
    cores = random_cores(p, q, ranks[1:], seed=seed)
    position = torch.randint(0, math.prod(p), (batch,), generator=torch.Generator().manual_seed(seed))
    ours, theirs = tt_lookup(cores, position), tt_lookup_torch(cores, position)
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)
    weight = torch.randn(ours.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(
        torch.autograd.grad(ours, cores, weight),
        torch.autograd.grad(theirs, cores, weight),
        atol=1e-9,
        rtol=1e-9,
    )


@pytest.mark.parametrize("d", [2, 3, 4])
def test_gradcheck(d: int) -> None:
    cores = random_cores([3] * d, [2] * d, [2] * (d - 1))
    position = torch.tensor([5, 0, 3**d - 1, 5, 1])
    assert torch.autograd.gradcheck(lambda *cores: tt_lookup(cores, position), cores)


def test_no_rows_give_zero_gradients() -> None:
    cores = random_cores([3, 4, 2], [2, 3, 2], [3, 3])
    rows = tt_lookup(cores, torch.empty(0, dtype=torch.int64))
    assert rows.shape == (0, 12)
    rows.sum().backward()
    assert all(core.grad is not None and not core.grad.any() for core in cores)


def test_threads_do_not_change_a_bit(threads: None) -> None:
    cores = random_cores([9, 10, 11], [4, 4, 4], [16, 16], torch.float32)
    position = torch.randint(0, 990, (20_000,), generator=torch.Generator().manual_seed(0))
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        rows = tt_lookup(cores, position)
        results.append((rows, *torch.autograd.grad(rows.square().sum(), cores)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_half_precision_is_computed_in_float32() -> None:
    cores = [c.detach().bfloat16().requires_grad_() for c in random_cores([3, 4], [2, 4], [5])]
    position = torch.tensor([11, 3])
    rows = tt_lookup(cores, position)
    assert torch.equal(rows, tt_lookup([core.float() for core in cores], position).bfloat16())
    rows.sum().backward()
    assert all(core.grad is not None and core.grad.dtype == torch.bfloat16 for core in cores)


def test_not_contiguous_input() -> None:
    cores = [core.detach().transpose(0, 2) for core in random_cores([2, 3], [4, 5], [6])]
    position = torch.arange(20)[::3]
    torch.testing.assert_close(tt_lookup(cores, position), tt_lookup_torch(cores, position))


def test_nan_is_passed_on() -> None:
    cores = random_cores([3, 4], [2, 4], [5])
    with torch.no_grad():
        cores[0][1] = float("nan")
    wrong = tt_lookup(cores, torch.arange(12)).isnan().all(1)
    assert wrong.nonzero().flatten().tolist() == [4, 5, 6, 7]


def test_compiles_without_graph_breaks() -> None:
    cores = random_cores([3, 4, 2], [2, 3, 2], [3, 3])
    position = torch.tensor([3, 9, 9])

    def step(*cores: Tensor) -> Tensor:
        return tt_lookup([core.tanh() for core in cores], position).relu().sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    ours = torch.autograd.grad(compiled(*cores), cores)
    torch.testing.assert_close(ours, torch.autograd.grad(step(*cores), cores))


def test_op_registration() -> None:
    cores = random_cores([3, 4, 2], [2, 3, 2], [3, 3])
    position = torch.tensor([3, 9, 9])
    torch.library.opcheck(torch.ops.graphkit.tt_lookup.default, (cores, position))
    plain, grad = [core.detach() for core in cores], torch.randn(3, 12, dtype=torch.float64)
    torch.library.opcheck(torch.ops.graphkit.tt_lookup_backward.default, (plain, position, grad))


def test_bad_input_is_refused() -> None:
    cores, position = random_cores([3, 4], [2, 3], [4]), torch.tensor([0])
    with pytest.raises(ValueError, match="at least 2"):
        tt_lookup(cores[:1], position)
    with pytest.raises(ValueError, match="core 1 is"):
        tt_lookup([cores[0], cores[0]], position)
    with pytest.raises(ValueError, match=r"core 1 is torch\.float32"):
        tt_lookup([cores[0], cores[1].float()], position)
    with pytest.raises(ValueError, match="right rank 4"):
        tt_lookup([cores[0], torch.ones(2, 4, 2, 4, dtype=torch.float64)], position)
    with pytest.raises(ValueError, match="position is"):
        tt_lookup(cores, position.int())
    for outside in (-1, 12):
        with pytest.raises(ValueError, match=r"must lie in \[0, 12\)"):
            tt_lookup(cores, torch.tensor([3, outside]))
