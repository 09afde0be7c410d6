"""Link prediction on one graph: batches of edges with sampled non-edges, ranking metrics, new neighbours."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphkit.data import Benchmark
from graphkit.distributed.ranks import share_out
from graphkit.errors import UserError
from graphkit.registry import register_task
from graphkit.sampling import NegativeSampler
from graphkit.sparse import CSRGraph, SparseRows, as_features
from graphkit.tasks import link_prediction
from graphkit.tasks.base import Loss, Task, generator, wide

__all__ = ["LinkBatch", "LinkModelProtocol", "LinkTask"]


@runtime_checkable
class LinkModelProtocol(Protocol):
    """What the link task calls. A model may also offer ``structure(graph, pairs)`` for pairs that recur."""

    def encode(self, x: Tensor | SparseRows | None, graph: CSRGraph) -> Tensor: ...

    def score(
        self, h: Tensor, graph: CSRGraph, edge_label_index: Tensor, structure: Any = None
    ) -> Tensor: ...


class LinkBatch(NamedTuple):
    """One shard of a batch.

    Attributes:
        graph: What messages may pass over: the training graph, without the batch's edges if they are removed.
        edge_label_index: ``[2, b]`` int64, positives before negatives.
        edge_label: ``[b]`` float32, 1 for an edge.
        num_positives: Positives of the whole batch.
    """

    graph: CSRGraph
    edge_label_index: Tensor
    edge_label: Tensor
    num_positives: int


@dataclass(frozen=True)
class _Fixed:
    """Pairs that are scored again and again on one graph, with the structure kept for portions."""

    pairs: Tensor
    structure: dict[int, Any]


@register_task("link")
class LinkTask(Task):
    r"""Binary link prediction with as many sampled non-edges as edges.

    .. math:: L = \frac{1}{|B|} \sum_{(i,j) \in B} \ln(1 + e^{-s_{ij}})
              + \frac{1}{|B|} \sum_{(i,j) \in B^-} \ln(1 + e^{s_{ij}})

    Args:
        benchmark: A link benchmark; ``data.edge_index`` holds the training edges.
        seed: Seeds the order of edges and the negatives, each on its own.
        batch_size: Positive edges of one global batch.
        eval_batch_size: Pairs scored at once in evaluation.
        device: Where graph and batches live.
        remove_targets: Take a batch's edges out of the graph that its messages pass over, so that an edge
            can't explain itself.
        strict_removal: Where an edge is listed several times, take it out when any of its occurrences is
            drawn; otherwise only when all of them are.
        drop_last: Leave out the last batch of an epoch where it isn't full, as the NCN authors do.
        valid_edges_at_test: Let messages pass over validation edges when test pairs are scored (the rules of
            ogbl-collab allow it).
        cache_bytes: Memory for the structure of fixed evaluation pairs; 0 computes it anew each time.
    """

    name = "link"
    whole_graph = True

    def __init__(
        self,
        benchmark: Benchmark,
        seed: int,
        batch_size: int,
        eval_batch_size: int,
        device: torch.device | str = "cpu",
        *,
        remove_targets: bool = True,
        strict_removal: bool = True,
        drop_last: bool = False,
        valid_edges_at_test: bool = False,
        cache_bytes: int = 2**30,
    ) -> None:
        super().__init__(benchmark, seed, batch_size, eval_batch_size, device)
        data = benchmark.data
        self.remove_targets, self.strict_removal, self.drop_last = remove_targets, strict_removal, drop_last
        self.cache_bytes = cache_bytes
        self.graph = CSRGraph.from_edge_index(data.edge_index, int(data.num_nodes)).to(self.device)
        self.test_graph = self.graph
        if valid_edges_at_test:
            extra = benchmark.splits["valid"]["pos_edge_label_index"]
            joined = torch.cat([data.edge_index, extra], dim=1)
            self.test_graph = CSRGraph.from_edge_index(joined, int(data.num_nodes)).to(self.device)
        self.x = as_features(data.x).to(self.device) if data.x is not None else None
        self.train_edges = benchmark.splits["train"]["pos_edge_label_index"].to(self.device)
        self.edge_ids = self.graph.find_edges(self.train_edges)
        if bool((self.edge_ids < 0).any()):
            raise UserError(
                f"{benchmark.name}: {int((self.edge_ids < 0).sum())} training edges are self loops or "
                "missing from the graph that messages pass over; remove them from the split"
            )
        self._occurrences = torch.bincount(self.edge_ids, minlength=self.graph.edges.size(1))
        self._negatives = NegativeSampler(self.graph.edges, self.graph.num_nodes)
        self._epoch: tuple[int, Tensor, Tensor] | None = None
        self._fixed: WeakKeyDictionary[nn.Module, dict[str, _Fixed]] = WeakKeyDictionary()
        self._cached_bytes = 0

    def check(self, model: nn.Module) -> None:
        if not isinstance(model, LinkModelProtocol):
            raise UserError(
                f"{type(model).__name__} can't predict links: it must have encode(x, graph) and "
                "score(h, graph, edge_label_index, structure)"
            )

    @property
    def steps_per_epoch(self) -> int:
        full, rest = divmod(self.train_edges.size(1), self.batch_size)
        return max(1, full if self.drop_last else full + (rest > 0))

    def batch(self, epoch: int, step: int) -> LinkBatch:
        order, negatives = self._epoch_draws(epoch)
        chosen = order[step * self.batch_size : (step + 1) * self.batch_size]
        positive = self.train_edges[:, chosen]
        negative = negatives[:, step * self.batch_size : step * self.batch_size + chosen.numel()]
        graph = self._without(chosen) if self.remove_targets else self.graph
        label = torch.zeros(2 * chosen.numel(), device=self.device)
        label[: chosen.numel()] = 1.0
        return LinkBatch(graph, torch.cat([positive, negative], dim=1), label, chosen.numel())

    def shard(self, batch: LinkBatch, index: int, parts: int) -> LinkBatch:
        if parts == 1:
            return batch
        half = batch.num_positives
        take = torch.arange(min(index, half), half, parts, device=self.device)
        take = torch.cat([take, take + half])
        return LinkBatch(batch.graph, batch.edge_label_index[:, take], batch.edge_label[take], half)

    def is_empty(self, shard: LinkBatch) -> bool:
        return shard.edge_label.numel() == 0

    def loss(self, model: nn.Module, batch: LinkBatch) -> Loss:
        own = getattr(model, "loss", None)
        if own is not None:
            result: Loss = own(self.x, batch)
            return result
        h = model.encode(self.x, batch.graph)  # type: ignore[operator]
        score = model.score(h, batch.graph, batch.edge_label_index)  # type: ignore[operator]
        score = wide(score)
        label = batch.edge_label.to(score.dtype)
        total = F.binary_cross_entropy_with_logits(score, label, reduction="sum")
        return Loss(total, float(batch.num_positives))

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        parts = self.benchmark.splits[split]
        if "neg_edge_label_index" not in parts:
            raise UserError(
                f"{self.benchmark.name} has no negatives for its {split} split; evaluate valid or test"
            )
        positive, negative = parts["pos_edge_label_index"], parts["neg_edge_label_index"]
        scores = self._score_fixed(model, split, torch.cat([positive, negative.flatten(1)], dim=1))
        count = positive.size(1)
        # negatives of their own for each positive ([2, P, K]) are ranked positive by positive
        return self.benchmark.evaluator(scores[:count], scores[count:].reshape(negative.shape[1:]))

    @property
    def evaluation_splits(self) -> tuple[str, ...]:
        splits = self.benchmark.splits
        return tuple(split for split in splits if "neg_edge_label_index" in splits[split])

    def check_split(self, split: str) -> None:
        if split == "train" and split not in self.evaluation_splits:
            known = " or ".join(self.evaluation_splits)
            raise UserError(f"{self.benchmark.name} has no negatives for its training split; take {known}")
        super().check_split(split)

    @classmethod
    def add_predict_arguments(cls, parser: argparse._ActionsContainer) -> None:
        link_prediction.add_arguments(parser)

    def predict(self, model: nn.Module, options: argparse.Namespace) -> tuple[list[str], list[list[str]]]:
        return link_prediction.predict(self, model, options)

    @torch.no_grad()
    def score(self, model: nn.Module, pairs: Tensor) -> Tensor:
        """Returns the logit of each pair ``[2, B]`` on the training graph, ``[B]`` on the CPU.

        Raises:
            UserError: If an id is out of range.
        """
        nodes = self.graph.num_nodes
        if pairs.numel() and not (int(pairs.min()) >= 0 and int(pairs.max()) < nodes):
            raise UserError(
                f"pairs hold node ids from {int(pairs.min())} to {int(pairs.max())}; "
                f"the graph has ids 0 to {nodes - 1}"
            )
        pairs = pairs.to(self.device)
        model.eval()
        h = model.encode(self.x, self.graph)  # type: ignore[operator]
        parts = [
            model.score(h, self.graph, part)  # type: ignore[operator]
            for part in pairs.split(self.eval_batch_size, dim=1)
            if part.numel()
        ]
        return wide(torch.cat(parts)).cpu() if parts else torch.zeros(0)

    def top(self, model: nn.Module, source: int, k: int) -> tuple[Tensor, Tensor]:
        """Returns the ``k`` likeliest new neighbours of a node and their logits, best first.

        Nodes that ``source`` is linked with already, in training data or in a split, are left out.
        """
        nodes = self.graph.num_nodes
        if not 0 <= source < nodes:
            raise UserError(f"source is {source}; the graph has ids 0 to {nodes - 1}")
        open_ = torch.ones(nodes, dtype=torch.bool)
        open_[source] = False
        for split in self.benchmark.splits.values():
            edges = split["pos_edge_label_index"]
            open_[edges[1][edges[0] == source]] = False
            open_[edges[0][edges[1] == source]] = False
        candidates = open_.nonzero().squeeze(1)
        pairs = torch.stack([torch.full_like(candidates, source), candidates])
        scores = self.score(model, pairs)
        best = torch.topk(scores, min(k, scores.numel()))
        return candidates[best.indices], best.values

    def _epoch_draws(self, epoch: int) -> tuple[Tensor, Tensor]:
        if self._epoch is None or self._epoch[0] != epoch:
            count = self.train_edges.size(1)
            order = torch.randperm(count, generator=generator(self.seed, "order", epoch))
            negatives = self._negatives.draw(count, generator(self.seed, "negatives", epoch))
            self._epoch = (epoch, order.to(self.device), negatives.to(self.device))
        return self._epoch[1], self._epoch[2]

    def _without(self, chosen: Tensor) -> CSRGraph:
        drawn = torch.bincount(self.edge_ids[chosen], minlength=self.graph.edges.size(1))
        removed = drawn > 0 if self.strict_removal else (drawn > 0) & (drawn >= self._occurrences)
        return self.graph.without_edges(removed)

    def _score_fixed(self, model: nn.Module, split: str, pairs: Tensor) -> Tensor:
        """Scores a split's pairs, keeping the structure of each portion for the next time."""
        graph = self.test_graph if split == "test" else self.graph
        model.eval()
        h = model.encode(self.x, graph)  # type: ignore[operator]
        splits = self._fixed.setdefault(model, {})
        known = splits.setdefault(split, _Fixed(pairs.to(self.device), {}))
        build = getattr(model, "structure", None)

        def scored(portion: tuple[int, Tensor]) -> Tensor:
            number, part = portion
            if number not in known.structure:
                left = self.cache_bytes - self._cached_bytes
                structure = build(graph, part, left) if build is not None and left > 0 else None
                size = _nbytes(structure)
                self._cached_bytes += size if size <= left else 0
                known.structure[number] = structure if size <= left else None
            result: Tensor = model.score(h, graph, part, known.structure[number])  # type: ignore[operator]
            return wide(result).cpu()

        portions = list(enumerate(known.pairs.split(self.eval_batch_size, dim=1)))
        return torch.cat(share_out(portions, scored))


def _nbytes(structure: Any) -> int:
    return int(structure.nbytes()) if hasattr(structure, "nbytes") else 0
