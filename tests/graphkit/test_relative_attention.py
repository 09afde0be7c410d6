"""Attention through features of pairs, against the definition written query by query in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from graphkit.kernels import _relative_attention_cpu as compiled
from graphkit.kernels import _relative_attention_torch as plain
from graphkit.kernels._relative_attention_layout import Arguments, Options, Outcome, arrange
from graphkit.kernels.dropout import LEVELS, keep_mask
from graphkit.kernels.relative_attention import RelativeAttention, relative_attention


class Case(NamedTuple):
    """Arguments: those that have gradients, and the structure."""

    tensors: dict[str, Tensor]
    rowptr: Tensor
    key: Tensor

    def run(self, tensors: dict[str, Tensor] | None = None, **options: Any) -> RelativeAttention:
        chosen = self.tensors if tensors is None else tensors
        return relative_attention(rowptr=self.rowptr, key=self.key, **chosen, **options)

    def leaves(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        return {name: x.detach().to(dtype or x.dtype).requires_grad_() for name, x in self.tensors.items()}


def case(
    nodes: int = 7,
    heads: int = 2,
    channels: int = 4,
    *,
    sparse: bool = False,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    without: tuple[str, ...] = (),
) -> Case:
    """All pairs of two graphs, or (sparse) a third of all pairs, with queries that have none."""
    draw = torch.Generator().manual_seed(seed)
    width = heads * channels
    batch = torch.arange(nodes) >= nodes // 2
    present = batch[:, None] == batch
    if sparse:
        present = torch.rand(nodes, nodes, generator=draw) < 0.3
        present[nodes // 2] = False
    rowptr = torch.cat([torch.zeros(1, dtype=torch.int64), present.sum(1).cumsum(0)])
    key = present.nonzero()[:, 1].int()
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("q", "k", "v"), (nodes, width))
    shapes |= {"pair": (key.numel(), width), "pair_weight": (2 * width, width), "pair_bias": (2 * width,)}
    shapes |= {"score_weight": (channels, heads), "out_weight": (width, width)}
    shapes |= dict.fromkeys(("out_bias", "scale", "shift"), (width,))
    tensors = {
        name: torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype) / shape[-1] ** 0.25
        for name, shape in shapes.items()
        if name not in without
    }
    return Case(tensors, rowptr, key)


def signed_root(t: Tensor, floor: float) -> Tensor:
    """sign(t) sqrt(|t|) with the derivative 1 / (2 sqrt(max(|t|, floor))), and 0 at 0."""
    slope = torch.where(t == 0, 0, 0.5 / t.abs().clamp(min=floor).sqrt()).detach()
    return (t.sign() * t.abs().sqrt()).detach() + slope * (t - t.detach())


def reference(
    c: Case,
    tensors: dict[str, Tensor] | None = None,
    *,
    update: bool = True,
    activation: str = "relu",
    clamp: float | None = 5.0,
    sqrt_floor: float = 0.0,
    mask: Tensor | None = None,
    pair_mask: Tensor | None = None,
) -> list[Tensor]:
    """The definition, one query and head after the other, in the arguments' precision."""
    x = c.tensors if tensors is None else tensors
    width, (channels, heads) = x["q"].size(1), x["score_weight"].shape
    e = x["pair"] * x["scale"] if "scale" in x else x["pair"]
    e = e + x["shift"] if "shift" in x else e
    projected = F.linear(e, x["pair_weight"], x["pair_bias"]).view(-1, heads, 2, channels)
    value, relation, hats = [], [], [x["q"].new_zeros(0, width)]
    for i in range(x["q"].size(0)):
        rows = slice(int(c.rowptr[i]), int(c.rowptr[i + 1]))
        keys = c.key[rows].long()
        sums, hat = [], []
        for h in range(heads):
            own = slice(h * channels, (h + 1) * channels)
            t = (x["q"][i, own] + x["k"][keys, own]) * projected[rows, h, 0]
            u = signed_root(t, sqrt_floor) + projected[rows, h, 1]
            u = u.relu() if activation == "relu" else u
            score = u @ x["score_weight"][:, h]
            score = score if clamp is None else score.clamp(-clamp, clamp)
            alpha = score.softmax(0)
            alpha = alpha if mask is None else alpha * mask[rows, h]
            sums.append((alpha @ x["v"][keys, own], alpha @ u))
            hat.append(u)
        value.append(torch.cat([s for s, _ in sums]))
        relation.append(torch.cat([s for _, s in sums]))
        hats.append(torch.cat(hat, 1))
    found = [torch.stack(value), torch.stack(relation)]
    if update:
        z = torch.cat(hats)
        z = z if pair_mask is None else z * pair_mask
        z = F.linear(z, x["out_weight"], x.get("out_bias")) if "out_weight" in x else z
        found += [e + z, torch.stack([(e + z).double().sum(0), (e + z).double().square().sum(0)])]
    return found


