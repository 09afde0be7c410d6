"""The node task: which nodes a batch has, what it may see, and how nodes are classified."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain, pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Data

from graphkit.config import OptimConfig, RunConfig, TrainConfig
from graphkit.data import Benchmark, DataSpec
from graphkit.errors import UserError
from graphkit.evaluation.metrics import NodeEvaluator
from graphkit.partition import hierarchical_order
from graphkit.registry import MODELS
from graphkit.sparse import Adjacency, SparseRows
from graphkit.tasks.base import Loss
from graphkit.tasks.node import NodeBatch, NodeTask
from graphkit.testing import tiny_graph
from graphkit.train import Trainer

NODES, CHANNELS, CLASSES = 30, 5, 3
SAMPLED = {"fanouts": [3, 3, 3]}
EXACT = pytest.param({}, id="whole graph")
BOTH = [EXACT, pytest.param(SAMPLED, id="sampled")]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def benchmark(*, features: str = "dense", labels: int = 0) -> Benchmark:
    """Thirty nodes, 16 of them for training in no order; ``labels`` binary ones instead of a class."""
    data = tiny_graph(NODES, 70, CHANNELS, CLASSES)
    draw = torch.Generator().manual_seed(1)
    if features == "sparse":
        data.x = data.x * (torch.rand(NODES, CHANNELS, generator=draw) < 0.15)
    x = None if features == "none" else data.x
    y = torch.randint(2, (NODES, labels), generator=draw).float() if labels else data.y
    train, valid, test = torch.randperm(NODES, generator=draw).split([16, 6, 8])

    def labelled(logits: Tensor, truth: Tensor) -> dict[str, float]:
        return {"accuracy": float(((logits > 0) == truth.bool()).double().mean())}

    return Benchmark(
        "thirty",
        "node",
        Data(x=x, y=y, edge_index=data.edge_index, num_nodes=NODES),
        {"train": {"index": train}, "valid": {"index": valid}, "test": {"index": test}},
        DataSpec(NODES, None if x is None else CHANNELS, labels or CLASSES),
        "accuracy",
        True,
        labelled if labels else NodeEvaluator(),
    )


def task(
    batch_size: int = 6,
    *,
    seed: int = 0,
    eval_batch_size: int = 7,
    of: Benchmark | None = None,
    **options: Any,
) -> NodeTask:
    return NodeTask(of or benchmark(), seed, batch_size, eval_batch_size, **options)


def model(name: str = "sage", of: Benchmark | None = None, **options: Any) -> nn.Module:
    """A model that drops nothing and normalises each node by itself."""
    torch.manual_seed(0)
    spec = (of or benchmark()).spec
    sizes = {"in_channels": spec.in_channels} if name != "tt-gnn" else {}
    return MODELS.create(
        name,
        **sizes,
        num_classes=spec.num_classes,
        num_nodes=spec.num_nodes,
        **{"hidden_channels": 8, "dropout": 0.0, "norm": "layer", **options},
    )


def targets(nodes: NodeTask, epoch: int = 0) -> list[list[int]]:
    return [nodes.batch(epoch, step).targets.tolist() for step in range(nodes.steps_per_epoch)]


def loss_and_gradients(nodes: NodeTask, net: nn.Module, batch: NodeBatch) -> tuple[Tensor, list[Tensor]]:
    loss = nodes.loss(net, batch)
    value = loss.total / loss.divisor
    return value.detach(), list(torch.autograd.grad(value, list(net.parameters()), allow_unused=True))


# --- Batches -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"target_share": 0.5}, SAMPLED, {**SAMPLED, "target_share": 0.5}, {**SAMPLED, "cluster": 3}],
)
def test_batch_depends_on_seed_epoch_and_step_alone(options: dict[str, Any]) -> None:
    first, second = task(**options), task(**options)
    places = [(epoch, step) for epoch in range(2) for step in range(first.steps_per_epoch)]
    forwards = [first.batch(*place).targets for place in places]
    before = torch.get_rng_state()
    for place, expected in zip(reversed(places), reversed(forwards), strict=True):
        assert torch.equal(second.batch(*place).targets, expected)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("options", [SAMPLED, {"target_share": 0.5}])
def test_another_seed_or_epoch_gives_another_order(options: dict[str, Any]) -> None:
    assert targets(task(**options), 0) != targets(task(**options), 1)
    assert targets(task(**options), 0) != targets(task(seed=1, **options), 0)


@pytest.mark.parametrize(("batch_size", "sizes"), [(6, [6, 6, 4]), (16, [16]), (100, [16]), (1, [1] * 16)])
def test_every_training_node_is_a_target_once_an_epoch(batch_size: int, sizes: list[int]) -> None:
    nodes = task(batch_size, **SAMPLED)
    parts = targets(nodes)
    assert [len(part) for part in parts] == sizes
    assert sorted(chain(*parts)) == sorted(nodes.train_index.tolist())


def test_whole_graph_is_one_step_of_all_training_nodes() -> None:
    nodes = task(batch_size=2)
    assert nodes.steps_per_epoch == 1
    assert torch.equal(nodes.batch(3, 0).targets, nodes.benchmark.splits["train"]["index"])


@pytest.mark.parametrize("options", BOTH)
@pytest.mark.parametrize(("share", "count"), [(0.5, 8), (0.3, 5), (0.001, 1)])
def test_share_of_the_training_nodes_is_drawn_afresh(
    options: dict[str, Any], share: float, count: int
) -> None:
    nodes = task(batch_size=100, target_share=share, **options)
    train = set(nodes.train_index.tolist())
    epochs = [set(nodes.batch(epoch, 0).targets.tolist()) for epoch in range(200)]
    assert all(len(part) == count and part <= train for part in epochs)
    assert set.union(*epochs) == train


@pytest.mark.parametrize("parts", [1, 2, 3, 9])
def test_shards_part_a_batch(parts: int) -> None:
    nodes = task(**SAMPLED)
    batch = nodes.batch(0, 1)
    shards = [nodes.shard(batch, index, parts) for index in range(parts)]
    assert sorted(torch.cat([s.targets for s in shards]).tolist()) == sorted(batch.targets.tolist())
    assert {s.num_targets for s in shards} == {6}
    assert [s.place for s in shards] == [(0, 1, index, parts) for index in range(parts)]


def test_clustered_targets_are_blocks_in_the_order_of_the_embedding() -> None:
    of = benchmark(features="none")
    net = model("tt-gnn", of, embedding={"kind": "tensor_train", "dim": 8, "rank": 2})
    position = torch.randperm(NODES)
    net.embedding.set_order(position)
    nodes = task(batch_size=8, of=of, cluster=4, **SAMPLED)
    nodes.check(net)
    assert_blocks(nodes, position)
    assert targets(nodes, 0) != targets(nodes, 1)


def assert_blocks(nodes: NodeTask, position: Tensor) -> None:
    """Every four targets lie next to each other by position, in a ring of the training nodes."""
    ordered = sorted(nodes.train_index.tolist(), key=lambda node: int(position[node]))
    rank = {node: number for number, node in enumerate(ordered)}
    for epoch in range(3):
        drawn = list(chain(*targets(nodes, epoch)))
        assert sorted(drawn) == sorted(ordered)
        for first in range(0, 16, 4):
            steps = {(rank[b] - rank[a]) % 16 for a, b in pairwise(drawn[first : first + 4])}
            assert steps == {1}


@pytest.mark.parametrize("reorder", [False, True])
def test_clusters_follow_the_order_that_the_task_is_given(reorder: bool) -> None:
    nodes, position = task(batch_size=8, cluster=4, reorder=reorder, **SAMPLED), torch.randperm(NODES)
    assert nodes.wants_order
    nodes.renumber(position)
    nodes.check(model())
    assert_blocks(nodes, position)


def test_clusters_without_any_order_follow_the_graph() -> None:
    nodes, other = task(cluster=4, **SAMPLED), task(cluster=4, **SAMPLED)
    for each in (nodes, other):
        each.check(model())
    assert targets(nodes) == targets(other)
    assert sorted(chain(*targets(nodes))) == sorted(nodes.train_index.tolist())


def test_shards_of_clustered_batches_hold_whole_blocks() -> None:
    nodes, position = task(batch_size=16, cluster=4, **SAMPLED), torch.arange(NODES)
    nodes.renumber(position)
    batch = nodes.batch(0, 0)
    shards = [nodes.shard(batch, index, 3).targets for index in range(3)]
    assert [shard.numel() for shard in shards] == [8, 8, 0]
    assert torch.equal(torch.cat(shards), batch.targets)


def test_clusters_need_sampling() -> None:
    with pytest.raises(ValueError, match=r"task\.cluster is 4, which goes with task\.fanouts"):
        task(cluster=4)


# --- Loss --------------------------------------------------------------------------------------------------


def test_loss_is_the_cross_entropy_over_the_number_of_targets() -> None:
    nodes, net = task(), model()
    loss = nodes.loss(net, nodes.batch(0, 0))
    data, index = nodes.benchmark.data, nodes.train_index
    expected = F.cross_entropy(net(data.x, data.edge_index)[index], data.y[index])
    torch.testing.assert_close(loss.total / loss.divisor, expected)
    assert loss.divisor == 16


def test_log_loss_holds_outliers_back() -> None:
    nodes, net = task(loss="log"), model()
    loss = nodes.loss(net, nodes.batch(0, 0))
    data, index = nodes.benchmark.data, nodes.train_index
    each = F.cross_entropy(net(data.x, data.edge_index)[index], data.y[index], reduction="none")
    epsilon = 1 - math.log(2)
    torch.testing.assert_close(loss.total, ((epsilon + each) / epsilon).log().sum())


def test_several_labels_take_the_mean_of_their_logistic_losses() -> None:
    of = benchmark(labels=4)
    nodes, net = task(of=of), model(of=of)
    loss = nodes.loss(net, nodes.batch(0, 0))
    index = nodes.train_index
    logits = net(of.data.x, of.data.edge_index)[index]
    expected = F.binary_cross_entropy_with_logits(logits, of.data.y[index])
    torch.testing.assert_close(loss.total / loss.divisor, expected)
    assert not nodes.multi_class


@pytest.mark.parametrize("options", BOTH)
@pytest.mark.parametrize("parts", [2, 3, 9])
@pytest.mark.parametrize("name", ["gcn", "gat"])
def test_losses_and_gradients_of_shards_add_up_to_the_whole(
    name: str, parts: int, options: dict[str, Any]
) -> None:
    """With equal fan-outs a node draws the same neighbours in every shard; nine shards leave some empty."""
    nodes, net = task(**options), model(name)
    batch = nodes.batch(0, 0)
    whole = loss_and_gradients(nodes, net, batch)
    shards = [loss_and_gradients(nodes, net, nodes.shard(batch, index, parts)) for index in range(parts)]
    torch.testing.assert_close(sum(value for value, _ in shards), whole[0])
    for position, expected in enumerate(whole[1]):
        added = sum(gradients[position] for _, gradients in shards)
        torch.testing.assert_close(added, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("options", BOTH)
def test_accumulated_micro_batches_train_as_one_batch(options: dict[str, Any]) -> None:
    weights = []
    for accumulate in (1, 2):
        net = model()
        config = RunConfig(
            model_name="sage",
            dataset_name="thirty",
            task_name="node",
            optim=OptimConfig(lr=0.01),
            train=TrainConfig(epochs=2, batch_size=8 // accumulate, accumulate=accumulate),
        )
        Trainer(net, task(batch_size=8, **options), config).fit()
        weights.append(net.state_dict())
    torch.testing.assert_close(*weights, atol=1e-5, rtol=1e-4)


def test_targets_sampled_with_all_neighbours_have_the_loss_of_the_whole_graph() -> None:
    whole, sampled, net = task(), task(batch_size=16, fanouts=[-1, -1, -1]), model("gcn")
    first, second = (loss_and_gradients(nodes, net, nodes.batch(0, 0)) for nodes in (whole, sampled))
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("parts", [1, 2])
def test_number_of_workers_changes_no_loss(parts: int) -> None:
    found = []
    for workers in (0, 1, 3):
        nodes, net = task(batch_size=4, workers=workers, **SAMPLED), model()
        found.append(
            [
                nodes.loss(net, nodes.shard(nodes.batch(epoch, step), index, parts)).total.item()
                for epoch in range(2)
                for step in range(nodes.steps_per_epoch)
                for index in range(parts)
            ]
        )
    assert found[0] == found[1] == found[2]


def test_each_epoch_samples_other_neighbours() -> None:
    nodes, net = task(batch_size=16, fanouts=[1, 1, 1]), model()
    assert len({nodes.loss(net, nodes.batch(epoch, 0)).total.item() for epoch in range(4)}) == 4


@pytest.mark.parametrize("options", BOTH)
def test_classes_of_other_nodes_than_those_for_training_are_never_read(options: dict[str, Any]) -> None:
    """A class that doesn't exist would end in an error, and in other gradients at least."""
    of, net = benchmark(), model()
    honest = loss_and_gradients(task(**options), net, task(**options).batch(0, 0))
    hidden = torch.cat([of.splits["valid"]["index"], of.splits["test"]["index"]])
    of.data.y[hidden] = 99
    nodes = task(of=of, **options)
    torch.testing.assert_close(loss_and_gradients(nodes, net, nodes.batch(0, 0)), honest)
    assert set(chain(*targets(nodes))).isdisjoint(hidden.tolist())


