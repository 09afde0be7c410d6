"""The link task: what a batch may see, in which order edges come, and how pairs are scored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from graphkit.data import Benchmark, DataSpec
from graphkit.errors import UserError
from graphkit.evaluation.metrics import LinkEvaluator
from graphkit.registry import MODELS
from graphkit.sparse import CSRGraph, SparseRows
from graphkit.tasks.link import LinkTask

NODES = 16


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def benchmark(repeated: int = 0) -> Benchmark:
    """Random pairs of a small graph; the first ``repeated`` training edges are listed twice."""
    every = torch.combinations(torch.arange(NODES)).t()
    every = every[:, torch.randperm(every.size(1), generator=torch.Generator().manual_seed(1))]
    train, valid, test, valid_neg, test_neg = every[:, :90].split([30, 10, 10, 20, 20], dim=1)
    both = torch.cat([train, train.flip(0)], dim=1)
    splits = {
        "train": {"pos_edge_label_index": torch.cat([train, train[:, :repeated].flip(0)], dim=1)},
        "valid": {"pos_edge_label_index": valid, "neg_edge_label_index": valid_neg},
        "test": {"pos_edge_label_index": test, "neg_edge_label_index": test_neg},
    }
    x = torch.randn(NODES, 4, generator=torch.Generator().manual_seed(2))
    return Benchmark(
        "sixteen",
        "link",
        Data(x=x, edge_index=both, num_nodes=NODES),
        splits,
        DataSpec(NODES, 4),
        "hits@10",
        True,
        LinkEvaluator.fitting("hits@10", 20),
    )


def task(batch_size: int = 8, *, repeated: int = 0, seed: int = 0, **options: Any) -> LinkTask:
    return LinkTask(benchmark(repeated), seed, batch_size, 7, **options)


def model(name: str = "ncn", **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return MODELS.create(name, in_channels=4, hidden_channels=8, **options)


def edge_set(graph: CSRGraph) -> set[tuple[int, int]]:
    return set(map(tuple, graph.edge_index().t().tolist()))


def both_ways(pairs: Tensor) -> set[tuple[int, int]]:
    return {(i, j) for a, b in pairs.t().tolist() for i, j in ((a, b), (b, a))}


def positives(batch: Any) -> Tensor:
    return batch.edge_label_index[:, batch.edge_label == 1]


# --- Target removal ----------------------------------------------------------------------------------------


def test_edges_of_a_batch_are_taken_out_in_both_directions() -> None:
    links = task()
    batch = links.batch(0, 1)
    assert edge_set(batch.graph) == both_ways(links.train_edges) - both_ways(positives(batch))
    assert batch.graph.symmetric


def test_smaller_graph_equals_one_built_from_the_remaining_edges() -> None:
    links = task()
    batch = links.batch(0, 0)
    remaining = links.train_edges[
        :, [p not in both_ways(positives(batch)) for p in map(tuple, links.train_edges.t().tolist())]
    ]
    built = CSRGraph.from_edge_index(remaining, NODES)
    assert torch.equal(batch.graph.rowptr, built.rowptr)
    assert torch.equal(batch.graph.col, built.col)


def test_edges_stay_where_removal_is_switched_off() -> None:
    links = task(remove_targets=False)
    assert edge_set(links.batch(0, 0).graph) == both_ways(links.train_edges)


def test_strict_removal_takes_out_an_edge_of_which_any_occurrence_is_drawn() -> None:
    links = task(repeated=12)
    for step in range(links.steps_per_epoch):
        batch = links.batch(0, step)
        assert edge_set(batch.graph).isdisjoint(both_ways(positives(batch)))


def test_lenient_removal_takes_out_an_edge_of_which_every_occurrence_is_drawn() -> None:
    links = task(repeated=12, strict_removal=False)
    listed = [frozenset(p) for p in links.train_edges.t().tolist()]
    kept = 0
    for step in range(links.steps_per_epoch):
        batch = links.batch(0, step)
        drawn = [frozenset(p) for p in positives(batch).t().tolist()]
        present = {frozenset(p) for p in edge_set(batch.graph)}
        for edge in set(drawn):
            assert (edge in present) == (drawn.count(edge) < listed.count(edge))
            kept += edge in present
    assert kept


def test_validation_and_test_edges_are_never_passed_over() -> None:
    links = task()
    seen = edge_set(links.graph)
    for split in ("valid", "test"):
        assert seen.isdisjoint(both_ways(links.benchmark.splits[split]["pos_edge_label_index"]))


# --- Batches -----------------------------------------------------------------------------------------------


def same(a: Any, b: Any) -> bool:
    return torch.equal(a.edge_label_index, b.edge_label_index) and torch.equal(a.graph.col, b.graph.col)


def test_batch_depends_on_seed_epoch_and_step_alone() -> None:
    straight, jumping = task(), task()
    torch.manual_seed(99)
    expected = {(e, s): straight.batch(e, s) for e in range(3) for s in range(4)}
    for position in [(2, 1), (0, 3), (2, 1), (1, 0), (0, 0)]:
        torch.rand(3)
        assert same(jumping.batch(*position), expected[position])


def test_another_seed_epoch_or_step_gives_another_batch() -> None:
    first = task().batch(0, 0)
    assert not same(first, task(seed=1).batch(0, 0))
    assert not same(first, task().batch(1, 0))
    assert not same(first, task().batch(0, 1))


def test_batches_draw_nothing_from_torchs_generator() -> None:
    links, before = task(), torch.get_rng_state()
    links.batch(0, 0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("size", [1, 7, 8, 30, 31, 1000])
def test_every_edge_is_seen_once_an_epoch(size: int) -> None:
    links = task(size)
    batches = [links.batch(2, step) for step in range(links.steps_per_epoch)]
    seen = [tuple(p) for batch in batches for p in positives(batch).t().tolist()]
    assert sorted(seen) == sorted(map(tuple, links.train_edges.t().tolist()))
    assert all(batch.num_positives > 0 for batch in batches)


@pytest.mark.parametrize(("size", "steps"), [(7, 4), (8, 3), (10, 3), (30, 1), (31, 1)])
def test_last_batch_is_left_out_where_it_is_not_full(size: int, steps: int) -> None:
    links = task(size, drop_last=True)
    assert links.steps_per_epoch == steps
    assert {links.batch(0, step).num_positives for step in range(steps)} == {min(size, 30)}


def test_batch_has_as_many_negatives_as_positives_and_labels_say_which() -> None:
    batch = task().batch(0, 3)
    assert batch.num_positives == 6  # the rest of 30
    assert batch.edge_label.tolist() == [1.0] * 6 + [0.0] * 6


def test_negatives_are_no_training_edges_and_distinct_within_an_epoch() -> None:
    links = task()
    batches = [links.batch(0, step) for step in range(links.steps_per_epoch)]
    negative = torch.cat([batch.edge_label_index[:, batch.edge_label == 0] for batch in batches], dim=1)
    assert both_ways(negative).isdisjoint(both_ways(links.train_edges))
    assert (negative[0] != negative[1]).all()
    assert len(both_ways(negative)) == 2 * negative.size(1)


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_shards_part_a_batch(parts: int) -> None:
    links = task()
    batch = links.batch(0, 0)
    shards = [links.shard(batch, index, parts) for index in range(parts)]
    rows = sorted(
        (*p, y)
        for s in shards
        for p, y in zip(s.edge_label_index.t().tolist(), s.edge_label.tolist(), strict=True)
    )
    assert rows == sorted(
        (*p, y) for p, y in zip(batch.edge_label_index.t().tolist(), batch.edge_label.tolist(), strict=True)
    )
    assert all(shard.num_positives == batch.num_positives for shard in shards)


@pytest.mark.parametrize("name", ["gae", "ncn", "ncnc"])
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_losses_and_gradients_of_shards_add_up_to_the_whole(name: str, parts: int) -> None:
    links, net = task(), model(name).double()
    links.x = links.x.double()
    batch = links.batch(0, 0)
    whole = links.loss(net, batch)
    expected = torch.autograd.grad(whole.total / whole.divisor, list(net.parameters()))
    losses = [links.loss(net, links.shard(batch, index, parts)) for index in range(parts)]
    total = sum(loss.total / loss.divisor for loss in losses)
    torch.testing.assert_close(total, whole.total / whole.divisor, rtol=1e-5, atol=1e-6)
    for ours, one in zip(torch.autograd.grad(total, list(net.parameters())), expected, strict=True):
        torch.testing.assert_close(ours, one, rtol=1e-4, atol=1e-7)


def test_more_shards_than_edges_leave_some_empty() -> None:
    links, net = task(2), model()
    batch = links.batch(0, 0)
    loss = links.loss(net, links.shard(batch, 4, 5))
    assert float(loss.total.detach()) == 0.0
    assert loss.divisor == 2.0


def test_loss_is_the_logistic_loss_over_the_number_of_edges() -> None:
    links, net = task(), model()
    batch = links.batch(0, 0)
    score = net.score(net.encode(links.x, batch.graph), batch.graph, batch.edge_label_index)
    expected = torch.log1p(torch.exp(-score[:8])).mean() + torch.log1p(torch.exp(score[8:])).mean()
    loss = links.loss(net, batch)
    torch.testing.assert_close(loss.total / loss.divisor, expected)


def test_model_may_bring_its_own_loss() -> None:
    class Own(nn.Module):
        def loss(self, x: Tensor, batch: Any) -> str:
            return f"of {batch.num_positives} edges"

    links = task()
    assert links.loss(Own(), links.batch(0, 0)) == "of 8 edges"


# --- Evaluation and scores ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gae", "ncn", "ncnc", "ncn-ablation"])
@pytest.mark.parametrize("split", ["valid", "test"])
def test_kept_structure_gives_the_metrics_of_a_fresh_one(name: str, split: str) -> None:
    net = model(name)
    kept, fresh, little = task(), task(cache_bytes=0), task(cache_bytes=900)
    for _ in range(2):
        assert kept.evaluate(net, split) == fresh.evaluate(net, split) == little.evaluate(net, split)


@pytest.mark.parametrize("name", ["ncn", "ncnc"])
def test_kept_structure_gives_the_scores_of_a_fresh_one(name: str) -> None:
    net, pairs = model(name), torch.cat([*benchmark().splits["valid"].values()], dim=1)
    kept, fresh = task(), task(cache_bytes=0)
    first = kept._score_fixed(net, "valid", pairs)
    assert torch.equal(first, kept._score_fixed(net, "valid", pairs))
    assert torch.equal(first, fresh._score_fixed(net, "valid", pairs))


def test_structure_beyond_the_memory_limit_is_not_kept() -> None:
    links, net = task(cache_bytes=900), model("ncnc")
    links.evaluate(net, "valid")
    portions = links._fixed[net]["valid"].structure.values()
    kept = [s for s in portions if s is not None]
    assert sum(s.nbytes() for s in kept) <= 900
    assert any(s is None or s.inner is None for s in portions)


def test_each_model_keeps_structures_of_its_own() -> None:
    links = task()
    first, second = model("ncn"), model("ncnc")
    alone = task().evaluate(second, "valid")
    links.evaluate(first, "valid")
    assert links.evaluate(second, "valid") == alone


def test_metrics_are_those_of_the_evaluator() -> None:
    links, net = task(), model()
    parts = links.benchmark.splits["test"]
    expected = links.benchmark.evaluator(
        links.score(net, parts["pos_edge_label_index"]), links.score(net, parts["neg_edge_label_index"])
    )
    assert links.evaluate(net, "test") == expected


def test_validation_edges_at_test_change_test_scores_alone() -> None:
    plain, more, net = task(), task(valid_edges_at_test=True), model()
    for split, equal in (("valid", True), ("test", False)):
        pairs = torch.cat([*plain.benchmark.splits[split].values()], dim=1)
        scores = [links._score_fixed(net, split, pairs) for links in (plain, more)]
        assert torch.equal(*scores) == equal
    valid = both_ways(plain.benchmark.splits["valid"]["pos_edge_label_index"])
    assert edge_set(more.test_graph) == edge_set(plain.graph) | valid
    assert edge_set(more.graph) == edge_set(more.batch(0, 0).graph) | both_ways(positives(more.batch(0, 0)))


@pytest.mark.parametrize("name", ["ncn", "ncnc"])
def test_evaluation_draws_nothing_from_torchs_generator(name: str) -> None:
    links, net, before = task(), model(name, predictor_dropout=0.5, edge_dropout=0.5), torch.get_rng_state()
    links.evaluate(net, "valid")
    assert torch.equal(before, torch.get_rng_state())


def test_portions_of_an_evaluation_do_not_show_in_its_scores() -> None:
    net, pairs = model(), torch.combinations(torch.arange(NODES)).t()
    small, large = task(), task()
    large.eval_batch_size = 10**6
    torch.testing.assert_close(small.score(net, pairs), large.score(net, pairs))


@pytest.mark.parametrize("bad", [[[0], [NODES]], [[-1], [3]]])
def test_scores_of_unknown_nodes_are_refused(bad: list[list[int]]) -> None:
    with pytest.raises(UserError, match=f"ids 0 to {NODES - 1}"):
        task().score(model(), torch.tensor(bad))


def test_no_pairs_have_no_scores() -> None:
    assert task().score(model(), torch.zeros(2, 0, dtype=torch.int64)).shape == (0,)


@pytest.mark.parametrize("source", [0, 7, NODES - 1])
def test_top_lists_new_neighbours_best_first(source: int) -> None:
    links, net = task(), model()
    node, logit = links.top(net, source, 5)
    known = {
        j
        for part in links.benchmark.splits.values()
        for i, j in both_ways(part["pos_edge_label_index"])
        if i == source
    }
    assert known.isdisjoint(node.tolist())
    assert source not in node
    assert logit.tolist() == sorted(logit.tolist(), reverse=True)
    torch.testing.assert_close(links.score(net, torch.stack([torch.full_like(node, source), node])), logit)


def test_top_lists_all_new_neighbours_where_there_are_fewer_than_asked() -> None:
    links = task()
    known = {
        j
        for part in links.benchmark.splits.values()
        for i, j in both_ways(part["pos_edge_label_index"])
        if i == 3
    }
    assert set(links.top(model(), 3, 1000)[0].tolist()) == set(range(NODES)) - known - {3}


@pytest.mark.parametrize("source", [-1, NODES])
def test_top_of_an_unknown_node_is_refused(source: int) -> None:
    with pytest.raises(UserError, match=f"source is {source}"):
        task().top(model(), source, 3)


@pytest.mark.parametrize("name", ["encode", "score"])
def test_model_without_what_the_task_calls_is_refused(name: str) -> None:
    class Half(nn.Module):
        pass

    setattr(Half, name, lambda self, *args: None)
    with pytest.raises(UserError, match="Half can't predict links: it must have encode"):
        task().check(Half())
    task().check(model())


def test_mostly_empty_features_are_kept_as_sparse_rows() -> None:
    sparse = benchmark()
    sparse.data.x = torch.eye(NODES)
    links = LinkTask(sparse, 0, 8, 7)
    assert isinstance(links.x, SparseRows)
    net = MODELS.create("ncn", in_channels=NODES, hidden_channels=8).eval()
    pairs = torch.tensor([[0, 1], [2, 3]])
    torch.testing.assert_close(links.score(net, pairs), net(torch.eye(NODES), links.graph, pairs).detach())
    assert isinstance(task().x, Tensor)