def outputs(result: RelativeAttention) -> list[Tensor]:
    return [x for x in result if x is not None]


def gradients(found: list[Tensor], leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of one weighted sum of all results."""
    draw = torch.Generator().manual_seed(1)
    total = sum((x.double() * torch.randn(x.shape, generator=draw, dtype=torch.float64)).sum() for x in found)
    assert isinstance(total, Tensor)
    sums = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return {
        k: torch.zeros_like(x) if g is None else g for (k, x), g in zip(leaves.items(), sums, strict=True)
    }


def assert_same(c: Case, rtol: float = 1e-9, **options: Any) -> None:
    """Results and gradients are the definition's."""
    ours, theirs = c.leaves(), c.leaves()
    found, wanted = outputs(c.run(ours, **options)), reference(c, theirs, **options)
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=rtol)
    found_grads, wanted_grads = gradients(found, ours), gradients(wanted, theirs)
    for name, grad in wanted_grads.items():
        size = float(grad.abs().amax()) if grad.numel() else 0.0
        torch.testing.assert_close(found_grads[name], grad, rtol=rtol, atol=rtol * (1 + size), msg=name)


def arguments(c: Case, x: dict[str, Tensor], seed: int) -> Arguments:
    """What the operation itself takes."""
    given = {**x, "rowptr": c.rowptr, "key": c.key, "seed": torch.tensor([seed])}
    return Arguments(**{name: given[name] for name in Arguments._fields})


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("made", "options"),
    [
        ({}, {}),
        ({"sparse": True}, {}),
        ({"sparse": True}, {"update": False}),
        ({"heads": 1}, {}),
        ({"heads": 3, "channels": 3}, {}),
        ({"without": ("out_bias",)}, {}),
        ({"without": ("out_weight", "out_bias")}, {}),
        ({"without": ("scale",)}, {}),
        ({"without": ("shift",)}, {}),
        ({"without": ("scale", "shift")}, {}),
        ({}, {"activation": "none"}),
        ({}, {"clamp": None}),
        ({}, {"clamp": 0.3}),
        ({}, {"sqrt_floor": 0.25}),
        ({}, {"activation": "none", "clamp": 0.3, "sqrt_floor": 1e-3, "update": False}),
    ],
    ids=str,
)
def test_results_and_gradients_are_the_definition_s(made: dict[str, Any], options: dict[str, Any]) -> None:
    assert_same(case(**made), **options)


@settings(max_examples=15)
@given(nodes=st.integers(1, 9), sparse=st.booleans(), seed=st.integers(0, 99), rows=st.integers(1, 30))
def test_any_structure_cut_into_any_chunks_gives_the_definition(
    nodes: int, sparse: bool, seed: int, rows: int
) -> None:
    c = case(nodes, sparse=sparse, seed=seed)
    found = outputs(c.run(chunk_bytes=rows * 2 * 8 * 8))
    torch.testing.assert_close(found, reference(c), rtol=1e-9, atol=1e-9)


def test_gradients_agree_with_differences() -> None:
    c = case(nodes=4)
    leaves = c.leaves()

    def function(*values: Tensor) -> tuple[Tensor, ...]:
        return tuple(outputs(c.run(dict(zip(leaves, values, strict=True)), chunk_bytes=1000)))

    assert torch.autograd.gradcheck(function, list(leaves.values()))


