"""The world's countries: facts of a package, questions whose answers follow from them, honest splits."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from graphkit.data import Benchmark
from graphkit.datasets import countries
from graphkit.datasets.countries import country_facts, load_countries, posed
from graphkit.datasets.country_words import CHAINS, FRAMES, NOUNS, RELATIONS
from graphkit.errors import UserError
from graphkit.questions import QuestionSet


def record(name: str, code: str, **values: Any) -> dict[str, Any]:
    basic = {"name": name, "ISO": {"alpha3": code}, "region": "Europe", "subregion": "Western Europe"}
    return basic | {"languages": ["fr"], "currencies": ["EUR"], "capital": f"{name}ville", **values}


RECORDS = [
    record("Aland", "AAA", borders=["BBB"], tld=[".aa"], callingCodes=["1"]),
    record("Beland", "BBB", borders=[], languages=["de", "fr"], currencies=["CHF", "CHW"]),
    record("Celand", "CCC", borders=["BBB", "ZZZ"], capital="Celand"),
    record("Deland", "DDD", capital="Celand"),
    record("Eisland", "EEE", languages=[]),
    record("Old Aland", "AAA"),
]


def test_records_become_facts_by_name() -> None:
    facts = set(country_facts(RECORDS))
    assert ("Beland", "borders", "Aland") in facts  # though the record forgets it
    assert {tail for head, relation, tail in facts if (head, relation) == ("Beland", "currency")} == {
        "Swiss franc"
    }
    assert {tail for head, relation, tail in facts if (head, relation) == ("Beland", "language")} == {
        "German",
        "French",
    }
    assert ("Celand", "capital", "Celand (city)") in facts
    assert ("Deland", "capital", "Celand (Deland)") in facts
    assert ("Aland", "calling_code", "+1") in facts
    assert {head for head, _, _ in facts} == {"Aland", "Beland", "Celand", "Deland"}


def test_every_part_has_nine_ways_with_one_place_for_what_it_is_about() -> None:
    for part in (*FRAMES.values(), *NOUNS.values()):
        assert len(set(part.ways)) == 9
        assert all(way.count("{}") == 1 for way in part.ways)
        assert all(move.removeprefix("-") in RELATIONS for move in part.moves)
    assert {len(countries.moves_of(chain)) for chain in CHAINS} == {1, 2, 3}


def test_answers_follow_from_the_facts() -> None:
    found = {
        question.text(question.topic): question for question in posed(country_facts(RECORDS), 0, phrasings=9)
    }
    about = [q for q in found.values() if q.topic == "Aland" and q.hop == 2]
    neighbours = [
        q for q in about if re.search("spoken|speak|language", q.text("")) and "same" not in q.template
    ]
    assert any(q.answers == ("French", "German") for q in neighbours)
    assert all("Aland" not in q.answers for q in found.values() if q.topic == "Aland")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def made(folder: Path) -> Benchmark:
    pytest.importorskip("countryinfo")
    return load_countries(root=folder, num_train=2000)


def test_real_facts_are_there(made: Benchmark) -> None:
    names, relations = list(made.node_names or ()), list(made.target_names or ())
    ends, types = made.data.kg_edge_index.tolist(), made.data.kg_edge_type.tolist()
    facts = {(names[a], relations[r], names[b]) for a, r, b in zip(ends[0], types, ends[1], strict=True)}
    assert ("France", "capital", "Paris") in facts
    assert ("France", "borders", "Spain") in facts
    assert ("Japan", "currency", "Japanese yen") in facts
    assert ("Brazil", "language", "Portuguese") in facts
    assert len(set(names)) == len(names)
    assert made.target_texts == list(RELATIONS.values())


def test_no_test_entity_or_wording_is_trained_on(made: Benchmark) -> None:
    questions, texts, words = QuestionSet.of(made.data), made.questions or (), made.question_texts or ()
    seen: dict[str, tuple[set[int], set[str]]] = {}
    for part, split in made.splits.items():
        batch = questions.batch(split["index"])
        topics = set(batch.entity[batch.seed].tolist())
        seen[part] = topics, {words[i] for i in split["index"].tolist()}
        assert set(questions.hop[split["index"]].tolist()) == {1, 2, 3}
        assert all("NE" in text for text in seen[part][1])
    for a, b in (("train", "valid"), ("train", "test"), ("valid", "test")):
        assert not seen[a][0] & seen[b][0]
        assert not seen[a][1] & seen[b][1]
    assert made.splits["train"]["index"].numel() == 2000
    assert len(texts) == len(questions) > 10_000


def test_nearly_all_answers_are_inside_the_subgraphs(made: Benchmark) -> None:
    questions, ids = QuestionSet.of(made.data), made.splits["test"]["index"]
    inside = sum(int(questions.batch(part).answer.sum()) for part in ids.split(256))
    assert inside > 0.99 * questions.answers(ids)[0].numel()


def test_what_was_made_once_is_read_the_next_time(
    made: Benchmark, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(countries, "package_records", None)  # can't be called
    again = load_countries(root=folder, num_train=2000)
    assert (again.questions, again.question_texts) == (made.questions, made.question_texts)
    assert again.node_names == made.node_names
    for name, tensor in QuestionSet.of(made.data).tensors().items():
        assert torch.equal(tensor, again.data[name])
    monkeypatch.undo()
    monkeypatch.setattr(countries, "WAYS", {"train": (7,), "valid": (0,), "test": (1,)})
    assert load_countries(root=folder, max_entities=20).questions != made.questions


def test_facts_can_be_missing(made: Benchmark, folder: Path) -> None:
    thin = load_countries(root=folder, max_entities=20, incomplete=0.5)
    assert 0.4 < thin.data.kg_edge_type.numel() / made.data.kg_edge_type.numel() < 0.6
    assert thin.questions == made.questions
    assert torch.equal(thin.data.answer, made.data.answer)


def test_without_the_package_one_line_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(countries, "PACKAGE", "no_such_package_here")
    with pytest.raises(UserError, match="pip install no_such_package_here"):
        load_countries(root=tmp_path)
    with pytest.raises(UserError, match="phrasings is 0; it must be at least 1"):
        load_countries(root=tmp_path, phrasings=0)
