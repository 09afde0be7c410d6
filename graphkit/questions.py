"""Questions over a knowledge graph in flat arrays, each with its subgraph, and batches gathered from them.

Questions of one topic may share a subgraph, so Q questions lie on G <= Q subgraphs. Ids are as narrow as they
can be: an entity takes 4 bytes, a fact 6 where no subgraph has more than 32,768 entities and there are no
more relations than that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch_geometric.data import Data

from graphkit.graphs import ragged_index

__all__ = ["Asked", "QuestionBatch", "QuestionSet"]


class QuestionBatch(NamedTuple):
    """Some questions with their subgraphs side by side, as one graph of n entities and F facts.

    Attributes:
        edge_index: ``[2, F]`` int64, row 0 heads and row 1 tails; facts as listed, without self loops and
            inverses.
        edge_type: ``[F]`` int64.
        ptr: ``[B + 1]`` int64; question b has the entities ``ptr[b]`` to ``ptr[b + 1] - 1``.
        seed: ``[S]`` int64, the entities that a question names, of all questions in order.
        entity: ``[n]`` int64, the id in the whole graph.
        answer: ``[n]`` bool, the gold answers that are inside.
        ids: ``[B]`` int64, the questions.
    """

    edge_index: Tensor
    edge_type: Tensor
    ptr: Tensor
    seed: Tensor
    entity: Tensor
    answer: Tensor
    ids: Tensor

    def to(self, device: torch.device | str) -> QuestionBatch:
        return QuestionBatch(*(tensor.to(device) for tensor in self))


class Asked(NamedTuple):
    """One question as a reader finds it, in ids of the whole graph.

    Attributes:
        seeds: ``[s]`` entities that it names.
        entities: ``[n]`` entities of its subgraph, seeds among them or not, repeated or not.
        facts: ``[F, 3]`` head, relation, tail of each fact.
        answers: ``[a]`` gold answers, inside the subgraph or not.
        hop: Facts from a seed to an answer; 0 if unknown.
    """

    seeds: npt.ArrayLike
    entities: npt.ArrayLike
    facts: npt.ArrayLike
    answers: npt.ArrayLike
    hop: int = 0


@dataclass(frozen=True)
class QuestionSet:
    """Q questions on G subgraphs.

    Attributes:
        entity: ``[sum n_g]`` int32, the entities of each subgraph; its seeds come first.
        ptr: ``[G + 1]`` int64, where a subgraph's entities begin.
        num_seeds: ``[G]`` int32.
        head: ``[sum F_g]`` int16 or int32, local ids: 0 is the subgraph's first entity.
        tail: As ``head``.
        relation: ``[sum F_g]`` int16 or int32.
        fact_ptr: ``[G + 1]`` int64.
        graph: ``[Q]`` int32, the subgraph that a question is asked on.
        answer: ``[sum a_q]`` int32, all gold answers by their id in the whole graph; those of a question
            ascend.
        answer_ptr: ``[Q + 1]`` int64.
        hop: ``[Q]`` int8, facts from a seed to an answer; 0 if unknown.
    """

    entity: Tensor
    ptr: Tensor
    num_seeds: Tensor
    head: Tensor
    tail: Tensor
    relation: Tensor
    fact_ptr: Tensor
    graph: Tensor
    answer: Tensor
    answer_ptr: Tensor
    hop: Tensor

    def __len__(self) -> int:
        return self.graph.numel()

    @property
    def num_graphs(self) -> int:
        return self.ptr.numel() - 1

    @property
    def nbytes(self) -> int:
        """Bytes that the arrays take."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """Returns the arrays by name, as ``Data`` and caches hold them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def of(cls, held: Data | Mapping[str, Tensor]) -> QuestionSet:
        """Returns the questions that ``data`` or a mapping holds under the names of the attributes."""
        return cls(**{field.name: held[field.name] for field in fields(cls)})

    # --- What is asked of it ------------------------------------------------------------------------------

    def num_entities(self, ids: Tensor | None = None) -> Tensor:
        """Returns how many entities the subgraph of each question has, ``[B]`` int64; of all by default."""
        graph = self.graph.long() if ids is None else self.graph[ids].long()
        return self.ptr[graph + 1] - self.ptr[graph]

    def answers(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Returns all gold answers of some questions.

        Args:
            ids: ``[B]`` int64.

        Returns:
            ``[m]`` int64 ids in the whole graph, and ``[B + 1]`` int64, where each question's begin.
        """
        items, begin = ragged_index(self.answer_ptr, ids)
        return self.answer[items].long(), begin

    def batch(self, ids: Tensor) -> QuestionBatch:
        """Returns some questions ``[B]`` int64, in any order, repeated or not."""
        graph = self.graph[ids].long()
        nodes, ptr = ragged_index(self.ptr, graph)
        facts, fact_ptr = ragged_index(self.fact_ptr, graph)
        shift = torch.repeat_interleave(ptr[:-1], fact_ptr.diff(), output_size=facts.numel())
        edge_index = torch.stack([self.head[facts] + shift, self.tail[facts] + shift])
        seeds = self.num_seeds[graph].long()
        first = torch.cumsum(seeds, 0) - seeds
        seed = torch.repeat_interleave(ptr[:-1] - first, seeds)
        seed += torch.arange(seed.numel())
        entity = self.entity[nodes].long()
        answer = self._inside(ids, ptr, entity)
        return QuestionBatch(edge_index, self.relation[facts].long(), ptr, seed, entity, answer, ids)

    def _inside(self, ids: Tensor, ptr: Tensor, entity: Tensor) -> Tensor:
        """Returns which entities of a batch are gold answers to their question."""
        gold, begin = self.answers(ids)
        if not gold.numel():
            return torch.zeros(entity.numel(), dtype=torch.bool)
        width = max(int(gold.max()), int(entity.max()) if entity.numel() else 0) + 1
        place = torch.arange(ids.numel())
        keys = torch.repeat_interleave(place, begin.diff()) * width + gold  # ascends, since answers do
        wanted = torch.repeat_interleave(place, ptr.diff(), output_size=entity.numel()) * width + entity
        at = torch.searchsorted(keys, wanted).clamp_(max=keys.numel() - 1)
        return keys[at] == wanted

    # --- How it is made -----------------------------------------------------------------------------------

    @classmethod
    def from_questions(cls, questions: Iterable[Asked]) -> QuestionSet:
        """Puts questions into flat arrays, one at a time; each gets a subgraph of its own.

        Local ids follow seeds, then entities, each where it first occurs. So a seed that the subgraph lacks
        is an entity all the same.

        Raises:
            ValueError: A fact's head or tail is none of the question's entities.
        """
        rows: dict[str, list[npt.NDArray[np.int32]]] = {
            name: [] for name in ("entity", "head", "tail", "relation", "answer")
        }
        sizes: list[tuple[int, int, int, int, int]] = []
        for number, asked in enumerate(questions):
            entity, count = _ordered(asked.seeds, asked.entities)
            facts = np.asarray(asked.facts, dtype=np.int64).reshape(-1, 3)
            order = np.argsort(entity, kind="stable")
            ends = facts[:, [0, 2]]
            at = np.searchsorted(entity, ends, sorter=order)
            local = order[np.minimum(at, max(len(entity) - 1, 0))] if len(entity) else at
            strange = np.ones(ends.shape, dtype=bool) if not len(entity) else entity[local] != ends
            if strange.any():
                raise ValueError(
                    f"question {number} has a fact on entity {ends[strange][0]}, which isn't of its subgraph"
                )
            gold = np.unique(np.asarray(asked.answers, dtype=np.int32))
            for name, value in zip(rows, (entity, *local.T, facts[:, 1], gold), strict=True):
                rows[name].append(value.astype(np.int32))
            sizes.append((len(entity), count, len(facts), len(gold), asked.hop))
        columns = np.asarray(sizes, dtype=np.int64).reshape(-1, 5).T
        flat = {
            name: torch.from_numpy(np.concatenate(parts) if parts else np.zeros(0, np.int32))
            for name, parts in rows.items()
        }
        return cls(
            **{
                name: narrow(tensor) if name not in ("entity", "answer") else tensor
                for name, tensor in flat.items()
            },
            ptr=pointer(columns[0]),
            num_seeds=torch.from_numpy(columns[1]).int(),
            fact_ptr=pointer(columns[2]),
            graph=torch.arange(len(sizes), dtype=torch.int32),
            answer_ptr=pointer(columns[3]),
            hop=torch.from_numpy(columns[4]).to(torch.int8),
        )

    @classmethod
    def join(cls, sets: Sequence[QuestionSet]) -> QuestionSet:
        """Returns the questions of all sets, one set after the other."""
        if not sets:
            return cls.from_questions(())
        made: dict[str, Tensor] = {}
        for name in ("entity", "num_seeds", "head", "tail", "relation", "answer", "hop"):
            made[name] = torch.cat([getattr(part, name) for part in sets])
        for name in ("ptr", "fact_ptr", "answer_ptr"):
            made[name] = pointer(torch.cat([getattr(part, name).diff() for part in sets]))
        first = np.cumsum([0, *(part.num_graphs for part in sets)])
        made["graph"] = torch.cat(
            [part.graph + int(shift) for part, shift in zip(sets, first[:-1], strict=True)]
        )
        return cls(**made)

    def select(self, ids: Tensor) -> QuestionSet:
        """Returns some questions ``[B]`` int64 as a set of their own, with the subgraphs that they use."""
        used, graph = torch.unique(self.graph[ids].long(), return_inverse=True)
        nodes, ptr = ragged_index(self.ptr, used)
        facts, fact_ptr = ragged_index(self.fact_ptr, used)
        gold, answer_ptr = ragged_index(self.answer_ptr, ids)
        return QuestionSet(
            entity=self.entity[nodes],
            ptr=ptr,
            num_seeds=self.num_seeds[used],
            head=self.head[facts],
            tail=self.tail[facts],
            relation=self.relation[facts],
            fact_ptr=fact_ptr,
            graph=graph.int(),
            answer=self.answer[gold],
            answer_ptr=answer_ptr,
            hop=self.hop[ids],
        )


def pointer(counts: Tensor | npt.NDArray[np.int64]) -> Tensor:
    """Returns where rows of the given lengths begin, and the end: ``[n + 1]`` int64."""
    counts = torch.as_tensor(counts)
    return torch.cat([counts.new_zeros(1, dtype=torch.int64), counts.cumsum(0, dtype=torch.int64)])


def narrow(ids: Tensor) -> Tensor:
    """Returns ids as int16 where all fit, else as int32."""
    small = not ids.numel() or int(ids.max()) <= torch.iinfo(torch.int16).max
    return ids.to(torch.int16 if small else torch.int32)


def _ordered(seeds: npt.ArrayLike, entities: npt.ArrayLike) -> tuple[npt.NDArray[np.int64], int]:
    """Returns the different entities in order of their first occurrence, and how many of them are seeds."""
    start = np.asarray(seeds, dtype=np.int64).reshape(-1)
    walk = np.concatenate([start, np.asarray(entities, dtype=np.int64).reshape(-1)])
    value, first = np.unique(walk, return_index=True)
    return value[np.argsort(first)], len(np.unique(start))
