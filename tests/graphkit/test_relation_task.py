"""The relation task: batches of query graphs, losses, accuracy by (k, b)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain, pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from graphkit.config import OptimConfig, RunConfig, TrainConfig
from graphkit.data import Benchmark, DataSpec
from graphkit.errors import UserError
from graphkit.evaluation import GraphEvaluator
from graphkit.graphs import collate
from graphkit.pictures import cells_of, draw_cells
from graphkit.tasks.relation import RelationBatch, RelationTask
from graphkit.train import Trainer

RELATIONS = ["zero", "one", "two"]  # of addition modulo 3
GRAPHS = 23


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def query_graph(k: int, b: int, draw: torch.Generator) -> Data:
    """b paths of k edges from node 0 to the last node, all of which add up to the same."""
    nodes = b * (k - 1) + 2
    total = int(torch.randint(3, (1,), generator=draw))
    edges, types = [], []
    for branch in range(b):
        inner = range(1 + branch * (k - 1), 1 + (branch + 1) * (k - 1))
        kinds = torch.randint(3, (k,), generator=draw)
        kinds[-1] = (total - int(kinds[:-1].sum())) % 3
        walk = [0, *inner, nodes - 1]
        edges += list(pairwise(walk))
        types += kinds.tolist()
    on_path = torch.zeros(nodes, dtype=torch.bool)
    on_path[[0, *range(1, k), nodes - 1]] = True
    return Data(
        edge_index=torch.tensor(edges).t(),
        edge_type=torch.tensor(types),
        node_on_path=on_path,
        num_nodes=nodes,
        source=torch.tensor([0]),
        target=torch.tensor([nodes - 1]),
        y=torch.tensor([total]),
        k=torch.tensor([k]),
        b=torch.tensor([b]),
    )


def benchmark(**changes: Any) -> Benchmark:
    """Queries of addition modulo 3, 14 of them for training in no order."""
    draw = torch.Generator().manual_seed(3)
    sizes = [(2, 1), (3, 1), (2, 2), (4, 1), (3, 2)]
    data = collate([query_graph(*sizes[i % len(sizes)], draw) for i in range(GRAPHS)])
    train, valid, test = torch.randperm(GRAPHS, generator=draw).split([14, 4, 5])
    made = {
        "name": "sums",
        "task": "relation",
        "data": data,
        "splits": {"train": {"index": train}, "valid": {"index": valid}, "test": {"index": test}},
        "spec": DataSpec(num_relations=3),
        "metric": "accuracy",
        "maximize": True,
        "evaluator": GraphEvaluator("classes", "accuracy"),
        "targets": "classes",
        "target_names": RELATIONS,
    }
    return Benchmark(**{**made, **changes})


def task(batch_size: int = 4, *, of: Benchmark | None = None, **options: Any) -> RelationTask:
    given = {"seed": 0, "eval_batch_size": 3, **options}
    return RelationTask(of or benchmark(), batch_size=batch_size, **given)


class SumModel(nn.Module):
    """Adds up a learnt row of each edge into the first node of the path, and that of the path's nodes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.edge = nn.Embedding(3, 3)
        self.double()

    def forward(
        self,
        edge_index: Tensor,
        edge_type: Tensor,
        source: Tensor,
        target: Tensor,
        *,
        num_nodes: int,
        path_node: Tensor | None = None,
        path_graph: Tensor | None = None,
    ) -> Tensor:
        assert path_node is not None
        assert path_graph is not None
        assert source.shape == target.shape == (int(path_graph.max()) + 1,)
        owner = torch.full((num_nodes,), -1)
        owner[path_node] = path_graph
        assert torch.equal(owner[source], torch.arange(source.numel()))
        assert torch.equal(owner[target], torch.arange(source.numel()))
        rows = self.edge(edge_type)
        graph = owner[edge_index[0]]
        graph = torch.where(graph < 0, owner[edge_index[1]], graph)
        known = graph >= 0
        return torch.tanh(torch.zeros(source.numel(), 3).double().index_add(0, graph[known], rows[known]))


class Drawing(SumModel):
    """Has a loss of its own that draws a negative for each query."""

    def training_loss(
        self,
        edge_index: Tensor,
        edge_type: Tensor,
        source: Tensor,
        target: Tensor,
        y: Tensor,
        *,
        num_nodes: int,
        path_node: Tensor,
        path_graph: Tensor,
        seed: Tensor,
    ) -> Tensor:
        scores = self(
            *(edge_index, edge_type, source, target),
            num_nodes=num_nodes,
            path_node=path_node,
            path_graph=path_graph,
        )
        assert seed.shape == y.shape
        negative = (y + 1 + seed % 2) % 3
        rows = torch.arange(y.numel())
        return (1 + scores[rows, negative] - scores[rows, y]).clamp(min=0)