def test_model_may_bring_its_own_loss() -> None:
    net = model()
    net.loss = lambda x, batch: Loss(x.sum() * batch.num_targets, 2.0)
    nodes = task()
    loss = nodes.loss(net, nodes.batch(0, 0))
    assert float(loss.total) == pytest.approx(float(nodes.benchmark.data.x.sum()) * 16)
    assert loss.divisor == 2


# --- Evaluation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", BOTH)
@pytest.mark.parametrize("features", ["dense", "sparse", "none"])
@pytest.mark.parametrize("eval_batch_size", [7, 100])
def test_exact_evaluation_is_that_of_the_model_on_the_whole_graph(
    features: str, eval_batch_size: int, options: dict[str, Any]
) -> None:
    of = benchmark(features=features)
    nodes, net = task(of=of, eval_batch_size=eval_batch_size, **options), model("gat", of)
    expected = net.eval()(of.data.x, nodes.graph)
    every = torch.arange(NODES).flip(0)
    found = nodes.logits(net.train(), every)
    torch.testing.assert_close(found, expected[every])
    index = of.splits["valid"]["index"]
    accuracy = float((expected[index].argmax(1) == of.data.y[index]).double().mean())
    assert nodes.evaluate(net, "valid") == {"accuracy": pytest.approx(accuracy)}


