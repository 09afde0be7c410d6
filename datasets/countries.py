"""The world's countries: a small knowledge graph of real names, and questions of one to three hops about it.

Facts are those of the package ``countryinfo`` (MIT licence), read from its files; its version decides what
they are. Questions are put together from :mod:`graphkit.datasets.country_words`. A test question is about an
entity that no training question names, in words of which each part is new as well; validation likewise. The
entities all stand in the one graph.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch

from graphkit.data import Benchmark, Processed, cached
from graphkit.datasets.country_words import (
    CHAINS,
    FRAMES,
    NOUNS,
    RELATIONS,
    currency_names,
    language_names,
)
from graphkit.datasets.graph_sets import Texts, join_texts, split_at
from graphkit.datasets.kgqa_benchmark import MASK, Missing, kgqa_benchmark, some_of
from graphkit.errors import UserError
from graphkit.incomplete import Scope, kept_facts
from graphkit.ppr import KnowledgeGraph, questions_on
from graphkit.questions import QuestionSet
from graphkit.registry import register_dataset

__all__ = ["Posed", "country_facts", "load_countries", "posed"]

Fact = tuple[str, str, str]
VERSION = 2
PACKAGE = "countryinfo"
SHARES = {"train": 0.7, "valid": 0.1, "test": 0.2}
"""Of the entities that questions are about."""
WAYS = {"train": tuple(range(7)), "valid": (7,), "test": (8,)}
"""Which ways of putting each part of a question belong to each part of the data."""
RESTART = 0.5
"""Lower than usual: three hops through a continent's countries leave little score to what they lead to."""
CITATION = "The facts of the Python package countryinfo, https://github.com/porimol/countryinfo"


# --- Facts ------------------------------------------------------------------------------------------------


def country_facts(records: Sequence[Mapping[str, Any]]) -> list[Fact]:
    """Turns the records of countries into facts, by name.

    A name stands for one thing alone: to a capital that is called as a country or another capital its country
    is added in brackets, and "(city)" to that of a country called the same.

    Args:
        records: As the package has them: ``name``, ``ISO``, ``capital``, ``borders``, ``languages``, ...
            Records without languages, of places without people, are left out; as are repeated ones.

    Returns:
        Head, relation and tail of each, sorted.
    """
    kept: dict[str, Mapping[str, Any]] = {}
    for record in sorted(records, key=lambda record: str(record["name"])):
        if record.get("languages") and record.get("region"):
            kept.setdefault(record["ISO"]["alpha3"], record)
    names = {code: str(record["name"]) for code, record in kept.items()}
    capitals = Counter(str(record.get("capital") or "") for record in kept.values())
    spoken, money = language_names(), currency_names()
    facts: set[Fact] = set()
    for code, record in kept.items():
        name = names[code]
        city = str(record.get("capital") or "")
        if city in names.values() or capitals[city] > 1:
            city = f"{city} (city)" if city == name else f"{city} ({name})"
        tails = {
            "capital": [city] if record.get("capital") else [],
            "borders": [names[other] for other in _listed(record, "borders") if other in names],
            "language": [spoken[tongue] for tongue in _listed(record, "languages") if tongue in spoken],
            "currency": [money[coin] for coin in _listed(record, "currencies") if coin in money],
            "continent": [str(record["region"])],
            "subregion": [str(record.get("subregion") or "")],
            "internet_domain": _listed(record, "tld"),
            "calling_code": [f"+{digits}" for digits in _listed(record, "callingCodes")],
        }
        facts |= {(name, relation, tail) for relation, ends in tails.items() for tail in ends if tail}
        facts |= {(other, "borders", name) for other in tails["borders"]}  # both sides, if one forgot
    return sorted(facts)


