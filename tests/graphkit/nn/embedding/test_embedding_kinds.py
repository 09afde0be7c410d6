"""One interface for every kind of embedding, the kinds that sum shared rows, and the factory."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphkit.errors import UserError
from graphkit.nn.embedding import (
    DenseEmbedding,
    Embedding,
    EmbeddingConfig,
    HashEmbedding,
    QuotientRemainderEmbedding,
    TTEmbedding,
    fit_to_graph,
    make_embedding,
)
from graphkit.sparse import Adjacency
from graphkit.testing import tiny_graph

N, D = 23, 6
KINDS: dict[str, EmbeddingConfig] = {
    "dense": EmbeddingConfig(),
    "dense, sparse gradients": EmbeddingConfig(sparse=True, init="gaussian"),
    "tensor train": EmbeddingConfig(kind="tensor_train", rank=3),
    "tensor train, two cores": EmbeddingConfig(kind="tensor_train", rank=2, num_cores=2, init="gaussian"),
    "hash": EmbeddingConfig(kind="hash", buckets=5),
    "hash, clusters alone": EmbeddingConfig(kind="hash", num_hashes=0, row_factors=[3, 8]),
    "quotient remainder": EmbeddingConfig(kind="quotient_remainder"),
}
COMPRESSED = [name for name in KINDS if not name.startswith("dense")]


def make(name: str, order: bool = True) -> Embedding:
    torch.manual_seed(0)
    made = make_embedding(KINDS[name], N, D)
    if order and made.row_factors is not None:
        made.set_order(some_order(made))
    return made


def some_order(embedding: Embedding) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randperm(math.prod(embedding.row_factors or (N,)), generator=draw)[:N]


# --- One interface -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_rows_are_those_of_the_table(name: str) -> None:
    embedding = make(name)
    table = embedding.to_dense()
    assert table.shape == (N, D)
    assert not table.requires_grad
    torch.testing.assert_close(embedding.weight(), table)
    torch.testing.assert_close(embedding(), table)
    ids = torch.tensor([[0, 22, 7], [7, 7, 1]])
    torch.testing.assert_close(embedding(ids), table[ids])
    torch.testing.assert_close(embedding(ids.to(torch.int32)), table[ids])
    torch.testing.assert_close(embedding(torch.tensor(4)), table[4])
    torch.testing.assert_close(embedding(ids.t()[::2]), table[ids.t()[::2]])
    torch.testing.assert_close(embedding.rows(3, 9), table[3:9])
    assert embedding.rows(5, 5).shape == (0, D)


@pytest.mark.parametrize("name", KINDS)
def test_no_ids_give_no_rows_that_still_hang_on_the_parameters(name: str) -> None:
    embedding = make(name)
    out = embedding(torch.zeros(0, dtype=torch.int64))
    assert out.shape == (0, D)
    out.sum().backward()
    assert any(parameter.grad is not None for parameter in embedding.parameters())


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("ids", [[N], [-1], [0, 5, N + 100]])
def test_ids_out_of_range_are_refused(name: str, ids: list[int]) -> None:
    with pytest.raises(IndexError, match="rows 0 to 22"):
        make(name)(torch.tensor(ids))


@pytest.mark.parametrize("ids", [torch.ones(2), torch.ones(2, dtype=torch.bool)])
def test_ids_are_integers(ids: Tensor) -> None:
    with pytest.raises(TypeError, match="they must be integers"):
        make("dense")(ids)


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (5, 4), (0, N + 1)])
def test_a_range_of_rows_lies_in_the_table(start: int, stop: int) -> None:
    with pytest.raises(IndexError, match="of a table of 23"):
        make("hash").rows(start, stop)


@pytest.mark.parametrize("name", KINDS)
def test_gradients_of_rows_are_those_of_the_whole_table(name: str) -> None:
    embedding, other = make(name).double(), make(name).double()
    other.load_state_dict(embedding.state_dict())
    ids = torch.tensor([3, 3, 0, 22, 9, 3])
    scale = torch.randn(6, D, dtype=torch.float64)
    (embedding(ids) * scale).sum().backward()
    (other.weight()[ids] * scale).sum().backward()
    for ours, theirs in zip(embedding.parameters(), other.parameters(), strict=True):
        grad = ours.grad.to_dense() if ours.grad.is_sparse else ours.grad
        torch.testing.assert_close(grad, theirs.grad)


@pytest.mark.parametrize("name", KINDS)
def test_compression_is_counted_in_parameters(name: str) -> None:
    embedding = make(name)
    assert embedding.num_parameters == sum(p.numel() for p in embedding.parameters())
    assert embedding.compression_ratio == pytest.approx(N * D / embedding.num_parameters)
    assert f"compression {embedding.compression_ratio:.4g}" in repr(embedding)


@pytest.mark.parametrize("name", KINDS)
def test_state_holds_the_order_and_loads_into_a_fresh_module(name: str) -> None:
    embedding = make(name)
    fresh = make(name, order=False)
    fresh.reset_parameters()
    fresh.load_state_dict(embedding.state_dict())
    assert torch.equal(fresh.to_dense(), embedding.to_dense())
    plain = make(name, order=False)
    embedding.load_state_dict(plain.state_dict())  # and a state without an order takes it away
    assert embedding.position is None


def test_a_state_of_another_size_is_refused() -> None:
    other = make_embedding(KINDS["hash, clusters alone"], N - 1, D)
    other.set_order(torch.arange(N - 1))
    with pytest.raises(ValueError, match=r"position has shape \[22\]; it must be \[23\]"):
        make("hash, clusters alone").load_state_dict(other.state_dict())


@pytest.mark.parametrize("name", KINDS)
def test_reset_draws_parameters_anew_and_keeps_the_order(name: str) -> None:
    embedding = make(name)
    before, order = embedding.to_dense(), embedding.position
    torch.manual_seed(5)
    embedding.reset_parameters()
    assert not torch.equal(before, embedding.to_dense())
    assert embedding.position is order


@pytest.mark.parametrize("name", COMPRESSED)
def test_an_order_moves_rows_and_nothing_else(name: str) -> None:
    embedding = make(name, order=False)
    if name.startswith("hash, clusters") or not name.startswith("hash"):  # hashed parts belong to ids
        capacity = math.prod(embedding.row_factors or ())
        embedding.set_order(torch.arange(N))
        first = embedding.to_dense()
        embedding.set_order(torch.arange(N).flip(0))
        torch.testing.assert_close(embedding.to_dense(), first.flip(0))
        embedding.set_order(torch.arange(capacity - N, capacity))  # padding may lie anywhere
    assert embedding.to_dense().isfinite().all()
    embedding.set_order(None)
    assert embedding.position is None


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (torch.zeros(N, dtype=torch.int64), "distinct positions"),
        (torch.arange(N) + 1000, "distinct positions in"),
        (torch.arange(N) - 1, "distinct positions"),
        (torch.arange(N - 1), r"order is torch.int64 \[22\]"),
        (torch.rand(N), "order is torch.float32"),
    ],
)
def test_a_bad_order_is_refused(order: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make("quotient remainder").set_order(order)


def test_a_full_table_takes_no_order() -> None:
    with pytest.raises(ValueError, match="shares nothing between rows"):
        make("dense").set_order(torch.arange(N))


@pytest.mark.parametrize("name", KINDS)
def test_a_table_of_its_own_kind_is_found_again(name: str) -> None:
    if name.startswith("tensor train"):  # zeros in its padding take higher ranks than the table's own
        ranks, factors = ([6, 4], [2, 3, 4]) if "two" not in name else ([12], [4, 6])
        config = replace(KINDS[name], rank=ranks, row_factors=factors)
        embedding = make_embedding(config, N, D).double()
    else:
        embedding = make(name).double()
    table = embedding.to_dense()
    with torch.no_grad():
        for key, parameter in embedding.named_parameters():
            if key != "importance":
                parameter.add_(0.3 * torch.randn_like(parameter))
    embedding.set_table_(table)
    torch.testing.assert_close(embedding.to_dense(), table, atol=1e-8, rtol=1e-8)
    with pytest.raises(ValueError, match=r"table has shape \[6, 23\]"):
        embedding.set_table_(table.t())


def test_from_dense_approximates_a_table_that_is_not_of_its_kind() -> None:
    torch.manual_seed(0)
    table = torch.randn(N, D, dtype=torch.float64)
    exact = DenseEmbedding.from_dense(table)
    assert exact.table.dtype is torch.float64
    assert torch.equal(exact.to_dense(), table)
    for kind, options in ((QuotientRemainderEmbedding, {"buckets": 4}), (HashEmbedding, {"buckets": 4})):
        near = kind.from_dense(table, **options)
        error = (near.to_dense() - table).square().sum()
        assert error < table.square().sum()
        moved = kind.from_dense(table, **options)
        with torch.no_grad():
            moved.table += 0.01 * torch.randn_like(moved.table)
        assert error <= (moved.to_dense() - table).square().sum()


# --- Dense -------------------------------------------------------------------------------------------------


def test_dense_columns_start_orthonormal_or_with_the_wanted_deviation() -> None:
    torch.manual_seed(0)
    table = DenseEmbedding(50, 8).table
    torch.testing.assert_close(table.t() @ table, torch.eye(8), atol=1e-5, rtol=0)
    wide = DenseEmbedding(4000, 16, std=0.3).table
    torch.testing.assert_close(wide.t() @ wide / 4000, 0.09 * torch.eye(16), atol=1e-4, rtol=0)
    assert float(DenseEmbedding(4000, 16, init="gaussian").to_dense().std()) == pytest.approx(0.1, rel=0.02)
    with pytest.raises(ValueError, match="init is 'zeros'; it must be orthogonal or gaussian"):
        DenseEmbedding(3, 2, init="zeros")  # type: ignore[arg-type]


def test_sparse_gradients_have_the_rows_that_were_looked_up() -> None:
    embedding = make("dense, sparse gradients")
    embedding(torch.tensor([2, 2, 9])).sum().backward()
    grad = embedding.table.grad
    assert grad.is_sparse
    assert sorted(grad.coalesce().indices()[0].tolist()) == [2, 9]


# --- Sums of shared rows -----------------------------------------------------------------------------------


def test_quotient_remainder_is_the_sum_of_two_rows() -> None:
    embedding = QuotientRemainderEmbedding(N, D, buckets=4, order=torch.arange(N).flip(0))
    quotient, remainder = embedding.table[:6], embedding.table[6:]
    assert remainder.shape == (4, D)
    for node in range(N):
        position = N - 1 - node
        torch.testing.assert_close(
            embedding(torch.tensor(node)), quotient[position // 4] + remainder[position % 4]
        )


def test_quotient_remainder_is_smallest_by_default() -> None:
    assert QuotientRemainderEmbedding(2708, 64).num_parameters == (52 + 53) * 64
    assert QuotientRemainderEmbedding(1, 4).to_dense().shape == (1, 4)


def test_hash_adds_clusters_of_every_level_and_weighed_hashes() -> None:
    embedding = HashEmbedding(N, D, row_factors=(3, 2, 4), buckets=5, order=torch.arange(N).flip(0))
    with torch.no_grad():
        embedding.importance.uniform_()
    first, second, hashed = embedding.table.split([3, 6, 5])
    ids = torch.arange(N)
    slots = embedding.slots(ids, N - 1 - ids)
    for node in range(N):
        position = N - 1 - node
        expected = first[position // 8] + second[position // 4]
        for k in range(2):
            expected = expected + embedding.importance[node, k] * hashed[slots[node, 2 + k] - 9]
        torch.testing.assert_close(embedding(torch.tensor(node)), expected)


def test_hash_has_the_parameters_of_its_formula() -> None:
    embedding = HashEmbedding(2708, 64, row_factors=(13, 14, 16), buckets=128)
    assert embedding.num_parameters == (13 + 13 * 14 + 128) * 64 + 2 * 2708


def test_hash_functions_spread_ids_evenly_and_differently() -> None:
    embedding = HashEmbedding(200_000, 1, buckets=64)
    ids = torch.arange(200_000)
    first, second = embedding.slots(ids, ids)[:, -2:].t() - sum(embedding._levels)
    for column in (first, second):
        counts = torch.bincount(column, minlength=64).double()
        assert counts.numel() == 64
        assert float(counts.std() / counts.mean()) < 0.1
    assert float((first == second).double().mean()) == pytest.approx(1 / 64, rel=0.2)


def test_hash_looks_up_positions_too() -> None:
    embedding = make("hash")
    ids = torch.tensor([4, 0, 22])
    torch.testing.assert_close(embedding.lookup(embedding.positions_of(ids)), embedding(ids))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (HashEmbedding, {"row_factors": (2, 3)}, "product of at least 23"),
        (HashEmbedding, {"num_hashes": -1}, "num_hashes is -1"),
        (HashEmbedding, {"buckets": 0}, "buckets is 0"),
        (HashEmbedding, {"buckets": -5}, "buckets is -5"),
        (DenseEmbedding, {"std": 0.0}, "std is 0.0; it must be positive"),
        (HashEmbedding, {"std": 0.0}, "std is 0.0; it must be positive"),
        (QuotientRemainderEmbedding, {"buckets": 0}, "buckets is 0"),
    ],
)
def test_bad_options_are_refused(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(N, D, **options)


@pytest.mark.parametrize("kind", [DenseEmbedding, HashEmbedding, QuotientRemainderEmbedding])
def test_sizes_are_positive(kind: Any) -> None:
    with pytest.raises(ValueError, match="num_embeddings is 0"):
        kind(0, D)
    with pytest.raises(ValueError, match="embedding_dim is 0"):
        kind(N, 0)


# --- The factory -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (EmbeddingConfig(), DenseEmbedding),
        (EmbeddingConfig(kind="tensor_train", rank=4), TTEmbedding),
        (EmbeddingConfig(kind="hash"), HashEmbedding),
        (EmbeddingConfig(kind="quotient_remainder"), QuotientRemainderEmbedding),
    ],
)
def test_the_kind_decides_the_class(config: EmbeddingConfig, kind: type) -> None:
    made = make_embedding(config, N, D)
    assert type(made) is kind
    assert (made.num_embeddings, made.embedding_dim) == (N, D)
    assert kind.kind == config.kind
    assert make_embedding(replace(config, dim=4), N, D).embedding_dim == 4


def test_a_configuration_may_be_a_mapping() -> None:
    assert EmbeddingConfig.of({"kind": "hash", "buckets": 3}) == EmbeddingConfig(kind="hash", buckets=3)
    assert EmbeddingConfig.of(None) == EmbeddingConfig()
    with pytest.raises(UserError, match=r"unknown key 'embedding\.rnk'; did you mean 'rank'\?"):
        EmbeddingConfig.of({"rnk": 3})


def test_options_that_contradict_are_refused() -> None:
    with pytest.raises(ValueError, match="goes with kind dense, not hash"):
        make_embedding(EmbeddingConfig(kind="hash", sparse=True), N, D)
    with pytest.raises(ValueError, match=r"embedding.kind is 'full'"):
        make_embedding(EmbeddingConfig(kind="full"), N, D)  # type: ignore[arg-type]


def two_cliques() -> Tensor:
    """Even ids are joined to each other, and odd ids, so that neighbours aren't neighbours by id."""
    ids = torch.arange(N)
    pairs = torch.cartesian_prod(ids, ids).t()
    return pairs[:, (pairs[0] % 2 == pairs[1] % 2) & (pairs[0] != pairs[1])]


