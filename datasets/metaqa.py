"""MetaQA: questions about movies, of one, two and three hops (Zhang et al., AAAI 2018, arXiv:1709.04071).

Each question names one entity in brackets; its subgraph holds the best entities around that one by
personalised PageRank, as in the published preparation (He et al., WSDM 2021): :mod:`graphkit.ppr`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from graphkit.data import Benchmark, Processed, cached
from graphkit.datasets.graph_sets import Texts, join_texts, split_at
from graphkit.datasets.kgqa_benchmark import MASK, Missing, kgqa_benchmark, some_of
from graphkit.datasets.kgqa_files import placed
from graphkit.datasets.metaqa_files import (
    Base,
    Question,
    find,
    part_file,
    read_base,
    read_part,
    read_types,
    regenerated,
    type_file,
)
from graphkit.errors import UserError
from graphkit.files import sha256
from graphkit.incomplete import Scope, kept_facts
from graphkit.ppr import KnowledgeGraph, questions_on
from graphkit.questions import QuestionSet, pointer
from graphkit.registry import register_dataset

__all__ = ["Training", "load_metaqa"]

Training = Literal["auto", "official", "regenerated"]

VERSION = 2
SOURCE = "https://github.com/yuyuz/MetaQA"
COUNTS = {1: (96106, 9992, 9947), 2: (118980, 14872, 14872), 3: (114196, 14274, 14274)}
"""Questions of training, validation and test, by hops, as published."""
PARTS = {"train": "train", "valid": "dev", "test": "test"}
CITATION = (
    "Zhang, Dai, Kozareva, Smola, Song: Variational Reasoning for Question Answering with Knowledge Graph, "
    "AAAI 2018, arXiv:1709.04071"
)


def load_metaqa(
    *,
    root: str | Path = "data",
    task: str = "kgqa",
    seed: int = 0,
    hops: list[int],
    path: str | None = None,
    max_entities: int = 500,
    train_entities: int | None = None,
    training: Training = "auto",
    num_train: int | None = None,
    num_valid: int | None = None,
    num_test: int | None = None,
    mask: bool = True,
    incomplete: float = 0.0,
    incomplete_seed: int = 0,
    incomplete_scope: Scope = "global",
) -> Benchmark:
    """MetaQA: questions about movies, with a knowledge base of 43,234 entities and 133,582 facts.

    Args:
        root: Its folder ``metaqa`` holds the files, in the layout of the official archive or in ids; see
            :mod:`graphkit.datasets.metaqa_files`. They can't be fetched without a browser.
        task: ``"kgqa"``.
        seed: Makes the questions that are regenerated, and draws those of ``num_train``.
        hops: Which questions.
        path: Another folder with the files.
        max_entities: The most entities of a subgraph.
        train_entities: The most of a training question, if other: fewer make training quicker.
        training: ``official`` questions; ``regenerated`` ones from the templates of validation and test, of
            the types that official ones have, none about what validation and test ask; or ``auto``, the
            former if there are any.
        num_train: The most questions to train on; all by default. Others get no subgraph, so fewer are
            sooner ready.
        num_valid: The most questions to validate on; all by default. Every seed has the same.
        num_test: The most questions to test on, for quick comparisons; all by default, without which no
            result is comparable to others'. Every seed has the same.
        mask: Whether models read "NE" in place of the entity's name. Its subgraph tells what it is, and all
            questions of a template then have one text.
        incomplete: Share of the facts that are missing.
        incomplete_seed: Seeds which ones.
        incomplete_scope: ``global`` thins out the knowledge base, before subgraphs are extracted; others the
            subgraphs. See :func:`graphkit.incomplete.incomplete`.

    Raises:
        UserError: Missing or damaged files, a value out of range.
    """
    if training not in get_args(Training):
        raise UserError(f"training is '{training}'; it is one of: {', '.join(get_args(Training))}")
    home = Path(root) / "metaqa"
    folder = home if path is None else Path(path)
    _check_files(folder, hops)
    missing = Missing(incomplete, incomplete_seed, incomplete_scope)
    thin = missing if missing.rate and missing.scope == "global" else Missing()
    official = training == "official" or (
        training == "auto" and all(part_file(folder, "train", hop) for hop in hops)
    )
    sizes = {"train": train_entities or max_entities, "valid": max_entities, "test": max_entities}
    source = _Source(home, folder, official, seed, sizes, thin)
    counts = {"train": num_train, "valid": num_valid, "test": num_test}
    parts = {part: source.part(part, hops, count) for part, count in counts.items()}
    known = [part.known for part in parts.values()]
    splits = split_at(*(len(part.questions) for part in parts.values()))
    names = list(Texts(source.base.tensors["entities"]))
    asked = [
        (line, names[topic])
        for part in parts.values()
        for line, topic in zip(part.templates, part.topics, strict=True)
    ]
    info: dict[str, Any] = {
        "training": "official" if official else "regenerated",
        "hops": list(hops),
        "max_entities": max_entities,
        "train_entities": sizes["train"],
        "restart": 0.8,
        "mask": MASK if mask else None,
        **thin.facts(),
    }
    wanted = [sum(COUNTS[hop][k] for hop in hops) for k in range(3)]
    info["published_counts"] = known == wanted and len(parts["test"].questions) == known[-1]
    return kgqa_benchmark(
        f"metaqa-{'-'.join(map(str, hops))}",
        QuestionSet.join([part.questions for part in parts.values()]),
        splits,
        [line.replace("[]", name) for line, name in asked],
        names,
        source.base.info["relations"],
        info=info,
        citation=CITATION,
        question_texts=[line.replace("[]", MASK) for line, _ in asked] if mask else None,
        graph=source.graph,
        missing=Missing() if thin.rate else missing,
    )


def _check_files(folder: Path, hops: Sequence[int]) -> None:
    """Complains of a folder without knowledge base, or without validation or test questions."""
    lacking = [] if find(folder, "kb.txt", "kb/train.txt") else ["kb.txt"]
    for hop in hops:
        if hop not in COUNTS:
            raise UserError(f"hops holds {hop}; MetaQA has 1, 2 and 3")
        lacking += [f"{hop}-hop/vanilla/qa_{p}.txt" for p in ("dev", "test") if not part_file(folder, p, hop)]
    if lacking:
        raise UserError(
            f"{folder} lacks {', '.join(lacking)}; unpack MetaQA there (linked at {SOURCE}), or use "
            "another data set, as countries, which needs no download"
        )


class _Part(NamedTuple):
    questions: QuestionSet
    templates: list[str]
    topics: list[int]
    known: int  # questions that there are; fewer may be taken


@dataclass(frozen=True)
class _Source:
    """The files of a folder. What is made of them is kept in three steps: base, questions, subgraphs."""

    home: Path
    folder: Path
    official: bool
    seed: int
    max_entities: Mapping[str, int]
    thin: Missing

    @cached_property
    def base(self) -> Processed:
        """The knowledge base."""

        def build() -> Processed:
            base = read_base(self.folder)
            tensors = {
                "entities": _lines(base.entities),
                "edge_index": torch.from_numpy(np.ascontiguousarray(base.facts[:, [0, 2]].T)).int(),
                "edge_type": torch.from_numpy(base.facts[:, 1].astype(np.int16)),
            }
            return Processed(tensors, {"relations": base.relations})

        return self._cached(f"metaqa/base/{VERSION}/{self._hashes()}", build)

    @cached_property
    def graph(self) -> tuple[Tensor, Tensor]:
        """Ends and relations of the facts that aren't missing."""
        edge_index, edge_type = self.base.tensors["edge_index"], self.base.tensors["edge_type"]
        if self.thin.rate:
            kept = kept_facts(edge_index, edge_type, self.thin.rate, self.thin.seed)
            edge_index, edge_type = edge_index[:, kept], edge_type[kept]
        return edge_index, edge_type

    def _cached(self, key: str, build: Callable[[], Processed]) -> Processed:
        return cached(self.home / "processed", key, build)

    def _hashes(self, *files: Path | None) -> str:
        """Returns what tells these files and the knowledge base from others."""
        names = ("kb.txt", "kb/train.txt", "kb/entities.dict", "kb/relations.dict")
        found = (*(placed(self.folder, name) for name in names), *files)
        return "/".join(sha256(path)[:16] for path in found if path is not None)

    def asked(self, part: str, hop: int) -> Processed:
        """Returns all questions of one part and some hops, without subgraphs."""
        again = part == "train" and not self.official
        used = PARTS.values() if again else (PARTS[part],)
        files = [file(self.folder, p, hop) for p in used for file in (part_file, type_file)]
        files += [type_file(self.folder, "train", hop)] if again else []
        key = f"metaqa/{part}{hop}/{VERSION}/{self._hashes(*files)}"
        key += f"/regenerated={self.seed}" if again else ""

        def build() -> Processed:
            base = read_base(self.folder)
            found = (
                _regenerated(self.folder, hop, base, self.seed)
                if again
                else read_part(self.folder, PARTS[part], hop, base)
            )
            if found is None:
                raise UserError(f"{self.folder} has no official training questions: use training=regenerated")
            number: dict[str, int] = {}
            template = [number.setdefault(question.template, len(number)) for question in found]
            gold = [sorted(set(question.answers)) for question in found]
            tensors = {
                "topic": torch.tensor([question.topic for question in found], dtype=torch.int32),
                "template": torch.tensor(template, dtype=torch.int32),
                "templates": _lines(number),
                "answer": torch.tensor([e for answers in gold for e in answers], dtype=torch.int32),
                "answer_ptr": pointer(torch.tensor([len(answers) for answers in gold], dtype=torch.int64)),
            }
            return Processed(tensors, {"key": key})

        return self._cached(key, build)

    def part(self, part: str, hops: Sequence[int], count: int | None) -> _Part:
        """Returns one part's questions of some hops, or ``count`` of them, with their subgraphs."""
        made = [self.asked(part, hop) for hop in hops]
        topics = [topic for one in made for topic in one.tensors["topic"].tolist()]
        templates, answers, far = list[str](), list[list[int]](), list[int]()
        for one, hop in zip(made, hops, strict=True):
            lines = list(Texts(one.tensors["templates"]))
            templates += [lines[number] for number in one.tensors["template"].tolist()]
            sizes = one.tensors["answer_ptr"].diff()
            answers += [gold.tolist() for gold in one.tensors["answer"].split(sizes.tolist())]
            far += [hop] * sizes.numel()
        drawn = self.seed if part == "train" else 0  # each seed is judged by the same questions
        ids = some_of(torch.arange(len(topics)), count, drawn, f"num_{part}").tolist()

        def build() -> Processed:
            questions = questions_on(
                KnowledgeGraph(*self.graph, len(Texts(self.base.tensors["entities"]))),
                [(topics[i],) for i in ids],
                [answers[i] for i in ids],
                [far[i] for i in ids],
                max_entities=self.max_entities[part],
            )
            return Processed(questions.tensors(), {})

        key = "/".join(one.info["key"] for one in made)
        key += f"/subgraphs/n={self.max_entities[part]}/{self.thin}"
        key += f"/{count} drawn by {drawn}" if len(ids) < len(topics) else ""
        questions = QuestionSet.of(self._cached(key, build).tensors)
        return _Part(questions, [templates[i] for i in ids], [topics[i] for i in ids], len(topics))


