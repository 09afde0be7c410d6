"""Inductive knowledge graph completion: which tail does a head have in a relation, in a graph never seen."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphkit.data import Benchmark
from graphkit.distributed.ranks import share_out
from graphkit.errors import UserError
from graphkit.evaluation.ranking import Ranks, expected_hits, filtered_ranks, ranking_metrics, sampled_ranks
from graphkit.registry import register_task
from graphkit.sampling import seed_order
from graphkit.tasks import kgc_prediction
from graphkit.tasks.base import Loss, Task, generator, portions, wide
from graphkit.tasks.kgc_facts import Answers, Facts

__all__ = ["KGCBatch", "KGCModelProtocol", "KGCTask"]

SAMPLED = 50
"""Negatives of the sampled protocol (GraIL, arXiv:1911.06962)."""
_SCORES = 1 << 24  # of queries times entities computed at once in evaluation


class KGCModelProtocol(Protocol):
    """What the task calls. Edges and relations come with inverses: relation ``r + R`` is ``r`` backwards.

    ``propagate`` starts once from each of S heads, with ``relation`` ``[S]`` where ``needs_relation`` says
    that it depends on the query's relation (a model that has an attribute ``inverse`` has it true);
    ``score_all`` reads its state ``s_index[i]`` for query ``i``. A
    model may have ``score_tails(edge_index, edge_type, head [q], relation [q], tails [q, c], num_nodes=...)``
    too, which gives ``[q, c]``: the same scores of a few tails, for less.
    """

    needs_relation: bool

    def propagate(
        self,
        edge_index: Tensor,
        edge_type: Tensor,
        head: Tensor,
        *,
        num_nodes: int,
        relation: Tensor | None = None,
    ) -> Any: ...

    def score_all(self, state: Any, s_index: Tensor, relation: Tensor) -> Tensor: ...


class KGCBatch(NamedTuple):
    """One shard of a batch: queries (head, relation, ?) of both directions.

    Attributes:
        head: ``[q]`` int64, those of (h, r, ?) before those of (t, r + R, ?).
        relation: ``[q]`` int64 in ``[0, 2R)``.
        tail: ``[q]`` int64, the right answer.
        negative: ``[q, K]`` int64 wrong answers, ``None`` where the loss is over all entities.
        drop: ``[2E]`` bool, edges that messages don't pass over: those of the whole batch.
        num_queries: Queries of the whole batch.
    """

    head: Tensor
    relation: Tensor
    tail: Tensor
    negative: Tensor | None
    drop: Tensor | None
    num_queries: int


@register_task("kgc")
class KGCTask(Task):
    r"""Knowledge graph completion, on a graph whose entities weren't there in training where there is one.

    Every fact (h, r, t) asks (h, r, ?) and, with the inverse relation, (t, r', ?). Of a query with answer
    score :math:`s` and K wrong answers :math:`s_1 .. s_K`, the losses are

    .. math::
        \mathrm{bce:}\; \ln(1 + e^{-s}) + \sum_j w_j \ln(1 + e^{s_j}), \qquad
        \mathrm{margin:}\; \sum_j w_j \max(0, \gamma + s_j - s), \qquad
        \mathrm{softmax:}\; -\ln \frac{e^s}{e^s + \sum_{j} e^{s_j}}

    averaged over queries; :math:`w_j` is 1/K or, self-adversarially, the softmax of :math:`s_j / \tau` (no
    gradient flows through it). The softmax is over all entities but other right answers. Evaluation is
    filtered ranking of heads and tails, over all entities and over 50 sampled ones, which are the same each
    time; see :mod:`graphkit.evaluation.ranking`.

    Args:
        benchmark: A benchmark of triples; its metric is one of ``mrr``, ``hits@1``, ``hits@3``, ``hits@10``,
            ``hits@10_50`` and ``hits@10_50_expected``.
        seed: Seeds the order of facts and the wrong answers, each on its own.
        batch_size: Facts of one global batch, each of which asks two queries.
        eval_batch_size: Propagations at once in evaluation, at most.
        device: Where graph and batches live.
        loss: See above.
        negatives: K, drawn uniformly among what is no training fact; not used by ``softmax``.
        margin: :math:`\gamma`.
        adversarial_temperature: :math:`\tau`; 0 weighs wrong answers equally.
        remove: Edges that messages of a batch don't pass over: its own facts (``fact``) or all edges between
            their heads and tails (``pair``), inverses likewise; or ``none``. With ``pair`` no answer is ever
            next to its head in training, as most are in WN18RR's test, whose facts come in both directions.
        states_at_once: Entities times propagations at once in evaluation, at most, which bounds memory.
        filter_held_out: Leave facts that the data set holds out of either graph for other purposes out of
            rankings too; published figures mostly know nothing of them.

    Raises:
        UserError: Data that this task can't read.
        ValueError: Options out of range.
    """

    name = "kgc"
    defaults = portions(32, 64)

    def __init__(
        self,
        benchmark: Benchmark,
        seed: int,
        batch_size: int,
        eval_batch_size: int,
        device: torch.device | str = "cpu",
        *,
        loss: Literal["bce", "margin", "softmax"] = "bce",
        negatives: int = 32,
        margin: float = 1.0,
        adversarial_temperature: float = 0.0,
        remove: Literal["fact", "pair", "none"] = "fact",
        states_at_once: int = 1 << 18,
        filter_held_out: bool = False,
    ) -> None:
        super().__init__(benchmark, seed, batch_size, eval_batch_size, device)
        if loss not in ("bce", "margin", "softmax"):
            raise ValueError(f"task.loss is {loss!r}; it must be bce, margin or softmax")
        if remove not in ("fact", "pair", "none"):
            raise ValueError(f"task.remove is {remove!r}; it must be fact, pair or none")
        for name, value in (("negatives", negatives), ("states_at_once", states_at_once)):
            if value < 1:
                raise ValueError(f"task.{name} is {value}; it must be at least 1")
        for name, number in (("margin", margin), ("adversarial_temperature", adversarial_temperature)):
            if not 0 <= number < math.inf:
                raise ValueError(f"task.{name} is {number}; it must be at least 0")
        data, relations = benchmark.data, benchmark.spec.num_relations
        if relations is None:
            raise UserError(f"{benchmark.name} doesn't say how many relations it has")
        self.relations, self.num_nodes = relations, int(data.num_nodes)
        self.loss_name, self.negatives, self.margin = loss, negatives, margin
        self.temperature, self.remove, self.states_at_once = adversarial_temperature, remove, states_at_once
        self.filter_held_out = filter_held_out
        self.triples = {split: part["triple"].long() for split, part in benchmark.splits.items()}
        if self.triples["train"].size(1) == 0:
            raise UserError(f"{benchmark.name} has no training facts")
        train = Facts.of(data.edge_index, data.edge_type, self.num_nodes, relations)
        test, self.inductive = train, data.get("inference_edge_index") is not None
        if self.inductive:
            nodes = int(data.inference_num_nodes)
            test = Facts.of(data.inference_edge_index, data.inference_edge_type, nodes, relations)
        self._check_ids(train, test)
        self.answers = Answers(self._known("train"), self.num_nodes, 2 * relations)
        self.graph, self.test_graph = train.to(self.device), test.to(self.device)
        self._pairs = train.edge_index[0] * self.num_nodes + train.edge_index[1]
        self._types = train.edge_type
        self._order: tuple[int, Tensor] | None = None
        self._evaluated: dict[str, _Split] = {}

    def _check_ids(self, train: Facts, test: Facts) -> None:
        """Refuses ids that a graph doesn't have."""
        name, relations = self.benchmark.name, self.relations
        for split, triples in self.triples.items():
            graph = test if split == "test" else train
            if triples.dim() != 2 or triples.size(0) != 3:
                raise UserError(f"{name}: triples of {split} have shape {list(triples.shape)}; not [3, n]")
            entities = torch.cat([triples[0], triples[2]])
            if entities.numel() and not 0 <= int(entities.min()) <= int(entities.max()) < graph.num_nodes:
                raise UserError(
                    f"{name}: triples of {split} hold entities outside 0 to {graph.num_nodes - 1}"
                )
        asked = torch.cat([triples[1] for triples in self.triples.values()])
        edges = torch.cat([train.edge_type, test.edge_type])
        for kinds, limit in ((asked, relations), (edges, 2 * relations)):
            if kinds.numel() and not 0 <= int(kinds.min()) <= int(kinds.max()) < limit:
                raise UserError(f"{name} has relations outside 0 to {relations - 1}")

    def _known(self, split: str) -> Tensor:
        """Returns all queries whose answers are right in a split's graph, ``[3, m]``, both directions."""
        data = self.benchmark.data
        own = self.inductive and split == "test"
        index, kind = ("inference_edge_index", "inference_edge_type") if own else ("edge_index", "edge_type")
        parts = [torch.stack([data[index][0], data[kind], data[index][1]])]
        if split == "train":  # wrong answers in training know nothing of the other splits
            parts.append(self.triples["train"])
        else:
            parts += [t for name, t in self.triples.items() if not self.inductive or (name == "test") == own]
            more = data.get("inference_known_triple" if own else "known_triple")
            parts += [more] if self.filter_held_out and more is not None else []
        return self.queries(torch.cat([part.long() for part in parts], dim=1))

    def queries(self, triples: Tensor) -> Tensor:
        """Returns the queries of both directions that facts ask, ``[3, n] -> [3, 2n]``."""
        head, relation, tail = triples
        backwards = torch.stack([tail, relation + self.relations, head])
        return torch.cat([triples, backwards], dim=1)

    def check(self, model: nn.Module) -> None:
        for name in ("propagate", "score_all"):
            if not callable(getattr(model, name, None)):
                raise UserError(
                    f"{type(model).__name__} can't complete knowledge graphs: it must have "
                    "propagate(edge_index, edge_type, head, num_nodes=...) and "
                    "score_all(state, s_index, relation)"
                )
        if getattr(model, "inverse", True) is False:
            raise UserError(
                f"{type(model).__name__} has no inverse relations, which this task's graphs do: set "
                "model.inverse to true"
            )

    # Batches

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.triples["train"].size(1) / self.batch_size)

    def batch(self, epoch: int, step: int) -> KGCBatch:
        if self._order is None or self._order[0] != epoch:
            every = torch.arange(self.triples["train"].size(1))
            self._order = (epoch, seed_order(every, self.seed, epoch))
        chosen = self._order[1][step * self.batch_size : (step + 1) * self.batch_size]
        head, relation, tail = self.queries(self.triples["train"][:, chosen])
        negative = None
        if self.loss_name != "softmax":
            draw = generator(self.seed, "negatives", epoch, step)
            negative = self.answers.wrong(head, relation, self.negatives, draw)
        return KGCBatch(head, relation, tail, negative, self._dropped(head, relation, tail), head.numel())

    def _dropped(self, head: Tensor, relation: Tensor, tail: Tensor) -> Tensor | None:
        """Returns which edges go with the facts of a batch, ``[2E]`` bool."""
        if self.remove == "none":
            return None
        pairs = head * self.num_nodes + tail
        if self.remove == "pair":
            return torch.isin(self._pairs, pairs)
        kinds = 2 * self.relations
        return torch.isin(self._pairs * kinds + self._types, pairs * kinds + relation)

    def shard(self, batch: KGCBatch, index: int, parts: int) -> KGCBatch:
        if parts == 1:
            return batch
        half = batch.num_queries // 2
        take = torch.arange(min(index, half), half, parts)
        take = torch.cat([take, take + half])  # both queries of a fact
        columns = (batch.head, batch.relation, batch.tail, batch.negative)
        head, relation, tail, negative = (None if c is None else c[take] for c in columns)
        assert head is not None
        assert relation is not None
        assert tail is not None
        return KGCBatch(head, relation, tail, negative, batch.drop, batch.num_queries)

    def is_empty(self, shard: KGCBatch) -> bool:
        return shard.head.numel() == 0

    # Loss

    def loss(self, model: nn.Module, batch: KGCBatch) -> Loss:
        if batch.head.numel() == 0:  # fewer facts than shards
            return Loss(torch.zeros((), device=self.device), float(batch.num_queries))
        graph = self.graph.without(None if batch.drop is None else batch.drop.to(self.device))
        head, relation, tail = (c.to(self.device) for c in (batch.head, batch.relation, batch.tail))
        if batch.negative is None:
            state, s_index = self._propagate(model, graph, head, relation)
            scores = self._all(model, state, s_index, relation, graph.num_nodes)
            left_out = self._others(batch, scores)
            total = F.cross_entropy(scores.masked_fill(left_out, -math.inf), tail, reduction="sum")
            return Loss(total, float(batch.num_queries))
        tails = torch.cat([tail[:, None], batch.negative.to(self.device)], dim=1)
        few = getattr(model, "score_tails", None)
        if few is not None:
            edges = (graph.edge_index, graph.edge_type)
            scores = _wide(few(*edges, head, relation, tails, num_nodes=graph.num_nodes))
        else:
            state, s_index = self._propagate(model, graph, head, relation)
            scores = self._all(model, state, s_index, relation, graph.num_nodes).gather(1, tails)
        return Loss(self._losses(scores[:, :1], scores[:, 1:]).sum(), float(batch.num_queries))

    def _others(self, batch: KGCBatch, scores: Tensor) -> Tensor:
        """Returns which entities are right answers to a query beside the one asked for, ``[q, N]`` bool."""
        begin, known = self.answers.of(batch.head, batch.relation)
        query = torch.repeat_interleave(torch.arange(batch.tail.numel()), begin.diff())
        other = known != batch.tail[query]
        left_out = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
        left_out[query[other].to(self.device), known[other].to(self.device)] = True
        return left_out

    def _losses(self, right: Tensor, wrong: Tensor) -> Tensor:
        """Returns the loss of each query, ``[q]``, from scores ``[q, 1]`` and ``[q, K]``."""
        if self.temperature > 0:
            weight = (wrong.detach() / self.temperature).softmax(1)
        else:
            weight = torch.full_like(wrong, 1 / wrong.size(1))
        if self.loss_name == "margin":
            return (weight * (self.margin + wrong - right).clamp(min=0)).sum(1)
        return F.softplus(-right).squeeze(1) + (weight * F.softplus(wrong)).sum(1)

    def _propagate(
        self, model: nn.Module, graph: Facts, head: Tensor, relation: Tensor
    ) -> tuple[Any, Tensor]:
        """Starts once from each distinct head (and relation, where that matters)."""
        spread: Any = model.propagate
        if not getattr(model, "needs_relation", False):
            distinct, s_index = torch.unique(head, return_inverse=True)
            given: dict[str, Tensor] = {}
        else:
            kinds = 2 * self.relations
            keys, s_index = torch.unique(head * kinds + relation, return_inverse=True)
            distinct, given = keys // kinds, {"relation": keys % kinds}
        state = spread(graph.edge_index, graph.edge_type, distinct, num_nodes=graph.num_nodes, **given)
        return state, s_index

    def _all(self, model: Any, state: Any, s_index: Tensor, relation: Tensor, nodes: int) -> Tensor:
        """Returns a score of every entity for each query, ``[q, N]``, float32 or wider."""
        scores: Tensor = model.score_all(state, s_index, relation)
        if scores.shape != (s_index.numel(), nodes):
            raise UserError(
                f"{type(model).__name__} gives scores {list(scores.shape)} for {s_index.numel()} queries and "
                f"{nodes} entities"
            )
        return _wide(scores)

    # Evaluation

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        model.eval()
        graph = self.test_graph if split == "test" else self.graph
        asked = self._asked(split)

        def ranked(part: Tensor) -> tuple[Ranks, Ranks]:
            every, sampled = [], []
            head, relation = asked.head[part].to(self.device), asked.relation[part].to(self.device)
            state, s_index = self._propagate(model, graph, head, relation)
            for few in torch.arange(part.numel()).split(max(1, _SCORES // graph.num_nodes)):
                begin, known = asked.answers.of(asked.head[part[few]], asked.relation[part[few]])
                place = few.to(self.device)
                scores = self._all(model, state, s_index[place], relation[place], graph.num_nodes)
                given = (asked.tail[part[few]], begin, known, asked.negative[part[few]])
                tail, begin, known, negative = (column.to(self.device) for column in given)
                every.append(filtered_ranks(scores, tail, begin, known))
                sampled.append(sampled_ranks(scores, tail, negative))
            return Ranks.join(every), Ranks.join(sampled)

        by_relation = getattr(model, "needs_relation", False)
        parts = share_out(list(self._portions(asked, by_relation, graph.num_nodes)), ranked)
        if not parts:
            raise UserError(f"there is nothing to rank: the split '{split}' is empty")
        ranks, among = (Ranks.join(list(found)) for found in zip(*parts, strict=True))
        result = ranking_metrics(ranks)
        result[f"hits@10_{SAMPLED}"] = ranking_metrics(among, (10,))["hits@10"]
        result[f"hits@10_{SAMPLED}_expected"] = expected_hits(ranks, 10, SAMPLED)
        return result

    @torch.no_grad()
    def top(self, model: nn.Module, head: int, relation: int, k: int) -> tuple[Tensor, Tensor]:
        """Returns the ``k`` likeliest new tails and their scores, best first, on the CPU.

        The graph is that of the test; facts that are its edges aren't new, nor is the head.

        Args:
            model: Put into evaluation mode.
            head: An entity of it.
            relation: In ``[0, 2R)``; R more than a relation for its inverse.
            k: How many, at most.
        """
        model.eval()
        graph = self.test_graph
        asked = torch.tensor([[head], [relation]], device=self.device)
        state, s_index = self._propagate(model, graph, *asked)
        scores = self._all(model, state, s_index, asked[1], graph.num_nodes)[0].cpu()
        start, end = graph.edge_index.cpu()
        known = end[(start == head) & (graph.edge_type.cpu() == relation)]
        open_ = torch.ones(graph.num_nodes, dtype=torch.bool)
        open_[known], open_[head] = False, False
        new = open_.nonzero().squeeze(1)
        best = torch.topk(scores[new], min(k, new.numel()))
        return new[best.indices], best.values

    @classmethod
    def add_predict_arguments(cls, parser: argparse._ActionsContainer) -> None:
        kgc_prediction.add_arguments(parser)

    def predict(self, model: nn.Module, options: argparse.Namespace) -> tuple[list[str], list[list[str]]]:
        return kgc_prediction.predict(self, model, options)

    def _portions(self, asked: _Split, by_relation: bool, nodes: int) -> Iterator[Tensor]:
        """Yields the queries of so many propagations as memory allows; queries are sorted by them."""
        key = asked.head * 2 * self.relations + asked.relation if by_relation else asked.head
        _, count = torch.unique_consecutive(key, return_counts=True)
        start = 0
        for counts in count.split(max(1, min(self.eval_batch_size, self.states_at_once // nodes))):
            stop = start + int(counts.sum())
            yield torch.arange(start, stop)
            start = stop

    def _asked(self, split: str) -> _Split:
        """Returns the queries of a split, the same each time."""
        if split not in self._evaluated:
            head, relation, tail = self.queries(self.triples[split])
            order = torch.argsort(head * 2 * self.relations + relation, stable=True)
            head, relation, tail = head[order], relation[order], tail[order]
            nodes = (self.test_graph if split == "test" else self.graph).num_nodes
            answers = Answers(self._known(split), nodes, 2 * self.relations)
            draw = generator(self.seed, f"sampled {split}")
            negative = answers.wrong(head, relation, SAMPLED, draw)
            self._evaluated[split] = _Split(head, relation, tail, negative, answers)
        return self._evaluated[split]


class _Split(NamedTuple):
    """The queries of a split, sorted by head and relation, with sampled wrong answers and all right ones."""

    head: Tensor
    relation: Tensor
    tail: Tensor
    negative: Tensor
    answers: Answers


def _wide(scores: Tensor) -> Tensor:
    return wide(scores)
