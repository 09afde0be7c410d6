from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from graphkit.nn.embedding import TTEmbedding, TTShape, tt_engines
from graphkit.nn.embedding.tt_init import effective_ranks, gaussian_cores, orthogonal_cores

ENGINES = ("auto", "full", "prefix", "gather", "fused")
SMALL: dict[str, Any] = {"rank": [3, 4], "row_factors": [3, 4, 5], "column_factors": [2, 3, 2]}


def small(engine: str = "auto", order: Tensor | None = None, rows: int = 57, **options: Any) -> TTEmbedding:
    torch.manual_seed(0)
    made = TTEmbedding(rows, 12, engine=engine, order=order, init="gaussian", **(SMALL | options))  # type: ignore[arg-type]
    return made.double()


def shuffled(rows: int = 57, capacity: int = 60) -> Tensor:
    return torch.randperm(capacity, generator=torch.Generator().manual_seed(1))[:rows]


def by_definition(emb: TTEmbedding) -> Tensor:
    """All rows by id, from slices of the cores."""
    table = torch.ones(1, 1, 1, dtype=torch.float64)
    for core in emb.cores:  # [I, J, r] x [p, r, q, s] -> [I p, J q, s]
        grown = torch.einsum("IJr,prqs->IpJqs", table, core)
        table = grown.reshape(table.size(0) * core.size(0), -1, core.size(3))
    position = torch.arange(emb.num_embeddings) if emb.position is None else emb.position.long()
    return table.squeeze(2)[position]


