"""MetaQA's own files: a knowledge base, questions of one, two and three hops, and the types of questions.

The official archive has ``kb.txt`` (``head|relation|tail``), ``1-hop/vanilla/qa_train.txt`` and so on; a copy
in ids has ``kb/train.txt`` with ``entities.dict`` and ``relations.dict``, and ``qa/qa_dev_1hop.txt``. Files
may be gzipped. Questions to train on can be made again from the types: see :func:`regenerated`.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from graphkit.datasets.kgqa_files import lines_of, placed
from graphkit.errors import UserError

__all__ = ["Base", "Question", "find", "read_base", "read_part", "regenerated", "walked"]

MOVIE = {
    "actor": "starred_actors",
    "director": "directed_by",
    "genre": "has_genre",
    "imdbrating": "has_imdb_rating",
    "imdbvotes": "has_imdb_votes",
    "language": "in_language",
    "tag": "has_tags",
    "tags": "has_tags",
    "writer": "written_by",
    "year": "release_year",
}
"""The relation of a movie to what a type of question calls by these names."""
_TOPIC = re.compile(r"\[(.*)\]")


@dataclass(frozen=True)
class Base:
    """The knowledge base.

    Attributes:
        entities: Id of each entity's name.
        relations: Names of relations, sorted.
        facts: ``[F, 3]`` int64 head, relation, tail; each fact once, sorted.
    """

    entities: dict[str, int]
    relations: list[str]
    facts: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        template: Its words with ``[]`` in place of the entity that it names.
        topic: That entity's id.
        answers: Ids of the answers.
        kind: Its type, empty if unknown.
    """

    template: str
    topic: int
    answers: tuple[int, ...]
    kind: str = ""

    def text(self, name: str) -> str:
        """Returns its words with a name for the entity."""
        return self.template.replace("[]", name)


def find(folder: Path, *names: str) -> Path | None:
    """Returns the first of the files that is there, gzipped or not."""
    return next((path for name in names if (path := placed(folder, name)) is not None), None)


def part_file(folder: Path, part: str, hop: int) -> Path | None:
    """Returns the file of one part's questions of some hops, in either layout."""
    return find(folder, f"{hop}-hop/vanilla/qa_{part}.txt", f"qa/qa_{part}_{hop}hop.txt")


def type_file(folder: Path, part: str, hop: int) -> Path | None:
    """Returns the file of their types."""
    return find(folder, f"{hop}-hop/qa_{part}_qtype.txt", f"qa/qa_{part}_qtype_{hop}hop.txt")


def read_base(folder: Path) -> Base:
    """Reads the knowledge base.

    Raises:
        UserError: It isn't there, or a line is damaged.
    """
    path = find(folder, "kb.txt")
    if path is not None:
        return _base_of_names(path)
    paths = [find(folder / "kb", name) for name in ("train.txt", "entities.dict", "relations.dict")]
    present = [path for path in paths if path is not None]
    if len(present) < len(paths):
        raise UserError(f"{folder} has no kb.txt, and no kb/train.txt with its dictionaries")
    return _base_of_ids(*present)


def _base_of_names(path: Path) -> Base:
    rows = [(number, line.split("|")) for number, line in lines_of(path)]
    wrong = next((number for number, row in rows if len(row) != 3), None)
    if wrong is not None or not rows:
        raise UserError(f"{path}, line {wrong or 1}: head|relation|tail was expected")
    names = sorted({end for _, row in rows for end in (row[0], row[2])})
    entities = {name: number for number, name in enumerate(names)}
    relations = sorted({row[1] for _, row in rows})
    ids = {name: number for number, name in enumerate(relations)}
    facts = [(entities[row[0]], ids[row[1]], entities[row[2]]) for _, row in rows]
    return Base(entities, relations, np.unique(np.asarray(facts, dtype=np.int64), axis=0))


def _base_of_ids(triples: Path, entities: Path, relations: Path) -> Base:
    """Reads triples of ids; relations that none has, as the reverse ones, are left out."""
    rows = [(number, line.split()) for number, line in lines_of(triples)]
    wrong = next((n for n, row in rows if len(row) != 3 or not all(map(str.isdigit, row))), None)
    if wrong is not None or not rows:
        raise UserError(f"{triples}, line {wrong or 1}: three ids were expected")
    table = np.asarray([row for _, row in rows], dtype=np.int64)
    by_name, names = _dictionary(entities), list(_dictionary(relations))
    if table[:, [0, 2]].max() >= len(by_name) or table[:, 1].max() >= len(names):
        raise UserError(f"{triples} holds an id that the dictionaries beside it lack")
    used = sorted(np.unique(table[:, 1]).tolist(), key=lambda r: names[r])
    place = np.zeros(len(names), np.int64)
    place[used] = np.arange(len(used))
    table[:, 1] = place[table[:, 1]]
    return Base(by_name, [names[r] for r in used], np.unique(table, axis=0))


def _dictionary(path: Path) -> dict[str, int]:
    """Reads ``id TAB name`` lines, whose ids must be 0 to n - 1."""
    names: dict[str, int] = {}
    for number, line in lines_of(path):
        cell, tab, name = line.partition("\t")
        if not tab or cell != str(len(names)) or name in names:
            raise UserError(f"{path}, line {number}: id {len(names)}, a tab and a new name were expected")
        names[name] = len(names)
    return names


