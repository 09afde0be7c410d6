"""Propagation of beliefs, against loops over edges in float64."""

from __future__ import annotations

import itertools
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from graphkit.kernels import _belief_torch as plain
from graphkit.kernels.belief import Pooling, propagate_beliefs

POOLINGS = get_args(Pooling)


def normalised(messages: list[Tensor], pooling: str) -> Tensor:
    """Pools messages ``[F, n]``: the first least, or the product, then sums of 1."""
    pooled = messages[0]
    for message in messages[1:]:
        least = torch.where(message < pooled, message, pooled)
        pooled = least if pooling == "min" else pooled * message
    return pooled / pooled.sum(-1, keepdim=True)


def naive(matrix: Tensor, edges: Tensor, kind: Tensor, anchors: list[int], nodes: int, **how: Any) -> Tensor:
    """The formula, one edge after the other, for as many rounds as asked for."""
    _, facets, n, _ = matrix.shape
    identity = torch.eye(n, dtype=matrix.dtype)[0].expand(facets, n)
    uniform = torch.full_like(identity, 1 / n)
    state = [identity if v in anchors else uniform for v in range(nodes)]
    for _ in range(how["rounds"]):
        heard: list[list[Tensor]] = [[] for _ in range(nodes)]
        for (u, v), r in zip(edges.t().tolist(), kind.tolist(), strict=True):
            heard[v].append(torch.einsum("fpi,fi->fp", matrix[r], state[u]))
        state = [
            identity if v in anchors else normalised(heard[v], how["pooling"]) if heard[v] else uniform
            for v in range(nodes)
        ]
    return torch.stack(state) if state else matrix.new_zeros(0, facets, n)


