r"""Subgraphs around the entities that a question names, by personalised PageRank over a knowledge graph.

.. math:: s = \sum_{i=0}^{I} \alpha (1 - \alpha)^i (W^\top)^i s_0

with :math:`s_0` uniform over the seeds, :math:`\alpha` the chance to restart and W the row-normalised graph
in which every fact is an edge in both directions. The best n entities are kept, with all facts among them:
the recipe of "Improving Multi-hop Knowledge Base Question Answering by Learning Intermediate Supervision
Signals" (Gaole He et al., WSDM 2021, https://arxiv.org/abs/2101.03737), which ReaRev's published subgraphs
follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from graphkit.errors import UserError
from graphkit.kernels.parallel import even_bounds, num_parts, run_ranges
from graphkit.kernels.spmm import to_numpy
from graphkit.questions import QuestionSet, narrow, pointer

__all__ = ["KnowledgeGraph", "extract_subgraphs", "questions_on"]

_CHUNK = 2048  # queries whose scores are held at a time


@dataclass(frozen=True)
class _Rows:
    rowptr: npt.NDArray[np.int64]
    col: npt.NDArray[np.int32]
    out_ptr: npt.NDArray[np.int64]
    out_tail: npt.NDArray[np.int32]
    out_relation: npt.NDArray[np.int32]


class KnowledgeGraph:
    """Facts sorted for extraction: made once, asked many times.

    Args:
        edge_index: ``[2, F]`` integers, row 0 heads and row 1 tails.
        edge_type: ``[F]`` integers, relations.
        num_entities: N; one more than the largest id by default.

    Raises:
        ValueError: Shapes that don't fit, or an entity out of range.
    """

    def __init__(self, edge_index: Tensor, edge_type: Tensor, num_entities: int | None = None) -> None:
        if edge_index.dim() != 2 or edge_index.size(0) != 2 or edge_type.shape != edge_index.shape[1:]:
            raise ValueError(
                f"edge_index has shape {tuple(edge_index.shape)} and edge_type {tuple(edge_type.shape)}; "
                "they must be [2, F] and [F]"
            )
        head, tail = to_numpy(edge_index.cpu())
        last = int(edge_index.max()) if edge_index.numel() else -1
        self.num_entities = last + 1 if num_entities is None else num_entities
        if last >= self.num_entities or (edge_index.numel() and int(edge_index.min()) < 0):
            raise ValueError(f"edge_index holds entities outside 0 to {self.num_entities - 1}")
        self.edge_index, self.edge_type = edge_index, edge_type
        loop = head == tail
        rowptr, order = self._sorted(np.concatenate([head, tail[~loop]]))
        col = np.concatenate([tail, head[~loop]]).astype(np.int32)[order]
        out_ptr, order = self._sorted(head)
        relation = to_numpy(edge_type.cpu()).astype(np.int32)[order]
        self._rows = _Rows(rowptr, col, out_ptr, tail.astype(np.int32)[order], relation)

    def _sorted(self, row: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        rowptr = np.zeros(self.num_entities + 1, np.int64)
        np.cumsum(np.bincount(row, minlength=self.num_entities), out=rowptr[1:])
        return rowptr, np.argsort(row, kind="stable")


def extract_subgraphs(
    graph: KnowledgeGraph,
    seeds: Sequence[Sequence[int]],
    *,
    max_entities: int = 2000,
    restart: float = 0.8,
    steps: int = 20,
    tolerance: float = 1e-5,
    min_score: float = 1e-6,
) -> dict[str, Tensor]:
    """Returns the subgraph around each set of seeds, on as many threads as torch has.

    Args:
        graph: The knowledge graph.
        seeds: G sets of entities, repeated ones counting once. They are kept whatever their score, and first.
        max_entities: The most that are kept of one subgraph, seeds included.
        restart: The chance to go back to a seed, above 0 and at most 1.
        steps: I, the longest walk.
        tolerance: Walks end earlier when less than this is left to be carried on.
        min_score: The least score of an entity that is kept.

    Returns:
        ``entity``, ``ptr``, ``num_seeds``, ``head``, ``tail``, ``relation`` and ``fact_ptr`` of G subgraphs,
        as :class:`~graphkit.questions.QuestionSet` has them. After the seeds entities come by falling score,
        equal ones by id; facts come head by head, those of a head in the graph's order. ``score`` holds the
        entities' scores, ``[sum n_g]`` float32.

    Raises:
        UserError: Values out of range, an empty set of seeds, or a seed that isn't in the graph.
    """
    from graphkit.kernels import _ppr_loops as loops

    if not 0.0 < restart <= 1.0:
        raise UserError(f"restart is {restart}; it must lie above 0, up to 1")
    if max_entities < 1 or steps < 0:
        raise UserError(f"max_entities is {max_entities} and steps {steps}; they must be at least 1 and 0")
    flat, seed_ptr = _flat(seeds, graph.num_entities)
    rows, settings = graph._rows, (restart, tolerance, min_score, steps, max_entities)
    parts: list[dict[str, npt.NDArray[Any]]] = []
    for first in range(0, len(seeds), _CHUNK):
        begins = seed_ptr[first : first + _CHUNK + 1]
        queries = len(begins) - 1
        widest = int(np.diff(begins).max())
        entity = np.zeros((queries, max(max_entities, widest)), np.int32)
        score = np.zeros(entity.shape)
        size, count = np.empty(queries, np.int64), np.empty(queries, np.int64)
        bounds = even_bounds(queries, min(queries, num_parts(queries * len(rows.col))))
        arrays = (flat, begins, rows.rowptr, rows.col, settings, entity, score, size, count)
        run_ranges(loops.choose, bounds, *arrays, rows.out_ptr, rows.out_tail)
        entity, score = _by_score(entity, score, size, np.diff(begins))
        fact_ptr = to_numpy(pointer(count))
        made = [np.empty(int(fact_ptr[-1]), np.int32) for _ in range(3)]
        out = (rows.out_ptr, rows.out_tail, rows.out_relation)
        run_ranges(loops.induce, bounds, entity, size, *out, fact_ptr, *made)
        inside = np.arange(entity.shape[1]) < size[:, None]
        kept: tuple[npt.NDArray[Any], ...] = (
            *(entity[inside], score[inside].astype(np.float32)),
            *made,
            *(size, count),
        )
        parts.append(dict(zip(_PARTS, kept, strict=True)))
    joined = {name: torch.from_numpy(_joined([part[name] for part in parts], name)) for name in _PARTS}
    return {
        "entity": joined["entity"],
        "ptr": pointer(joined["size"]),
        "num_seeds": torch.from_numpy(np.diff(seed_ptr)).int(),
        **{name: narrow(joined[name]) for name in ("head", "tail", "relation")},
        "fact_ptr": pointer(joined["count"]),
        "score": joined["score"],
    }


def _by_score(
    entity: npt.NDArray[np.int32],
    score: npt.NDArray[np.float64],
    size: npt.NDArray[np.int64],
    num_seeds: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64]]:
    """Sorts rows by falling score, equal ones by id; seeds stay in front, what isn't filled at the end."""
    place = np.arange(entity.shape[1])
    seeds, empty = place < num_seeds[:, None], place >= size[:, None]
    order = np.argsort(np.where(seeds, place - entity.shape[1], entity), axis=1, kind="stable")
    key = np.where(seeds, -np.inf, np.where(empty, np.inf, -score))
    order = np.take_along_axis(order, np.argsort(np.take_along_axis(key, order, 1), axis=1, kind="stable"), 1)
    return np.take_along_axis(entity, order, 1), np.take_along_axis(score, order, 1)


