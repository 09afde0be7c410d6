from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from graphkit.nn.embedding import TTEmbedding
from graphkit.nn.embedding.tt_algebra import round_cores, tt_svd
from graphkit.nn.embedding.tt_init import leading_eigenvectors
from graphkit.sparse import Adjacency

SIZES: dict[str, Any] = {"row_factors": [4, 5, 6], "column_factors": [3, 2, 2]}


def embedding(rank: int | list[int] = 5, rows: int = 117, order: Tensor | None = None) -> TTEmbedding:
    torch.manual_seed(0)
    return TTEmbedding(rows, 12, rank=rank, init="gaussian", order=order, **SIZES).double()


def shuffled(rows: int = 117) -> Tensor:
    return torch.randperm(120, generator=torch.Generator().manual_seed(2))[:rows]


def norm(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x))


@pytest.mark.parametrize("order", [None, shuffled()])
def test_a_table_of_low_rank_is_found_again(order: Tensor | None) -> None:
    table = embedding([4, 5], rows=120, order=None if order is None else shuffled(120)).to_dense()
    made = TTEmbedding.from_dense(table, rank=[4, 5], order=None if order is None else shuffled(120), **SIZES)
    assert made.cores[0].dtype == torch.float64
    torch.testing.assert_close(made.to_dense(), table, atol=1e-12, rtol=1e-12)
    exact = TTEmbedding.from_dense(table, tol=1e-10, order=None if order is None else shuffled(120), **SIZES)
    assert exact.shape.ranks == (1, 4, 5, 1)
    torch.testing.assert_close(exact.to_dense(), table, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("tol", [0.5, 0.2, 0.01])
def test_a_tolerance_bounds_the_error_and_lowers_ranks(tol: float) -> None:
    table = torch.randn(120, 12, dtype=torch.float64) @ torch.diag(0.5 ** torch.arange(12.0).double())
    made = TTEmbedding.from_dense(table, tol=tol, **SIZES)
    assert norm(made.to_dense() - table) <= tol * norm(table) * (1 + 1e-9)
    full = TTEmbedding.from_dense(table, tol=0.0, **SIZES)
    torch.testing.assert_close(full.to_dense(), table, atol=1e-12, rtol=1e-12)
    assert made.num_parameters < full.num_parameters


def test_singular_values_give_the_best_approximation_of_a_two_core_train() -> None:
    table = torch.randn(30, 8, dtype=torch.float64)
    made = TTEmbedding.from_dense(table, rank=6, row_factors=[5, 6], column_factors=[2, 4])
    unfolded = table.reshape(5, 6, 2, 4).transpose(1, 2).reshape(10, 24)
    dropped = torch.linalg.svdvals(unfolded)[6:]
    assert norm(made.to_dense() - table) == pytest.approx(norm(dropped), rel=1e-9)


def test_rank_and_tolerance_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="either rank or tol"):
        TTEmbedding.from_dense(torch.ones(120, 12), tol=0.1, rank=3)


def test_set_table_keeps_parameters_and_fills_spare_ranks() -> None:
    emb = embedding(6, order=shuffled())
    before = list(emb.cores)
    source = embedding(2, order=shuffled())
    emb.set_table_(source.to_dense())
    assert all(a is b for a, b in zip(emb.cores, before, strict=True))
    assert norm(emb.to_dense() - source.to_dense()) <= 0.2 * norm(source.to_dense())  # padding was noise
    with pytest.raises(ValueError, match=r"it must be \[117, 12\]"):
        emb.set_table_(torch.ones(3, 12))


def test_set_table_of_low_rank_is_exact_and_trains_all_channels() -> None:
    emb = embedding(6, rows=120)
    table = embedding(2, rows=120).to_dense()
    emb.set_table_(table)
    torch.testing.assert_close(emb.to_dense(), table, atol=1e-12, rtol=1e-12)
    (emb.weight() * torch.randn(120, 12)).sum().backward()
    assert emb.cores[2].grad is not None
    assert emb.cores[2].grad.abs().min() > 0


def test_cores_of_a_decomposition_have_one_scale() -> None:
    emb = TTEmbedding.from_dense(torch.randn(120, 12), rank=6, **SIZES)
    sizes = [float(core.detach().pow(2).mean().sqrt()) for core in emb.cores]
    assert max(sizes) == pytest.approx(min(sizes), rel=1e-5)


def test_a_table_of_zeros_can_be_set() -> None:
    emb = embedding(3)
    emb.set_table_(torch.zeros(117, 12))
    assert not emb.to_dense().any()


@pytest.mark.parametrize("tol", [0.3, 0.05, 1e-10])
def test_rounding_stays_within_its_tolerance(tol: float) -> None:
    emb = embedding(9, rows=120, order=shuffled(120))
    before = emb.to_dense()
    emb.round_(tol=tol)
    assert norm(emb.to_dense() - before) <= tol * norm(before) * (1 + 1e-9)


def test_rounding_finds_the_true_rank() -> None:
    emb = embedding([3, 4])
    before = emb.to_dense()
    emb.grow_(10)
    assert emb.shape.ranks == (1, 10, 10, 1)
    torch.testing.assert_close(emb.to_dense(), before, atol=1e-14, rtol=1e-14)
    emb.round_(tol=1e-10)
    assert emb.shape.ranks == (1, 3, 4, 1)
    torch.testing.assert_close(emb.to_dense(), before, atol=1e-10, rtol=1e-10)


def test_rounding_to_a_rank_is_nearly_the_best_train_of_that_rank() -> None:
    emb = embedding(9, rows=120)
    before = emb.to_dense()
    emb.round_(4)
    assert emb.shape.ranks == (1, 4, 4, 1)
    best = TTEmbedding.from_dense(before, rank=4, **SIZES).to_dense()
    assert norm(emb.to_dense() - before) <= 2**0.5 * norm(best - before) * (1 + 1e-9)
    with pytest.raises(ValueError, match="rank, a tol or both"):
        emb.round_()