def test_neighbours_share_parameters_once_it_is_fitted_to_the_graph(tmp_path: Any) -> None:
    config = EmbeddingConfig(kind="quotient_remainder", buckets=12)
    model = nn.ModuleDict({"a": make_embedding(config, N, D), "other": make_embedding(config, N + 5, D)})
    fit_to_graph(model, two_cliques(), N, folder=tmp_path)
    position = model["a"].position
    assert position is not None
    assert {len({int(p) // 12 for p in position[parity::2]}) for parity in (0, 1)} == {1}
    assert model["other"].position is None, "an embedding of another size isn't of this graph"
    again = nn.ModuleDict({"a": make_embedding(config, N, D)})
    fit_to_graph(again, Adjacency.from_edge_index(two_cliques(), N), N, folder=tmp_path)
    assert torch.equal(again["a"].position, position)


def test_orders_that_do_not_look_at_the_graph() -> None:
    data = tiny_graph(N, 40)

    def fitted(**options: Any) -> Tensor | None:
        model = make_embedding(EmbeddingConfig(kind="quotient_remainder", **options), N, D)
        fit_to_graph(model, data.edge_index, N, seed=options.get("order_seed") or 3)
        return model.position

    assert fitted(order="identity") is None
    first, second = fitted(order="random"), fitted(order="random", order_seed=4)
    assert sorted(first.tolist()) == list(range(N))
    assert not torch.equal(first, second)
    assert torch.equal(first, fitted(order="random"))


@pytest.mark.parametrize("kind", ["dense", "tensor_train", "hash", "quotient_remainder"])
def test_a_spectral_start_comes_from_the_graph(kind: Any) -> None:
    config = EmbeddingConfig(kind=kind, init="spectral", rank=4, std=0.5)
    torch.manual_seed(0)
    model, other = (make_embedding(config, N, 2) for _ in range(2))
    for each in (model, other):
        fit_to_graph(each, two_cliques(), N)
    table = model.to_dense()
    if kind != "hash":  # whose weights of hashes were drawn before
        torch.testing.assert_close(table, other.to_dense(), atol=1e-5, rtol=1e-4)
    even, odd = F.normalize(table[::2]), F.normalize(table[1::2])
    assert float((even @ even.t()).min()) > float((even @ odd.t()).abs().max())


def test_a_spectral_start_needs_more_nodes_than_columns() -> None:
    model = make_embedding(EmbeddingConfig(init="spectral"), N, N)
    with pytest.raises(ValueError, match="below the number of nodes, 23"):
        fit_to_graph(model, two_cliques(), N)
