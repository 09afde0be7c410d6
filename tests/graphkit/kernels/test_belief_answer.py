"""The read-out of beliefs and answers to queries, against the formula and against propagations one by one."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from graphkit.kernels import _belief_torch as plain
from graphkit.kernels.belief import Pooling, pool_compositions, propagate_beliefs
from graphkit.kernels.belief_answer import answer_queries, both_ways

POOLINGS = get_args(Pooling)


def gradient(out: Tensor, weight: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    total = (out * weight).sum() + sum(0 * t.sum() for t in of)
    return torch.autograd.grad(total, of, retain_graph=True)


# --- read-out ----------------------------------------------------------------------------------------------


def pairs(count: int, groups: int, facets: int, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    composition = torch.rand(facets, n, n, n, dtype=torch.float64).softmax(1).requires_grad_()
    state = torch.randn(6, facets, n, dtype=torch.float64).softmax(2).requires_grad_()
    left, right = torch.randint(6, (2, count)) if count else torch.empty(2, 0, dtype=torch.int64)
    group = torch.randint(max(groups, 1), (count if groups else 0,))
    return composition, state, left[: group.numel()], right[: group.numel()], group


def naive_pairs(
    composition: Tensor, state: Tensor, left: Tensor, right: Tensor, group: Tensor, groups: int, pooling: str
) -> Tensor:
    sent: list[list[Tensor]] = [[] for _ in range(groups)]
    for u, v, g in zip(left.tolist(), right.tolist(), group.tolist(), strict=True):
        sent[g].append(torch.einsum("fpij,fi,fj->fp", composition, state[u], state[v]))
    uniform = torch.full_like(state[0], 1 / state.size(2))
    rows = []
    for messages in sent:
        pooled = messages[0] if messages else uniform
        for message in messages[1:]:
            least = torch.where(message < pooled, message, pooled)
            pooled = least if pooling == "min" else pooled * message
        rows.append(pooled / pooled.sum(-1, keepdim=True))
    return torch.stack(rows) if rows else state[:0]


@settings(max_examples=30)
@given(st.integers(0, 12), st.integers(0, 4), st.sampled_from(POOLINGS), st.data())
def test_pooled_compositions_and_gradients_equal_the_formula(
    count: int, groups: int, pooling: Pooling, data: st.DataObject
) -> None:
    torch.manual_seed(data.draw(st.integers(0, 99)))
    composition, state, *ends = pairs(count, groups, *data.draw(st.sampled_from([(1, 4), (9, 4), (2, 5)])))
    ours = pool_compositions(composition, state, *ends, num_groups=groups, pooling=pooling)
    wanted = naive_pairs(composition, state, *ends, groups, pooling)
    torch.testing.assert_close(ours, wanted)
    weight = torch.randn_like(wanted)
    torch.testing.assert_close(
        gradient(ours, weight, composition, state), gradient(wanted, weight, composition, state)
    )
    across = composition.detach().permute(1, 2, 3, 0), state.detach().transpose(1, 2)
    product = pooling == "product"
    other = plain.pairs(*across, *ends, groups, product).transpose(1, 2)
    torch.testing.assert_close(ours, other)
    total, flow = plain.pairs_grad(weight.transpose(1, 2), *across, *ends, product)
    mine = gradient(ours, weight, composition, state)
    torch.testing.assert_close(mine, (total.permute(3, 0, 1, 2), flow.transpose(1, 2)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"composition": torch.ones(2, 4, 4, 3)}, "composition has shape"),
        ({"left": torch.tensor([0, 6])}, r"left holds an id outside \[0, 6\)"),
        ({"right": torch.tensor([0, -1])}, r"right holds an id outside \[0, 6\)"),
        ({"group": torch.tensor([0, 1])}, r"group holds an id outside \[0, 1\)"),
        ({"group": torch.tensor([0])}, "group is"),
        ({"pooling": "sum"}, 'pooling is "sum"'),
    ],
)
def test_wrong_arguments_of_the_read_out_are_named(change: dict[str, Any], message: str) -> None:
    ids = torch.tensor([0, 1])
    given: dict[str, Any] = {
        "composition": torch.rand(2, 4, 4, 4),
        "state": torch.rand(6, 2, 4),
        "left": ids,
        "right": ids,
        "group": torch.zeros_like(ids),
        "num_groups": 1,
    } | change
    with pytest.raises(ValueError, match=message):
        pool_compositions(**given)


# --- answers -----------------------------------------------------------------------------------------------


def asked(nodes: int, edges: int, acyclic: bool) -> dict[str, Any]:
    """Two queries, each on a graph of its own, with any nodes between their ends."""
    ends = torch.randint(nodes, (2, edges))
    ends = torch.stack([ends.amin(0), ends.amax(0)])[:, ends[0] != ends[1]] if acyclic else ends
    return {
        "edge_index": torch.cat([ends, ends.flip(1) + nodes], 1),
        "edge_type": torch.randint(3, (2 * ends.size(1),)),
        "source": torch.randint(nodes, (2,)) + torch.tensor([0, nodes]),
        "target": torch.randint(nodes, (2,)) + torch.tensor([0, nodes]),
        "path_node": torch.cat([torch.randint(nodes, (4,)), torch.randint(nodes, (3,)) + nodes]),
        "path_graph": torch.tensor([0, 0, 0, 0, 1, 1, 1]),
    }


def step_by_step(composition: Tensor, relation: Tensor, given: dict[str, Any], **how: Any) -> Tensor:
    """The same by one propagation for each direction, and the read-out."""
    edges, kind, nodes = given["edge_index"], given["edge_type"], how["num_nodes"]
    forward = torch.einsum("fpij,rfj->rfpi", composition, relation)
    backward = torch.einsum("fpij,rfi->rfpj", composition, relation)
    passes = [
        propagate_beliefs(forward, edges, kind, given["source"], **how),
        propagate_beliefs(backward, edges.flip(0), kind, given["target"], **how),
    ]
    node, group = given["path_node"], given["path_graph"]
    ends = torch.cat(passes), node, node + nodes, group
    return pool_compositions(composition, *ends, num_groups=2, pooling=how["pooling"])


@settings(max_examples=30)
@given(st.integers(1, 7), st.integers(0, 12), st.sampled_from(POOLINGS), st.booleans(), st.data())
def test_answers_are_two_propagations_and_the_read_out(
    nodes: int, edges: int, pooling: Pooling, acyclic: bool, data: st.DataObject
) -> None:
    torch.manual_seed(data.draw(st.integers(0, 99)))
    facets, n = data.draw(st.sampled_from([(8, 4), (9, 4), (8, 5)]))
    composition = torch.rand(facets, n, n, n, dtype=torch.float64).softmax(1).requires_grad_()
    relation = torch.randn(3, facets, n, dtype=torch.float64).softmax(2).requires_grad_()
    graph, turns = asked(nodes, edges, acyclic), torch.tensor([3, 4])
    how: dict[str, Any] = {"num_nodes": 2 * nodes, "pooling": pooling, "cyclic_rounds": turns}
    how["rounds"] = data.draw(st.sampled_from([None, 2]))
    ours = answer_queries(composition, relation, *graph.values(), **how)
    wanted = step_by_step(composition, relation, graph, **how)
    torch.testing.assert_close(ours, wanted)
    weight = torch.randn_like(wanted)
    mine = gradient(ours, weight, composition, relation)
    torch.testing.assert_close(mine, gradient(wanted, weight, composition, relation))

    across = composition.detach().permute(1, 2, 3, 0), relation.detach().transpose(1, 2)
    node, group = graph.pop("path_node"), graph.pop("path_graph")
    union = both_ways(*graph.values(), turns, 2 * nodes, 3, how["rounds"] or 0)
    product, ends = pooling == "product", (node, node + 2 * nodes, group)
    out, *states = plain.answer(*across, union, *ends, 2, product)
    torch.testing.assert_close(ours, out.transpose(1, 2))
    total, own = plain.answer_grad(weight.transpose(1, 2), *states, *across, union, *ends, product)
    torch.testing.assert_close(mine, (total.permute(3, 0, 1, 2), own.transpose(1, 2)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"composition": torch.ones(2, 4, 4, 3)}, "composition has shape"),
        ({"relation": torch.ones(3, 8)}, "relation is"),
        ({"edge_index": torch.tensor([[0, 4], [1, 1]])}, r"edge_index holds an id outside \[0, 4\)"),
        ({"edge_type": torch.tensor([0, 3])}, r"edge_type holds an id outside \[0, 3\)"),
        ({"source": torch.tensor([4])}, r"source or target holds an id outside \[0, 4\)"),
        ({"target": torch.tensor([-1])}, r"source or target holds an id outside \[0, 4\)"),
        ({"target": torch.tensor([1, 2])}, "target is"),
        ({"path_node": torch.tensor([0, 4])}, r"path_node holds an id outside \[0, 4\)"),
        ({"path_graph": torch.tensor([0, 1])}, r"path_graph holds an id outside \[0, 1\)"),
        ({"path_graph": torch.tensor([0])}, "path_graph is"),
        ({"rounds": 0}, "rounds is 0"),
        ({"cyclic_rounds": torch.tensor([1, 1])}, "cyclic_rounds is"),
        ({"pooling": "sum"}, 'pooling is "sum"'),
    ],
)
def test_wrong_arguments_of_answers_are_named(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "composition": torch.rand(2, 4, 4, 4),
        "relation": torch.rand(3, 2, 4),
        "edge_index": torch.tensor([[0, 1], [1, 2]]),
        "edge_type": torch.tensor([0, 1]),
        "source": torch.tensor([0]),
        "target": torch.tensor([2]),
        "path_node": torch.tensor([0, 2]),
        "path_graph": torch.tensor([0, 0]),
        "num_nodes": 4,
    } | change
    with pytest.raises(ValueError, match=message):
        answer_queries(**given)


def test_no_queries_have_no_answers() -> None:
    none, edges = torch.empty(0, dtype=torch.int64), torch.empty(2, 0, dtype=torch.int64)
    relation = torch.rand(3, 2, 4, dtype=torch.float64).softmax(2).requires_grad_()
    composition = torch.rand(2, 4, 4, 4, dtype=torch.float64)
    out = answer_queries(composition, relation, edges, *[none] * 5, num_nodes=0)
    assert out.shape == (0, 2, 4)
    (grad,) = torch.autograd.grad(out.sum(), relation)
    assert not grad.any()


def test_gradients_are_of_their_own_graph_whatever_was_asked_since() -> None:
    torch.manual_seed(0)
    how: dict[str, Any] = {"num_nodes": 10, "pooling": "min"}
    weights = [torch.rand(2, 4, 4, 4).softmax(1), torch.rand(3, 2, 4).softmax(2)]
    graphs = [asked(5, 8, False), asked(5, 8, False)]
    wanted = []
    for graph in graphs:
        own = [w.clone().requires_grad_() for w in weights]
        wanted.append(torch.autograd.grad(answer_queries(*own, **graph, **how).square().sum(), own))
    own = [w.clone().requires_grad_() for w in weights]
    outs = [answer_queries(*own, **graph, **how).square().sum() for graph in graphs]
    for out, grads in zip(outs, wanted, strict=True):
        torch.testing.assert_close(torch.autograd.grad(out, own), grads, rtol=0, atol=0)


@pytest.mark.parametrize("hurt", ["composition", "relation"])
def test_answers_don_t_hide_what_is_not_finite(hurt: str) -> None:
    given = {"composition": torch.rand(2, 4, 4, 4), "relation": torch.rand(3, 2, 4)}
    given[hurt].flatten()[-1] = float("nan")
    assert answer_queries(**given, **asked(4, 6, False), num_nodes=8).isnan().all()


# --- as operations of torch --------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", POOLINGS)
def test_operations_keep_the_rules_of_torch(pooling: Pooling) -> None:
    composition, state, *index = pairs(5, 2, 8, 4)
    product = pooling == "product"
    across = [t.detach().contiguous().requires_grad_() for t in (composition.permute(1, 2, 3, 0), state.mT)]
    torch.library.opcheck(torch.ops.graphkit.belief_pairs.default, (*across, *index, 2, product))
    graph = (*asked(5, 8, False).values(), torch.tensor([2, 3]))
    torch.library.opcheck(torch.ops.graphkit.belief_answer.default, (*across, *graph, 10, 0, product))


def test_compiled_code_holds_them_without_a_break() -> None:
    composition, relation, *index = pairs(5, 2, 8, 4)
    graph = asked(3, 5, False)
    kind, ends, anchor = graph["edge_type"], graph["edge_index"], torch.tensor([0])

    def whole(composition: Tensor, relation: Tensor) -> Tensor:
        answers = answer_queries(composition, relation, *graph.values(), num_nodes=6)
        matrix = torch.einsum("fpij,rfj->rfpi", composition, relation)
        state = propagate_beliefs(matrix, ends, kind, anchor, num_nodes=6, rounds=3)
        return pool_compositions(composition, state, *index, num_groups=2) + answers

    compiled = torch.compile(whole, backend="aot_eager", fullgraph=True)
    weight = torch.randn(2, 8, 4, dtype=torch.float64)
    mine, wanted = compiled(composition, relation), whole(composition, relation)
    torch.testing.assert_close(mine, wanted)
    ours = gradient(mine, weight, composition, relation)
    torch.testing.assert_close(ours, gradient(wanted, weight, composition, relation))
