"""NBFNet against the iteration as its formula says, on whole graphs, and what it computes no more than."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from graphkit.models.nbfnet import NBFNet
from graphkit.models.nbfnet_plan import make_plan
from graphkit.testing import check_model

RELATIONS = 3
AGGREGATIONS = ["sum", "pna"]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def model(layers: int = 3, **options: Any) -> NBFNet:
    torch.manual_seed(0)
    return NBFNet(RELATIONS, **{"hidden_channels": 5, "num_layers": layers, **options}).double()


def graph(nodes: int, edges: int, seed: int) -> tuple[Tensor, Tensor]:
    """Edges without inverses, which the model doesn't count on."""
    draw = torch.Generator().manual_seed(seed)
    return (
        torch.randint(nodes, (2, edges), generator=draw),
        torch.randint(2 * RELATIONS, (edges,), generator=draw),
    )


def queries(nodes: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed + 1)
    return (
        torch.randint(nodes, (count,), generator=draw),
        torch.randint(2 * RELATIONS, (count,), generator=draw),
    )


def naive(net: NBFNet, edges: Tensor, kinds: Tensor, head: int, relation: int, nodes: int) -> Tensor:
    """Scores of all tails of one query, node by node."""
    query = net.query.weight[relation]
    start = torch.zeros(nodes, net.channels).double()
    start[head] += query
    degree = torch.bincount(edges[1], minlength=nodes)
    mean_log = max(1e-6, float((degree + 1).double().log().mean()))
    h = start
    for layer in net.layers:
        rows: list[Tensor] = []
        for v in range(nodes):
            messages = [start[v]]
            for (u, w), r in zip(edges.t().tolist(), kinds.tolist(), strict=True):
                if w == v:
                    messages.append(h[u] * layer.weight[r])  # type: ignore[index]
            stack = torch.stack(messages)
            gathered = stack.sum(0)
            if layer.pna:
                mean = stack.mean(0)
                deviation = (stack.square().mean(0) - mean.square()).clamp(min=1e-6).sqrt()
                scale = math.log(len(messages)) / mean_log
                gathered = torch.cat([mean, deviation, mean * scale, deviation * scale])
            update = torch.relu(layer.norm(layer.own(h[v]) + layer.others(gathered)))  # type: ignore[operator]
            rows.append(update + h[v] if layer.skip else update)
        h = torch.stack(rows)
    return net.head(torch.cat([h, query.expand(nodes, -1)], dim=1)).squeeze(1)


