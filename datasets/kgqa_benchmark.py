"""What data sets of questions over a knowledge graph share: options, the benchmark, texts of questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch_geometric.data import Data

from graphkit.data import Benchmark, DataSpec, Split
from graphkit.errors import UserError
from graphkit.evaluation.kgqa import KgqaEvaluator
from graphkit.incomplete import Scope, incomplete
from graphkit.questions import QuestionSet

__all__ = ["MASK", "Missing", "kgqa_benchmark", "some_of"]

MASK = "NE"
"""Stands for a named entity in the text that a model reads, as in earlier work on MetaQA."""
CITATION = (
    "Mavromatis, Karypis: ReaRev: Adaptive Reasoning for Question Answering over Knowledge Graphs, "
    "Findings of EMNLP 2022, arXiv:2210.13650"
)


class Missing(NamedTuple):
    """Facts to leave out; see :func:`graphkit.incomplete.incomplete`."""

    rate: float = 0.0
    seed: int = 0
    scope: Scope = "global"

    def facts(self) -> dict[str, Any]:
        """What a run's result says of it."""
        return {"incomplete": self._asdict()} if self.rate else {}


def some_of(index: Tensor, count: int | None, seed: int, option: str = "num_train") -> Tensor:
    """Returns ``count`` of the ids ``[n]``, in order, drawn by the seed; all where there are no more.

    Raises:
        UserError: A count below 1, called by the name of its option.
    """
    if count is not None and count < 1:
        raise UserError(f"{option} is {count}; it must be at least 1, or null for all")
    if count is None or count >= index.numel():
        return index
    drawn = torch.randperm(index.numel(), generator=torch.Generator().manual_seed(seed))[:count]
    return index[drawn.sort().values]


def kgqa_benchmark(
    name: str,
    questions: QuestionSet,
    splits: Mapping[str, Split],
    texts: Sequence[str],
    entities: Sequence[str],
    relations: Sequence[str],
    *,
    info: Mapping[str, Any],
    citation: str = CITATION,
    question_texts: Sequence[str] | None = None,
    relation_texts: Sequence[str] | None = None,
    graph: tuple[Tensor, Tensor] | None = None,
    missing: Missing | None = None,
    metric: str = "hits@1",
    aliases: Sequence[tuple[str, int]] = (),
) -> Benchmark:
    """Makes a benchmark of questions.

    Args:
        name: The registered name.
        questions: Those of all parts.
        splits: ``index`` of each part.
        texts: The words of each question.
        entities: The name of each entity of the whole graph.
        relations: The name of each relation.
        info: Facts; the counts of questions, subgraphs, entities, relations and parts are added. For
            questions of one's own ``max_entities`` and ``restart`` say how subgraphs were extracted.
        citation: What to cite.
        question_texts: What the model reads for each question, if not its words.
        relation_texts: The words of each relation, if its name doesn't tell them.
        graph: The whole knowledge graph, ``edge_index`` ``[2, F]`` and ``edge_type`` ``[F]``, if known.
        missing: Facts that the subgraphs shall lack; those of ``graph`` are the caller's to leave out.
        metric: The deciding one.
        aliases: Other names of entities, with their ids.
    """
    facts = dict(info)
    if missing is not None:
        questions = incomplete(questions, *missing)
        facts |= missing.facts()
    data = Data(num_nodes=len(entities), **questions.tensors())
    if graph is not None:
        data.kg_edge_index, data.kg_edge_type = graph
        facts["facts"] = graph[1].numel()
    facts |= {"questions": len(questions), "subgraphs": questions.num_graphs}
    facts |= {"entities": len(entities), "relations": len(relations)}
    facts |= {part: int(split["index"].numel()) for part, split in splits.items()}
    return Benchmark(
        name,
        "kgqa",
        data,
        dict(splits),
        DataSpec(num_relations=len(relations)),
        metric,
        True,
        KgqaEvaluator(),
        citation,
        facts,
        node_names=entities,
        target_names=list(relations),
        questions=texts,
        question_texts=question_texts,
        target_texts=relation_texts,
        node_aliases=aliases,
    )