@pytest.mark.parametrize("kept", [(0,), (1,), (2,), (3,), (0, 3)], ids=str)
def test_any_subset_of_the_results_may_have_gradients(kept: tuple[int, ...]) -> None:
    c = case()
    ours, theirs = c.leaves(), c.leaves()
    found, wanted = outputs(c.run(ours)), reference(c, theirs)
    mine, true = (gradients([x[k] for k in kept], y) for x, y in ((found, ours), (wanted, theirs)))
    torch.testing.assert_close(mine, true, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("dtype", "heads"), [(torch.float32, 4), (torch.float64, 2)], ids=str)
def test_compiled_loops_and_torch_operations_agree(dtype: torch.dtype, heads: int) -> None:
    """With dropout of both kinds, in chunks that are cut otherwise; a rate of 1 drops everything."""
    c = case(heads=heads, channels=6, sparse=True, dtype=dtype)
    args = arrange(arguments(c, c.tensors, -7), plain.reorder)
    for rates in ((0.2, 0.3), (1.0, 1.0)):
        drops = [round(rate * LEVELS) for rate in rates]
        found: list[list[Tensor]] = []
        for rows, module in ((3, plain), (1000, plain), (5, compiled)):
            options = Options(True, True, 5.0, *drops, 1e-3, rows)
            value, relation, updated, moments, lse = module.attend(args, options)
            grads = (value.cos(), relation.cos(), updated.cos(), (moments / 100).cos())
            outcome = Outcome(value, relation, updated, lse, *grads)
            found.append([value, relation, updated, moments, lse])
            found[-1] += module.attend_grad(args, outcome, options)
        tolerance = 1e-10 if dtype == torch.float64 else 1e-3
        for other in found[1:]:
            torch.testing.assert_close(other, found[0], rtol=tolerance, atol=tolerance)


def test_dropout_hashes_the_pair_and_the_head_and_is_one_mask_for_both_sums() -> None:
    c, seed, rate = case(nodes=12, heads=3, sparse=True), torch.tensor([11]), 0.25
    level = round(rate * LEVELS)
    factor = LEVELS / (LEVELS - level)
    mask = keep_mask(seed, c.key.numel(), 3, level).double() * factor
    # Channels are hashed in the order (channel of a head, head).
    columns = torch.arange(12).view(4, 3).t().flatten()
    pair_mask = keep_mask(seed ^ plain.PAIR_KEY, c.key.numel(), 12, level)[:, columns].double() * factor
    ours, theirs = c.leaves(), c.leaves()
    found = outputs(c.run(ours, dropout=rate, pair_dropout=rate, seed=seed, chunk_bytes=3000))
    wanted = reference(c, theirs, mask=mask, pair_mask=pair_mask)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradients(found, ours), gradients(wanted, theirs), rtol=1e-9, atol=1e-9)


def test_dropout_drops_at_its_rate_and_keeps_the_mean() -> None:
    n = 60
    c = case(nodes=n, heads=4, dtype=torch.float32)
    ones = dict(c.tensors, v=torch.ones(n, 16))
    left = torch.stack([c.run(ones, dropout=0.2, seed=torch.tensor([s])).value for s in range(20)])
    assert left.mean() == pytest.approx(1, abs=0.01)
    assert not torch.equal(left[0], left[1])
    assert torch.equal(left[3], c.run(ones, dropout=0.2, seed=torch.tensor([3])).value)


def test_queries_without_keys_get_zeros() -> None:
    c = case(sparse=True)
    empty, leaves = c.rowptr.diff() == 0, c.leaves()
    assert empty.any()
    found = c.run(leaves)
    assert not torch.cat([found.value, found.relation], 1)[empty].any()
    assert all(g.isfinite().all() for g in gradients(outputs(found), leaves).values())


@pytest.mark.parametrize("nodes", [0, 3])
def test_no_nodes_and_no_pairs_are_allowed(nodes: int) -> None:
    c = case(nodes=1)
    tensors = dict(c.tensors, pair=torch.zeros(0, 8, dtype=torch.float64))
    tensors.update({name: torch.ones(nodes, 8, dtype=torch.float64) for name in ("q", "k", "v")})
    nothing = Case(tensors, torch.zeros(nodes + 1, dtype=torch.int64), torch.zeros(0, dtype=torch.int32))
    leaves = nothing.leaves()
    found = nothing.run(leaves)
    assert [tuple(x.shape) for x in outputs(found)] == [(nodes, 8), (nodes, 8), (0, 8), (2, 8)]
    assert not found.value.any()
    assert all(g.isfinite().all() for g in gradients(outputs(found), leaves).values())


