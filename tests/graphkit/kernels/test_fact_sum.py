"""Sums of what facts carry, against a loop over facts in float64, and how facts are sorted for it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from graphkit.kernels.dropout import keep_mask
from graphkit.kernels.fact_rows import FactRows, number_keys, number_keys_torch, sort_facts, sort_facts_torch
from graphkit.kernels.fact_sum import fact_sum, fact_sum_torch

Facts = tuple[Tensor, Tensor, Tensor]
ROWS, LINES, SOURCES = 6, 4, 5  # of each graph


def facts(graphs: int, each: int) -> tuple[Facts, Tensor]:
    """Row, line and source of facts of several graphs, in any order, and where the rows of each begin."""
    graph = torch.randint(graphs, (each * graphs,))
    parts = [torch.randint(size - 1, graph.shape) + size * graph for size in (ROWS, LINES, SOURCES)]
    return (parts[0], parts[1], parts[2]), torch.arange(graphs + 1) * ROWS


def made(graphs: int, each: int, weighted: bool, told: bool) -> tuple[FactRows, Tensor | None, Tensor, Facts]:
    (row, line, source), block = facts(graphs, each)
    rows, perm = sort_facts(row, line, source, LINES * graphs, block)
    rows = rows._replace(weight=torch.rand(row.numel()).double() if weighted else None)
    p = torch.rand(SOURCES * graphs).double().requires_grad_() if told else None
    table = torch.randn(LINES * graphs, 5).double().requires_grad_()
    return rows, p, table, (row[perm], line[perm], source[perm])


def loop(rows: FactRows, p: Tensor | None, table: Tensor, given: Facts) -> Tensor:
    out = [torch.zeros(5).double() for _ in range(int(rows.block[-1]))]
    for k, (r, c, s) in enumerate(zip(*(t.tolist() for t in given), strict=True)):
        value = 1.0 if rows.weight is None else rows.weight[k]
        out[r] = out[r] + value * (1.0 if p is None else p[s]) * table[c]
    return torch.stack(out)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("told", [False, True])
@settings(max_examples=10)
@given(graphs=st.integers(1, 3), each=st.integers(0, 12))
def test_sums_and_gradients_are_those_of_the_formula(
    weighted: bool, told: bool, graphs: int, each: int
) -> None:
    rows, p, table, given = made(graphs, each, weighted, told)
    weight, found = torch.randn(ROWS * graphs, 5).double(), []
    for y in (loop(rows, p, table, given), fact_sum(rows, p, table), fact_sum_torch(rows, p, table)):
        if each == 0:
            assert not y.any()
            continue
        wanted = [t for t in (p, table) if t is not None]
        found.append([y, *torch.autograd.grad((y * weight).sum(), wanted, allow_unused=True)])
    for expected, *others in zip(*found, strict=True):
        for other in others:
            torch.testing.assert_close(other, expected, atol=1e-12, rtol=1e-10)


def test_dropout_is_the_hash_of_seed_and_place_forward_and_backward() -> None:
    rows, p, table, _ = made(2, 12, False, True)
    seed = torch.tensor([7])
    keep = keep_mask(seed, 2 * ROWS, 5, 32768)
    y = fact_sum(rows, p, table, dropout=0.5, seed=seed)
    plain = fact_sum(rows, p, table)
    torch.testing.assert_close(y, 2 * keep * plain)
    torch.testing.assert_close(fact_sum_torch(rows, p, table, seed, 32768), y)
    found = torch.autograd.grad(y.square().sum(), (p, table))
    expected = torch.autograd.grad((2 * keep * plain).square().sum(), (p, table))
    torch.testing.assert_close(found, expected)


@pytest.mark.usefixtures("threads")
def test_the_number_of_threads_changes_no_bit() -> None:
    graphs = 40
    (row, line, source), block = facts(graphs, 400)
    rows, _ = sort_facts(row, line, source, LINES * graphs, block)
    p, table = torch.rand(SOURCES * graphs), torch.randn(LINES * graphs, 64)
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        leaves = p.clone().requires_grad_(), table.clone().requires_grad_()
        y = fact_sum(rows, *leaves, dropout=0.2, seed=torch.tensor([1]))
        found.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_half_precision_is_computed_in_single() -> None:
    rows, p, table, _ = made(1, 12, False, True)
    y = fact_sum(rows, p, table.bfloat16())
    assert y.dtype == torch.bfloat16
    expected = fact_sum(rows, p, table.bfloat16().float())
    torch.testing.assert_close(y.float(), expected, rtol=1e-2, atol=1e-2)


def test_what_does_not_fit_is_refused() -> None:
    rows, p, table, _ = made(1, 12, True, True)
    changes = {
        "begin": {"begin": rows.begin[:-1]},
        "weight": {"weight": rows.weight[1:]},
        "block": {"block": rows.block + 1},
        "id outside": {"source": rows.source + SOURCES},
    }
    for named, change in changes.items():
        with pytest.raises(ValueError, match=named):
            fact_sum(rows._replace(**change), p, table)
    with pytest.raises(ValueError, match="id outside"):
        fact_sum(rows, p, table[:1])
    with pytest.raises(ValueError, match="table"):
        fact_sum(rows, p, table[0])
    with pytest.raises(ValueError, match="p has shape"):
        fact_sum(rows, p[None], table)
    with pytest.raises(ValueError, match="dropout"):
        fact_sum(rows, p, table, dropout=1.0, seed=torch.tensor([1]))
    with pytest.raises(ValueError, match="seed"):
        fact_sum(rows, p, table, dropout=0.5)


@settings(max_examples=20)
@given(graphs=st.integers(1, 3), each=st.integers(0, 30))
def test_facts_are_sorted_by_row_and_line_and_joined(graphs: int, each: int) -> None:
    (row, line, source), block = facts(graphs, each)
    given = (row, line, source, LINES * graphs, block)
    rows, perm = sort_facts(*given)
    for ours, theirs in zip((*rows[:5], perm), (*sort_facts_torch(*given)[0][:5], perm), strict=True):
        assert torch.equal(ours, theirs)
    keys = sorted({(int(r), int(c)) for r, c in zip(row, line, strict=True)})
    assert rows.col.tolist() == [c for _, c in keys]
    assert torch.equal(source[perm].int(), rows.source)
    assert perm.tolist() == sorted(range(row.numel()), key=lambda k: (int(row[k]), int(line[k]), k))


@given(keys=st.lists(st.integers(0, 9), max_size=20))
def test_keys_are_numbered_in_ascending_order(keys: list[int]) -> None:
    given = torch.tensor(keys, dtype=torch.int64)
    for distinct, number in (number_keys(given, 10), number_keys_torch(given, 10)):
        assert distinct.tolist() == sorted(set(keys))
        assert distinct[number].tolist() == keys
