"""NCN, its completion, its ablations and the heuristics against formulas written with sets and loops."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from graphkit.models.ncn import NCNPredictor
from graphkit.models.ncn_ablation import NCNAblation
from graphkit.models.ncnc import NCNCPredictor
from graphkit.nn.pairs import pair_structure, pool
from graphkit.registry import MODELS
from graphkit.sparse import CSRGraph

NODES, WIDTH = 13, 6
Weights = dict[int, Tensor | float]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def graph() -> CSRGraph:
    """A random graph with a hub (node 0), an isolated node (12) and nodes without common neighbours."""
    draw = torch.Generator().manual_seed(3)
    ends = torch.randint(NODES - 1, (2, 22), generator=draw)
    hub = torch.stack([torch.zeros(7, dtype=torch.int64), torch.arange(1, 8)])
    return CSRGraph.from_edge_index(torch.cat([ends, hub], dim=1), NODES)


@pytest.fixture
def h() -> Tensor:
    return torch.randn(NODES, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


@pytest.fixture
def pairs(graph: CSRGraph) -> Tensor:
    """Edges, other pairs, a repeated pair, a self pair and the isolated node."""
    others = torch.tensor([[1, 2, 3, 4, 5, 3, 12, 12], [9, 8, 10, 4, 0, 10, 2, 12]])
    return torch.cat([graph.edges[:, :6], others], dim=1)


def neighbours(graph: CSRGraph) -> list[set[int]]:
    near: list[set[int]] = [set() for _ in range(graph.num_nodes)]
    for i, j in graph.edge_index().t().tolist():
        near[i].add(j)
    return near


def weighted_sum(weights: Weights, x: Tensor) -> Tensor:
    total = torch.zeros(x.size(1), dtype=x.dtype)
    for node, weight in weights.items():
        total = total + weight * x[node]
    return total


def node_states(predictor: NCNPredictor, h: Tensor) -> Tensor:
    return h if predictor.node_mlp is None else h + predictor.node_mlp(h)


def combine(predictor: Any, h: Tensor, i: int, j: int, z: Tensor) -> Tensor:
    """s = head(beta * common_mlp(z) + pair_mlp(h_i * h_j))."""
    branch = predictor.beta * predictor.common_mlp(z) + predictor.pair_mlp(h[i] * h[j])
    return predictor.head(branch)[0]


def naive_ncn(predictor: NCNPredictor, h: Tensor, near: list[set[int]], i: int, j: int) -> Tensor:
    x = node_states(predictor, h)
    return combine(predictor, h, i, j, weighted_sum(dict.fromkeys(near[i] & near[j], 1.0), x))


def naive_completions(
    predictor: NCNCPredictor, h: Tensor, near: list[set[int]], i: int, j: int, depth: int
) -> tuple[Weights, Weights]:
    """P of the nodes next to i alone and next to j alone; i and j themselves are left out."""
    sides: tuple[Weights, Weights] = ({}, {})
    for weights, own, other in ((sides[0], i, j), (sides[1], j, i)):
        for u in near[own] - near[other] - {other}:
            s = naive_ncnc(predictor, h, near, other, u, depth - 1).detach()
            if predictor.prior_mlp is None:
                prior = torch.tensor(predictor.prior, dtype=h.dtype)
            else:
                prior = torch.sigmoid(predictor.prior_mlp(h[i] * h[j]))[0]
            odds = prior * torch.exp(predictor.scale * (s - predictor.offset))
            weights[u] = predictor.ceiling * odds / (1 + odds)
    return sides


def naive_ncnc(
    predictor: NCNCPredictor, h: Tensor, near: list[set[int]], i: int, j: int, depth: int
) -> Tensor:
    if depth == 0:
        return naive_ncn(predictor, h, near, i, j)
    side_i, side_j = naive_completions(predictor, h, near, i, j, depth)
    weights: Weights = {**dict.fromkeys(near[i] & near[j], 1.0), **side_i, **side_j}
    return combine(predictor, h, i, j, weighted_sum(weights, node_states(predictor, h)))


def over_pairs(function: Any, pairs: Tensor) -> Tensor:
    return torch.stack([function(i, j) for i, j in pairs.t().tolist()])


def ncn(**options: Any) -> NCNPredictor:
    return NCNPredictor(WIDTH, **options).double().eval()


def ncnc(**options: Any) -> NCNCPredictor:
    return NCNCPredictor(WIDTH, **{"scale": 2.0, "offset": 0.1, **options}).double().eval()


# --- NCN ---------------------------------------------------------------------------------------------------

OPTIONS = [
    {},
    {"node_mlp": True},
    {"tail_activation": True},
    {"two_layer_head": True},
    {"norm": False},
    {"beta": 0.3},
    {"node_mlp": True, "tail_activation": True, "two_layer_head": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: ", ".join(o) or "plain")
def test_ncn_pools_common_neighbours_as_its_formula_says(
    graph: CSRGraph, h: Tensor, pairs: Tensor, options: dict[str, Any]
) -> None:
    predictor, near = ncn(**options), neighbours(graph)
    expected = over_pairs(lambda i, j: naive_ncn(predictor, h, near, i, j), pairs)
    torch.testing.assert_close(predictor(h, graph, pairs), expected)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: ", ".join(o) or "plain")
def test_ncn_has_the_gradients_of_its_formula(
    graph: CSRGraph, h: Tensor, pairs: Tensor, options: dict[str, Any]
) -> None:
    predictor, near, states = ncn(**options), neighbours(graph), h.clone().requires_grad_()
    inputs = [states, *predictor.parameters()]
    weight = torch.randn(pairs.size(1), dtype=torch.float64)
    expected = over_pairs(lambda i, j: naive_ncn(predictor, states, near, i, j), pairs)
    found = predictor(states, graph, pairs)
    for ours, naive in zip(
        torch.autograd.grad(found @ weight, inputs),
        torch.autograd.grad(expected @ weight, inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, naive)


def test_two_layer_head_and_tail_activation_have_the_layers_they_name() -> None:
    linear = [type(layer).__name__ for layer in ncn(two_layer_head=True).head].count("Linear")
    assert linear == 3
    assert [type(layer).__name__ for layer in ncn(two_layer_head=False).head].count("Linear") == 2
    assert type(ncn(tail_activation=True).common_mlp[-1]).__name__ == "NormDropoutReLU"
    assert type(ncn(tail_activation=False).common_mlp[-1]).__name__ == "Linear"


# --- NCNC --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize(
    "options",
    [{}, {"node_mlp": True}, {"prior": 0.75, "ceiling": 1.05}, {"learn_prior": True}],
    ids=lambda o: ", ".join(o) or "plain",
)
def test_ncnc_completes_neighbourhoods_as_its_formula_says(
    graph: CSRGraph, h: Tensor, pairs: Tensor, depth: int, options: dict[str, Any]
) -> None:
    predictor, near = ncnc(depth=depth, **options), neighbours(graph)
    with torch.no_grad():
        expected = over_pairs(lambda i, j: naive_ncnc(predictor, h, near, i, j, depth), pairs)
        torch.testing.assert_close(predictor(h, graph, pairs), expected)


def test_completion_probability_is_ceiling_times_a_sigmoid_of_logit_and_prior(
    graph: CSRGraph, h: Tensor, pairs: Tensor
) -> None:
    predictor, near = ncnc(prior=0.3, ceiling=1.1, scale=3.0, offset=0.2), neighbours(graph)
    found = predictor.structure(graph, pairs)
    with torch.no_grad():
        probability = predictor._completion(predictor._nodes(h), graph, pairs, found, 1)
        expected = []
        for side in range(2):
            for i, j in pairs.t().tolist():
                own, other = (i, j) if side == 0 else (j, i)
                for u in sorted(near[own] - near[other] - {other}):
                    s = float(naive_ncn(predictor, h, near, other, u))
                    expected.append(1.1 / (1 + math.exp(-(3.0 * (s - 0.2) + math.log(0.3)))))
    torch.testing.assert_close(probability, torch.tensor(expected, dtype=torch.float64))


def test_end_of_a_linked_target_is_no_candidate(graph: CSRGraph) -> None:
    found = ncnc().structure(graph, graph.edges)
    assert not (found.only_i.node == graph.edges[1][found.only_i.owner()]).any()
    assert not (found.only_j.node == graph.edges[0][found.only_j.owner()]).any()


def test_parity_keeps_the_end_of_a_linked_target_as_a_candidate(graph: CSRGraph) -> None:
    found = ncnc(parity=True).structure(graph, graph.edges)
    here = found.only_i.node == graph.edges[1][found.only_i.owner()]
    assert here.sum() == graph.edges.size(1)


def test_learnt_prior_has_the_gradients_of_its_formula(graph: CSRGraph, h: Tensor, pairs: Tensor) -> None:
    predictor, near = ncnc(learn_prior=True), neighbours(graph)
    parameters = list(predictor.prior_mlp.parameters())
    expected = over_pairs(lambda i, j: naive_ncnc(predictor, h, near, i, j, 1), pairs).sum()
    ours = torch.autograd.grad(predictor(h, graph, pairs).sum(), parameters)
    naive = torch.autograd.grad(expected, parameters)
    assert all(gradient.any() for gradient in ours)
    for a, b in zip(ours, naive, strict=True):
        torch.testing.assert_close(a, b)


def test_no_gradient_flows_through_the_score_of_a_candidate(
    graph: CSRGraph, h: Tensor, pairs: Tensor
) -> None:
    predictor, near, states = ncnc(), neighbours(graph), h.clone().requires_grad_()
    expected = over_pairs(lambda i, j: naive_ncnc(predictor, states, near, i, j, 1), pairs).sum()
    ours = torch.autograd.grad(predictor(states, graph, pairs).sum(), states)[0]
    torch.testing.assert_close(ours, torch.autograd.grad(expected, states)[0])


def test_portions_of_candidates_give_the_scores_of_all_at_once(
    graph: CSRGraph, h: Tensor, pairs: Tensor
) -> None:
    many = pairs.repeat(1, 12)
    predictor = ncnc(node_mlp=True)
    with torch.no_grad():
        whole = predictor(h, graph, many)
        predictor.chunk_rows = 7
        torch.testing.assert_close(predictor(h, graph, many), whole)
        torch.testing.assert_close(predictor(h, graph, many, predictor.structure(graph, many)), whole)


def test_memory_of_a_portion_bounds_its_rows() -> None:
    assert ncnc(chunk_bytes=1).chunk_rows == 256
    assert ncnc(chunk_bytes=6 * 4 * WIDTH * 5000).chunk_rows == 5000


@pytest.mark.parametrize("predictor", [ncn(node_mlp=True), ncnc(), ncnc(depth=2), ncnc(parity=True)], ids=str)
def test_kept_structure_gives_the_scores_of_a_fresh_one(
    predictor: NCNPredictor, graph: CSRGraph, h: Tensor, pairs: Tensor
) -> None:
    with torch.no_grad():
        kept = predictor(h, graph, pairs, predictor.structure(graph, pairs))
        assert torch.equal(kept, predictor(h, graph, pairs))


@pytest.mark.parametrize(("options", "word"), [({"depth": 0}, "depth"), ({"prior": 0.0}, "prior")])
def test_completion_out_of_range_is_refused(options: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=f"{word} is 0"):
        NCNCPredictor(WIDTH, **options)


def test_dropout_may_be_switched_off_while_candidates_are_scored(
    graph: CSRGraph, h: Tensor, pairs: Tensor
) -> None:
    for active in (True, False):
        predictor = ncnc(dropout=0.5, completion_dropout=active).train()
        found = predictor.structure(graph, pairs)
        draws = [predictor._completion(predictor._nodes(h), graph, pairs, found, 1) for _ in range(2)]
        assert torch.equal(*draws) != active
        assert predictor.training


# --- Samples -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parity", [False, True])
def test_sums_over_samples_centre_on_the_full_sum(graph: CSRGraph, h: Tensor, parity: bool) -> None:
    predictor = ncnc(max_common=1, max_candidates_train=2, parity=parity).train()
    pairs, draws = torch.tensor([[0, 0], [3, 5]]), 250
    samples = [predictor._structure(graph, pairs, 1) for _ in range(draws)]
    full = ncnc(parity=parity).structure(graph, pairs)
    moved = False
    for part in ("common", "only_i", "only_j"):
        rows = [getattr(sample, part) for sample in samples]
        weighted = [r if r.weight is None else r._replace(weight=r.weight.double()) for r in rows]
        sums = torch.stack([pool(r, h) for r in weighted])  # [draws, 2, H]
        error = (sums.mean(0) - pool(getattr(full, part), h)).abs()
        assert (error <= 5 * sums.std(0) / draws**0.5 + 1e-9).all(), part
        moved |= bool(sums.std(0).any())
    assert moved


def test_samples_of_evaluation_are_the_same_every_time(graph: CSRGraph, h: Tensor, pairs: Tensor) -> None:
    predictor = ncnc(max_common=1, max_candidates_eval=1)
    assert torch.equal(predictor(h, graph, pairs), predictor(h, graph, pairs))


def test_limits_beyond_every_degree_change_nothing(graph: CSRGraph, h: Tensor, pairs: Tensor) -> None:
    predictor, limited = ncnc(), ncnc(max_common=NODES, max_candidates_eval=NODES)
    limited.load_state_dict(predictor.state_dict())
    torch.testing.assert_close(limited(h, graph, pairs), predictor(h, graph, pairs))


def test_differences_list_the_neighbours_of_one_end_alone(graph: CSRGraph, pairs: Tensor) -> None:
    found, near = pair_structure(graph, pairs, differences=True), neighbours(graph)
    for b, (i, j) in enumerate(pairs.t().tolist()):
        assert found.common.slice(b, b + 1).node.tolist() == sorted(near[i] & near[j])
        assert found.only_i.slice(b, b + 1).node.tolist() == sorted(near[i] - near[j])
        assert found.only_j.slice(b, b + 1).node.tolist() == sorted(near[j] - near[i])


# --- Ablations ---------------------------------------------------------------------------------------------


def ablation(variant: str, **options: Any) -> Any:
    model = NCNAblation(4, variant=variant, hidden_channels=WIDTH, scale=2.0, offset=0.1, **options)
    return model.predictor.double().eval()


@pytest.mark.parametrize("parity", [False, True])
def test_gae_cn_adds_a_branch_of_the_count(graph: CSRGraph, h: Tensor, pairs: Tensor, parity: bool) -> None:
    predictor, near = ablation("gae-cn", parity=parity), neighbours(graph)

    def formula(i: int, j: int) -> Tensor:
        count = torch.tensor([float(len(near[i] & near[j]))], dtype=torch.float64)
        return combine(predictor, h, i, j, count if parity else count.log1p())

    torch.testing.assert_close(predictor(h, graph, pairs), over_pairs(formula, pairs))


@pytest.mark.parametrize("parity", [False, True])
def test_gae_cn_concat_gives_the_count_to_the_head(
    graph: CSRGraph, h: Tensor, pairs: Tensor, parity: bool
) -> None:
    predictor, near = ablation("gae-cn-concat", parity=parity), neighbours(graph)

    def formula(i: int, j: int) -> Tensor:
        count = torch.tensor([float(len(near[i] & near[j]))], dtype=torch.float64)
        count = count if parity else count.log1p()
        return predictor.head(torch.cat([count, predictor.pair_mlp(h[i] * h[j])]))[0]

    torch.testing.assert_close(predictor(h, graph, pairs), over_pairs(formula, pairs))


def test_gae_cnc_completes_the_count(graph: CSRGraph, h: Tensor, pairs: Tensor) -> None:
    predictor, near = ablation("gae-cnc", prior=0.4, ceiling=0.9), neighbours(graph)

    def formula(i: int, j: int) -> Tensor:
        count = torch.tensor([float(len(near[i] & near[j]))], dtype=torch.float64)
        for own, other in ((i, j), (j, i)):
            for u in near[own] - near[other] - {other}:
                shared = torch.tensor([float(len(near[other] & near[u]))], dtype=torch.float64)
                s = combine(predictor, h, other, u, shared.log1p())
                count = count + 0.9 * torch.sigmoid(2.0 * (s - 0.1) + math.log(0.4))
        return combine(predictor, h, i, j, count.log1p())

    with torch.no_grad():
        torch.testing.assert_close(predictor(h, graph, pairs), over_pairs(formula, pairs))


def second_branch(
    predictor: Any, h: Tensor, i: int, j: int, common: set[int], second: list[set[int]]
) -> Tensor:
    x = node_states(predictor, h)
    z = weighted_sum(dict.fromkeys(common, 1.0), x)
    w = sum((weighted_sum(dict.fromkeys(part, 1.0), x) for part in second), torch.zeros(WIDTH).double())
    pair = predictor.pair_mlp(h[i] * h[j])
    return predictor.head(predictor.beta * predictor.common_mlp(z) + predictor.second_mlp(w) + pair)[0]


@pytest.mark.parametrize("node_mlp", [False, True])
def test_ncn2_pools_neighbours_that_are_two_steps_from_the_other_end(
    graph: CSRGraph, h: Tensor, pairs: Tensor, node_mlp: bool
) -> None:
    predictor, near = ablation("ncn2", node_mlp=node_mlp), neighbours(graph)
    two_steps = [set().union(*(near[u] for u in own)) for own in near]

    def formula(i: int, j: int) -> Tensor:
        lists = [near[i] & two_steps[j], two_steps[i] & near[j]]
        return second_branch(predictor, h, i, j, near[i] & near[j], lists)

    torch.testing.assert_close(predictor(h, graph, pairs), over_pairs(formula, pairs))


@pytest.mark.parametrize("node_mlp", [False, True])
def test_ncn_diff_pools_the_differences_with_full_weight(
    graph: CSRGraph, h: Tensor, pairs: Tensor, node_mlp: bool
) -> None:
    predictor, near = ablation("ncn-diff", node_mlp=node_mlp), neighbours(graph)

    def formula(i: int, j: int) -> Tensor:
        return second_branch(predictor, h, i, j, near[i] & near[j], [near[i] - near[j], near[j] - near[i]])

    torch.testing.assert_close(predictor(h, graph, pairs), over_pairs(formula, pairs))


def test_unknown_variant_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="variant is 'ncn3'; it must be one of gae-cn"):
        NCNAblation(4, variant="ncn3")


# --- Heuristics --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "weight"), [("cn", lambda d: 1.0), ("aa", lambda d: 1 / math.log(d)), ("ra", lambda d: 1 / d)]
)
def test_heuristic_sums_weights_of_common_neighbours(
    graph: CSRGraph, pairs: Tensor, name: str, weight: Any
) -> None:
    near = neighbours(graph)
    pairs = pairs[:, pairs[0] != pairs[1]]
    expected = [sum(weight(len(near[u])) for u in near[i] & near[j]) for i, j in pairs.t().tolist()]
    found = MODELS.create(name)(torch.zeros(NODES, 1), graph, pairs)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize("name", ["cn", "aa", "ra"])
def test_heuristic_has_no_parameters(name: str) -> None:
    assert list(MODELS.create(name).parameters()) == []
