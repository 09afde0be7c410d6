"""EpiGNN against its formula, what its scores don't depend on, its rounds and its ablations."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from graphkit.models.epignn import EpiGNN

Query = dict[str, Any]


def make(relations: int = 5, spread: float = 3.0, **options: Any) -> EpiGNN:
    """A model in double precision whose beliefs are far from uniform."""
    model = EpiGNN(relations, **{"facets": 3, "facet_channels": 4, **options}).double()
    with torch.no_grad():
        for parameter in (model.relation, model.composition.weight):
            parameter.mul_(spread)
    return model


def query(nodes: int = 7, edges: int = 12, relations: int = 5, acyclic: bool = True) -> Query:
    """A graph with its source, target and answer anywhere; connected by a chain."""
    order = torch.randperm(nodes)
    ends = torch.cat(
        [torch.stack([torch.arange(nodes - 1), torch.arange(1, nodes)]), torch.randint(nodes, (2, edges))], 1
    )
    if acyclic:
        ends = ends[:, ends[0] != ends[1]]
        ends = torch.stack([ends.amin(0), ends.amax(0)])
    ends = ends[:, torch.randperm(ends.size(1))]
    return {
        "edge_index": order[ends],
        "edge_type": torch.randint(relations, (ends.size(1),)),
        "source": order[:1],
        "target": order[-1:],
        "num_nodes": nodes,
    }


def union(queries: list[Query]) -> Query:
    """The disjoint union of queries."""
    shift = [sum(q["num_nodes"] for q in queries[:k]) for k in range(len(queries))]
    moved = {
        name: torch.cat([q[name] + s for q, s in zip(queries, shift, strict=True)], -1)
        for name in ("edge_index", "source", "target")
    }
    kind = torch.cat([q["edge_type"] for q in queries])
    return {**moved, "edge_type": kind, "num_nodes": sum(q["num_nodes"] for q in queries)}


def renumbered(given: Query, new: Tensor) -> Query:
    return {**given, **{name: new[given[name]] for name in ("edge_index", "source", "target")}}


def gradients(loss: Tensor, model: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


# --- the whole, against the formula ------------------------------------------------------------------------


def normalise(q: Tensor) -> Tensor:
    return (q + 1e-18) / (q + 1e-18).sum(-1, keepdim=True)


def textbook(model: EpiGNN, given: Query, path: list[int], rounds: int) -> Tensor:
    """The paper's formula for one query, both passes and the read-out, one node after the other."""
    relation, phi = model.relation.softmax(2), model.composition
    pool = torch.amin if model.propagation.pooling == "min" else torch.prod
    edges = list(zip(*given["edge_index"].tolist(), given["edge_type"].tolist(), strict=True))
    identity = torch.eye(relation.size(2), dtype=torch.float64)[0].expand(relation.shape[1:])
    finals = []
    for forward, anchor in ((True, int(given["source"])), (False, int(given["target"]))):
        state = torch.full((given["num_nodes"], *identity.shape), 1 / identity.size(1), dtype=torch.float64)
        state[anchor] = identity
        for _ in range(rounds):
            new = state.clone()
            for v in range(given["num_nodes"]):
                if forward:
                    sent = [phi(state[a], relation[r]) for a, b, r in edges if b == v]
                else:
                    sent = [phi(relation[r], state[b]) for a, b, r in edges if a == v]
                if sent and v != anchor:
                    new[v] = normalise(pool(torch.stack(sent), 0))
            state = new
        finals.append(state)
    source, target = int(given["source"]), int(given["target"])
    out = {
        "both": normalise(pool(torch.stack([phi(finals[0][v], finals[1][v]) for v in path]), 0)),
        "forward": finals[0][target],
        "backward": finals[1][source],
    }[model.readout]
    return (out + 1e-12).log().flatten() @ relation.flatten(1).t()