_PARTS = ("entity", "score", "head", "tail", "relation", "size", "count")


def _joined(parts: Sequence[npt.NDArray[Any]], name: str) -> npt.NDArray[Any]:
    kinds = {"score": np.float32, "size": np.int64, "count": np.int64}
    return np.concatenate(parts) if parts else np.zeros(0, kinds.get(name, np.int32))


def _flat(
    seeds: Sequence[Sequence[int]], num_entities: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Returns the seeds of all queries, each once, and where a query's begin."""
    single = [list(dict.fromkeys(query)) for query in seeds]
    for number, query in enumerate(single):
        if not query:
            raise UserError(f"query {number} has no seeds; a subgraph grows from one at least")
        strange = [e for e in query if not 0 <= e < num_entities]
        if strange:
            raise UserError(
                f"query {number} starts from entity {strange[0]}; known are 0 to {num_entities - 1}"
            )
    begins = np.cumsum([0, *map(len, single)], dtype=np.int64)
    return np.array([e for query in single for e in query], dtype=np.int64), begins


def questions_on(
    graph: KnowledgeGraph,
    seeds: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    hop: Sequence[int] | None = None,
    *,
    max_entities: int = 2000,
    restart: float = 0.8,
) -> QuestionSet:
    """Returns questions with extracted subgraphs; those with the same seeds share one.

    Args:
        graph: The knowledge graph.
        seeds: The entities that each of Q questions names.
        answers: Its gold answers.
        hop: Facts from a seed to an answer; unknown by default.
        max_entities: As in :func:`extract_subgraphs`.
        restart: As in :func:`extract_subgraphs`.

    Raises:
        UserError: As in :func:`extract_subgraphs`.
        ValueError: Not one list of answers for each question.
    """
    if len(answers) != len(seeds) or (hop is not None and len(hop) != len(seeds)):
        raise ValueError(
            f"there are {len(seeds)} questions and answers to {len(answers)}; they must be equal"
        )
    places: dict[tuple[int, ...], int] = {}
    place = [places.setdefault(tuple(query), len(places)) for query in seeds]
    found = extract_subgraphs(graph, list(places), max_entities=max_entities, restart=restart)
    del found["score"]
    gold = [sorted(set(query)) for query in answers]
    return QuestionSet(
        **found,
        graph=torch.tensor(place, dtype=torch.int32),
        answer=torch.tensor([e for query in gold for e in query], dtype=torch.int32),
        answer_ptr=pointer(torch.tensor([len(query) for query in gold], dtype=torch.int64)),
        hop=torch.tensor([0] * len(seeds) if hop is None else list(hop), dtype=torch.int8),
    )