def test_mostly_empty_features_are_kept_as_sparse_rows() -> None:
    assert isinstance(task(of=benchmark(features="sparse")).x, SparseRows)
    assert isinstance(task().x, Tensor)


@pytest.mark.parametrize("features", ["dense", "none"])
def test_sampled_evaluation_of_all_neighbours_is_exact(features: str) -> None:
    of = benchmark(features=features)
    net, every = model("gcn", of), torch.randint(NODES, (40,))
    sampled = task(of=of, eval_fanouts=[-1, -1, -1], **SAMPLED)
    torch.testing.assert_close(sampled.logits(net, every), task(of=of).logits(net, every))


def test_sampled_evaluation_is_the_same_each_time_and_draws_nothing_from_torchs_generator() -> None:
    nodes, net = task(eval_fanouts=[2, 2, 2], **SAMPLED), model(dropout=0.5)
    before = torch.get_rng_state()
    first = nodes.logits(net, torch.arange(NODES))
    nodes.sampler.sample(torch.arange(5), 3, 0)
    assert torch.equal(nodes.logits(net, torch.arange(NODES)), first)
    assert torch.equal(before, torch.get_rng_state())


def test_every_split_can_be_evaluated() -> None:
    nodes = task()
    assert nodes.evaluation_splits == ("train", "valid", "test")
    with pytest.raises(UserError, match="can't be evaluated on split 'tset'; take train or valid or test"):
        nodes.check_split("tset")