@settings(max_examples=20)
@given(st.sampled_from(["min", "product"]), st.sampled_from(["both", "forward", "backward"]), st.data())
def test_scores_equal_the_formula(pooling: str, readout: str, data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 99)))
    rounds = data.draw(st.sampled_from([1, 3, 5]))
    model = make(pooling=pooling, readout=readout, rounds=rounds)
    given = query(acyclic=data.draw(st.booleans()))
    path = [int(given["source"]), *data.draw(st.sets(st.integers(0, 6))), int(given["target"])]
    node = torch.tensor(path)
    model._warned = True
    scores = model(**given, path_node=node, path_graph=torch.zeros_like(node))
    wanted = textbook(model, given, path, rounds)
    torch.testing.assert_close(scores[0], wanted)
    weight = torch.randn(5, dtype=torch.float64)
    torch.testing.assert_close(
        gradients((scores[0] * weight).sum(), model), gradients((wanted * weight).sum(), model)
    )


@pytest.mark.parametrize("score", ["cross_entropy", "cross_entropy_left", "kl", "cosine"])
def test_scores_compare_answers_with_relations(score: str) -> None:
    model = make(score=score)
    out = torch.randn(6, 3, 4, dtype=torch.float64).softmax(2)
    r, o = model.relation.softmax(2)[None] + 1e-12, out[:, None] + 1e-12
    wanted = {
        "cross_entropy": ((r - 1e-12) * o.log()).sum((2, 3)),
        "cross_entropy_left": ((o - 1e-12) * r.log()).sum((2, 3)),
        "kl": -(r * (r / o).log()).sum((2, 3)),
        "cosine": (F.cosine_similarity(o.flatten(2), r.flatten(2), dim=2) + 1e-16).log(),
    }[score]
    torch.testing.assert_close(model.score(out), wanted)


def test_the_loss_is_the_margin_between_right_and_wrong_relations() -> None:
    model = make(margin=0.7, negatives=2)
    scores, y = torch.randn(3, 5, dtype=torch.float64), torch.tensor([0, 4, 2])
    negative = torch.tensor([[1, 2], [0, 0], [1, 3]])
    mean = scores / 3  # over facets, higher is better
    wanted = [max(0.0, 0.7 + float(mean[b, negative[b]].mean() - mean[b, y[b]])) for b in range(3)]
    torch.testing.assert_close(model.margin_loss(scores, y, negative), torch.tensor(wanted).double())


def test_cosine_scores_are_trained_by_cross_entropy() -> None:
    model, given, y = make(score="cosine"), query(), torch.tensor([2])
    wanted = F.cross_entropy(model(**given), y, reduction="none")
    ends = [given.pop(name) for name in ("edge_index", "edge_type", "source", "target")]
    torch.testing.assert_close(model.training_loss(*ends, y, **given), wanted)


# --- what scores don't depend on ---------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["shortest", "all"])
@pytest.mark.parametrize("acyclic", [True, False])
def test_a_batch_gives_the_scores_of_its_queries(path: str, acyclic: bool) -> None:
    model = make(path=path)
    queries = [query(nodes, nodes, acyclic=acyclic) for nodes in (3, 9, 2, 6)]
    queries.append(query(5, acyclic=not acyclic))
    alone = torch.cat([model(**q) for q in queries])
    torch.testing.assert_close(model(**union(queries)), alone, atol=0, rtol=1e-13)


@pytest.mark.parametrize("path", ["shortest", "all"])
@pytest.mark.parametrize("acyclic", [True, False])
def test_numbers_of_nodes_don_t_matter(path: str, acyclic: bool) -> None:
    model, joint = make(path=path), union([query(8, acyclic=acyclic) for _ in range(3)])
    new = torch.randperm(joint["num_nodes"])
    torch.testing.assert_close(model(**renumbered(joint, new)), model(**joint))


def test_the_order_of_edges_doesn_t_matter_on_given_paths() -> None:
    model, given = make(), query(9, 20)
    order = torch.randperm(given["edge_type"].numel())
    node = torch.stack([given["source"][0], torch.tensor(3), given["target"][0]])
    path = {"path_node": node, "path_graph": torch.zeros(3, dtype=torch.int64)}
    mixed = {**given, "edge_index": given["edge_index"][:, order], "edge_type": given["edge_type"][order]}
    torch.testing.assert_close(model(**mixed, **path), model(**given, **path))


