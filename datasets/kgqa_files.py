"""Questions with their subgraphs in the published form: WebQuestionsSP and ComplexWebQuestions.

A folder holds ``train.json``, ``dev.json`` and ``test.json``, a question a line, with ``entities.txt`` and
``relations.txt``, whose line numbers are ids. Two ways of writing a line are read, with ids (He et al., WSDM
2021) or with texts (GraftNet, Sun et al., EMNLP 2018)::

    {"id": "q0", "question": "what is ...", "entities": [15], "answers": [{"kb_id": "m.02", "text": "..."}],
     "subgraph": {"entities": [15, 6], "tuples": [[15, 1, 6]]}}
    {..., "entities": [{"kb_id": "m.02", "text": "m.02"}], "subgraph": {"entities": [{"kb_id": ...}, ...],
     "tuples": [[{"kb_id": ..., "text": ...}, {"rel_id": ..., "text": ...}, {"kb_id": ...}]]}}
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from graphkit.data import Benchmark, Processed, cached
from graphkit.datasets.graph_sets import Texts, join_texts, split_at
from graphkit.datasets.kgqa_benchmark import CITATION, Missing, kgqa_benchmark, some_of
from graphkit.errors import UserError
from graphkit.files import sha256
from graphkit.incomplete import Scope
from graphkit.questions import Asked, QuestionSet
from graphkit.registry import register_dataset

__all__ = ["PUBLISHED", "has_published", "load_published", "read_names", "read_questions"]

VERSION = 1
PARTS = {"train": "train.json", "valid": "dev.json", "test": "test.json"}
PUBLISHED = (*PARTS.values(), "entities.txt", "relations.txt")
"""The files of a folder, each of them gzipped or not."""
NAMES = "entities_names.json"
SOURCE = "https://drive.google.com/drive/folders/1qRXeuoL-ArQY7pJFnMpNnBu0G-cOz6xv"
COUNTS = {"webqsp": (2848, 250, 1639), "cwq": (27639, 3519, 3531)}
"""Questions of training, validation and test as published."""


def placed(folder: Path, name: str) -> Path | None:
    """Returns a file of a folder, or the same gzipped, if it is there."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def has_published(folder: Path) -> bool:
    """Tells whether a folder has all files of the published form."""
    return all(placed(folder, name) is not None for name in PUBLISHED)


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yields number and content of the lines of a text file, gzipped or not; empty ones are left out.

    Raises:
        UserError: It can't be read, or isn't UTF-8 text.
    """
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8")
            if path.suffix == ".gz"
            else open(path, encoding="utf-8") as file
        ):
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line.rstrip("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} isn't UTF-8 text: {error}") from error
    except (OSError, EOFError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def read_names(path: Path) -> dict[str, int]:
    """Returns the id of each name: its line's number, from 0.

    Raises:
        UserError: An empty line, or a name that is there twice, which would shift ids.
    """
    names: dict[str, int] = {}
    for number, line in lines_of(path):
        if number != len(names) + 1:
            raise UserError(f"{path}: a line before line {number} is empty, so ids would shift")
        if names.setdefault(line.strip(), number - 1) != number - 1:
            raise UserError(f"{path}, line {number}: '{line.strip()}' is there before; ids would shift")
    return names


class _Lines:
    """The questions of one file, in ids; also counts those without entities, which are left out."""

    def __init__(self, path: Path, entities: Mapping[str, int], relations: Mapping[str, int]) -> None:
        self.path, self.entities, self.relations = path, entities, relations
        self.texts: list[str] = []
        self.dropped = 0

    def __iter__(self) -> Iterator[Asked]:
        for number, line in lines_of(self.path):
            try:
                found = self._asked(json.loads(line))
            except json.JSONDecodeError as error:
                raise UserError(f"{self.path}, line {number} isn't JSON: {error}") from error
            except (KeyError, TypeError, ValueError) as error:
                what = f"lacks or doesn't know {error}" if isinstance(error, KeyError) else str(error)
                raise UserError(f"{self.path}, line {number}: {what}") from error
            if found is None:
                self.dropped += 1
            else:
                yield found

    def _asked(self, row: Mapping[str, Any]) -> Asked | None:
        seeds = row["entities_cid"] if "entities_cid" in row else row["entities"]
        if not seeds:
            return None
        part = row["subgraph"]
        tuples, entities = part["tuples"], self._ids(part["entities"], self.entities)
        if tuples and not isinstance(tuples[0][0], int):
            heads, relations, tails = zip(*tuples, strict=True)
            columns = (
                self._ids(heads, self.entities),
                self._ids(relations, self.relations),
                self._ids(tails, self.entities),
            )
            facts = np.stack([np.asarray(column) for column in columns], axis=1)
        else:
            facts = np.asarray(tuples, dtype=np.int64).reshape(-1, 3)
        if len(facts) and not 0 <= facts[:, 1].min() <= facts[:, 1].max() < len(self.relations):
            raise ValueError(f"a fact has relation {facts[:, 1].max()}; there are {len(self.relations)}")
        answers = row.get("answers_cid")
        gold = self._answers(row["answers"]) if answers is None else answers
        start = self._ids(seeds, self.entities)
        inside = set(start) | set(entities)
        strange = next((e for e in facts[:, [0, 2]].ravel().tolist() if e not in inside), None)
        if strange is not None:
            raise ValueError(f"a fact is on entity {strange}, which isn't of the subgraph")
        self.texts.append(" ".join(str(row["question"]).split()))
        return Asked(start, entities, facts, gold, int(row.get("hop", 0)))

    def _ids(self, values: Sequence[Any], names: Mapping[str, int]) -> Sequence[int]:
        """Returns ids as they are, or those of names, bare or as ``text``."""
        if not len(values) or isinstance(values[0], int):
            if len(values) and not 0 <= min(values) <= max(values) < len(names):
                raise ValueError(f"id {max(values)} is out of range: there are {len(names)} names")
            return values
        return [names[value if isinstance(value, str) else value["text"]] for value in values]

    def _answers(self, values: Sequence[Any]) -> list[int]:
        """Returns the ids of answers: by ``kb_id``, or by ``text`` where that is a number (MetaQA)."""
        found = []
        for value in values:
            if isinstance(value, int):
                found.append(value)
            elif isinstance(value, str):
                found.append(self.entities[value])
            else:
                name = value["text"] if isinstance(value["kb_id"], int) else value["kb_id"]
                found.append(self.entities[name])
        return found


def read_questions(
    path: Path, entities: Mapping[str, int], relations: Mapping[str, int]
) -> tuple[QuestionSet, list[str], int]:
    """Reads a file of questions, line by line.

    Args:
        path: JSON lines, gzipped or not.
        entities: Id of each entity's name.
        relations: Id of each relation's name.

    Returns:
        The questions, their words, and how many lines were left out because they name no entity.

    Raises:
        UserError: A damaged line, an unknown name or an id out of range; the message says where.
    """
    lines = _Lines(path, entities, relations)
    questions = QuestionSet.from_questions(lines)
    return questions, lines.texts, lines.dropped


def load_published(
    name: str,
    folder: Path,
    cache: Path,
    *,
    num_train: int | None,
    seed: int,
    missing: Missing,
    citation: str = CITATION,
) -> Benchmark:
    """Makes a benchmark of a folder in the published form.

    Args:
        name: The registered name.
        folder: Has the files.
        cache: Where what was read is kept.
        num_train: The most questions to train on.
        seed: Draws them.
        missing: Facts to leave out.
        citation: What to cite.

    Raises:
        UserError: Damaged files.
    """
    paths = {file: placed(folder, file) or folder / file for file in PUBLISHED}
    entity_ids, relation_ids = read_names(paths["entities.txt"]), read_names(paths["relations.txt"])
    sets: list[QuestionSet] = []
    texts: list[str] = []
    dropped: dict[str, int] = {}
    for part, file in PARTS.items():
        keys = [sha256(paths[file]), str(len(entity_ids)), str(len(relation_ids))]
        keys += [sha256(paths["entities.txt"]), sha256(paths["relations.txt"])]

        def build(path: Path = paths[file]) -> Processed:
            questions, words, left_out = read_questions(path, entity_ids, relation_ids)
            lines = torch.from_numpy(np.array(join_texts(words)))
            return Processed({**questions.tensors(), "texts": lines}, {"dropped": left_out})

        made = cached(cache, f"{name}/{part}/{VERSION}/{'/'.join(keys)}", build)
        sets.append(QuestionSet.of(made.tensors))
        texts.extend(Texts(made.tensors["texts"]))
        dropped[part] = made.info["dropped"]
    splits = split_at(*map(len, sets))
    splits["train"] = {"index": some_of(splits["train"]["index"], num_train, seed)}
    info: dict[str, Any] = {"source": str(folder), "lines_without_entities": dropped}
    if name in COUNTS:
        info["published_counts"] = COUNTS[name] == tuple(map(len, sets))
    names = _readable(folder, list(entity_ids))
    questions = QuestionSet.join(sets)
    info |= {"max_entities": max(int(questions.num_entities().max()), 1) if len(questions) else 2000}
    return kgqa_benchmark(
        name,
        questions,
        splits,
        texts,
        names,
        list(relation_ids),
        info={**info, "restart": 0.8},
        citation=citation,
        missing=missing,
    )


def _readable(folder: Path, ids: list[str]) -> list[str]:
    """Returns the names of entities: those that a file gives to Freebase's ids, the ids otherwise."""
    path = placed(folder, NAMES)
    if path is None:
        return ids
    try:
        named = json.loads("\n".join(line for _, line in lines_of(path)))
        return [str(named.get(entity, entity)) for entity in ids]
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} isn't a JSON object of names: {error}") from error