MODELS = [SumModel, Drawing]


def value_and_gradients(
    of: RelationTask, net: nn.Module, *shards: RelationBatch
) -> tuple[Tensor, list[Tensor]]:
    parts = [of.loss(net, shard) for shard in shards]
    assert len({part.divisor for part in parts}) == 1
    value = torch.stack([part.total / part.divisor for part in parts]).sum()
    return value.detach(), list(torch.autograd.grad(value, list(net.parameters())))


# --- Batches -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch_size", "sizes"), [(4, [4, 4, 4, 2]), (7, [7, 7]), (14, [14]), (50, [14]), (1, [1] * 14)]
)
def test_every_training_query_comes_once_an_epoch(batch_size: int, sizes: list[int]) -> None:
    made = task(batch_size)
    parts = [made.batch(3, step).ids.tolist() for step in range(made.steps_per_epoch)]
    assert [len(part) for part in parts] == sizes
    assert sorted(chain(*parts)) == sorted(made.train_index.tolist())


def test_batch_depends_on_seed_epoch_and_step_alone() -> None:
    first, second = task(), task()
    places = [(epoch, step) for epoch in range(2) for step in range(first.steps_per_epoch)]
    forwards = [first.batch(*place) for place in places]
    before = torch.get_rng_state()
    for place, expected in zip(reversed(places), reversed(forwards), strict=True):
        found = second.batch(*place)
        assert torch.equal(found.ids, expected.ids)
        assert torch.equal(found.seeds, expected.seeds)
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(forwards[0].seeds, forwards[1].seeds)
    assert not torch.equal(forwards[0].ids, task(seed=1).batch(0, 0).ids)


def test_union_of_graphs_is_that_of_its_queries() -> None:
    made = task()
    ids = torch.tensor([9, 0, 4])
    queries = made.queries.gather(ids)
    shared = made.graphs.batch(ids)
    assert torch.equal(queries.edge_index, shared.edge_index)
    assert torch.equal(queries.edge_type, shared.edge_type)
    begin = 0
    for place, number in enumerate(ids.tolist()):
        graph = made.graphs[number]
        assert int(queries.source[place]) == begin + int(graph.source)
        assert int(queries.target[place]) == begin + int(graph.target)
        nodes = queries.path_node[queries.path_graph == place] - begin
        assert torch.equal(nodes, graph.node_on_path.nonzero().squeeze(1))
        begin += int(graph.num_nodes)
    assert queries.num_nodes == begin


def test_nodes_of_a_path_are_found_where_the_data_set_has_none() -> None:
    of, every = benchmark(), torch.arange(GRAPHS)
    stored = task(of=of).queries.gather(every)
    del of.data.node_on_path
    found = task(of=of).queries.gather(every)
    assert torch.equal(found.path_graph, stored.path_graph)
    assert torch.equal(torch.bincount(found.path_graph), of.data.k + 1)
    assert set(found.source.tolist()) | set(found.target.tolist()) <= set(found.path_node.tolist())


def test_union_of_no_graph_is_empty() -> None:
    queries = task().queries.gather(torch.zeros(0, dtype=torch.int64))
    assert queries.num_nodes == 0
    assert queries.edge_index.shape == (2, 0)


# --- Losses ------------------------------------------------------------------------------------------------


