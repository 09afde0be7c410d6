"""Question answering over a knowledge graph: from a question in words to entities."""

from __future__ import annotations

import argparse
import inspect
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from graphkit.data import Benchmark
from graphkit.distributed.ranks import share_out
from graphkit.errors import UserError
from graphkit.evaluation.kgqa import KgqaEvaluator, QuestionScores, Retrieved, retrieve, score_retrieved
from graphkit.ppr import KnowledgeGraph
from graphkit.questions import QuestionBatch, QuestionSet
from graphkit.registry import register_task
from graphkit.sampling import seed_order
from graphkit.tasks import kgqa_prediction
from graphkit.tasks.base import Loss, Task, generator, portions, wide
from graphkit.tasks.entity_links import EntityIndex
from graphkit.text import (
    TextStates,
    TokenStates,
    encoded,
    make_encoder,
    relation_text,
    reversed_text,
    words_of,
)

__all__ = ["KgqaBatch", "KgqaModelProtocol", "KgqaTask", "RelationStates"]

_TINY = 1e-8  # keeps the logarithm of a probability finite, as in the published loss


class KgqaModelProtocol(Protocol):
    """What the task calls: B questions on a disjoint union of subgraphs, the probability ``[n]`` of entities.

    ``edge_index`` ``[2, F]`` int64, row 0 heads and row 1 tails, without self loops and inverses;
    ``edge_type`` ``[F]``; ``ptr`` ``[B + 1]``, where a question's entities begin; ``seed`` ``[S]`` entities
    that questions name. ``question`` ``[B, Lq, E]`` and ``question_mask`` are states of the questions'
    tokens, ``relation`` ``[R, Lr, E]`` those of the relations' texts and ``relation_inverse`` of the same
    texts with their words reversed, each with its mask. Probabilities of a question sum to 1.

    A model may have ``explain`` with the same arguments, which predictions ask for reasons.
    """

    def __call__(
        self,
        edge_index: Tensor,
        edge_type: Tensor,
        ptr: Tensor,
        seed: Tensor,
        question: Tensor,
        question_mask: Tensor,
        relation: Tensor | None,
        relation_mask: Tensor | None,
        relation_inverse: Tensor | None,
        relation_inverse_mask: Tensor | None,
    ) -> Tensor: ...


class RelationStates(NamedTuple):
    """States of the relations' texts, ``[R, L, E]`` and ``[R, L]``, and of the texts with words reversed."""

    relation: Tensor
    relation_mask: Tensor
    relation_inverse: Tensor
    relation_inverse_mask: Tensor


class KgqaBatch(NamedTuple):
    """One shard of a batch.

    Attributes:
        ids: ``[b]`` int64 questions.
        seeds: ``[b]`` int64, by which facts of each of them are dropped.
        num_questions: Questions of the whole batch.
    """

    ids: Tensor
    seeds: Tensor
    num_questions: int


