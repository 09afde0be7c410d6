"""Relation prediction: which relation holds between two nodes of a small graph, as its edges entail it."""

from __future__ import annotations

import argparse
import inspect
import math
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphkit.data import Benchmark
from graphkit.distributed.ranks import Each, in_turn, share_out
from graphkit.errors import UserError
from graphkit.graphs import GraphSet
from graphkit.registry import register_task
from graphkit.sampling import seed_order
from graphkit.tasks import relation_prediction
from graphkit.tasks.base import Loss, Task, generator, portions, wide
from graphkit.tasks.relation_queries import QuerySet

__all__ = ["RelationBatch", "RelationModelProtocol", "RelationTask"]


class RelationModelProtocol(Protocol):
    """What the relation task calls: B queries on a disjoint union of graphs, scores ``[B, R]``.

    ``edge_index`` ``[2, E]`` int64, row 0 the tail and row 1 the head of an arrow; ``edge_type`` ``[E]``
    int64; ``source`` and ``target`` ``[B]`` in the union's numbering; ``path_node`` ``[P]`` the nodes of one
    path for each query and ``path_graph`` ``[P]`` which query, ascending.

    A model may have ``training_loss`` with the arguments of the call and ``y`` ``[B]`` after ``target``, and
    ``seed`` ``[B]`` int64, by which it draws what it draws for each query; it returns ``[B]``. Otherwise the
    loss is cross entropy.
    """

    def __call__(
        self,
        edge_index: Tensor,
        edge_type: Tensor,
        source: Tensor,
        target: Tensor,
        *,
        num_nodes: int,
        path_node: Tensor | None = None,
        path_graph: Tensor | None = None,
    ) -> Tensor: ...


class RelationBatch(NamedTuple):
    """One shard of a batch.

    Attributes:
        ids: ``[b]`` int64 graphs.
        seeds: ``[b]`` int64, by which a model draws for each of them.
        num_queries: Queries of the whole batch.
    """

    ids: Tensor
    seeds: Tensor
    num_queries: int