@pytest.fixture(params=["one chunk", "small chunks"])
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "small chunks":
        monkeypatch.setattr(tt_engines, "CHUNK_VALUES", 1500)


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("engine", ENGINES)
def test_rows_and_gradients_equal_the_definition(engine: str, ordered: bool, chunks: None) -> None:
    emb = small(engine, shuffled() if ordered else None)
    expected = by_definition(emb)
    for ids in (
        torch.tensor([[0, 56, 3, 3], [17, 3, 56, 3]], dtype=torch.int32),
        torch.arange(57)[::2],
        torch.tensor(9),
        torch.arange(57).repeat(2),
        torch.empty(0, 4, dtype=torch.int64),
    ):
        rows = emb(ids)
        assert rows.shape == (*ids.shape, 12)
        torch.testing.assert_close(rows, expected[ids.long()], atol=1e-12, rtol=1e-12)
        weight = torch.randn_like(rows)
        ours = torch.autograd.grad(rows, list(emb.cores), weight)
        theirs = torch.autograd.grad(
            expected[ids.long()], list(emb.cores), weight, retain_graph=True, materialize_grads=True
        )
        torch.testing.assert_close(ours, theirs, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("engine", ENGINES)
def test_the_whole_table_leaves_padding_out(engine: str, ordered: bool, chunks: None) -> None:
    emb = small(engine, shuffled() if ordered else None)
    expected = by_definition(emb)
    table = emb.weight()
    assert table.shape == (57, 12)
    torch.testing.assert_close(table, expected, atol=1e-12, rtol=1e-12)
    weight = torch.randn_like(table)
    torch.testing.assert_close(
        torch.autograd.grad(table, list(emb.cores), weight),
        torch.autograd.grad(expected, list(emb.cores), weight),
        atol=1e-11,
        rtol=1e-11,
    )
    torch.testing.assert_close(emb.rows(10, 13), expected[10:13], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("d", [2, 3, 4])
@pytest.mark.parametrize("engine", ENGINES)
def test_gradcheck(engine: str, d: int) -> None:
    emb = TTEmbedding(3**d - 1, 2**d, rank=2, row_factors=[3] * d, engine=engine, init="gaussian").double()  # type: ignore[arg-type]
    ids = torch.tensor([1, 0, 3**d - 2, 1, 4])

    def rows(*cores: Tensor) -> Tensor:
        # Names of a ParameterList's members are their numbers.
        return torch.func.functional_call(emb, {f"cores.{k}": core for k, core in enumerate(cores)}, (ids,))

    cores = tuple(core.detach().requires_grad_() for core in emb.cores)
    assert torch.autograd.gradcheck(rows, cores, fast_mode=True)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_lookup_keeps_positions_and_cores_alone(engine: str) -> None:
    emb = TTEmbedding(3000, 32, rank=8, engine=engine)  # type: ignore[arg-type]
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
        rows = emb(torch.arange(0, 3000, 2))
    assert sum(t.numel() for t in kept) <= emb.num_parameters + 1500
    rows.sum().backward()


@pytest.mark.parametrize("engine", ENGINES)
def test_backward_gives_the_same_bits_again(engine: str) -> None:
    emb = small(engine).float()
    ids = torch.randint(0, 57, (500,))
    first, second = (torch.autograd.grad(emb(ids).square().sum(), list(emb.cores)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("engine", ENGINES)
def test_an_empty_batch_reaches_every_parameter(engine: str) -> None:
    emb = small(engine)
    emb(torch.empty(0, dtype=torch.int64)).sum().backward()
    assert all(core.grad is not None and not core.grad.any() for core in emb.cores)


@pytest.mark.parametrize("engine", ENGINES)
def test_autocast_and_half_precision_compute_in_float32(engine: str) -> None:
    emb, ids = small(engine).float(), torch.tensor([3, 50, 3])
    plain = emb(ids)
    with torch.autocast("cpu", torch.bfloat16):
        rows = emb(ids)
    assert torch.equal(rows, plain)
    half = emb.bfloat16()
    rows = half(ids)
    assert rows.dtype == torch.bfloat16
    rows.sum().backward()
    assert half.cores[0].grad is not None
    assert half.cores[0].grad.dtype == torch.bfloat16


def test_the_engine_follows_device_and_batch() -> None:
    emb = TTEmbedding(1000, 16, rank=2, row_factors=[10, 10, 10])
    assert emb._engine_for(torch.arange(5)) == "fused"
    assert emb._torch_engine_for(torch.arange(900)) == "full"
    assert emb._torch_engine_for(torch.arange(200)) == "prefix"
    assert emb._torch_engine_for(torch.arange(20)) == "prefix"  # ten rows a prefix
    assert emb._torch_engine_for(torch.arange(0, 1000, 10)) == "gather"  # one row a prefix
    # Elsewhere than on the CPU there is nothing compiled.
    for engine in ("auto", "fused"):
        emb.engine = engine  # type: ignore[assignment]
        assert emb._engine_for(torch.empty(900, dtype=torch.int64, device="meta")) == "full"


def test_ids_out_of_range_are_refused() -> None:
    emb = small()
    for wrong in (-1, 57, 59):  # 57 to 59 are padding
        with pytest.raises(IndexError, match="rows 0 to 56"):
            emb(torch.tensor([0, wrong]))


def test_parameters_are_dense_index_major_blocks() -> None:
    emb = TTEmbedding(169_343, 128, rank=8)
    assert emb.num_parameters == 19_392
    assert round(emb.compression_ratio) == 1118
    assert [tuple(core.shape) for core in emb.cores] == [(55, 1, 8, 8), (55, 8, 4, 8), (56, 8, 4, 1)]
    assert list(emb.state_dict()) == ["cores.0", "cores.1", "cores.2"]
    assert emb.row_factors == (55, 55, 56)


def test_state_with_an_order_goes_round() -> None:
    first, second = small(order=shuffled()), small(rows=57)
    with torch.no_grad():
        for core in second.cores:
            core.zero_()
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.weight(), second.weight())
    assert "position" in first.state_dict()


# --- first values -------------------------------------------------------------------------------------------


def padded_table(emb: TTEmbedding) -> Tensor:
    emb.num_embeddings = emb.shape.capacity
    return emb.double().weight().detach()


@pytest.mark.parametrize("rank", [3, 10, 16, 40, [5, 30], [30, 5]])
@pytest.mark.parametrize("std", [None, 0.1])
def test_orthogonal_start(rank: int | list[int], std: float | None) -> None:
    """Ranks above 10 are more than the last core can hold orthonormally: 20 >= r * 2."""
    emb = TTEmbedding(3000, 32, rank=rank, row_factors=[10, 16, 20], column_factors=[4, 4, 2], std=std)
    table = padded_table(emb)
    gain = 1.0 if std is None else std**2 * 3200
    torch.testing.assert_close(table.t() @ table, gain * torch.eye(32).double(), atol=1e-5 * gain, rtol=0.0)
    if std is not None:
        assert table.std().item() == pytest.approx(std, rel=1e-3)


@pytest.mark.parametrize("shape", [((4, 5, 12), (2, 3, 2), (1, 8, 13, 1)), ((9, 5), (4, 3), (1, 7, 1))])
def test_orthogonality_is_exact_in_double_precision(shape: tuple[tuple[int, ...], ...]) -> None:
    p, q, ranks = shape
    made = TTShape(math.prod(p), math.prod(q), p, q, ranks)
    emb = TTEmbedding(made.capacity, math.prod(q), rank=ranks[1:-1], row_factors=p, column_factors=q).double()
    with torch.no_grad():
        for core, values in zip(emb.cores, orthogonal_cores(made), strict=True):
            core.copy_(values)
    table = emb.weight().detach()
    torch.testing.assert_close(table.t() @ table, torch.eye(table.size(1)).double(), atol=1e-13, rtol=0.0)


def test_channels_beyond_the_effective_rank_are_trained() -> None:
    emb = TTEmbedding(3000, 32, rank=16, row_factors=[10, 16, 20], column_factors=[4, 4, 2])
    e = effective_ranks(emb.shape)
    assert e == (1, 16, 10, 1)
    assert not emb.cores[2][:, 10:].any()
    (emb.weight() * torch.randn(3000, 32)).sum().backward()
    assert emb.cores[2].grad is not None
    assert emb.cores[2].grad[:, 10:].abs().min() > 0


def test_too_few_rows_for_orthogonal_columns_start_independent() -> None:
    shape = TTShape(6, 16, (2, 3), (4, 4), (1, 4, 1))
    assert effective_ranks(shape) is None
    emb = TTEmbedding(6, 16, rank=4, row_factors=[2, 3], column_factors=[4, 4], std=0.5)
    assert 0.1 < emb.weight().std().item() < 1.5


@pytest.mark.parametrize("rank", [4, 12])
@pytest.mark.parametrize("std", [None, 0.02])
def test_gaussian_start_has_the_wanted_deviation(rank: int, std: float | None) -> None:
    torch.manual_seed(0)
    emb = TTEmbedding(20_000, 64, rank=rank, init="gaussian", std=std)
    assert emb.weight().std().item() == pytest.approx(std or 0.1, rel=0.15)
    assert emb.weight().mean().abs().item() < 0.1 * (std or 0.1)


def test_the_start_follows_torch_s_generator() -> None:
    shape = TTShape(60, 12, (3, 4, 5), (2, 3, 2), (1, 3, 4, 1))
    for draw in (orthogonal_cores, lambda shape: gaussian_cores(shape, 0.1)):
        drawn = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            drawn.append(draw(shape)[1])
        assert torch.equal(drawn[0], drawn[1])
        assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"init": "ones"}, "init is 'ones'"),
        ({"engine": "slow"}, "engine is 'slow'"),
        ({"std": 0.0}, "std is 0.0"),
        ({"rank": 0}, "rank is 0"),
        ({"row_factors": [3, 4, 4]}, "row_factors are"),
        ({"order": torch.zeros(57, dtype=torch.int64)}, "distinct positions"),
        ({"order": torch.arange(57) + 4}, r"in \[0, 60\)"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TTEmbedding(57, 12, **(SMALL | arguments))