def random_matrix(relations: int, facets: int, n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    logits = 2 * torch.randn(relations, facets, n, n, dtype=torch.float64)
    return logits.softmax(2).to(dtype).requires_grad_()


def random_graph(nodes: int, edges: int, relations: int, acyclic: bool = False) -> tuple[Tensor, Tensor]:
    """Any edges: loops, parallel ones, cycles unless forbidden; nodes in a random order."""
    ends = torch.randint(max(nodes, 1), (2, edges if nodes else 0))
    if acyclic:
        ends = ends[:, ends[0] != ends[1]]
        ends = torch.randperm(nodes)[torch.stack([ends.amin(0), ends.amax(0)])]
    return ends, torch.randint(relations, (ends.size(1),))


def gradient(out: Tensor, weight: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    total = (out * weight).sum() + sum(0 * t.sum() for t in of)
    return torch.autograd.grad(total, of, retain_graph=True)


def in_torch(
    matrix: Tensor, edges: Tensor, kind: Tensor, anchor: Tensor, weight: Tensor | None = None, **how: Any
) -> tuple[Tensor, Tensor | None]:
    """The same in tensor operations, round by round, and the gradient of the matrix."""
    turns = how.get("cyclic_rounds")
    turns = torch.zeros_like(anchor[0]) if turns is None else turns
    graph = plain.Graph(edges, kind, anchor, turns, how["num_nodes"], how.get("rounds") or 0)
    across, product = matrix.detach().permute(0, 2, 3, 1), how.get("pooling") == "product"
    state = plain.sweep(across, graph, product).transpose(-1, -2)
    if weight is None:
        return state, None
    grad = plain.sweep_grad(weight.transpose(-1, -2), across, graph, product)
    return state, grad.permute(0, 3, 1, 2)


@settings(max_examples=40)
@given(st.integers(0, 7), st.integers(0, 16), st.sampled_from(POOLINGS), st.integers(1, 5), st.data())
def test_beliefs_and_gradients_equal_the_formula(
    nodes: int, edges: int, pooling: Pooling, rounds: int, data: st.DataObject
) -> None:
    torch.manual_seed(data.draw(st.integers(0, 99)))
    facets, n = data.draw(st.sampled_from([(1, 4), (3, 4), (2, 3), (9, 3)]))
    ends, kind = random_graph(nodes, edges, 4)
    anchor = torch.randint(nodes, (2,)) if nodes else torch.empty(0, dtype=torch.int64)
    matrix = random_matrix(4, facets, n)
    how: Any = {"rounds": rounds, "pooling": pooling}
    ours = propagate_beliefs(matrix, ends, kind, anchor, num_nodes=nodes, **how)
    wanted = naive(matrix, ends, kind, anchor.tolist(), nodes, **how)
    torch.testing.assert_close(ours, wanted)
    weight = torch.randn_like(wanted)
    torch.testing.assert_close(gradient(ours, weight, matrix), gradient(wanted, weight, matrix))


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("n", [3, 4])
def test_composing_each_edge_once_gives_the_bits_of_all_rounds(pooling: Pooling, n: int) -> None:
    ends, kind = random_graph(60, 110, 5, acyclic=True)
    anchor, matrix = torch.tensor([7]), random_matrix(5, 2, n)
    how: Any = {"num_nodes": 60, "pooling": pooling}
    once = propagate_beliefs(matrix, ends, kind, anchor, **how)
    cycle = torch.cat([ends, torch.tensor([[60, 61], [61, 60]])], 1)  # which rounds are then needed for
    kinds = torch.cat([kind, kind[:2]])
    joined = torch.cat([cycle, torch.tensor([[60], [3]])], 1)
    joined_kinds = torch.cat([kinds, kind[:1]])
    depth = 59
    for rounds in (depth, depth + 4):
        assert torch.equal(propagate_beliefs(matrix, ends, kind, anchor, rounds=rounds, **how), once)
    how["num_nodes"] = 62
    apart = propagate_beliefs(matrix, cycle, kinds, anchor, rounds=depth, **how)
    assert torch.equal(apart[:60], once)
    above = reachable(joined, 3) == 0
    together = propagate_beliefs(matrix, joined, joined_kinds, anchor, rounds=depth, **how)
    assert torch.equal(together[:60][above[:60]], once[above[:60]])


def reachable(ends: Tensor, start: int) -> Tensor:
    """Returns 1 for nodes that can be reached, 0 for others."""
    found = torch.zeros(int(ends.max()) + 1, dtype=torch.int64)
    found[start] = 1
    for _ in range(found.numel()):
        found[ends[1, found[ends[0]] == 1]] = 1
    return found


@pytest.mark.parametrize("pooling", POOLINGS)
def test_gradients_of_edges_composed_once_are_those_of_rounds(pooling: Pooling) -> None:
    ends, kind = random_graph(30, 60, 5, acyclic=True)
    anchor, matrix = torch.tensor([2, 9]), random_matrix(5, 8, 4)
    weight = torch.randn(30, 8, 4, dtype=torch.float64)
    how: Any = {"num_nodes": 30, "pooling": pooling}
    once = propagate_beliefs(matrix, ends, kind, anchor, **how)
    state, grad = in_torch(matrix, ends, kind, anchor[None], weight[None], **how)
    torch.testing.assert_close(once, state[0])
    torch.testing.assert_close(gradient(once, weight, matrix)[0], grad)


@settings(max_examples=30)
@given(st.integers(1, 12), st.integers(0, 30), st.sampled_from(POOLINGS), st.integers(1, 4), st.data())
def test_compiled_loops_equal_tensor_operations(
    nodes: int, edges: int, pooling: Pooling, copies: int, data: st.DataObject
) -> None:
    torch.manual_seed(data.draw(st.integers(0, 99)))
    ends, kind = random_graph(nodes, edges, 3, acyclic=data.draw(st.booleans()))
    anchor, matrix = torch.randint(nodes, (copies, 2)), random_matrix(3, 8, 4)
    rounds = data.draw(st.sampled_from([None, 1, 2, 6]))
    turns = torch.tensor([1, 3])
    how: Any = {"num_nodes": nodes, "pooling": pooling, "rounds": rounds, "cyclic_rounds": turns}
    weight = torch.randn(copies, nodes, 8, 4, dtype=torch.float64) * (torch.rand(copies, nodes, 1, 1) < 0.5)
    ours = propagate_beliefs(matrix, ends, kind, anchor, **how)
    state, grad = in_torch(matrix, ends, kind, anchor, weight, **how)
    torch.testing.assert_close(ours, state)
    torch.testing.assert_close(gradient(ours, weight, matrix)[0], grad)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_copies_have_the_bits_of_propagations_alone(pooling: Pooling) -> None:
    ends, kind = random_graph(50, 90, 5)
    matrix, anchor = random_matrix(5, 3, 4), torch.randint(50, (7, 1))
    how: Any = {"num_nodes": 50, "pooling": pooling, "rounds": 4}
    together = propagate_beliefs(matrix, ends, kind, anchor, **how)
    for row, alone in zip(together, anchor, strict=True):
        assert torch.equal(row, propagate_beliefs(matrix, ends, kind, alone, **how))


def test_components_with_cycles_take_their_own_number_of_rounds() -> None:
    ring = torch.tensor([[0, 1, 2, 0], [1, 2, 0, 2]])
    line = torch.tensor([[0, 1, 2], [1, 2, 3]])
    ends = torch.cat([ring, ring + 3, line + 6], 1)
    kind = torch.randint(4, (11,))
    matrix, anchor = random_matrix(4, 2, 4), torch.tensor([0, 4, 6])
    joint = propagate_beliefs(matrix, ends, kind, anchor, num_nodes=10, cyclic_rounds=torch.tensor([2, 5, 1]))
    for first, last, part, rounds in (
        (0, 4, slice(0, 3), 2),
        (4, 8, slice(3, 6), 5),
        (8, 11, slice(6, 10), 3),
    ):
        nodes = part.stop - part.start
        own = ends[:, first:last] - part.start
        start = anchor[(anchor >= part.start) & (anchor < part.stop)] - part.start
        wanted = naive(matrix, own, kind[first:last], start.tolist(), nodes, rounds=rounds, pooling="min")
        torch.testing.assert_close(joint[part], wanted)


def test_several_anchors_of_a_component_take_the_most_rounds() -> None:
    ends, kind = torch.tensor([[0, 1, 2], [1, 2, 0]]), torch.tensor([0, 1, 0])
    matrix = random_matrix(2, 2, 4)
    joint = propagate_beliefs(
        matrix, ends, kind, torch.tensor([0, 0]), num_nodes=3, cyclic_rounds=torch.tensor([1, 4])
    )
    torch.testing.assert_close(joint, naive(matrix, ends, kind, [0], 3, rounds=4, pooling="min"))


def test_the_first_of_several_least_messages_takes_the_gradient() -> None:
    matrix = random_matrix(1, 2, 4).detach().repeat(3, 1, 1, 1).requires_grad_()
    ends, weight = torch.zeros(2, 3, dtype=torch.int64), torch.randn(2, 2, 4, dtype=torch.float64)
    ends[1] = 1
    for order in itertools.permutations(range(3)):
        out = propagate_beliefs(matrix, ends, torch.tensor(order), torch.tensor([0]), num_nodes=2)
        (grad,) = gradient(out, weight, matrix)
        _, other = in_torch(matrix, ends, torch.tensor(order), torch.tensor([[0]]), weight[None], num_nodes=2)
        torch.testing.assert_close(grad, other)
        assert grad[order[0]].any()
        assert not grad[list(order[1:])].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_of_many_factors_neither_underflow_nor_lose_gradients(dtype: torch.dtype) -> None:
    """5,000 factors around 0.1: the product has 5,000 zeros behind its point."""
    degree = 5000
    ends = torch.stack([torch.arange(1, degree + 1), torch.zeros(degree, dtype=torch.int64)])
    matrix = torch.rand(40, 1, 4, 4).mul(0.001).add(0.1).to(dtype).requires_grad_()
    kind, anchor = torch.randint(40, (degree,)), torch.tensor([1])
    out = propagate_beliefs(matrix, ends, kind, anchor, num_nodes=degree + 1, pooling="product")[0]
    exact = matrix.detach().double().requires_grad_()
    sent = exact[kind] @ torch.full((4,), 0.25, dtype=torch.float64)
    sent = torch.cat([exact[kind[:1], :, :, 0], sent[1:]])
    wanted = sent.log().sum(0).softmax(1)
    close: Any = {"atol": 1e-4, "rtol": 1e-3} if dtype == torch.float32 else {"atol": 1e-9, "rtol": 1e-9}
    torch.testing.assert_close(out.double(), wanted, **close)
    weight = torch.randn(1, 4, dtype=torch.float64)
    (grad,), (right,) = gradient(out, weight.to(dtype), matrix), gradient(wanted, weight, exact)
    close["atol"] *= float(right.abs().max())
    torch.testing.assert_close(grad.double(), right, **close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_factor_that_is_zero_gets_the_gradient_of_the_product(dtype: torch.dtype) -> None:
    """The derivative by one factor is the product of the others, which isn't zero."""
    matrix = torch.tensor([[0.0, 0.3, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.5, 0.0]], dtype=dtype)
    matrix = matrix[:, None, :, None].expand(3, 1, 4, 4).contiguous().requires_grad_()
    ends = torch.tensor([[0, 1, 2], [3, 3, 3]])
    weight = torch.randn(4, 1, 4, dtype=dtype)
    anchor, kind = torch.tensor([0, 1, 2]), torch.arange(3)
    out = propagate_beliefs(matrix, ends, kind, anchor, num_nodes=4, pooling="product")
    sent = matrix[:, 0, :, 0]
    product = sent[0] * sent[1] * sent[2]  # autograd multiplies the others
    wanted = ((product / product.sum()) * weight[3, 0]).sum()
    (right,) = torch.autograd.grad(wanted, matrix)
    (grad,) = gradient(out, weight, matrix)
    torch.testing.assert_close(grad, right, atol=1e-5, rtol=1e-4)
    _, other = in_torch(matrix, ends, kind, anchor[None], weight[None], num_nodes=4, pooling="product")
    torch.testing.assert_close(grad, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_matrix_that_is_not_finite_is_never_hidden(pooling: Pooling, value: float) -> None:
    matrix = random_matrix(2, 2, 4).detach()
    matrix[1, 0, 2, 2] = value
    ends, kind = torch.tensor([[0, 0], [1, 1]]), torch.tensor([0, 1])
    out = propagate_beliefs(matrix, ends, kind, torch.tensor([0]), num_nodes=2, pooling=pooling)
    assert out.isnan().all()


def test_half_precision_is_computed_in_single_precision() -> None:
    ends, kind = random_graph(9, 20, 3)
    matrix = random_matrix(3, 2, 4, torch.bfloat16)
    how: Any = {"num_nodes": 9, "rounds": 3}
    out = propagate_beliefs(matrix, ends, kind, torch.tensor([0]), **how)
    assert out.dtype == torch.bfloat16
    wide = propagate_beliefs(matrix.float(), ends, kind, torch.tensor([0]), **how)
    assert torch.equal(out, wide.bfloat16())
    (grad,) = gradient(out, torch.randn_like(out), matrix)
    assert grad.dtype == torch.bfloat16


def test_the_number_of_threads_changes_no_bit(threads: None) -> None:
    ends, kind = random_graph(400, 3000, 6)
    matrix, anchor = random_matrix(6, 8, 4), torch.randint(400, (20, 1))
    weight = torch.randn(20, 400, 8, 4, dtype=torch.float64)
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        out = propagate_beliefs(matrix, ends, kind, anchor, num_nodes=400, rounds=3)
        results.append((out, *gradient(out, weight, matrix)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_graphs_without_edges_nodes_or_anchors() -> None:
    matrix, none = random_matrix(2, 2, 4), torch.empty(0, dtype=torch.int64)
    no_edges = torch.empty(2, 0, dtype=torch.int64)
    assert propagate_beliefs(matrix, no_edges, none, none, num_nodes=0).shape == (0, 2, 4)
    assert propagate_beliefs(matrix, no_edges, none, none[None].T, num_nodes=3).shape == (0, 3, 2, 4)
    assert (propagate_beliefs(matrix, no_edges, none, none, num_nodes=3) == 0.25).all()
    ring = torch.tensor([[0, 1], [1, 0]])
    out = propagate_beliefs(matrix, ring, torch.tensor([0, 1]), none, num_nodes=2)
    assert (out == 0.25).all()
    gradient(out, torch.ones_like(out), matrix)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"matrix": torch.ones(2, 3, 4, 5)}, "matrix is"),
        ({"edge_index": torch.tensor([[0, 9], [1, 2]])}, r"edge_index holds an id outside \[0, 3\)"),
        ({"edge_type": torch.tensor([0, 2])}, r"edge_type holds an id outside \[0, 2\)"),
        ({"edge_type": torch.tensor([0])}, "edge_type is"),
        ({"edge_index": torch.zeros(2, 2)}, "edge_index is"),
        ({"anchor": torch.tensor([3])}, r"anchor holds an id outside \[0, 3\)"),
        ({"anchor": torch.tensor(0)}, "anchor is"),
        ({"rounds": 0}, "rounds is 0"),
        ({"pooling": "max"}, 'pooling is "max"'),
        ({"num_nodes": -1}, "num_nodes is -1"),
        ({"cyclic_rounds": torch.tensor([1, 2])}, "cyclic_rounds is"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "matrix": torch.rand(2, 3, 4, 4),
        "edge_index": torch.tensor([[0, 1], [1, 2]]),
        "edge_type": torch.tensor([0, 1]),
        "anchor": torch.tensor([0]),
        "num_nodes": 3,
    } | change
    with pytest.raises(ValueError, match=message):
        propagate_beliefs(**given)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_operation_keeps_the_rules_of_torch(pooling: Pooling) -> None:
    ends, kind = random_graph(6, 12, 3)
    product, anchor = pooling == "product", torch.tensor([[0], [2]])
    matrix = random_matrix(3, 8, 4).detach().permute(0, 2, 3, 1).contiguous().requires_grad_()
    turns = torch.tensor([2])
    torch.library.opcheck(
        torch.ops.graphkit.belief_sweep.default, (matrix, ends, kind, anchor, turns, 6, 0, product)
    )


def test_a_second_derivative_is_refused() -> None:
    ends, kind = torch.tensor([[0], [1]]), torch.tensor([0])
    matrix = random_matrix(1, 8, 4)
    out = propagate_beliefs(matrix, ends, kind, torch.tensor([0]), num_nodes=2)
    (grad,) = torch.autograd.grad(out.square().sum(), matrix, create_graph=True)
    with pytest.raises(RuntimeError):
        grad.sum().backward()