@register_task("relation")
class RelationTask(Task):
    r"""Prediction of the relation between source and target, one query a graph.

    .. math:: L = \frac{1}{|B|} \sum_{q \in B} \ell_q

    with the model's own losses :math:`\ell_q`, or :math:`-\ln \mathrm{softmax}(s_q)_{y_q}`. Shards of a batch
    add up to it exactly, what is drawn for a query (negatives, say) being decided by its seed.

    Accuracy is reported over all queries, and as ``accuracy@k3b2`` over those whose paths have k = 3 edges
    and of which there are b = 2, where the data set says so (``accuracy@k3`` where it says k alone).

    Args:
        benchmark: A benchmark of query graphs; the indices of its splits are graphs.
        seed: Seeds the order of graphs and what models draw, each on its own.
        batch_size: Queries of one global batch; the last batch of an epoch may have fewer.
        eval_batch_size: Queries answered at once in evaluation.
        device: Where batches are put; the data stay where they are.

    Raises:
        UserError: Data that this task can't read.
    """

    name = "relation"
    defaults = portions(128, 1024)

    def __init__(
        self,
        benchmark: Benchmark,
        seed: int,
        batch_size: int,
        eval_batch_size: int,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(benchmark, seed, batch_size, eval_batch_size, device)
        data, relations = benchmark.data, benchmark.spec.num_relations
        for name in ("edge_type", "source", "target", "y"):
            if data.get(name) is None:
                raise UserError(f"{benchmark.name} has no '{name}', which query graphs need")
        if relations is None:
            raise UserError(f"{benchmark.name} doesn't say how many relations it has")
        if data.y.is_floating_point() or data.y.dim() != 1:
            raise UserError(
                f"{benchmark.name} has targets {data.y.dtype} {list(data.y.shape)}; they must be integers [G]"
            )
        for name in ("edge_type", "y"):
            found = data[name]
            if found.numel() and not 0 <= int(found.min()) <= int(found.max()) < relations:
                raise UserError(f"{benchmark.name}: '{name}' holds relations outside 0 to {relations - 1}")
        self.graphs, self.queries = GraphSet(data), QuerySet(data)
        self.y, self.relations = data.y.long(), relations
        self.train_index = benchmark.splits["train"]["index"]
        if self.train_index.numel() == 0:
            raise UserError(f"{benchmark.name} has no training graphs")
        self.cells = _cells(data.get("k"), data.get("b"))
        self._order: tuple[int, Tensor] | None = None

    def check(self, model: nn.Module) -> None:
        try:
            inspect.signature(model.forward).bind(*range(4), num_nodes=1, path_node=None, path_graph=None)
        except TypeError:
            raise UserError(
                f"{type(model).__name__} can't predict relations: it must have forward(edge_index, "
                "edge_type, source, target, num_nodes=..., path_node=..., path_graph=...)"
            ) from None

    # Batches

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.train_index.numel() / self.batch_size)

    def batch(self, epoch: int, step: int) -> RelationBatch:
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, seed_order(self.train_index, self.seed, epoch))
        ids = self._order[1][step * self.batch_size : (step + 1) * self.batch_size]
        draw = generator(self.seed, "queries", epoch, step)
        seeds = torch.randint(2**62, (ids.numel(),), generator=draw)
        return RelationBatch(ids, seeds, ids.numel())

    def shard(self, batch: RelationBatch, index: int, parts: int) -> RelationBatch:
        return batch._replace(ids=batch.ids[index::parts], seeds=batch.seeds[index::parts])

    def is_empty(self, shard: RelationBatch) -> bool:
        return shard.ids.numel() == 0

    # Loss, evaluation

    def loss(self, model: nn.Module, batch: RelationBatch) -> Loss:
        if batch.ids.numel() == 0:  # fewer graphs than shards
            return Loss(torch.zeros((), device=self.device), float(batch.num_queries))
        queries = self.queries.gather(batch.ids).to(self.device)
        y = self.y[batch.ids].to(self.device)
        own = getattr(model, "training_loss", None)
        if own is None:
            total = F.cross_entropy(self._fitting(model, queries.scores(model)), y, reduction="sum")
        else:
            named = queries._asdict()
            ends = [named.pop(name) for name in ("edge_index", "edge_type", "source", "target")]
            losses: Tensor = own(*ends, y, **named, seed=batch.seeds.to(self.device))
            total = wide(losses).sum()
        return Loss(total, float(batch.num_queries))

    def _fitting(self, model: nn.Module, scores: Tensor) -> Tensor:
        """Returns scores in float32 or wider, after a look at their shape."""
        if scores.dim() != 2 or scores.size(1) != self.relations:
            raise UserError(
                f"{type(model).__name__} gives scores {list(scores.shape)}; {self.benchmark.name} has "
                f"{self.relations} relations"
            )
        return wide(scores)

    @torch.no_grad()
    def scores(
        self, model: nn.Module, ids: Tensor, queries: QuerySet | None = None, *, each: Each = in_turn
    ) -> Tensor:
        """Returns the score of each relation for each query, ``[b, R]`` on the CPU.

        Args:
            model: Put into evaluation mode.
            ids: ``[b]`` int64 graphs.
            queries: Where they are, the benchmark's by default.
            each: Goes through the portions.
        """
        model.eval()
        store = self.queries if queries is None else queries

        def scored(part: Tensor) -> Tensor:
            return self._fitting(model, store.gather(part).to(self.device).scores(model)).cpu()

        parts = each([part for part in ids.split(self.eval_batch_size) if part.numel()], scored)
        return torch.cat(parts) if parts else torch.zeros(0, self.relations)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        index = self.benchmark.splits[split]["index"]
        scores, y = self.scores(model, index, each=share_out), self.y[index]
        result = dict(self.benchmark.evaluator(scores, y))
        return {**result, **self._by_cell(scores.argmax(1) == y, index)}

    def _by_cell(self, hit: Tensor, index: Tensor) -> dict[str, float]:
        """Returns the accuracy of each cell, by k and then b."""
        if self.cells is None:
            return {}
        cells = self.cells[index]
        unique, which = torch.unique(cells, dim=0, return_inverse=True)
        share = torch.zeros(len(unique), dtype=torch.float64).index_add(0, which, hit.double())
        share /= torch.bincount(which, minlength=len(unique)).clamp(min=1)
        return {
            f"accuracy@k{k}" + (f"b{b}" if b >= 0 else ""): value
            for (k, b), value in zip(unique.tolist(), share.tolist(), strict=True)
            if k >= 0
        }

    @property
    def evaluation_splits(self) -> tuple[str, ...]:
        """All of them, since no split needs more than its graphs."""
        return tuple(self.benchmark.splits)

    def pictures(self, metrics: Mapping[str, Mapping[str, float]]) -> dict[str, bytes]:
        """Returns ``cells.png``, the test accuracy by (k, b), where these are known."""
        from graphkit.pictures import draw_cells

        picture = draw_cells(metrics.get("test", {}))
        return {} if picture is None else {"cells.png": picture}

    # Prediction

    @classmethod
    def add_predict_arguments(cls, parser: argparse._ActionsContainer) -> None:
        relation_prediction.add_arguments(parser)

    def predict(self, model: nn.Module, options: argparse.Namespace) -> tuple[list[str], list[list[str]]]:
        return relation_prediction.predict(self, model, options)

    @property
    def relation_names(self) -> list[str]:
        """The name of each relation, its number where the data set has no names."""
        names = self.benchmark.target_names
        return [str(r) for r in range(self.relations)] if names is None else [str(name) for name in names]


def _cells(k: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Returns k and b of each graph, ``[G, 2]`` int64, -1 where unknown."""
    if k is None:
        return None
    paths = torch.full_like(k, -1) if b is None else b
    return torch.stack([k.long(), paths.long()], dim=1)