@settings(max_examples=30)
@given(
    nodes=st.integers(1, 7),
    edges=st.integers(0, 14),
    layers=st.integers(1, 4),
    seed=st.integers(0, 2**31),
    aggregation=st.sampled_from(AGGREGATIONS),
)
def test_scores_and_gradients_are_those_of_the_formula(
    nodes: int, edges: int, layers: int, seed: int, aggregation: str
) -> None:
    net = model(layers, aggregation=aggregation)
    index, kinds = graph(nodes, edges, seed)
    head, relation = queries(nodes, 2, seed)
    found = net(index, kinds, head, relation, num_nodes=nodes)
    expected = torch.stack(
        [naive(net, index, kinds, u, q, nodes) for u, q in zip(head.tolist(), relation.tolist(), strict=True)]
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    back = torch.randn(found.shape, generator=torch.Generator().manual_seed(seed)).double()
    parameters = list(net.parameters())
    mine = torch.autograd.grad(found, parameters, back, allow_unused=True)
    theirs = torch.autograd.grad(expected, parameters, back, allow_unused=True)
    for got, wanted in zip(mine, theirs, strict=True):
        got, wanted = (torch.zeros(1).double() if g is None else g for g in (got, wanted))
        torch.testing.assert_close(got, wanted.expand_as(got), rtol=1e-8, atol=1e-10)


@settings(max_examples=50)
@given(
    nodes=st.integers(1, 9), edges=st.integers(0, 20), layers=st.integers(1, 5), seed=st.integers(0, 2**31)
)
def test_few_tails_have_the_scores_that_all_have(nodes: int, edges: int, layers: int, seed: int) -> None:
    net = model(layers)
    index, kinds = graph(nodes, edges, seed)
    head, relation = queries(nodes, 4, seed)
    tails = torch.randint(nodes, (4, 3), generator=torch.Generator().manual_seed(seed))
    every = net(index, kinds, head, relation, num_nodes=nodes)
    few = net.score_tails(index, kinds, head, relation, tails, num_nodes=nodes)
    torch.testing.assert_close(few, every.gather(1, tails), rtol=1e-12, atol=1e-12)


def test_a_layer_has_rows_for_what_differs_and_is_asked_for_alone() -> None:
    # 0 - 1 - ... - 9: from head 0, tail 3 is read after four layers
    line = torch.stack([torch.arange(9), torch.arange(1, 10)])
    both, kinds = torch.cat([line, line.flip(0)], dim=1), torch.zeros(18, dtype=torch.int64)
    plan = make_plan(both, kinds, torch.tensor([0]), 10, 4, torch.tensor([[3]]))
    assert [level.own.numel() - 10 for level in plan.levels] == [2, 2, 2, 1]
    assert plan.row.tolist() == [[10]]
    plan = make_plan(both, kinds, torch.tensor([0]), 10, 4, torch.tensor([[9]]))
    assert [level.own.numel() - 10 for level in plan.levels] == [0, 0, 0, 0]
    assert plan.row.tolist() == [[9]]
    plan = make_plan(both, kinds, torch.tensor([0, 5]), 10, 2)
    assert [level.own.numel() - 10 for level in plan.levels] == [2 + 3, 3 + 5]


def test_entities_that_no_message_of_the_head_reaches_score_alike_for_all_heads() -> None:
    net, (index, kinds) = model(2), graph(6, 0, 0)
    scores = net(index, kinds, torch.tensor([0, 1]), torch.tensor([2, 2]), num_nodes=6)
    torch.testing.assert_close(scores[0, 2:], scores[1, 2:])
    torch.testing.assert_close(scores[0, 0], scores[1, 1])


def test_order_of_edges_and_numbers_of_entities_do_not_matter() -> None:
    net, (index, kinds) = model(), graph(8, 20, 5)
    head, relation = queries(8, 3, 5)
    expected = net(index, kinds, head, relation, num_nodes=8)
    order, number = torch.randperm(20), torch.randperm(8)
    found = net(number[index[:, order]], kinds[order], number[head], relation, num_nodes=8)
    torch.testing.assert_close(found[:, number], expected, rtol=1e-10, atol=1e-10)


def test_state_is_read_by_queries_in_any_order() -> None:
    net, (index, kinds) = model(), graph(8, 20, 6)
    head, relation = queries(8, 3, 6)
    every = net(index, kinds, head, relation, num_nodes=8)
    state = net.propagate(index, kinds, head, num_nodes=8, relation=relation)
    place = torch.tensor([2, 0, 2, 1])
    torch.testing.assert_close(net.score_all(state, place, relation[place]), every[place])


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_it_learns_and_can_be_stored(aggregation: str) -> None:
    net = NBFNet(RELATIONS, hidden_channels=8, num_layers=3, aggregation=aggregation)  # type: ignore[arg-type]
    index, kinds = graph(12, 40, 7)
    head, relation = queries(12, 6, 7)
    tail = (head + 1) % 12

    def loss(net: torch.nn.Module) -> Tensor:
        return torch.nn.functional.cross_entropy(net(index, kinds, head, relation, num_nodes=12), tail)

    check_model(net, loss)


@pytest.mark.parametrize("head_layers", [1, 2, 3])
def test_score_is_that_of_the_plain_mlp(head_layers: int) -> None:
    net, (index, kinds) = model(head_layers=head_layers, skip=False, layer_norm=False), graph(8, 20, 8)
    head, relation = queries(8, 3, 8)
    state = net.propagate(index, kinds, head, num_nodes=8, relation=relation)
    hidden = state.hidden[state.row]
    expected = net.head(torch.cat([hidden, state.query[:, None].expand_as(hidden)], dim=-1)).squeeze(-1)
    torch.testing.assert_close(net.score_all(state, torch.arange(3), relation), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_relations": None}, "num_relations is None; this data set has no relations"),
        ({"num_relations": 0}, "num_relations is 0; it must be at least 1"),
        ({"hidden_channels": 0}, "hidden_channels is 0"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"head_layers": 0}, "head_layers is 0"),
        ({"aggregation": "max"}, "aggregation is 'max'; it must be sum or pna"),
    ],
)
def test_option_out_of_range_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NBFNet(**{"num_relations": RELATIONS, **options})


def test_propagation_without_a_relation_is_refused() -> None:
    index, kinds = graph(3, 4, 0)
    with pytest.raises(ValueError, match="relation is None; NBFNet starts from pairs"):
        model().propagate(index, kinds, torch.tensor([0]), num_nodes=3)