def test_rounding_and_decomposition_agree() -> None:
    table = torch.randn(120, 12, dtype=torch.float64)
    cores = tt_svd(table, [4, 5, 6], [3, 2, 2])
    rounded = round_cores(cores, ranks=[1, 5, 4, 1])
    direct = tt_svd(table, [4, 5, 6], [3, 2, 2], ranks=[1, 5, 4, 1])
    for a, b in zip(rounded, direct, strict=True):  # singular vectors are unique but for their sign
        torch.testing.assert_close(a.abs(), b.abs(), atol=1e-10, rtol=1e-8)


def test_growth_changes_no_row_and_reaches_every_new_value() -> None:
    emb = embedding([2, 3], order=shuffled())
    before = emb.to_dense()
    emb.grow_([5, 4])
    assert emb.shape.ranks == (1, 5, 4, 1)
    torch.testing.assert_close(emb.to_dense(), before, atol=1e-14, rtol=1e-14)
    optimizer = torch.optim.SGD(emb.parameters(), lr=0.1)
    start = [core.detach().clone() for core in emb.cores]
    for _ in range(2):  # the first step moves the zeros, the second what stands before them
        optimizer.zero_grad()
        (emb.weight() * torch.randn(117, 12)).sum().backward()
        optimizer.step()
    assert all(bool((a != b).all()) for a, b in zip(start, emb.cores, strict=True))


def test_growth_refuses_lower_ranks_and_cuts_useless_ones() -> None:
    emb = embedding([4, 5])
    with pytest.raises(ValueError, match="below the present"):
        emb.grow_([3, 5])
    with pytest.warns(UserWarning, match=r"cut to \[12, 12\]"):
        emb.grow_([40, 40])


def test_appended_rows_take_free_positions_first() -> None:
    emb = embedding(rows=117)
    before, core = emb.to_dense(), emb.cores[0]
    emb.append(3)
    assert emb.num_embeddings == 120
    assert emb.position is None
    assert emb.cores[0] is core
    torch.testing.assert_close(emb.to_dense()[:117], before)


def test_appended_rows_lengthen_the_first_core() -> None:
    emb = embedding(rows=117)
    before = emb.to_dense()
    emb.append(40)
    assert emb.row_factors == (6, 5, 6)  # 157 positions, 30 for each first digit
    assert emb.position is None
    table = emb.to_dense()
    assert table.shape == (157, 12)
    torch.testing.assert_close(table[:117], before)
    assert table[150:].std() > 0.2 * before.std()
    assert emb(torch.tensor([156])).shape == (1, 12)


def test_appended_rows_keep_the_order() -> None:
    emb = embedding(order=shuffled())
    before = emb.to_dense()
    free = sorted(set(range(120)) - set(shuffled().tolist()))
    emb.append(5)
    assert emb.position is not None
    assert emb.position[117:].tolist() == [*free, 120, 121]
    torch.testing.assert_close(emb.to_dense()[:117], before)
    emb.append(2, torch.tensor([140, 135]))
    assert emb.position[-2:].tolist() == [140, 135]
    assert emb.row_factors == (5, 5, 6)
    torch.testing.assert_close(emb.to_dense()[:117], before)


@pytest.mark.parametrize("positions", [[3, 118], [118, 118], [-1, 118], [118], [117.0, 118.0]])
def test_positions_of_appended_rows_must_be_free(positions: list[float]) -> None:
    emb = embedding()
    with pytest.raises(ValueError, match="distinct free"):
        emb.append(2, torch.tensor(positions))
    assert emb.num_embeddings == 117


def ring_with_chords(n: int = 40) -> Tensor:
    source = torch.cat([torch.arange(n), torch.arange(0, n, 5)])
    target = torch.cat([(torch.arange(n) + 1) % n, (torch.arange(0, n, 5) + n // 3) % n])
    return torch.stack([source, target])


@pytest.mark.parametrize("n", [40, 400])
def test_leading_eigenvectors(n: int) -> None:
    edges = ring_with_chords(n)
    dense = torch.zeros(n, n, dtype=torch.float64)
    dense[edges[0], edges[1]] = dense[edges[1], edges[0]] = 1.0
    scale = dense.sum(1).rsqrt()
    normalised = scale[:, None] * dense * scale[None, :]
    vectors = leading_eigenvectors(edges, n, 6, seed=1)
    expected = torch.linalg.eigvalsh(normalised).flip(0)[:6]
    values = (vectors * (normalised @ vectors)).sum(0)
    torch.testing.assert_close(values, expected, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(normalised @ vectors, vectors * values, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(vectors.t() @ vectors, torch.eye(6).double(), atol=1e-8, rtol=0.0)
    assert bool((vectors.gather(0, vectors.abs().argmax(0, keepdim=True)) > 0).all())
    both_ways = Adjacency.from_edge_index(torch.cat([edges, edges.flip(0)], 1), n)
    assert torch.equal(vectors, leading_eigenvectors(both_ways, n, 6, seed=1))


def test_isolated_nodes_and_all_eigenvectors() -> None:
    vectors = leading_eigenvectors(torch.tensor([[0, 1], [1, 0]]), 4, 4)
    torch.testing.assert_close(vectors.t() @ vectors, torch.eye(4).double())
    torch.testing.assert_close(vectors[:2, 0], torch.full((2,), 0.5**0.5).double())
    with pytest.raises(ValueError, match="k is 5"):
        leading_eigenvectors(torch.tensor([[0], [1]]), 4, 5)