def test_arguments_need_not_be_contiguous() -> None:
    c = case()
    turned = {name: x.t().contiguous().t() if x.dim() == 2 else x for name, x in c.tensors.items()}
    torch.testing.assert_close(outputs(c.run(turned)), outputs(c.run()), rtol=0, atol=0)
    leaves = {name: x.requires_grad_() for name, x in turned.items()}
    found = gradients(outputs(c.run(leaves)), leaves)
    own = c.leaves()
    torch.testing.assert_close(found, gradients(outputs(c.run(own)), own), rtol=1e-12, atol=1e-12)


def test_chunks_of_any_size_give_the_same_gradients() -> None:
    c = case(nodes=30, heads=2)
    found = []
    for size in (1, 3000, 1 << 24):
        leaves = c.leaves()
        result = outputs(c.run(leaves, chunk_bytes=size))
        found.append([*result, *gradients(result, leaves).values()])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-12, atol=1e-12)


def test_number_of_threads_changes_no_bit(threads: None) -> None:
    c = case(nodes=150, heads=4, channels=8, dtype=torch.float32)
    found = []
    options = {"dropout": 0.1, "pair_dropout": 0.1, "seed": torch.tensor([1]), "chunk_bytes": 1 << 22}
    for count in (1, 2, 4):
        torch.set_num_threads(count)
        leaves = c.leaves()
        result = outputs(c.run(leaves, **options))
        found.append([*result, *gradients(result, leaves).values()])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_gradients_are_finite_where_the_root_is_taken_of_zero() -> None:
    c = case()
    leaves = c.leaves()
    with torch.no_grad():
        leaves["k"].copy_(-leaves["q"])  # then q_i + k_i is 0
        leaves["pair_weight"][:3] = 0
        leaves["pair_bias"][:3] = 0
    found = gradients(outputs(c.run(leaves)), leaves)
    assert all(g.isfinite().all() for g in found.values())
    theirs = {name: x.detach().clone().requires_grad_() for name, x in leaves.items()}
    torch.testing.assert_close(found, gradients(reference(c, theirs), theirs), rtol=1e-9, atol=1e-9)


def test_large_scores_without_a_bound_give_no_overflow() -> None:
    c = case(heads=4, dtype=torch.float32)
    tensors = dict(c.tensors, score_weight=c.tensors["score_weight"] * 1e4)
    leaves = {name: x.requires_grad_() for name, x in tensors.items()}
    found = outputs(c.run(leaves, clamp=None))
    assert all(x.isfinite().all() for x in (*found, *gradients(found, leaves).values()))
    wide = {name: x.detach().double() for name, x in tensors.items()}
    torch.testing.assert_close(found[0].double(), reference(c, wide, clamp=None)[0], rtol=1e-2, atol=1e-2)


def test_nan_in_a_pair_is_seen_in_its_query_and_in_no_other() -> None:
    c = case(heads=4, dtype=torch.float32)
    c.tensors["pair"][0] = torch.nan
    found = c.run()
    assert found.value[0].isnan().all()
    assert found.value[1:].isfinite().all()


def test_single_precision_is_near_double() -> None:
    c = case(nodes=20, heads=4)
    single = outputs(c.run({name: x.float() for name, x in c.tensors.items()}))
    assert single[3].dtype == torch.float64
    for found, wanted in zip(single, reference(c), strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=2e-5, atol=2e-5 * float(wanted.abs().max()))


