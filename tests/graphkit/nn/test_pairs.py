"""Lists of nodes by pair: samples of long ones, and lists joined row by row."""

from __future__ import annotations

import pytest
import torch

from graphkit.nn.pairs import Rows, merge_rows, pool, sample_rows


def rows_of(lengths: list[int]) -> Rows:
    ptr = torch.tensor([0, *lengths]).cumsum(0)
    node = torch.cat([torch.arange(n, dtype=torch.int32) for n in lengths])
    return Rows(ptr, node)


@pytest.mark.parametrize("replace", [False, True])
def test_sample_of_a_row_is_unbiased(replace: bool) -> None:
    rows = rows_of([9] * 20000)
    x = torch.randn(9, 3, dtype=torch.float64)
    sample = sample_rows(rows, 4, torch.arange(20000), replace=replace)
    sample = sample._replace(weight=sample.weight.double())
    sums = pool(sample, x)
    error = (sums.mean(0) - x.sum(0)).abs() / (sums.std(0) / 20000**0.5)
    assert (error < 5).all()


@pytest.mark.parametrize("replace", [False, True])
def test_sample_weights_of_a_row_add_up_to_its_length(replace: bool) -> None:
    rows = rows_of([9, 3, 30, 0, 4])
    sample = sample_rows(rows, 4, torch.arange(5), replace=replace)
    sums = pool(sample, torch.ones(30, 1)).squeeze(1)
    torch.testing.assert_close(sums, rows.lengths().float())


def test_sample_without_replacement_has_the_asked_number_of_distinct_nodes() -> None:
    sample = sample_rows(rows_of([9, 3, 30, 0, 4]), 4, torch.arange(5))
    assert sample.lengths().tolist() == [4, 3, 4, 0, 4]
    for row in range(5):
        part = sample.slice(row, row + 1).node
        assert part.unique().numel() == part.numel()
        assert torch.equal(part, part.sort().values)


@pytest.mark.parametrize("replace", [False, True])
def test_seed_decides_a_sample_row_by_row(replace: bool) -> None:
    rows, seed = rows_of([50, 60, 70]), torch.tensor([5, 6, 7])
    whole = sample_rows(rows, 8, seed, replace=replace)
    alone = sample_rows(rows.slice(1, 2), 8, seed[1:2], replace=replace)
    assert torch.equal(whole.slice(1, 2).node, alone.node)
    assert torch.equal(whole.slice(1, 2).weight, alone.weight)
    other = sample_rows(rows, 8, seed + 1, replace=replace)
    assert whole.node.tolist() != other.node.tolist()


def test_short_rows_are_left_as_they_are() -> None:
    rows = rows_of([3, 0, 4])
    assert sample_rows(rows, 4, torch.arange(3)) is rows


def test_merged_rows_hold_the_entries_of_each_list_row_by_row() -> None:
    first = Rows(torch.tensor([0, 2, 2, 3]), torch.tensor([4, 7, 1], dtype=torch.int32))
    second = Rows(
        torch.tensor([0, 0, 2, 3]), torch.tensor([5, 6, 0], dtype=torch.int32), torch.tensor([0.5, 2.0, 3.0])
    )
    both = merge_rows(first, second)
    assert both.ptr.tolist() == [0, 2, 4, 6]
    assert both.node.tolist() == [4, 7, 5, 6, 1, 0]
    assert both.weight.tolist() == [1.0, 1.0, 0.5, 2.0, 1.0, 3.0]
    assert merge_rows(first, first).weight is None