def country_aliases(records: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[tuple[str, int]]:
    """Returns the other names of countries, each with the country's place among ``names``.

    Codes of two letters are left out where they are no name that people use.
    """
    place = {name: number for number, name in enumerate(names)}
    return [
        (alias, place[name])
        for record in sorted(records, key=lambda record: str(record["name"]))
        if (name := str(record["name"])) in place
        for alias in dict.fromkeys([*_listed(record, "altSpellings"), *_MORE.get(name, ())])
        if len(alias) > 2 or alias in _SAID
    ]


_SAID = ("US", "UK")
_MORE = {"Democratic Republic of the Congo": ["DRC"], "Myanmar": ["Burma"], "United Arab Emirates": ["UAE"]}
"""What the package lacks."""


def _listed(record: Mapping[str, Any], key: str) -> list[str]:
    """Returns the texts of a list; anything else that stands there is left out."""
    values = record.get(key) or []
    return [v for v in values if isinstance(v, str) and v] if isinstance(values, list) else []


def package_folder() -> tuple[Path, str]:
    """Returns where the installed package has its files, and its version.

    Raises:
        UserError: It isn't installed.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise UserError(f"the data set 'countries' reads the package {PACKAGE}: pip install {PACKAGE}")
    return Path(found.submodule_search_locations[0]) / "data", importlib.metadata.version(PACKAGE)


def package_records(folder: Path) -> list[dict[str, Any]]:
    """Returns the records of the package.

    Raises:
        UserError: Its files aren't as expected.
    """
    try:
        records = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the files of {PACKAGE} in {folder}: {error}") from error
    records = [r for r in records if isinstance(r, dict) and {"name", "ISO"} <= r.keys()]
    if len(records) < 100:
        raise UserError(f"{folder} has {len(records)} countries; the package {PACKAGE} isn't as expected")
    return records


# --- Questions --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Posed:
    """One question.

    Attributes:
        template: Its words with ``{}`` in place of the entity.
        topic: The name of the entity.
        answers: Names, sorted.
        hop: Relations on the way.
        part: ``train``, ``valid`` or ``test``.
    """

    template: str
    topic: str
    answers: tuple[str, ...]
    hop: int
    part: str

    def text(self, name: str) -> str:
        """Returns its words with a name for the entity."""
        return self.template.replace("{}", name)


def moves_of(chain: Sequence[str]) -> list[str]:
    """Returns the relations that a kind of question follows from the entity it names."""
    parts = [FRAMES[chain[0]], *(NOUNS[noun] for noun in chain[1:])]
    return [move for part in reversed(parts) for move in part.moves]


def posed(facts: Sequence[Fact], seed: int, phrasings: int = 2, max_answers: int = 60) -> Iterator[Posed]:
    """Yields every kind of question about every entity that has an answer.

    After each hop the entity itself is dropped, so that nobody is their own neighbour's neighbour.

    Args:
        facts: By name.
        seed: Deals out entities to the parts and draws words.
        phrasings: The most wordings of a training question; validation and test have one.
        max_answers: Questions with more answers aren't asked.
    """
    follow: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for head, relation, tail in facts:
        follow[relation][head].add(tail)
        follow[f"-{relation}"][tail].add(head)
    for chain in CHAINS:
        moves = moves_of(chain)
        for topic in sorted(follow[moves[0]]):
            answers = {topic}
            for move in moves:
                answers = {end for e in answers for end in follow[move].get(e, ())} - {topic}
            if not 0 < len(answers) <= max_answers:
                continue
            part = _part(topic, seed)
            for template in _templates(chain, part, topic, seed, phrasings if part == "train" else 1):
                yield Posed(template, topic, tuple(sorted(answers)), len(moves), part)


def _part(topic: str, seed: int) -> str:
    """Returns the part whose questions are about an entity: a matter of its name and the seed alone."""
    place, low = _drawn(seed, topic).random(), 0.0
    for part, share in SHARES.items():
        low += share
        if place < low:
            return part
    return part


def _templates(chain: Sequence[str], part: str, topic: str, seed: int, count: int) -> list[str]:
    """Returns different wordings of a kind of question, drawn for an entity."""
    rng = _drawn(seed, topic, *chain)
    found: dict[str, None] = {}
    for _ in range(4 * count):
        if len(found) < count:
            template = "{}"
            for noun in reversed(chain[1:]):
                template = NOUNS[noun].ways[rng.choice(WAYS[part])].replace("{}", template)
            found[FRAMES[chain[0]].ways[rng.choice(WAYS[part])].replace("{}", template)] = None
    return list(found)


def _drawn(seed: int, *words: str) -> np.random.Generator:
    digest = blake2b("\n".join([str(seed), *words]).encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


# --- The data set -----------------------------------------------------------------------------------------


@register_dataset("countries", task="kgqa", paper="arXiv:2210.13650")
def load_countries(
    *,
    root: str | Path = "data",
    task: str = "kgqa",
    seed: int = 0,
    max_entities: int = 700,
    phrasings: int = 2,
    question_seed: int = 0,
    num_train: int | None = None,
    mask: bool = True,
    incomplete: float = 0.0,
    incomplete_seed: int = 0,
    incomplete_scope: Scope = "global",
) -> Benchmark:
    """The world's countries: capitals, languages, neighbours, ... asked about in 1 to 3 hops. No download.

    "Which languages are spoken in the countries that border the country whose capital is Paris?" Facts are
    those of the package ``countryinfo``. Test questions name entities that training doesn't, in new words.

    Args:
        root: Its folder ``countries`` keeps what was made the first time.
        task: ``"kgqa"``.
        seed: Draws the questions of ``num_train``.
        max_entities: The most entities of a subgraph.
        phrasings: Wordings of each training question.
        question_seed: Deals out entities to training, validation and test, and draws words.
        num_train: The most questions to train on; all by default.
        mask: Whether models read "NE" in place of the entity that a question names.
        incomplete: Share of the facts that are missing. Answers stay those of the complete graph.
        incomplete_seed: Seeds which ones.
        incomplete_scope: ``global`` thins out the graph, others the subgraphs. See
            :func:`graphkit.incomplete.incomplete`.

    Raises:
        UserError: The package isn't there, or a value is out of range.
    """
    if phrasings < 1:
        raise UserError(f"phrasings is {phrasings}; it must be at least 1")
    missing = Missing(incomplete, incomplete_seed, incomplete_scope)
    thin = missing if missing.rate and missing.scope == "global" else Missing()
    folder, version = package_folder()
    words = blake2b(repr((FRAMES, NOUNS, CHAINS, RELATIONS, SHARES, WAYS, RESTART)).encode(), digest_size=16)
    key = (
        f"countries/{VERSION}/{version}/{words.hexdigest()}/{question_seed}/{phrasings}/{max_entities}/{thin}"
    )

    def build() -> Processed:
        records = package_records(folder)
        made = _processed(country_facts(records), question_seed, phrasings, max_entities, thin)
        texts, ids = zip(*country_aliases(records, list(Texts(made.tensors["names"]))), strict=True)
        made.tensors["aliases"] = torch.from_numpy(np.array(join_texts(texts)))
        made.tensors["alias_of"] = torch.tensor(ids, dtype=torch.int32)
        return made

    made = cached(Path(root) / "countries" / "processed", key, build)
    names, templates = (list(Texts(made.tensors[name])) for name in ("names", "templates"))
    asked = [templates[number] for number in made.tensors["template"].tolist()]
    topics = [names[entity] for entity in made.tensors["topic"].tolist()]
    splits = split_at(*made.info["sizes"])
    splits["train"] = {"index": some_of(splits["train"]["index"], num_train, seed)}
    info = {"source": f"{PACKAGE} {version}", "licence": "MIT", "question_seed": question_seed}
    info |= {"max_entities": max_entities, "restart": RESTART, "mask": MASK if mask else None}
    return kgqa_benchmark(
        "countries",
        QuestionSet.of(made.tensors),
        splits,
        [text.replace("{}", topic) for text, topic in zip(asked, topics, strict=True)],
        names,
        list(RELATIONS),
        info=info | thin.facts(),
        citation=CITATION,
        question_texts=[text.replace("{}", MASK) for text in asked] if mask else None,
        relation_texts=list(RELATIONS.values()),
        graph=(made.tensors["kg_edge_index"], made.tensors["kg_edge_type"]),
        aliases=list(zip(Texts(made.tensors["aliases"]), made.tensors["alias_of"].tolist(), strict=True)),
        missing=Missing() if thin.rate else missing,
    )


def _processed(
    facts: Sequence[Fact], question_seed: int, phrasings: int, max_entities: int, thin: Missing
) -> Processed:
    """Asks all questions and extracts their subgraphs; those of training come first, then validation's."""
    order = {part: place for place, part in enumerate(SHARES)}
    asked = sorted(posed(facts, question_seed, phrasings), key=lambda question: order[question.part])
    names = sorted({end for head, _, tail in facts for end in (head, tail)})
    entity, relation = ({name: k for k, name in enumerate(group)} for group in (names, RELATIONS))
    edge_index = torch.tensor([[entity[fact[end]] for fact in facts] for end in (0, 2)], dtype=torch.int32)
    edge_type = torch.tensor([relation[fact[1]] for fact in facts], dtype=torch.int16)
    if thin.rate:
        kept = kept_facts(edge_index, edge_type, thin.rate, thin.seed)
        edge_index, edge_type = edge_index[:, kept], edge_type[kept]
    topics = [entity[question.topic] for question in asked]
    questions = questions_on(
        KnowledgeGraph(edge_index, edge_type, len(names)),
        [(topic,) for topic in topics],
        [[entity[name] for name in question.answers] for question in asked],
        [question.hop for question in asked],
        max_entities=max_entities,
        restart=RESTART,
    )
    number: dict[str, int] = {}
    template = [number.setdefault(question.template, len(number)) for question in asked]
    tensors = {
        **questions.tensors(),
        "template": torch.tensor(template, dtype=torch.int32),
        "topic": torch.tensor(topics, dtype=torch.int32),
        "kg_edge_index": edge_index,
        "kg_edge_type": edge_type,
        **{
            name: torch.from_numpy(np.array(join_texts(list(lines))))
            for name, lines in (("names", names), ("templates", number))
        },
    }
    sizes = Counter(question.part for question in asked)
    return Processed(tensors, {"sizes": [sizes[part] for part in SHARES]})