def test_moments_lose_nothing_to_a_large_mean() -> None:
    c = case(nodes=40, heads=4, dtype=torch.float32)
    found = c.run(dict(c.tensors, out_bias=torch.full((16,), 1000.0)))
    assert found.pair is not None
    assert found.moments is not None
    wide = found.pair.double()
    torch.testing.assert_close(
        found.moments, torch.stack([wide.sum(0), wide.square().sum(0)]), rtol=1e-13, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_single_and_rounded_once(dtype: torch.dtype) -> None:
    c = case(heads=4, dtype=dtype)
    found = c.run()
    wanted = c.run({name: x.float() for name, x in c.tensors.items()})
    assert (found.value.dtype, found.relation.dtype) == (dtype, dtype)
    assert found.pair is not None
    assert found.pair.dtype == torch.float32
    assert torch.equal(found.value, wanted.value.to(dtype))
    leaves = c.leaves()
    assert all(g.dtype == dtype for g in gradients(outputs(c.run(leaves)), leaves).values())


def test_autocast_changes_nothing() -> None:
    c = case(heads=4, dtype=torch.float32)
    plainly, ours = c.leaves(), c.leaves()
    wanted = outputs(c.run(plainly))
    with torch.autocast("cpu", torch.bfloat16):
        found = outputs(c.run(ours))
        mine = gradients(found, ours)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    torch.testing.assert_close(mine, gradients(wanted, plainly), rtol=0, atol=0)


def test_nothing_of_the_size_of_the_pairs_is_kept_but_their_features() -> None:
    c = case(nodes=40, heads=4, dtype=torch.float32)
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        found = c.run(c.leaves())
    assert found.value.grad_fn is not None
    pairs, nodes, weights = 4 * c.key.numel() * 16, 4 * 40 * 16, 4 * 3 * 16 * 16
    assert 2 * pairs <= sum(kept.values()) <= 2 * pairs + 4 * c.key.numel() + 9 * nodes + 4 * weights


@pytest.mark.parametrize("update", [True, False])
def test_the_op_is_registered_as_torch_expects(update: bool) -> None:
    c = case(nodes=5, heads=2)
    settings = [float(number) for number in Options(update, True, 5.0, 6000, 0, 1e-2, 7)]
    args = (*arguments(c, c.leaves(), 3), settings)
    torch.library.opcheck(torch.ops.graphkit.relative_attention.default, args)


def test_torch_compile_gives_the_same() -> None:
    torch._dynamo.reset()
    c = case(heads=2)
    leaves, own = c.leaves(), c.leaves()
    function = torch.compile(lambda tensors: outputs(c.run(tensors)), backend="aot_eager", fullgraph=True)
    found, wanted = function(leaves), outputs(c.run(own))
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients(found, leaves), gradients(wanted, own), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(7)}, "q is torch.float32"),
        ({"k": torch.zeros(6, 8)}, "k has shape"),
        ({"pair": torch.zeros(3, 8)}, "pair has shape"),
        ({"score_weight": torch.zeros(3, 2)}, "score_weight has shape"),
        ({"pair_weight": torch.zeros(8, 8)}, "pair_weight has shape"),
        ({"out_weight": None}, "out_bias needs out_weight"),
        ({"shift": torch.zeros(7)}, "shift has shape"),
        ({"activation": "gelu"}, 'activation is "gelu"'),
        ({"clamp": 0.0}, "clamp is 0.0"),
        ({"dropout": 1.5, "seed": torch.tensor([1])}, "dropout is 1.5"),
        ({"pair_dropout": 0.5}, "seed is None"),
        ({"dropout": 0.5, "seed": torch.tensor(1)}, "seed is torch.int64"),
        ({"sqrt_floor": -1.0}, "sqrt_floor is -1.0"),
        ({"chunk_bytes": 0}, "chunk_bytes is 0"),
        ({"rowptr": torch.zeros(3, dtype=torch.int64)}, "rowptr has shape"),
        ({"rowptr": torch.zeros(8, dtype=torch.int64)}, "rowptr must ascend"),
        ({"key": torch.full((25,), 7, dtype=torch.int32)}, "outside"),
        ({"key": torch.zeros(25, dtype=torch.int64)}, "must be int32"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_arguments_are_named(change: dict[str, Any], message: str) -> None:
    c = case()
    arguments: dict[str, Any] = dict(c.tensors, rowptr=c.rowptr, key=c.key)
    arguments.update(change)
    with pytest.raises(ValueError, match=message):
        relative_attention(**arguments)