def test_rows_of_the_benchmark_are_used_where_it_has_them() -> None:
    of, net = benchmark(), model()
    expected = task(of=of).logits(net, torch.arange(NODES))
    of.adjacency = Adjacency.from_edge_index(of.data.edge_index, NODES)
    of.data.edge_index = None
    of.data.y = of.data.y[:, None]
    assert torch.equal(task(of=of).logits(net, torch.arange(NODES)), expected)
    assert task(of=of).y.shape == (NODES,)


# --- Renumbered nodes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", BOTH)
@pytest.mark.parametrize("features", ["dense", "sparse", "none"])
def test_renumbered_nodes_change_neither_losses_nor_logits(features: str, options: dict[str, Any]) -> None:
    of = benchmark(features=features)
    plain, moved = task(of=of, **options), task(of=of, reorder=True, **options)
    assert (plain.wants_order, moved.wants_order) == (False, True)
    moved.renumber(hierarchical_order(of.data.edge_index, NODES, (4, 4, 4)))
    net, every = model("gcn", of), torch.arange(NODES)
    (loss, gradients), (expected, others) = (
        loss_and_gradients(nodes, net, nodes.batch(0, 0)) for nodes in (moved, plain)
    )
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradients, others, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(moved.logits(net, every), plain.logits(net, every), atol=1e-5, rtol=1e-5)
    assert moved.evaluate(net, "test") == plain.evaluate(net, "test")