@register_task("kgqa")
class KgqaTask(Task):
    r"""Answers to questions among the entities of their subgraphs.

    With the target :math:`y_q` uniform over the gold answers inside the subgraph and the model's distribution
    :math:`p_q`, the loss is the divergence

    .. math:: L = \frac{1}{|B|} \sum_{q \in B} \sum_e y_{qe} (\ln y_{qe} - \ln(p_{qe} + 10^{-8})),

    where a question without an answer inside counts in the divisor alone. Metrics are those of
    :mod:`graphkit.evaluation.kgqa`; ``hits@1@hop2`` and ``f1@hop2`` are those of questions of 2 hops.

    Texts of questions and relations are encoded once, by a frozen encoder, and kept on disk.

    Args:
        benchmark: Questions as :class:`~graphkit.questions.QuestionSet` holds them, with their texts and the
            relations'. Its spec gets ``text_channels``, the encoder's width.
        seed: Seeds the order of questions and dropped facts, each on its own.
        batch_size: Questions of one global batch; the last batch of an epoch may have fewer.
        eval_batch_size: Questions answered at once in evaluation.
        device: Where batches are put; the data stay where they are.
        encoder: What turns texts into states: ``sentence:MODEL``, ``words:FILE.npy``, ``hash`` or
            ``hash:WIDTH``; see :mod:`graphkit.text`.
        finetune: Whether the language model of the questions is trained as well, as part of the model. The
            relations' texts keep the states of the published weights, as in the reference.
        fact_drop: Share of each question's facts that a training step leaves out.

    Raises:
        UserError: Data that this task can't read, or an encoder that isn't to be had.
    """

    name = "kgqa"
    defaults = portions(8, 32)

    def __init__(
        self,
        benchmark: Benchmark,
        seed: int,
        batch_size: int,
        eval_batch_size: int,
        device: torch.device | str = "cpu",
        *,
        encoder: str = "sentence:all-MiniLM-L6-v2",
        finetune: bool = False,
        fact_drop: float = 0.0,
    ) -> None:
        super().__init__(benchmark, seed, batch_size, eval_batch_size, device)
        if not 0 <= fact_drop < 1:
            raise ValueError(f"fact_drop is {fact_drop}; it must be at least 0 and below 1")
        relations = benchmark.spec.num_relations
        if relations is None:
            raise UserError(f"{benchmark.name} doesn't say how many relations it has")
        if any(name not in benchmark.data for name in ("entity", "answer", "graph")):
            raise UserError(f"{benchmark.name} has no questions with subgraphs")
        self.questions, self.relations = QuestionSet.of(benchmark.data), relations
        for texts in (benchmark.questions, benchmark.question_texts or benchmark.questions):
            if texts is None or len(texts) != len(self.questions):
                raise UserError(f"{benchmark.name} has no texts of its {len(self.questions)} questions")
            self.texts = texts  # as models read them
        self.train_index = benchmark.splits["train"]["index"]
        if self.train_index.numel() == 0:
            raise UserError(f"{benchmark.name} has no training questions")
        self.encoder, self.fact_drop = make_encoder(encoder, self.device), fact_drop
        if finetune and not hasattr(self.encoder, "module"):
            raise UserError(f"task.finetune needs a language model, and task.encoder is '{encoder}'")
        self.finetune = finetune
        benchmark.spec = replace(benchmark.spec, text_channels=self.encoder.width)
        self.cache_folder: Path | None = None
        self._order: tuple[int, Tensor] | None = None

    def check(self, model: nn.Module) -> None:
        names = ("question_mask", *RelationStates._fields)
        try:
            inspect.signature(model.forward).bind(*range(5), **dict.fromkeys(names))
        except TypeError:
            raise UserError(
                f"{type(model).__name__} can't answer questions: it must have forward(edge_index, edge_type, "
                f"ptr, seed, question, {', '.join(names)})"
            ) from None
        self.prepare(model)

    def prepare(self, model: nn.Module) -> None:
        """Makes the language model a part ``text`` of the model, if it is to be trained."""
        if self.finetune and not hasattr(model, "text"):
            model.text = cast(Any, self.encoder).module()

    # Texts

    @cached_property
    def question_states(self) -> TextStates:
        """States of all questions."""
        return self._encoded(list(self.texts))

    @cached_property
    def relation_states(self) -> RelationStates:
        """States of all relations, on the device."""
        texts = self.relation_texts
        both = self._encoded([*texts, *map(reversed_text, texts)])
        ids = torch.arange(len(texts))
        ahead, back = both.batch(ids), both.batch(ids + len(texts))
        return RelationStates(*ahead.to(self.device), *back.to(self.device))

    def _encoded(self, texts: Sequence[str]) -> TextStates:
        return encoded(self.encoder, texts, None if self.cache_folder is None else self.cache_folder / "text")

    @property
    def relation_names(self) -> list[str]:
        """The name of each relation, its number where the data set has no names."""
        names = self.benchmark.target_names
        return [str(r) for r in range(self.relations)] if names is None else [str(name) for name in names]

    @property
    def relation_texts(self) -> list[str]:
        """The words of each relation."""
        texts = self.benchmark.target_texts
        return [relation_text(name) for name in self.relation_names] if texts is None else list(texts)

    # Batches

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.train_index.numel() / self.batch_size)

    def batch(self, epoch: int, step: int) -> KgqaBatch:
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, seed_order(self.train_index, self.seed, epoch))
        ids = self._order[1][step * self.batch_size : (step + 1) * self.batch_size]
        seeds = torch.randint(2**62, (ids.numel(),), generator=generator(self.seed, "facts", epoch, step))
        return KgqaBatch(ids, seeds, ids.numel())

    def shard(self, batch: KgqaBatch, index: int, parts: int) -> KgqaBatch:
        return batch._replace(ids=batch.ids[index::parts], seeds=batch.seeds[index::parts])

    def is_empty(self, shard: KgqaBatch) -> bool:
        return shard.ids.numel() == 0

    # Loss, evaluation

    def loss(self, model: nn.Module, batch: KgqaBatch) -> Loss:
        if batch.ids.numel() == 0:  # fewer questions than shards
            return Loss(torch.zeros((), device=self.device), float(batch.num_questions))
        union = self.questions.batch(batch.ids)
        if self.fact_drop > 0:
            union = _without_facts(union, batch.seeds, self.fact_drop)
        union = union.to(self.device)
        p = self.probabilities(model, union)
        question = torch.repeat_interleave(
            torch.arange(batch.ids.numel(), device=p.device), union.ptr.diff(), output_size=p.numel()
        )
        inside = torch.zeros_like(union.ptr[1:]).index_add(0, question, union.answer.long())
        target = 1 / inside[question[union.answer]].to(p.dtype)
        total = (target * (target.log() - (p[union.answer] + _TINY).log())).sum()
        return Loss(total, float(batch.num_questions))

    def probabilities(
        self, model: nn.Module, union: QuestionBatch, states: TokenStates | None = None
    ) -> Tensor:
        """Returns the probability of each entity, ``[n]`` in float32 or wider.

        Args:
            model: Any that the protocol fits.
            union: Questions on the device.
            states: Of the questions' texts; by default those of the benchmark.
        """
        out: Tensor = model(*self.inputs(model, union, states))
        if out.shape != union.entity.shape:
            raise UserError(
                f"{type(model).__name__} gives probabilities {list(out.shape)}; "
                f"there are {union.entity.numel()} entities"
            )
        return wide(out)

    def inputs(
        self, model: nn.Module, union: QuestionBatch, states: TokenStates | None = None
    ) -> tuple[Tensor, ...]:
        """Returns the arguments of the model; see :meth:`probabilities`."""
        graph = (union.edge_index, union.edge_type, union.ptr, union.seed)
        if states is None and self.finetune:
            states = self._trained_states(model, [self.texts[i] for i in union.ids.tolist()])
        elif states is None:
            states = self.question_states.batch(union.ids.cpu())
        return (*graph, *states.to(self.device), *self.relation_states)

    def text_states(self, model: nn.Module, texts: Sequence[str]) -> TokenStates:
        """Returns the states of other texts than the benchmark's questions."""
        return self._trained_states(model, texts) if self.finetune else self.encoder.encode(texts)

    def _trained_states(self, model: nn.Module, texts: Sequence[str]) -> TokenStates:
        encoder, trained = cast(Any, self.encoder), cast(Any, model)
        token, mask = (part.to(self.device) for part in encoder.tokens(texts))
        return TokenStates(trained.text(token, mask), mask)

    def answered(
        self, model: nn.Module, index: Tensor
    ) -> Iterator[tuple[QuestionBatch, Tensor, Retrieved, QuestionScores]]:
        """Yields portions of some questions with probabilities, retrieved sets and scores, on the CPU.

        Args:
            model: Put into evaluation mode.
            index: ``[b]`` int64 questions; the largest of their subgraphs decides the threshold.
        """
        model.eval()
        most = self._most_entities(index)
        for ids in index.split(self.eval_batch_size):
            if ids.numel():
                yield self._answered(model, ids, most)

    def _most_entities(self, index: Tensor) -> int:
        return max(int(self.questions.num_entities(index).max()), 1) if index.numel() else 1

    @torch.no_grad()
    def _answered(
        self, model: nn.Module, ids: Tensor, most: int
    ) -> tuple[QuestionBatch, Tensor, Retrieved, QuestionScores]:
        union = self.questions.batch(ids)
        p = self.probabilities(model, union.to(self.device)).cpu()
        found = retrieve(p, union.ptr, union.seed, max_entities=most)
        return union, p, found, score_retrieved(found, union.entity, *self.questions.answers(ids))

    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        index = self.benchmark.splits[split]["index"]
        model.eval()
        portions = [ids for ids in index.split(self.eval_batch_size) if ids.numel()]
        most = self._most_entities(index)
        parts = share_out(portions, lambda ids: self._answered(model, ids, most)[3])
        if not parts:
            raise UserError(f"{self.benchmark.name} has no questions in split '{split}'")
        return KgqaEvaluator()(QuestionScores.join(parts), self.questions.hop[index])

    @property
    def evaluation_splits(self) -> tuple[str, ...]:
        """All of them, since no split needs more than its questions."""
        return tuple(self.benchmark.splits)

    # Prediction

    @cached_property
    def knowledge(self) -> KnowledgeGraph:
        """The whole graph, around whose entities questions are asked."""
        return kgqa_prediction.knowledge_of(self.benchmark, self.questions)

    @cached_property
    def known_stems(self) -> frozenset[str]:
        """How the words of the training questions, as models read them, and of the relations begin."""
        texts = {self.texts[number] for number in self.train_index.tolist()}
        words = (word for text in (*texts, *self.relation_texts) for word in words_of(text))
        return frozenset(word[: kgqa_prediction.STEM] for word in words)

    @cached_property
    def entity_index(self) -> EntityIndex:
        """The names of the entities."""
        return kgqa_prediction.index_of(self)

    @classmethod
    def add_predict_arguments(cls, parser: argparse._ActionsContainer) -> None:
        kgqa_prediction.add_arguments(parser)

    def predict(self, model: nn.Module, options: argparse.Namespace) -> tuple[list[str], list[list[str]]]:
        return kgqa_prediction.predict(self, model, options)

    def answer(
        self, model: nn.Module, question: str, *, entities: Sequence[str] | None = None, top: int = 10
    ) -> kgqa_prediction.Answer:
        """Answers a question in words; see :func:`graphkit.tasks.kgqa_prediction.answer`."""
        return kgqa_prediction.answer(self, model, question, entities=entities, top=top)