def test_searched_paths_are_the_ones_that_data_sets_prepare() -> None:
    from graphkit.nn.paths import path_nodes

    model, joint = make(), union([query(6), query(8)])
    found = path_nodes(joint["edge_index"], joint["source"], joint["target"], num_nodes=14)
    given = model(**joint, path_node=found.node, path_graph=found.graph)
    torch.testing.assert_close(model(**joint), given, atol=0, rtol=0)
    with pytest.raises(ValueError, match="path_node and path_graph"):
        model(**joint, path_node=found.node)


def test_components_without_a_query_isolated_nodes_and_unconnected_ends_are_no_obstacle() -> None:
    model, given = make(), query(6)
    scores = model(**given)
    stray = torch.tensor([[7, 8, 9], [8, 7, 9]])  # a ring, a loop; nodes 6 and 10 alone
    more = {
        **given,
        "edge_index": torch.cat([given["edge_index"], stray], 1),
        "edge_type": torch.cat([given["edge_type"], torch.tensor([0, 1, 2])]),
        "num_nodes": 11,
    }
    torch.testing.assert_close(model(**more), scores, atol=0, rtol=0)
    apart = model(**{**more, "target": torch.tensor([10])})
    assert apart.isfinite().all()
    lone: Query = {"source": torch.tensor([0]), "target": torch.tensor([0]), "num_nodes": 1}
    lone |= {
        "edge_index": torch.empty(2, 0, dtype=torch.int64),
        "edge_type": torch.empty(0, dtype=torch.int64),
    }
    identity = model.answer(**lone)
    torch.testing.assert_close(identity[0, :, 0], torch.ones(3, dtype=torch.float64))


def test_a_relation_path_of_one_edge_answers_with_its_relation() -> None:
    model = make(7, facets=8, spread=4.0)
    given = {"edge_index": torch.tensor([[1], [0]]), "source": torch.tensor([1]), "target": torch.tensor([0])}
    for kind in range(7):
        out = model.answer(**given, edge_type=torch.tensor([kind]), num_nodes=2)
        torch.testing.assert_close(out[0], model.relation.softmax(2)[kind])


# --- rounds ------------------------------------------------------------------------------------------------


def test_rounds_beyond_the_longest_path_change_no_bit() -> None:
    joint = union([query(7), query(4)])
    model, scores = make(), []
    for rounds in (None, 6, 9, 40):
        model.propagation.rounds = rounds
        scores.append(model(**joint))
    assert all(torch.equal(scores[0], other) for other in scores[1:])


def test_paths_longer_than_the_rounds_are_warned_of_once() -> None:
    chain = torch.stack([torch.arange(4), torch.arange(1, 5)])
    given: Query = {"edge_index": chain, "edge_type": torch.zeros(4, dtype=torch.int64), "num_nodes": 5}
    given |= {"source": torch.tensor([0]), "target": torch.tensor([4])}
    model = make(rounds=3)
    with pytest.warns(UserWarning, match="4 edges, but beliefs go 3 rounds"):
        model(**given)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(**given)
        make(rounds=4)(**given)
        make()(**given)


def test_a_cycle_takes_twice_the_shortest_path_of_rounds() -> None:
    ring: Query = {"edge_index": torch.tensor([[0, 1, 2], [1, 2, 0]]), "num_nodes": 3}
    ring |= {"edge_type": torch.tensor([0, 1, 2]), "source": torch.tensor([0]), "target": torch.tensor([1])}
    model = make()
    scores = model(**ring)
    model.propagation.rounds = 2
    assert torch.equal(model(**ring), scores)


def test_beliefs_at_the_ends_are_the_answers_of_one_pass() -> None:
    model, joint = make(), union([query(7), query(6, acyclic=False)])
    forward, backward = model.beliefs(**joint)
    assert forward.shape == backward.shape == (13, 3, 4)
    for readout, state, end in (("forward", forward, "target"), ("backward", backward, "source")):
        model.readout = readout  # type: ignore[assignment]
        torch.testing.assert_close(model.answer(**joint), state[joint[end]], atol=0, rtol=0)
    torch.testing.assert_close(forward.sum(-1), torch.ones(13, 3, dtype=torch.float64))


