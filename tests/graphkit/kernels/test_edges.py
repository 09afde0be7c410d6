"""Sums of messages with edge features, and gated means, against loops in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from graphkit.kernels import edge_gate, edge_relu
from graphkit.kernels.edge_gate import edge_gate_mean, edge_gate_mean_torch
from graphkit.kernels.edge_relu import Loops, edge_relu_sum, edge_relu_sum_torch
from graphkit.nn.graph_conv import EdgeRows

DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_rows(nodes: int, edges: int) -> EdgeRows:
    """Random edges, sorted: loops, repeated edges and nodes without edges among them."""
    return EdgeRows.from_edge_index(torch.randint(max(nodes, 1), (2, edges if nodes else 0)), nodes)


def leaf(*shape: int, dtype: torch.dtype = DOUBLE) -> Tensor:
    return torch.randn(*shape, dtype=dtype).requires_grad_()


def relu_arguments(
    rows: EdgeRows, width: int, kinds: int, weighted: bool, extra: str, dtype: torch.dtype = DOUBLE
) -> tuple[list[Tensor], dict[str, Any]]:
    """Returns what can be differentiated, and the other arguments of :func:`edge_relu_sum`."""
    nodes, edges = rows.num_nodes, rows.num_edges
    given: dict[str, Any] = {
        "kind": torch.randint(kinds, (edges,), dtype=torch.int32) if kinds else None,
        "weight": torch.rand(edges, dtype=dtype) if weighted else None,
    }
    leaves = [leaf(nodes, width, dtype=dtype), leaf(kinds or edges, width, dtype=dtype)]
    if extra == "own":
        leaves.append(leaf(1, dtype=dtype))
    if extra == "loops":
        leaves.append(leaf(width, dtype=dtype))
        given["loop_weight"] = torch.rand(nodes, dtype=dtype)
    return leaves, given


def relu_sum(rows: EdgeRows, leaves: list[Tensor], given: dict[str, Any]) -> Tensor:
    x, edge, *own = leaves
    rest = {name: given[name] for name in ("kind", "weight")}
    if "loop_weight" in given:
        rest["loops"] = Loops(own[0], given["loop_weight"])
    elif own:
        rest["own"] = own[0]
    return edge_relu_sum(rows.rowptr, rows.col, x, edge, **rest)


def naive_relu_sum(rows: EdgeRows, leaves: list[Tensor], given: dict[str, Any]) -> Tensor:
    """The formula, one edge after the other."""
    x, edge, *own = leaves
    out = []
    for r in range(rows.num_nodes):
        total = 0 * x[r]
        for e in range(int(rows.rowptr[r]), int(rows.rowptr[r + 1])):
            k = e if given["kind"] is None else int(given["kind"][e])
            w = 1.0 if given["weight"] is None else given["weight"][e]
            total = total + w * F.relu(x[int(rows.col[e])] + edge[k])
        if "loop_weight" in given:
            total = total + given["loop_weight"][r] * F.relu(x[r] + own[0])
        elif own:
            total = total + own[0] * x[r]
        out.append(total)
    return torch.stack(out) if out else torch.zeros_like(x)


@settings(max_examples=30)
@given(st.integers(0, 6), st.integers(0, 14), st.integers(1, 19), st.integers(0, 3), st.booleans(), st.data())
def test_sums_of_relu_and_their_gradients_equal_the_formula(
    nodes: int, edges: int, width: int, kinds: int, weighted: bool, data: st.DataObject
) -> None:
    rows = random_rows(nodes, edges)
    leaves, given = relu_arguments(
        rows, width, kinds, weighted, data.draw(st.sampled_from(["", "own", "loops"]))
    )
    got, wanted = relu_sum(rows, leaves, given), naive_relu_sum(rows, leaves, given)
    torch.testing.assert_close(got, wanted)
    upstream = torch.randn_like(got)
    if not upstream.numel():
        return
    grads = (torch.autograd.grad(y, leaves, upstream, materialize_grads=True) for y in (got, wanted))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("extra", ["", "own", "loops"])
@pytest.mark.parametrize("kinds", [0, 3])
def test_sums_of_relu_can_be_differentiated_twice(kinds: int, extra: str) -> None:
    rows = random_rows(4, 7)
    leaves, given = relu_arguments(rows, 3, kinds, True, extra)
    assert torch.autograd.gradcheck(lambda *t: relu_sum(rows, list(t), given), leaves)
    assert torch.autograd.gradgradcheck(lambda *t: relu_sum(rows, list(t), given), leaves)


@pytest.mark.parametrize("extra", ["", "own", "loops"])
@pytest.mark.parametrize("kinds", [0, 3])
def test_compiled_sums_equal_tensor_operations(kinds: int, extra: str) -> None:
    """Tensor operations serve other devices; so does their gradient, which is called by hand."""
    rows = random_rows(9, 21)
    leaves, given = relu_arguments(rows, 5, kinds, True, extra)
    own, loop = (leaves[2] if extra == name else None for name in ("own", "loops"))
    common = (rows.rowptr, rows.col, given["kind"], given["weight"], own, loop, given.get("loop_weight"))
    y = relu_sum(rows, leaves, given)
    torch.testing.assert_close(y, edge_relu_sum_torch(*common, *leaves[:2]))
    upstream = torch.randn_like(y)
    with torch.no_grad():
        plain = edge_relu._grad._init_fn(*common, *leaves[:2], upstream)
        compiled = edge_relu._grad(*common, *leaves[:2], upstream)
    for one, other in zip(compiled, plain, strict=True):
        torch.testing.assert_close(one, other)


def gate_formula(rows: EdgeRows, nodes: Tensor, edge: Tensor, kind: Tensor | None) -> tuple[Tensor, Tensor]:
    """The formula, one edge after the other."""
    own, value, to, of = nodes.chunk(4, 1)
    out, gates = [], []
    for r in range(rows.num_nodes):
        total, weight = torch.zeros_like(own[r]), torch.full_like(own[r], 1e-6)
        for e in range(int(rows.rowptr[r]), int(rows.rowptr[r + 1])):
            c = int(rows.col[e])
            z = edge[e if kind is None else int(kind[e])] + to[r] + of[c]
            total, weight = total + z.sigmoid() * value[c], weight + z.sigmoid()
            gates.append(z)
        out.append(own[r] + total / weight)
    return torch.stack(out), torch.stack(gates) if gates else own[:0]


@settings(max_examples=30)
@given(st.integers(1, 6), st.integers(0, 14), st.integers(1, 19), st.integers(0, 3), st.booleans())
def test_gated_means_and_their_gradients_equal_the_formula(
    nodes: int, edges: int, width: int, kinds: int, both: bool
) -> None:
    rows = random_rows(nodes, edges)
    kind = torch.randint(kinds, (edges,), dtype=torch.int32) if kinds else None
    leaves = [leaf(nodes, 4 * width), leaf(kinds or edges, width)]
    upstream = torch.randn(nodes, width, dtype=DOUBLE), torch.randn(edges, width, dtype=DOUBLE)
    grads = []
    for y, z in (
        edge_gate_mean(rows.rowptr, rows.col, *leaves, kind=kind),
        gate_formula(rows, *leaves, kind),
    ):
        grads.append((y, z))
    torch.testing.assert_close(grads[0], grads[1])
    totals = ((y * upstream[0]).sum() + (z * upstream[1]).sum() * both for y, z in grads)
    first, second = (torch.autograd.grad(total, leaves, materialize_grads=True) for total in totals)
    torch.testing.assert_close(first, second)


def test_gates_alone_can_be_differentiated() -> None:
    rows, nodes, edge = random_rows(5, 9), leaf(5, 12), leaf(9, 3)
    _, z = edge_gate_mean(rows.rowptr, rows.col, nodes, edge)
    _, same = gate_formula(rows, nodes, edge, None)
    torch.testing.assert_close(*(torch.autograd.grad(t.square().sum(), (nodes, edge)) for t in (z, same)))


@pytest.mark.parametrize("kinds", [0, 3])
def test_gradient_of_gated_means_is_that_of_differences(kinds: int) -> None:
    rows = random_rows(4, 7)
    kind = torch.randint(kinds, (7,), dtype=torch.int32) if kinds else None
    leaves = leaf(4, 12), leaf(kinds or 7, 3)
    assert torch.autograd.gradcheck(lambda *t: edge_gate_mean(rows.rowptr, rows.col, *t, kind=kind), leaves)


@pytest.mark.parametrize("kinds", [0, 3])
def test_compiled_gates_equal_tensor_operations(kinds: int) -> None:
    rows = random_rows(9, 21)
    kind = torch.randint(kinds, (21,), dtype=torch.int32) if kinds else None
    nodes, edge = torch.randn(9, 20, dtype=DOUBLE), torch.randn(kinds or 21, 5, dtype=DOUBLE)
    common = (rows.rowptr, rows.col, kind)
    y, z, mean, inverse = edge_gate_mean_torch(*common, nodes, edge, 1e-6)
    torch.testing.assert_close(edge_gate_mean(rows.rowptr, rows.col, nodes, edge, kind=kind), (y, z))
    for grad_z in (None, torch.randn_like(z)):
        given = (*common, nodes, z, mean, inverse, torch.randn_like(y), grad_z, edge.size(0))
        torch.testing.assert_close(edge_gate._grad(*given), edge_gate._grad._init_fn(*given))


def test_gates_in_float32_are_right_where_they_saturate() -> None:
    z = torch.tensor([[-1000.0, -80, -20, -1, 0, 1, 20, 80, 1000, math.inf, -math.inf, math.nan]]).T
    rows = EdgeRows.from_edge_index(torch.zeros(2, 12, dtype=torch.int64) + torch.arange(12), 12)
    nodes = torch.cat([torch.zeros(12, 1), torch.ones(12, 1), torch.zeros(12, 2)], 1)
    y, _ = edge_gate_mean(rows.rowptr, rows.col, nodes, z)
    gate = z.double().sigmoid()
    wanted = gate / (gate + 1e-6)
    torch.testing.assert_close(y.double(), wanted, atol=1e-7, rtol=1e-5, equal_nan=True)


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    rows = random_rows(2000, 5000)
    leaves, given = relu_arguments(rows, 64, 5, True, "own", torch.float32)
    nodes, edge = leaf(2000, 256, dtype=torch.float32), leaf(5000, 64, dtype=torch.float32)
    upstream, found = torch.randn(2000, 64), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        y = relu_sum(rows, leaves, given)
        m, z = edge_gate_mean(rows.rowptr, rows.col, nodes, edge)
        grads = torch.autograd.grad(y, leaves, upstream)
        more = torch.autograd.grad([m, z], (nodes, edge), [upstream, torch.ones_like(z)])
        found.append((y, m, z, *grads, *more))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.zeros(3, 2, dtype=torch.int64)}, "x is torch.int64"),
        ({"edge": torch.zeros(2, 3)}, r"edge is .* \[U, 2\]"),
        ({"edge": torch.zeros(5, 2)}, "5 rows for 2 edges"),
        ({"kind": torch.zeros(2, dtype=torch.int64)}, "kind is torch.int64"),
        ({"kind": torch.tensor([0, 2], dtype=torch.int32)}, r"kind holds an id outside \[0, 2\)"),
        ({"weight": torch.ones(3)}, "weight has shape"),
        ({"own": torch.ones(2)}, "own has shape"),
        ({"own": torch.ones(1), "loops": Loops(torch.ones(2), torch.ones(3))}, "exclude each other"),
        ({"loops": Loops(torch.ones(3), torch.ones(3))}, "loops have edge"),
        ({"own": torch.ones(1), "x": torch.zeros(4, 2)}, "square"),
        ({"col": torch.tensor([0, 3], dtype=torch.int32)}, "col holds an id"),
    ],
)
def test_sums_of_relu_refuse_what_does_not_fit(change: dict[str, Any], words: str) -> None:
    col = torch.tensor([0, 2], dtype=torch.int32)
    given = {"col": col, "x": torch.zeros(3, 2), "edge": torch.zeros(2, 2), **change}
    with pytest.raises(ValueError, match=words):
        edge_relu_sum(torch.tensor([0, 1, 1, 2]), **given)


def test_gated_means_refuse_what_does_not_fit() -> None:
    rowptr, col = torch.tensor([0, 1, 1]), torch.tensor([1], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"nodes is .* \[2, 4 F\]"):
        edge_gate_mean(rowptr, col, torch.zeros(2, 6), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="edge is"):
        edge_gate_mean(rowptr, col, torch.zeros(2, 8), torch.zeros(1, 3))