def _load(
    name: str, root: str | Path, seed: int, path: str | None, num_train: int | None, missing: Missing
) -> Benchmark:
    home = Path(root) / name
    folder = home if path is None else Path(path)
    if not has_published(folder):
        raise UserError(
            f"{folder} lacks {', '.join(file for file in PUBLISHED if placed(folder, file) is None)}; unpack "
            f"the archive of {name} from {SOURCE} there, or use another data set, as countries, which needs "
            "no download"
        )
    return load_published(name, folder, home / "processed", num_train=num_train, seed=seed, missing=missing)


@register_dataset("webqsp", task="kgqa", paper="arXiv:2210.13650")
def load_webqsp(
    *,
    root: str | Path = "data",
    task: str = "kgqa",
    seed: int = 0,
    path: str | None = None,
    num_train: int | None = None,
    incomplete: float = 0.0,
    incomplete_seed: int = 0,
    incomplete_scope: Scope = "global",
) -> Benchmark:
    """WebQuestionsSP: 4,737 questions over Freebase, each with a subgraph of up to 2,000 entities.

    Args:
        root: Its folder ``webqsp`` holds the published files (train.json, dev.json, test.json, entities.txt,
            relations.txt; ``entities_names.json``, if there, names Freebase's ids). They can't be fetched
            without a browser.
        task: ``"kgqa"``.
        seed: Draws the questions of ``num_train``.
        path: Another folder with the files.
        num_train: The most questions to train on; all by default.
        incomplete: Share of the facts that subgraphs lack.
        incomplete_seed: Seeds which ones.
        incomplete_scope: See :func:`graphkit.incomplete.incomplete`.

    Raises:
        UserError: Missing or damaged files, a value out of range.
    """
    missing = Missing(incomplete, incomplete_seed, incomplete_scope)
    return _load("webqsp", root, seed, path, num_train, missing)


@register_dataset("cwq", task="kgqa", paper="arXiv:2210.13650")
def load_cwq(
    *,
    root: str | Path = "data",
    task: str = "kgqa",
    seed: int = 0,
    path: str | None = None,
    num_train: int | None = None,
    incomplete: float = 0.0,
    incomplete_seed: int = 0,
    incomplete_scope: Scope = "global",
) -> Benchmark:
    """ComplexWebQuestions: 34,689 questions of several steps over Freebase. As :func:`load_webqsp`."""
    missing = Missing(incomplete, incomplete_seed, incomplete_scope)
    return _load("cwq", root, seed, path, num_train, missing)