def _lines(texts: Iterable[str]) -> Tensor:
    return torch.from_numpy(np.array(join_texts(list(texts))))


def _regenerated(folder: Path, hop: int, base: Base, seed: int) -> list[Question]:
    """Makes training questions, of each type as many as the official ones are, or would be in proportion."""
    known = [q for part in ("dev", "test") for q in read_part(folder, part, hop, base) or ()]
    if not all(question.kind for question in known):
        raise UserError(f"{folder} lacks the types of {hop}-hop questions, by which others are made")
    kinds = Counter(read_types(folder, "train", hop))
    if not kinds:
        own = Counter(question.kind for question in known)
        kinds = Counter({kind: n * COUNTS[hop][0] // len(known) for kind, n in own.items()})
    return regenerated(base, known, kinds, seed)


def _registered(hop: int) -> Callable[..., Benchmark]:
    def load(
        *,
        root: str | Path = "data",
        task: str = "kgqa",
        seed: int = 0,
        path: str | None = None,
        max_entities: int = 500,
        train_entities: int | None = None,
        training: Training = "auto",
        num_train: int | None = None,
        num_valid: int | None = None,
        num_test: int | None = None,
        mask: bool = True,
        incomplete: float = 0.0,
        incomplete_seed: int = 0,
        incomplete_scope: Scope = "global",
    ) -> Benchmark:
        return load_metaqa(
            root=root,
            task=task,
            seed=seed,
            hops=[hop],
            path=path,
            max_entities=max_entities,
            train_entities=train_entities,
            training=training,
            num_train=num_train,
            num_valid=num_valid,
            num_test=num_test,
            mask=mask,
            incomplete=incomplete,
            incomplete_seed=incomplete_seed,
            incomplete_scope=incomplete_scope,
        )

    lines = (load_metaqa.__doc__ or "").splitlines()
    told = [line for line in lines[1:] if "hops: Which questions" not in line]
    load.__doc__ = "\n".join([f"MetaQA, {hop} hop{'s' * (hop > 1)}: questions about movies.", *told])
    return register_dataset(f"metaqa-{hop}", task="kgqa", paper="arXiv:1709.04071")(load)


for _hop in COUNTS:
    _registered(_hop)
