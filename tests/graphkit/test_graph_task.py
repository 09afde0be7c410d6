"""The graph task: which graphs a batch has, losses over what is known, evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Data

from graphkit.config import OptimConfig, RunConfig, TrainConfig
from graphkit.data import Benchmark, DataSpec
from graphkit.errors import UserError
from graphkit.evaluation import GraphEvaluator
from graphkit.graphs import collate
from graphkit.nn.readout import pool
from graphkit.tasks.base import Loss
from graphkit.tasks.graph import GraphBatch, GraphTask
from graphkit.tasks.graph_loss import Standard
from graphkit.train import Trainer

GRAPHS, CHANNELS = 23, 3
WIDTH = {"regression": 2, "binary": 2, "classes": 3}
METRIC = {"regression": "mae", "binary": "rocauc", "classes": "accuracy"}
KINDS = list(WIDTH)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def targets(kind: str, rows: int, width: int, draw: torch.Generator, unknown: float) -> Tensor:
    if kind == "classes":
        return torch.randint(width, (rows,), generator=draw)
    y = torch.randn(rows, width, generator=draw, dtype=torch.float64) * 4 + 7
    y = y if kind == "regression" else (y > 7).double()
    y[torch.rand(rows, width, generator=draw) < unknown] = math.nan
    return y


def benchmark(
    kind: str = "regression",
    *,
    per_node: bool = False,
    unknown: float = 0.3,
    width: int | None = None,
    **changes: Any,
) -> Benchmark:
    """Graphs of 1 to 9 nodes, 14 of them for training in no order, in float64."""
    draw = torch.Generator().manual_seed(3)
    width = width or WIDTH[kind]
    graphs = []
    for _ in range(GRAPHS):
        nodes = int(torch.randint(1, 10, (1,), generator=draw))
        x = torch.randn(nodes, CHANNELS, generator=draw, dtype=torch.float64)
        edges = torch.randint(nodes, (2, 2 * nodes), generator=draw)
        graphs.append(Data(x=x, edge_index=edges, num_nodes=nodes))
    data = collate(graphs)
    data.y = targets(kind, int(data.num_nodes) if per_node else GRAPHS, width, draw, unknown)
    train, valid, test = torch.randperm(GRAPHS, generator=draw).split([14, 5, 4])
    made = {
        "name": "few",
        "task": "graph",
        "data": data,
        "splits": {"train": {"index": train}, "valid": {"index": valid}, "test": {"index": test}},
        "spec": DataSpec(in_channels=CHANNELS, out_channels=width),
        "metric": METRIC[kind],
        "maximize": kind != "regression",
        "evaluator": GraphEvaluator(kind, METRIC[kind]),  # type: ignore[arg-type]
        "targets": kind,
    }
    return Benchmark(**{**made, **changes})


def task(
    kind: str = "regression", batch_size: int = 4, *, of: Benchmark | None = None, **options: Any
) -> GraphTask:
    given = {"seed": 0, "eval_batch_size": 3, **options}
    return GraphTask(of or benchmark(kind), batch_size=batch_size, **given)


class SumModel(nn.Module):
    """Adds up the nodes of a graph and of its edges, or keeps the nodes apart."""

    def __init__(self, width: int, per_node: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.per_node = nn.Linear(CHANNELS, 8), per_node
        self.head = nn.Linear(8, width)
        self.double()

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor,
        edge_attr: Tensor | None = None,
        batch: Tensor | None = None,
        sizes: Tensor | None = None,
    ) -> Tensor:
        assert batch is not None
        assert sizes is not None
        assert sizes.device.type == "cpu"
        assert torch.equal(torch.bincount(batch, minlength=sizes.numel()), sizes)
        h = torch.tanh(self.first(x))
        h = h + torch.zeros_like(h).index_add(0, edge_index[1], h[edge_index[0]])
        out: Tensor = self.head(h if self.per_node else pool(h, batch, sizes.numel()))
        return out


def model(of: GraphTask) -> SumModel:
    return SumModel(of.width, of.graphs.per_node)


def epoch_of(graphs: GraphTask, epoch: int = 0) -> list[list[int]]:
    return [graphs.batch(epoch, step).ids.tolist() for step in range(graphs.steps_per_epoch)]


def value_and_gradients(
    graphs: GraphTask, net: nn.Module, *shards: GraphBatch
) -> tuple[Tensor, list[Tensor]]:
    parts = [graphs.loss(net, shard) for shard in shards]
    assert len({part.divisor for part in parts}) == 1
    value = torch.stack([part.total / part.divisor for part in parts]).sum()
    return value.detach(), list(torch.autograd.grad(value, list(net.parameters())))


# --- Batches -----------------------------------------------------------------------------------------------

ORDERS = [pytest.param({}, id="plain"), pytest.param({"bucket": 2}, id="bucketed")]


@pytest.mark.parametrize("options", ORDERS)
@pytest.mark.parametrize(
    ("batch_size", "sizes"), [(4, [4, 4, 3, 3]), (7, [7, 7]), (14, [14]), (50, [14]), (1, [1] * 14)]
)
def test_every_training_graph_comes_once_an_epoch(
    batch_size: int, sizes: list[int], options: dict[str, Any]
) -> None:
    graphs = task(batch_size=batch_size, **options)
    parts = epoch_of(graphs, 3)
    assert sorted(map(len, parts), reverse=True) == sizes
    assert sorted(chain(*parts)) == sorted(graphs.train_index.tolist())


@pytest.mark.parametrize("options", ORDERS)
def test_batch_depends_on_seed_epoch_and_step_alone(options: dict[str, Any]) -> None:
    first, second = task(**options), task(**options)
    places = [(epoch, step) for epoch in range(2) for step in range(first.steps_per_epoch)]
    forwards = [first.batch(*place) for place in places]
    before = torch.get_rng_state()
    for place, expected in zip(reversed(places), reversed(forwards), strict=True):
        found = second.batch(*place)
        assert torch.equal(found.ids, expected.ids)
        assert found.divisor == expected.divisor
    assert torch.equal(before, torch.get_rng_state())
    assert epoch_of(first, 0) != epoch_of(first, 1)
    assert epoch_of(first) != epoch_of(task(seed=1, **options))


def test_buckets_hold_graphs_of_like_size() -> None:
    sizes = task().graphs.sizes()

    def spread(graphs: GraphTask) -> int:
        parts = [sizes[part] for epoch in range(5) for part in epoch_of(graphs, epoch)[:-1]]
        return sum(int(part.max() - part.min()) for part in parts)

    assert spread(task(bucket=3)) < spread(task(bucket=2)) < spread(task())
    first = [sizes[epoch_of(task(bucket=3), epoch)[0]].double().mean() for epoch in range(8)]
    assert max(first) > min(first) + 2  # neither always the smallest nor always the largest


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_shards_share_out_a_batch(parts: int) -> None:
    graphs = task()
    batch = graphs.batch(0, 0)
    shards = [graphs.shard(batch, index, parts) for index in range(parts)]
    assert sorted(chain(*(shard.ids.tolist() for shard in shards))) == sorted(batch.ids.tolist())


# --- Losses ------------------------------------------------------------------------------------------------


def naive(graphs: GraphTask, out: Tensor, y: Tensor) -> float:
    """The loss as its formula says, entry by entry."""
    total, divisor = 0.0, 0.0
    if graphs.kind == "classes":
        count = y.numel()
        for row, label in zip(out.log_softmax(1).tolist(), y.tolist(), strict=True):
            share = (count - int((y == label).sum())) / count if graphs.loss_name == "weighted" else 1.0
            total -= share * row[label]
            divisor += share
        return total / divisor
    for t in range(y.size(1)):
        known = y[~torch.isnan(y[:, t]), t]
        for p, value in zip(out[:, t].tolist(), y[:, t].tolist(), strict=True):
            if math.isnan(value):
                continue
            divisor += 1
            if graphs.kind == "binary":
                share = (
                    1 - int((known == value).sum()) / known.numel() if graphs.loss_name == "weighted" else 1
                )
                total += share * math.log1p(math.exp(-(2 * value - 1) * p))
            else:
                z = value
                if graphs.standard is not None:
                    z = (value - float(graphs.standard.mean[t])) / float(graphs.standard.deviation[t])
                total += abs(p - z) if graphs.loss_name == "mae" else (p - z) ** 2
    return total / divisor


LOSSES = [
    ("regression", {"loss": "mae"}),
    ("regression", {"loss": "mse", "standardize": False}),
    ("regression", {}),
    ("binary", {}),
    ("binary", {"loss": "weighted"}),
    ("classes", {"loss": "cross_entropy"}),
    ("classes", {"loss": "weighted"}),
]


@pytest.mark.parametrize("per_node", [False, True], ids=["graphs", "nodes"])
@pytest.mark.parametrize(("kind", "options"), LOSSES)
def test_loss_is_its_formula_over_what_is_known(kind: str, options: dict[str, Any], per_node: bool) -> None:
    graphs = task(of=benchmark(kind, per_node=per_node), batch_size=9, **options)
    net, batch = model(graphs), graphs.batch(0, 0)
    data = graphs.gather(batch.ids)
    out = net(data.x, data.edge_index, None, data.batch, data.sizes)
    loss = graphs.loss(net, batch)
    assert float(loss.total.detach()) / loss.divisor == pytest.approx(naive(graphs, out, data.y), rel=1e-12)
    loss.total.backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in net.parameters() if p.grad is not None)


@pytest.mark.parametrize("per_node", [False, True], ids=["graphs", "nodes"])
@pytest.mark.parametrize(("kind", "options"), LOSSES)
@pytest.mark.parametrize("parts", [2, 3, 9])
def test_shards_add_up_to_the_whole_batch(
    kind: str, options: dict[str, Any], per_node: bool, parts: int
) -> None:
    graphs = task(of=benchmark(kind, per_node=per_node), batch_size=7, **options)
    net, batch = model(graphs), graphs.batch(1, 0)
    value, gradients = value_and_gradients(graphs, net, batch)
    shards = [graphs.shard(batch, index, parts) for index in range(parts)]
    summed, added = value_and_gradients(graphs, net, *shards)
    torch.testing.assert_close(summed, value, rtol=1e-13, atol=1e-13)
    for whole, sum_of_parts in zip(gradients, added, strict=True):
        torch.testing.assert_close(sum_of_parts, whole, rtol=1e-12, atol=1e-13)


@given(labels=st.lists(st.integers(0, 4), min_size=2, max_size=30), seed=st.integers(0, 2**31))
def test_weighted_loss_of_classes_is_torchs_with_weights_of_the_batch(labels: list[int], seed: int) -> None:
    y = torch.tensor(labels)
    if len(set(labels)) < 2:
        return
    of = benchmark("classes", width=5)
    of.data = collate([Data(x=torch.zeros(1, CHANNELS), edge_index=torch.zeros(2, 0).long()) for _ in labels])
    of.data.y, of.splits = y, {"train": {"index": torch.arange(len(labels))}}
    graphs = task(of=of, batch_size=len(labels), loss="weighted")
    counts = torch.bincount(y, minlength=5).double()
    weights = (len(labels) - counts) / len(labels) * (counts > 0)
    scores = torch.randn(len(labels), 5, generator=torch.Generator().manual_seed(seed)).double()

    class Fixed(SumModel):
        def forward(self, *arguments: Any) -> Tensor:
            return scores

    batch = graphs.whole(torch.arange(len(labels)))
    loss = graphs.loss(Fixed(5), batch)
    expected = F.cross_entropy(scores, y, weight=weights)
    assert float(loss.total) / loss.divisor == pytest.approx(float(expected), rel=1e-12)


def test_batch_without_a_known_label_has_no_loss() -> None:
    for kind in ("regression", "binary"):
        graphs = task(of=benchmark(kind, unknown=1.0))
        value, gradients = value_and_gradients(graphs, model(graphs), graphs.batch(0, 0))
        assert float(value) == 0
        assert all(not bool(g.any()) for g in gradients)


def test_weighted_batch_of_one_class_has_no_loss() -> None:
    of = benchmark("classes")
    of.data.y = torch.ones_like(of.data.y)
    graphs = task(of=of, loss="weighted")
    value, _ = value_and_gradients(graphs, model(graphs), graphs.batch(0, 0))
    assert float(value) == 0


@pytest.mark.parametrize(("metric", "loss"), [("mae", "mae"), ("rmse", "mse")])
def test_regression_learns_by_the_loss_that_its_metric_asks_for(metric: str, loss: str) -> None:
    assert task(of=benchmark(metric=metric)).loss_name == loss
    assert task(of=benchmark(metric=metric), loss="mse").loss_name == "mse"


def test_a_models_own_loss_is_taken() -> None:
    class Own(SumModel):
        def loss(self, data: Data, batch: GraphBatch) -> Loss:
            assert data.sizes.numel() == batch.ids.numel() == data.y.size(0)
            return Loss(self.head.weight.sum() * 0 + 6.0, batch.divisor)

    graphs = task()
    batch = graphs.batch(0, 0)
    assert graphs.loss(Own(2), batch) == (6.0, batch.divisor)


# --- Standardised targets ----------------------------------------------------------------------------------


def test_targets_are_standardised_over_what_is_known_of_the_training_split() -> None:
    graphs = task()
    assert graphs.standard is not None
    known = graphs.y[graphs.train_index]
    for t in range(2):
        column = known[~torch.isnan(known[:, t]), t]
        assert float(graphs.standard.mean[t]) == pytest.approx(float(column.mean()))
        assert float(graphs.standard.deviation[t]) == pytest.approx(float(column.std(unbiased=False)))
    torch.testing.assert_close(graphs.standard.undo(graphs.standard.apply(known)), known, equal_nan=True)
    assert task(standardize=False).standard is None
    assert task("binary").standard is None


def test_target_that_does_not_vary_is_only_shifted() -> None:
    standard = Standard.of(torch.tensor([[5.0, math.nan], [5.0, math.nan]]))
    assert standard.mean.tolist() == [5, 0]
    assert standard.deviation.tolist() == [1, 1]


# --- Evaluation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_node", [False, True], ids=["graphs", "nodes"])
@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_is_the_same_in_portions_of_any_size(kind: str, per_node: bool) -> None:
    of = benchmark(kind, per_node=per_node)
    net = model(task(of=of))
    for split in ("train", "valid", "test"):
        found = [task(of=of, eval_batch_size=size).evaluate(net, split) for size in (1, 3, 100)]
        assert METRIC[kind] in found[0]
        assert found[1] == pytest.approx(found[0])
        assert found[2] == pytest.approx(found[0])


@pytest.mark.parametrize("per_node", [False, True], ids=["graphs", "nodes"])
def test_outputs_have_one_row_for_each_graph_in_order(per_node: bool) -> None:
    graphs = task(of=benchmark(per_node=per_node), eval_batch_size=4)
    net = model(graphs)
    ids = torch.tensor([5, 2, 9, 2, 0, 22, 11])
    alone = [graphs.outputs(net, ids[k : k + 1]) for k in range(len(ids))]
    assert [len(a) for a in alone] == (graphs.graphs.sizes(ids).tolist() if per_node else [1] * len(ids))
    torch.testing.assert_close(graphs.outputs(net, ids), torch.cat(alone), rtol=1e-12, atol=1e-12)
    assert graphs.outputs(net, ids[:0]).shape == (0, 2)


def test_evaluator_gets_logits_and_truth_with_its_unknowns() -> None:
    seen = []

    def evaluator(predictions: Tensor, y: Tensor) -> dict[str, float]:
        seen.append((predictions, y))
        return {"rocauc": 1.0}

    graphs = task(of=benchmark("binary", evaluator=evaluator))
    net = model(graphs)
    graphs.evaluate(net, "valid")
    index = graphs.benchmark.splits["valid"]["index"]
    assert torch.equal(seen[0][0], graphs.outputs(net, index))
    torch.testing.assert_close(seen[0][1], graphs.y[index], equal_nan=True)
    assert not seen[0][0].requires_grad


@pytest.mark.parametrize("per_node", [False, True], ids=["graphs", "nodes"])
@pytest.mark.parametrize("kind", KINDS)
def test_training_lowers_the_loss(kind: str, per_node: bool) -> None:
    graphs = task(of=benchmark(kind, per_node=per_node), batch_size=8)
    config = RunConfig(
        model_name="sum",
        dataset_name="few",
        task_name="graph",
        optim=OptimConfig(lr=0.03),
        train=TrainConfig(epochs=25, accumulate=2, eval_every=25),
    )
    net = model(graphs)

    def loss() -> float:
        part = graphs.loss(net, graphs.whole(graphs.train_index))
        return float(part.total.detach()) / part.divisor

    before = loss()
    result = Trainer(net, graphs, config).fit()
    assert loss() < 0.9 * before
    assert math.isfinite(result.test[METRIC[kind]])


# --- Refusals ----------------------------------------------------------------------------------------------


def test_model_that_takes_no_graphs_is_refused() -> None:
    class Nodes(nn.Module):
        def forward(self, x: Tensor, graph: Any, n_id: Tensor | None = None) -> Tensor:
            return x

    with pytest.raises(UserError, match=r"Nodes can't predict graphs: it must have forward\(x, edge_index"):
        task().check(Nodes())
    task().check(SumModel(2))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (
            "regression",
            {"loss": "weighted"},
            "task.loss is 'weighted'; for regression it must be one of auto",
        ),
        ("classes", {"loss": "mae"}, "task.loss is 'mae'; for classes it must be one of auto, cross_entropy"),
        ("binary", {"bucket": -1}, "task.bucket is -1; it must be at least 0"),
    ],
)
def test_option_out_of_range_is_refused(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task(kind, **options)


def test_data_that_cannot_be_predicted_are_refused() -> None:
    with pytest.raises(UserError, match="few doesn't say what its graphs' targets are"):
        task(of=benchmark(targets=""))
    with pytest.raises(UserError, match=r"targets torch.int64 \[23\]; regression must be floating point"):
        task(of=benchmark("classes", targets="regression"))
    with pytest.raises(UserError, match=r"classes must be integers \[G\]"):
        task(of=benchmark("regression", targets="classes"))
    empty = benchmark()
    empty.splits["train"] = {"index": torch.zeros(0, dtype=torch.int64)}
    with pytest.raises(UserError, match="few has no training graphs"):
        task(of=empty)
