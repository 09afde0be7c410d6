"""The completion task: batches of queries, which edges and answers are left out, losses, both evaluations."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from graphkit.config import OptimConfig, RunConfig, TrainConfig
from graphkit.data import Benchmark, DataSpec
from graphkit.errors import UserError
from graphkit.tasks.kgc import KGCBatch, KGCTask
from graphkit.train import Trainer

RELATIONS, ENTITIES, OTHERS = 3, 20, 11
METRICS = {"mrr", "hits@1", "hits@3", "hits@10", "hits@10_50", "hits@10_50_expected"}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def facts(entities: int, count: int, draw: torch.Generator) -> Tensor:
    ends = torch.randint(entities, (2, count), generator=draw)
    kinds = torch.randint(RELATIONS, (count,), generator=draw)
    return torch.stack([ends[0], kinds, ends[1]]).unique(dim=1)


def benchmark(inductive: bool = True, **changes: Any) -> Benchmark:
    """About thirty facts to learn from, and other entities to be asked about."""
    draw = torch.Generator().manual_seed(3)
    train, valid = facts(ENTITIES, 30, draw), facts(ENTITIES, 9, draw)
    other, test = facts(OTHERS, 14, draw), facts(OTHERS, 8, draw)
    data = Data(edge_index=train[[0, 2]], edge_type=train[1], num_nodes=ENTITIES)
    data.known_triple, data.inference_known_triple = facts(ENTITIES, 60, draw), facts(OTHERS, 30, draw)
    if inductive:
        data.inference_edge_index, data.inference_edge_type = other[[0, 2]], other[1]
        data.inference_num_nodes = OTHERS
    made = {
        "name": "few facts",
        "task": "kgc",
        "data": data,
        "splits": {"train": {"triple": train}, "valid": {"triple": valid}, "test": {"triple": test}},
        "spec": DataSpec(num_relations=RELATIONS),
        "metric": "mrr",
        "maximize": True,
        "evaluator": dict,
    }
    return Benchmark(**{**made, **changes})


def task(batch_size: int = 4, *, of: Benchmark | None = None, **options: Any) -> KGCTask:
    given = {"seed": 0, "eval_batch_size": 3, "negatives": 4, **options}
    return KGCTask(of or benchmark(), batch_size=batch_size, **given)


class Hops(nn.Module):
    """Two weighted hops from the head; the query's relation comes in at the end, or at the start."""

    def __init__(self, needs_relation: bool = False, few: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.needs_relation = needs_relation
        self.edge = nn.Parameter(torch.randn(2 * RELATIONS, 4))
        self.query = nn.Parameter(torch.randn(2 * RELATIONS, 4))
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []
        if few:
            self.score_tails = self._score_tails
        self.double()

    def propagate(
        self,
        edge_index: Tensor,
        edge_type: Tensor,
        head: Tensor,
        *,
        num_nodes: int,
        relation: Tensor | None = None,
    ) -> Tensor:
        assert (relation is not None) == self.needs_relation
        self.seen.append((edge_index, edge_type, head))
        h = torch.zeros(num_nodes, head.numel(), 4).double()
        h[head, torch.arange(head.numel())] = 1.0 if relation is None else self.query[relation]
        for _ in range(2):
            h = h + torch.zeros_like(h).index_add(
                0, edge_index[1], h[edge_index[0]] * self.edge[edge_type, None]
            )
        return h

    def score_all(self, state: Tensor, s_index: Tensor, relation: Tensor) -> Tensor:
        hidden = torch.tanh(state[:, s_index])
        return (hidden if self.needs_relation else hidden * self.query[relation]).sum(-1).t()

    def _score_tails(
        self,
        edge_index: Tensor,
        edge_type: Tensor,
        head: Tensor,
        relation: Tensor,
        tails: Tensor,
        *,
        num_nodes: int,
    ) -> Tensor:
        start = {"relation": relation} if self.needs_relation else {}
        state = self.propagate(edge_index, edge_type, head, num_nodes=num_nodes, **start)
        return self.score_all(state, torch.arange(head.numel()), relation).gather(1, tails)


KINDS = [(False, False), (True, False), (True, True)]


def value_and_gradients(of: KGCTask, net: nn.Module, *shards: KGCBatch) -> tuple[Tensor, list[Tensor]]:
    parts = [of.loss(net, shard) for shard in shards]
    assert len({part.divisor for part in parts}) == 1
    value = torch.stack([part.total / part.divisor for part in parts]).sum()
    return value.detach(), list(torch.autograd.grad(value, list(net.parameters())))


def all_answers(of: KGCTask, split: str) -> set[tuple[int, int, int]]:
    """Right (head, relation, tail) of both directions that filtering knows of, in a split's graph."""
    data, found = of.benchmark.data, []
    ours = split == "test" and of.inductive
    prefix = "inference_" if ours else ""
    edges = torch.stack(
        [data[f"{prefix}edge_index"][0], data[f"{prefix}edge_type"], data[f"{prefix}edge_index"][1]]
    )
    found += edges.t().tolist()
    for name, part in of.benchmark.splits.items():
        if name == split or (split != "train" and (not of.inductive or (name == "test") == ours)):
            found += part["triple"].t().tolist()
    if split != "train" and of.filter_held_out:
        found += data[f"{prefix}known_triple"].t().tolist()
    return {(h, r, t) for h, r, t in found} | {(t, r + RELATIONS, h) for h, r, t in found}


# --- Batches -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4, 7, 100])
def test_every_fact_asks_both_queries_once_an_epoch(batch_size: int) -> None:
    made = task(batch_size)
    asked = []
    for step in range(made.steps_per_epoch):
        batch = made.batch(2, step)
        assert batch.num_queries == batch.head.numel() <= 2 * batch_size
        asked += torch.stack([batch.head, batch.relation, batch.tail]).t().tolist()
    train = made.benchmark.splits["train"]["triple"].t().tolist()
    expected = [[h, r, t] for h, r, t in train] + [[t, r + RELATIONS, h] for h, r, t in train]
    assert sorted(asked) == sorted(expected)


def test_batch_depends_on_seed_epoch_and_step_alone() -> None:
    first, second = task(), task()
    places = [(epoch, step) for epoch in range(2) for step in range(first.steps_per_epoch)]
    forwards = [first.batch(*place) for place in places]
    before = torch.get_rng_state()
    for place, expected in zip(reversed(places), reversed(forwards), strict=True):
        for column, other in zip(second.batch(*place)[:5], expected[:5], strict=True):
            assert torch.equal(column, other)  # type: ignore[arg-type]
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(forwards[0].head, task(seed=1).batch(0, 0).head)


def test_wrong_answers_in_training_know_nothing_of_other_splits() -> None:
    made = task(100, negatives=400)
    batch = made.batch(0, 0)
    right = all_answers(made, "train")
    drawn = set()
    assert batch.negative is not None
    for h, r, row in zip(batch.head.tolist(), batch.relation.tolist(), batch.negative.tolist(), strict=True):
        drawn |= {(h, r, t) for t in row}
    assert not drawn & right
    asked = {(h, r) for h, r in zip(batch.head.tolist(), batch.relation.tolist(), strict=True)}
    hidden = {fact for fact in all_answers(made, "valid") - right if fact[:2] in asked}
    assert hidden
    assert hidden <= drawn


@pytest.mark.parametrize("remove", ["pair", "fact", "none"])
def test_edges_of_a_batch_are_left_out_in_both_directions(remove: str) -> None:
    made, net = task(5, remove=remove), Hops()
    batch = made.batch(0, 1)
    made.loss(net, batch)
    (index, kinds, _) = net.seen[0]
    found = {(u, r, v) for (u, v), r in zip(index.t().tolist(), kinds.tolist(), strict=True)}
    asked = set(zip(batch.head.tolist(), batch.relation.tolist(), batch.tail.tolist(), strict=True))
    pairs = {(u, v) for u, _, v in asked}
    every = all_answers(made, "train")
    expected = {
        "none": every,
        "fact": every - asked,
        "pair": {(u, r, v) for u, r, v in every if (u, v) not in pairs},
    }
    assert found == expected[remove]


def test_facts_to_learn_need_not_be_edges() -> None:
    of = benchmark()
    of.data.edge_index, of.data.edge_type = of.data.edge_index[:, 5:], of.data.edge_type[5:]
    made = task(100, of=of)
    batch = made.batch(0, 0)
    assert batch.num_queries == 2 * of.splits["train"]["triple"].size(1)
    assert math.isfinite(float(made.loss(Hops(), batch).total.detach()))


def test_messages_never_pass_over_facts_of_other_splits() -> None:
    made, net = task(remove="none"), Hops()
    for split, inference in (("valid", False), ("test", True)):
        net.seen.clear()
        made.evaluate(net, split)
        index, kinds, _ = net.seen[0]
        data = made.benchmark.data
        stored = data.inference_edge_index if inference else data.edge_index
        assert torch.equal(index, torch.cat([stored, stored.flip(0)], dim=1))
        assert kinds.numel() == 2 * stored.size(1)


@pytest.mark.parametrize(("needs_relation", "few"), KINDS)
def test_one_propagation_serves_every_query_of_a_head(needs_relation: bool, few: bool) -> None:
    made, net = task(100, loss="softmax"), Hops(needs_relation, few)
    batch = made.batch(0, 0)
    made.loss(net, batch)
    ((_, _, heads),) = net.seen
    asked = set(zip(batch.head.tolist(), batch.relation.tolist(), strict=True))
    assert heads.numel() == (len(asked) if needs_relation else len({h for h, _ in asked}))


# --- Losses ------------------------------------------------------------------------------------------------

LOSSES: list[dict[str, Any]] = [
    {"loss": "bce"},
    {"loss": "bce", "adversarial_temperature": 0.5},
    {"loss": "margin", "margin": 0.7},
    {"loss": "margin", "adversarial_temperature": 2.0},
    {"loss": "softmax"},
]


def naive(of: KGCTask, net: Hops, batch: KGCBatch) -> float:
    """The mean loss as its formula says, query by query."""
    graph = of.graph.without(batch.drop)
    right, total = all_answers(of, "train"), 0.0
    for i, (h, r, t) in enumerate(
        zip(batch.head.tolist(), batch.relation.tolist(), batch.tail.tolist(), strict=True)
    ):
        start = {"relation": torch.tensor([r])} if net.needs_relation else {}
        state = net.propagate(*graph[:2], torch.tensor([h]), num_nodes=ENTITIES, **start)
        scores = net.score_all(state, torch.tensor([0]), torch.tensor([r]))[0].tolist()
        if of.loss_name == "softmax":
            open_ = [scores[e] for e in range(ENTITIES) if e == t or (h, r, e) not in right]
            total += math.log(sum(math.exp(s - scores[t]) for s in open_))
            continue
        assert batch.negative is not None
        wrong = [scores[e] for e in batch.negative[i].tolist()]
        weight = [1.0] * len(wrong)
        if of.temperature:
            weight = [math.exp(s / of.temperature) for s in wrong]
        weight = [w / sum(weight) for w in weight]
        if of.loss_name == "margin":
            total += sum(w * max(0, of.margin + s - scores[t]) for w, s in zip(weight, wrong, strict=True))
        else:
            total += math.log1p(math.exp(-scores[t]))
            total += sum(w * math.log1p(math.exp(s)) for w, s in zip(weight, wrong, strict=True))
    return total / batch.num_queries


@pytest.mark.parametrize(("needs_relation", "few"), KINDS)
@pytest.mark.parametrize("options", LOSSES)
def test_loss_is_its_formula(options: dict[str, Any], needs_relation: bool, few: bool) -> None:
    made, net = task(6, **options), Hops(needs_relation, few)
    batch = made.batch(0, 0)
    loss = made.loss(net, batch)
    assert float(loss.total.detach()) / loss.divisor == pytest.approx(naive(made, net, batch), rel=1e-10)


@pytest.mark.parametrize(("needs_relation", "few"), KINDS)
@pytest.mark.parametrize("options", LOSSES)
@pytest.mark.parametrize("parts", [2, 3, 9])
def test_shards_add_up_to_the_whole_batch(
    options: dict[str, Any], needs_relation: bool, few: bool, parts: int
) -> None:
    made, net = task(7, **options), Hops(needs_relation, few)
    batch = made.batch(1, 0)
    value, gradients = value_and_gradients(made, net, batch)
    shards = [made.shard(batch, index, parts) for index in range(parts)]
    assert sorted(chain(*(s.tail.tolist() for s in shards))) == sorted(batch.tail.tolist())
    summed, added = value_and_gradients(made, net, *shards)
    torch.testing.assert_close(summed, value, rtol=1e-12, atol=1e-12)
    for whole, sum_of_parts in zip(gradients, added, strict=True):
        torch.testing.assert_close(sum_of_parts, whole, rtol=1e-10, atol=1e-12)


def test_self_adversarial_weights_carry_no_gradient() -> None:
    made = task(adversarial_temperature=1.0)
    right, wrong = torch.tensor([[0.3]]), torch.tensor([[1.0, -1.0, 2.0]], requires_grad=True)
    made._losses(right, wrong).sum().backward()
    expected = wrong.detach().softmax(1) * wrong.detach().sigmoid()
    torch.testing.assert_close(wrong.grad, expected)


@pytest.mark.parametrize("options", LOSSES)
def test_training_lowers_the_loss(options: dict[str, Any]) -> None:
    made, net = task(8, **options), Hops()
    config = RunConfig(
        model_name="hops",
        dataset_name="few",
        task_name="kgc",
        optim=OptimConfig(lr=0.03),
        train=TrainConfig(epochs=15, accumulate=2, eval_every=15),
    )
    batch = made.batch(0, 0)
    before = float(made.loss(net, batch).total.detach())
    result = Trainer(net, made, config).fit()
    assert float(made.loss(net, batch).total.detach()) < 0.95 * before
    assert set(result.test) == METRICS


# --- Evaluation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("needs_relation", "held_out"), [(False, True), (True, False)])
@pytest.mark.parametrize("inductive", [True, False])
@pytest.mark.parametrize("split", ["valid", "test"])
def test_evaluation_is_filtered_ranking_of_heads_and_tails(
    split: str, inductive: bool, needs_relation: bool, held_out: bool
) -> None:
    of = benchmark(inductive)
    made, net = task(of=of, filter_held_out=held_out), Hops(needs_relation)
    found = made.evaluate(net, split)
    assert set(found) == METRICS
    graph = made.test_graph if split == "test" else made.graph
    right, ranks = all_answers(made, split), []
    for h, r, t in made.queries(of.splits[split]["triple"]).t().tolist():
        start = {"relation": torch.tensor([r])} if needs_relation else {}
        state = net.propagate(*graph[:2], torch.tensor([h]), num_nodes=graph.num_nodes, **start)
        scores = net.score_all(state, torch.tensor([0]), torch.tensor([r]))[0].tolist()
        others = [s for e, s in enumerate(scores) if e != t and (h, r, e) not in right]
        ranks.append((sum(s > scores[t] for s in others), sum(s == scores[t] for s in others)))
    mrr = sum(1 / (1 + above + ties / 2) for above, ties in ranks) / len(ranks)
    assert found["mrr"] == pytest.approx(mrr, rel=1e-9)
    for k in (1, 3, 10):
        assert found[f"hits@{k}"] == sum(1 + above + ties <= k for above, ties in ranks) / len(ranks)


def test_evaluation_is_the_same_each_time_and_in_portions_of_any_size() -> None:
    net, before = Hops(), torch.get_rng_state()
    found = [
        task(eval_batch_size=size, states_at_once=states).evaluate(net, "test")
        for size, states in ((1, 1), (3, 1000), (100, 40), (100, 10**6))
    ]
    assert found[0] == found[1] == found[2] == found[3]
    again = task()
    assert again.evaluate(net, "test") == again.evaluate(net, "test") == found[0]
    assert torch.equal(before, torch.get_rng_state())


def test_sampled_wrong_answers_are_filtered_and_seeded() -> None:
    made = task()
    asked, right = made._asked("test"), all_answers(made, "test")
    assert asked.negative.shape == (asked.head.numel(), 50)
    for h, r, row in zip(asked.head.tolist(), asked.relation.tolist(), asked.negative.tolist(), strict=True):
        assert not {(h, r, t) for t in row} & right
    assert torch.equal(asked.negative, task()._asked("test").negative)
    assert not torch.equal(asked.negative, task(seed=1)._asked("test").negative)


# --- Refusals ----------------------------------------------------------------------------------------------


def test_training_split_and_models_that_do_not_propagate_are_refused() -> None:
    assert task().evaluation_splits == ("valid", "test")
    with pytest.raises(UserError, match="can't be evaluated on split 'train'"):
        task().check_split("train")

    class Nodes(nn.Module):
        def propagate(self) -> None: ...

    with pytest.raises(UserError, match="Nodes can't complete knowledge graphs: it must have propagate"):
        task().check(Nodes())
    net = Hops()
    task().check(net)
    net.inverse = False  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"Hops has no inverse relations, .*: set model.inverse to true"):
        task().check(net)


def test_query_that_everything_answers_is_refused() -> None:
    every = torch.stack([torch.zeros(3).long(), torch.zeros(3).long(), torch.arange(3)])
    of = benchmark()
    of.data = Data(edge_index=every[[0, 2]], edge_type=every[1], num_nodes=3)
    of.splits = {name: {"triple": every} for name in of.splits}
    with pytest.raises(UserError, match="all 3 entities are right answers to some query; none is wrong"):
        task(of=of).batch(0, 0)


def test_scores_of_another_shape_are_refused() -> None:
    class Short(Hops):
        def score_all(self, state: Tensor, s_index: Tensor, relation: Tensor) -> Tensor:
            return super().score_all(state, s_index, relation)[:, 1:]

    with pytest.raises(UserError, match=r"Short gives scores \[8, 19\] for 8 queries and 20 entities"):
        task().loss(Short(), task().batch(0, 0))


def test_batch_with_fewer_facts_than_shards_has_empty_ones() -> None:
    made = task(2)
    loss = made.loss(Hops(), made.shard(made.batch(0, 0), 5, 6))
    assert float(loss.total) == 0
    assert loss.divisor == 4