def read_part(folder: Path, part: str, hop: int, base: Base) -> list[Question] | None:
    """Reads the questions of one part, with their types where these are there.

    Returns:
        The questions, or nothing if there is no file of them.

    Raises:
        UserError: A line that isn't a question, or that names an entity which the base lacks.
    """
    path = part_file(folder, part, hop)
    if path is None:
        return None
    kinds = read_types(folder, part, hop)
    found = []
    for place, (number, line) in enumerate(lines_of(path)):
        words, tab, answers = line.partition("\t")
        topic = _TOPIC.search(words)
        if not tab or topic is None:
            raise UserError(f"{path}, line {number}: words with a [topic], a tab and answers were expected")
        try:
            gold = tuple(dict.fromkeys(base.entities[name] for name in answers.strip().split("|")))
            start = base.entities[topic[1]]
        except KeyError as error:
            raise UserError(f"{path}, line {number}: the knowledge base has no entity {error}") from error
        template = " ".join(f"{words[: topic.start()]}[]{words[topic.end() :]}".split())
        found.append(Question(template, start, gold, kinds[place] if place < len(kinds) else ""))
    if kinds and len(kinds) != len(found):
        raise UserError(f"{path} has {len(found):,} questions, and there are types of {len(kinds):,}")
    return found


def read_types(folder: Path, part: str, hop: int) -> list[str]:
    """Returns the types of one part's questions; none if there is no file of them."""
    path = type_file(folder, part, hop)
    return [] if path is None else [line.strip() for _, line in lines_of(path)]


# --- Following a type's path ------------------------------------------------------------------------------


class walked:
    """Answers of questions by their type: ``walked(base)(topic, "movie_to_actor_to_movie")``.

    After every hop the topic itself is dropped, as MetaQA's makers did.
    """

    def __init__(self, base: Base) -> None:
        ids = {name: number for number, name in enumerate(base.relations)}
        self._relation = {word: ids[name] for word, name in MOVIE.items() if name in ids}
        self._next: dict[tuple[int, bool], dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        for head, relation, tail in base.facts.tolist():
            self._next[relation, True][head].append(tail)
            self._next[relation, False][tail].append(head)

    def moves(self, kind: str) -> list[tuple[int, bool]]:
        """Returns the relation of each hop of a type and whether it is followed from head to tail."""
        places = kind.split("_to_")
        return [
            (self._relation[b], True) if a == "movie" else (self._relation[a], False)
            for a, b in pairwise(places)
        ]

    def topics(self, kind: str) -> list[int]:
        """Returns the entities that a type of question can be about, sorted."""
        return sorted(self._next[self.moves(kind)[0]])

    def __call__(self, topic: int, kind: str) -> tuple[int, ...]:
        found = {topic}
        for move in self.moves(kind):
            ahead = self._next[move]
            found = {other for e in found for other in ahead.get(e, ())} - {topic}
        return tuple(sorted(found))


def regenerated(
    base: Base,
    known: Sequence[Question],
    kinds: Mapping[str, int],
    seed: int,
) -> list[Question]:
    """Makes questions of given types, for where the official training questions can't be had.

    Words come from the templates that known questions of a type use, answers from following the type's path.
    A pair of type and topic of a known question isn't asked again, whatever the template: where known ones
    are those of validation and test, nothing of them is trained on.

    Args:
        base: The knowledge base.
        known: Questions with types.
        kinds: How many questions of each type to make. There may be fewer, if a type has not enough topics.
        seed: Seeds topics, templates and order.

    Raises:
        UserError: A type without a known question.
    """
    walk, rng = walked(base), np.random.default_rng(seed)
    templates: dict[str, Counter[str]] = defaultdict(Counter)
    asked: dict[str, set[int]] = defaultdict(set)
    for question in known:
        templates[question.kind][question.template] += 1
        asked[question.kind].add(question.topic)
    made: list[Question] = []
    for kind, count in sorted(kinds.items()):
        words = sorted(templates[kind])
        if not words:
            raise UserError(f"no known question is of type {kind}, so no words for it are known")
        made.extend(_of_kind(walk, kind, count, words, asked[kind], rng))
    order = rng.permutation(len(made))
    return [made[place] for place in order]


def _of_kind(
    walk: walked, kind: str, count: int, words: Sequence[str], asked: set[int], rng: np.random.Generator
) -> Iterator[Question]:
    """Yields questions of one type: every topic once with some template, then all of them with the next."""
    topics = rng.permutation([topic for topic in walk.topics(kind) if topic not in asked])
    first = rng.integers(len(words), size=len(topics))
    left, answers = count, dict[int, tuple[int, ...]]()
    for turn in range(len(words)):
        for topic, start in zip(topics.tolist(), first.tolist(), strict=True):
            if left == 0:
                return
            gold = answers[topic] if topic in answers else walk(topic, kind)
            answers[topic] = gold
            if gold:
                left -= 1
                yield Question(words[(start + turn) % len(words)], topic, gold, kind)