# --- ablations, numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["min", "product"])
@pytest.mark.parametrize("readout", ["both", "forward"])
@pytest.mark.parametrize("ablation", [{"probabilities": False}, {"bilinear": False}, {"facets": 1}])
def test_ablations_train(pooling: str, readout: str, ablation: dict[str, Any]) -> None:
    model = make(pooling=pooling, readout=readout, **ablation)
    joint = union([query(5), query(6, acyclic=False)])
    ends = [joint.pop(name) for name in ("edge_index", "edge_type", "source", "target")]
    loss = model.training_loss(*ends, torch.tensor([0, 3]), **joint, seed=torch.tensor([1, 2]))
    assert loss.shape == (2,)
    loss.sum().backward()
    used = [p for name, p in model.named_parameters() if name != "composition.weight" or model.mlp is None]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in used)


def test_rounds_of_an_ablation_end_when_nothing_changes() -> None:
    given = query(6)
    for ablation in ({"probabilities": False}, {"bilinear": False}):
        model = make(pooling="product", spread=1.0, **ablation)
        scores = model(**given)
        model.propagation.rounds = 12
        torch.testing.assert_close(model(**given), scores)


@pytest.mark.parametrize("score", ["cross_entropy", "cosine"])
def test_a_hub_with_thousands_of_neighbours_has_finite_scores_and_gradients(score: str) -> None:
    hub = torch.arange(3000)
    ends = torch.cat(
        [torch.stack([torch.zeros_like(hub), hub + 1]), torch.stack([hub + 1, hub * 0 + 3001])], 1
    )
    model = EpiGNN(5, pooling="product", score=score)
    given: Query = {"edge_index": ends, "edge_type": torch.randint(5, (6000,)), "num_nodes": 3002}
    scores = model(**given, source=torch.tensor([0]), target=torch.tensor([3001]))
    assert scores.isfinite().all()
    assert float(scores.detach().std()) > 1e-3
    assert all(g.isfinite().all() for g in gradients(scores[0, 0], model))


def test_half_precision_scores_are_close() -> None:
    torch.manual_seed(1)
    model, joint = EpiGNN(5), union([query(6), query(5)])
    scores = model(**joint)
    halved = model.bfloat16()(**joint)
    assert halved.dtype == torch.bfloat16
    torch.testing.assert_close(halved.float(), scores, atol=0.5, rtol=0.05)


def test_composition_of_a_group_is_learnt_and_holds_on_longer_paths() -> None:
    """Rotations by thirds of a circle: from paths of two and three edges to paths of nine."""
    torch.manual_seed(0)

    def chains(length: int, count: int) -> tuple[Query, Tensor]:
        made = []
        for _ in range(count):
            ends = torch.stack([torch.arange(length), torch.arange(1, length + 1)])
            kind = torch.randint(3, (length,))
            made.append({"edge_index": ends, "edge_type": kind, "num_nodes": length + 1})
            made[-1] |= {"source": torch.tensor([0]), "target": torch.tensor([length])}
        return union(made), torch.stack([q["edge_type"].sum() % 3 for q in made])

    model = EpiGNN(3, facets=4, facet_channels=4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.03)
    for step in range(200):
        joint, y = chains(2 + step % 2, 24)
        ends = [joint.pop(name) for name in ("edge_index", "edge_type", "source", "target")]
        loss = model.training_loss(*ends, y, **joint, seed=step).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    joint, y = chains(9, 60)
    assert float((model(**joint).argmax(1) == y).double().mean()) > 0.9


def test_compiled_models_give_the_same_scores() -> None:
    model, joint = make(facets=8), union([query(6), query(5)])
    node = torch.cat([joint["source"], joint["target"]])
    path = {"path_node": node.sort().values, "path_graph": torch.tensor([0, 0, 1, 1])}
    compiled: Callable[..., Tensor] = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(**joint, **path), model(**joint, **path))
    ours = gradients(compiled(**joint, **path).sum(), model)
    torch.testing.assert_close(ours, gradients(model(**joint, **path).sum(), model))