def test_nothing_is_renumbered_where_no_pass_is_over_the_whole_graph() -> None:
    assert not task(reorder=True, eval_fanouts=[2, 2, 2], **SAMPLED).wants_order


# --- Refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["fanouts", "eval_fanouts"])
def test_samples_must_have_a_hop_for_each_layer(option: str) -> None:
    nodes = task(**{option: [5, 5]})
    with pytest.raises(
        UserError, match=rf"task.{option} has 2 hops for a model of 3 layers; give one number"
    ):
        nodes.check(model())
    nodes.check(model(num_layers=2))


@pytest.mark.parametrize("unsuitable", [nn.Linear(5, 3), MODELS.create("cn")])
def test_model_without_what_the_task_calls_is_refused(unsuitable: nn.Module) -> None:
    with pytest.raises(UserError, match=f"{type(unsuitable).__name__} can't classify nodes: it must have"):
        task().check(unsuitable)


def test_graph_without_training_nodes_is_refused() -> None:
    of = benchmark()
    of.splits["train"] = {"index": torch.empty(0, dtype=torch.int64)}
    with pytest.raises(UserError, match="thirty has no training nodes"):
        task(of=of)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_share": 0}, r"task.target_share is 0; it must lie in \(0, 1\]"),
        ({"target_share": 1.5}, r"task.target_share is 1.5; it must lie in \(0, 1\]"),
        ({"cluster": -1}, "task.cluster is -1"),
        ({"workers": -1}, "task.workers -1"),
        ({"fanouts": [0]}, r"fanouts is \[0\]"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task(**options)