def _without_facts(union: QuestionBatch, seeds: Tensor, share: float) -> QuestionBatch:
    """Leaves out a share of each question's facts: of F facts the first ``floor(F (1 - share))`` stay.

    Which come first is decided by a hash of the question's seed and the fact's place in its list, so that it
    doesn't matter what else is in the batch.
    """
    question = torch.searchsorted(union.ptr, union.edge_index[0], right=True) - 1
    count = torch.bincount(question, minlength=seeds.numel())
    place = torch.arange(question.numel()) - (count.cumsum(0) - count)[question]
    with np.errstate(over="ignore"):  # splitmix64's finaliser
        key = seeds[question].numpy().astype(np.uint64) + place.numpy().astype(np.uint64) * _ODD
        for shift, factor in _MIX:
            key = (key ^ (key >> np.uint64(shift))) * factor
    order = torch.from_numpy(np.lexsort((key, question.numpy())))
    kept = (count * (1 - share)).floor().long()
    kept = order[place < kept[question]].sort().values
    return union._replace(edge_index=union.edge_index[:, kept], edge_type=union.edge_type[kept])


_ODD = np.uint64(0x9E3779B97F4A7C15)
_MIX = ((30, np.uint64(0xBF58476D1CE4E5B9)), (27, np.uint64(0x94D049BB133111EB)), (31, np.uint64(1)))