def test_loss_is_cross_entropy_unless_the_model_has_its_own() -> None:
    made = task(9)
    batch, queries = made.batch(0, 0), made.queries.gather(made.batch(0, 0).ids)
    y = made.y[batch.ids]
    net = SumModel()
    scores = queries.scores(net).detach()
    naive = sum(-float(row.log_softmax(0)[label]) for row, label in zip(scores, y.tolist(), strict=True))
    loss = made.loss(net, batch)
    assert float(loss.total.detach()) == pytest.approx(naive, rel=1e-12)
    assert loss.divisor == 9
    own = Drawing()
    named = queries._asdict()
    ends = [named.pop(name) for name in ("edge_index", "edge_type", "source", "target")]
    expected = own.training_loss(*ends, y, **named, seed=batch.seeds).sum()
    assert float(made.loss(own, batch).total.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("parts", [2, 3, 9])
def test_shards_add_up_to_the_whole_batch(kind: type[SumModel], parts: int) -> None:
    made, net = task(7), kind()
    batch = made.batch(1, 0)
    value, gradients = value_and_gradients(made, net, batch)
    shards = [made.shard(batch, index, parts) for index in range(parts)]
    assert sorted(chain(*(shard.ids.tolist() for shard in shards))) == sorted(batch.ids.tolist())
    summed, added = value_and_gradients(made, net, *shards)
    torch.testing.assert_close(summed, value, rtol=1e-13, atol=1e-13)
    for whole, sum_of_parts in zip(gradients, added, strict=True):
        torch.testing.assert_close(sum_of_parts, whole, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", MODELS)
def test_training_lowers_the_loss(kind: type[SumModel]) -> None:
    made, net = task(8), kind()
    config = RunConfig(
        model_name="sum",
        dataset_name="sums",
        task_name="relation",
        optim=OptimConfig(lr=0.03),
        train=TrainConfig(epochs=25, accumulate=2, eval_every=25),
    )
    batch = made.batch(0, 0)
    before = float(made.loss(net, batch).total.detach())
    result = Trainer(net, made, config).fit()
    assert float(made.loss(net, batch).total.detach()) < 0.95 * before
    assert 0 <= result.test["accuracy"] <= 1


# --- Evaluation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_accuracy_is_that_of_all_queries_and_of_each_cell(split: str) -> None:
    made, net = task(), SumModel()
    found = made.evaluate(net, split)
    hits: dict[tuple[int, int], list[bool]] = {}
    for number in made.benchmark.splits[split]["index"].tolist():
        graph = made.graphs[number]
        right = int(made.scores(net, torch.tensor([number])).argmax()) == int(graph.y)
        hits.setdefault((int(graph.k), int(graph.b)), []).append(right)
    every = list(chain(*hits.values()))
    assert found["accuracy"] == pytest.approx(sum(every) / len(every))
    assert cells_of(found) == pytest.approx({cell: sum(h) / len(h) for cell, h in hits.items()})


def test_evaluation_is_the_same_in_portions_of_any_size() -> None:
    net = SumModel()
    found = [task(eval_batch_size=size).evaluate(net, "train") for size in (1, 3, 100)]
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    ("k", "b", "names"),
    [
        (None, None, set()),
        (4, None, {"accuracy@k4"}),
        (4, 2, {"accuracy@k4b2"}),
        (-1, -1, set()),
        (3, -1, {"accuracy@k3"}),
    ],
)
def test_cells_are_reported_as_far_as_they_are_known(k: int | None, b: int | None, names: set[str]) -> None:
    of = benchmark()
    for name, value in (("k", k), ("b", b)):
        del of.data[name]
        if value is not None:
            of.data[name] = torch.full((GRAPHS,), value)
    found = task(of=of).evaluate(SumModel(), "test")
    assert {name for name in found if "@" in name} == names


def test_picture_of_cells_is_drawn_where_they_are_known() -> None:
    cells = {"accuracy": 0.9, "accuracy@k2b1": 1.0, "accuracy@k3b1": 0.9, "accuracy@k3b12": 0.0}
    (picture,) = task().pictures({"valid": {}, "test": cells}).values()
    assert picture.startswith(b"\x89PNG")
    assert task().pictures({"test": {"accuracy": 0.9}}) == {}
    assert draw_cells({"accuracy@k2": 0.9, "accuracy@k4": 1.0}) is not None  # b isn't known
    assert cells_of(cells) == {(2, 1): 1.0, (3, 1): 0.9, (3, 12): 0.0}


# --- Refusals ----------------------------------------------------------------------------------------------


def test_model_that_takes_no_queries_is_refused() -> None:
    class Nodes(nn.Module):
        def forward(self, x: Tensor, graph: Any, n_id: Tensor | None = None) -> Tensor:
            return x

    with pytest.raises(UserError, match=r"Nodes can't predict relations: it must have forward\(edge_index, "):
        task().check(Nodes())
    task().check(SumModel())


def test_scores_of_another_shape_are_refused() -> None:
    class Wide(SumModel):
        def forward(self, *arguments: Any, **named: Any) -> Tensor:
            return torch.zeros(arguments[2].numel(), 4)

    with pytest.raises(UserError, match=r"Wide gives scores \[4, 4\]; sums has 3 relations"):
        task().loss(Wide(), task().batch(0, 0))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda of: of.data.update({"source": None}), "sums has no 'source', which query graphs need"),
        (lambda of: setattr(of, "spec", DataSpec()), "doesn't say how many relations it has"),
        (lambda of: setattr(of, "spec", DataSpec(num_relations=2)), "holds relations outside 0 to 1"),
        (
            lambda of: of.data.update({"y": of.data.y.float()}),
            r"targets torch.float32 \[23\]; they must be integ",
        ),
        (lambda of: of.splits["train"].update({"index": torch.zeros(0).long()}), "has no training graphs"),
    ],
)
def test_data_that_cannot_be_read_are_refused(spoil: Any, message: str) -> None:
    of = benchmark()
    spoil(of)
    with pytest.raises(UserError, match=message):
        task(of=of)


def test_batch_with_fewer_queries_than_shards_has_empty_ones() -> None:
    made = task(2)
    loss = made.loss(SumModel(), made.shard(made.batch(0, 0), 5, 6))
    assert float(loss.total) == 0
    assert loss.divisor == 2
    assert math.isfinite(loss.divisor)
