"""MetaQA: both layouts of its files, questions made again from types, and the real ones where they are."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from graphkit.data import Benchmark, load_dataset
from graphkit.datasets import metaqa  # noqa: F401 - registers
from graphkit.datasets.metaqa_files import Question, read_base, read_part, read_types, regenerated, walked
from graphkit.errors import UserError
from graphkit.questions import QuestionSet

FACTS = [
    *((f"M{k}", "directed_by", f"D{k % 3}") for k in range(9)),
    *((f"M{k}", "starred_actors", f"A{(k * k) % 4}") for k in range(9)),
    *((f"M{k}", "release_year", f"{1990 + k % 2}") for k in range(9)),
    ("M0", "starred_actors", "M1"),  # an actor called as a film is
]
KIND = "movie_to_director_to_movie_to_year"
WORDS = ("when were the films by the director of [{}] released", "release years of films by [{}]'s director")


def answers(movie: int) -> str:
    others = [k for k in range(9) if k % 3 == movie % 3 and k != movie]
    return "|".join(sorted({str(1990 + k % 2) for k in others}))


def lines(movies: range, turn: int) -> list[str]:
    return [f"{WORDS[(k + turn) % 2].format(f'M{k}')}\t{answers(k)}" for k in movies]


def official(root: Path, training: bool = True) -> Path:
    """Writes the layout of the official archive."""
    folder = root / "metaqa"
    (folder / "3-hop" / "vanilla").mkdir(parents=True)
    (folder / "kb.txt").write_text("".join("|".join(fact) + "\n" for fact in [*FACTS, FACTS[0]]))
    parts = {"dev": lines(range(2), 0), "test": lines(range(2, 4), 0)}
    if training:
        parts["train"] = lines(range(4, 9), 0)
    for part, rows in parts.items():
        (folder / "3-hop" / "vanilla" / f"qa_{part}.txt").write_text("".join(f"{row}\n" for row in rows))
        (folder / "3-hop" / f"qa_{part}_qtype.txt").write_text(f"{KIND}\n" * len(rows))
    return folder


def in_ids(root: Path) -> Path:
    """Writes the layout in ids, without training questions; every other relation id isn't used."""
    folder = root / "metaqa"
    (folder / "kb").mkdir(parents=True)
    (folder / "qa").mkdir()
    names = sorted({end for fact in FACTS for end in (fact[0], fact[2])}, reverse=True)
    relations = [
        f"{r}{tail}" for r in ("starred_actors", "directed_by", "release_year") for tail in ("", "_reverse")
    ]
    for name, rows in (("entities", names), ("relations", relations)):
        (folder / "kb" / f"{name}.dict").write_text("".join(f"{k}\t{row}\n" for k, row in enumerate(rows)))
    triples = [(names.index(a), relations.index(r), names.index(b)) for a, r, b in FACTS]
    (folder / "kb" / "train.txt").write_text("".join("{}\t{}\t{}\n".format(*row) for row in triples))
    files = {"dev_3hop": lines(range(2), 0), "test_3hop": lines(range(2, 4), 0)}
    files |= {"dev_qtype_3hop": [KIND] * 2, "test_qtype_3hop": [KIND] * 2, "train_qtype_3hop": [KIND] * 7}
    for name, rows in files.items():
        path = folder / "qa" / f"qa_{name}.txt.gz"
        path.write_bytes(gzip.compress("".join(f"{row}\n" for row in rows).encode()))
    return folder


def named(made: Benchmark, number: int) -> tuple[str, str, set[str]]:
    """A question's words, the entity it names, and its answers."""
    names = made.node_names or ()
    questions = QuestionSet.of(made.data)
    batch = questions.batch(torch.tensor([number]))
    (seed,) = batch.entity[batch.seed].tolist()
    gold = questions.answers(torch.tensor([number]))[0].tolist()
    return (made.questions or ())[number], names[seed], {names[e] for e in gold}


def test_the_official_layout(tmp_path: Path) -> None:
    official(tmp_path)
    for _ in range(2):  # the second time from the cache
        made = load_dataset("metaqa-3", root=tmp_path)
        assert made.task == "kgqa"
        assert made.target_names == ["directed_by", "release_year", "starred_actors"]
        assert made.info["training"] == "official"
        assert [part["index"].tolist() for part in made.splits.values()] == [[0, 1, 2, 3, 4], [5, 6], [7, 8]]
        assert made.data.kg_edge_type.numel() == len(FACTS)
        assert named(made, 5) == (WORDS[0].replace("[{}]", "M0"), "M0", {"1990", "1991"})
        assert (made.question_texts or ())[5] == WORDS[0].replace("[{}]", "NE")
        assert QuestionSet.of(made.data).hop.unique().tolist() == [3]


def test_the_layout_in_ids_with_training_questions_made_again(tmp_path: Path) -> None:
    in_ids(tmp_path)
    made = load_dataset("metaqa-3", root=tmp_path)
    assert made.info["training"] == "regenerated"
    assert made.target_names == ["directed_by", "release_year", "starred_actors"]
    sizes = [part["index"].numel() for part in made.splits.values()]
    assert sizes == [7, 2, 2]
    held = {named(made, number)[1] for number in range(7, 11)}
    for number in range(7):
        text, topic, gold = named(made, number)
        assert topic not in held
        assert text in [words.replace("[{}]", topic) for words in WORDS]
        assert gold == set(answers(int(topic[1:])).split("|"))
    assert len({named(made, number)[0] for number in range(7)}) == 7  # none is asked twice
    other = load_dataset("metaqa-3", root=tmp_path, seed=1)
    assert other.questions != made.questions
    assert list(other.questions or ())[7:] == list(made.questions or ())[7:]


def test_options_leave_out_questions_and_facts(tmp_path: Path) -> None:
    official(tmp_path)
    some = load_dataset("metaqa-3", root=tmp_path, num_train=2, num_valid=1, mask=False, max_entities=3)
    assert [part["index"].numel() for part in some.splits.values()] == [2, 1, 2]
    assert some.question_texts is None
    assert int(QuestionSet.of(some.data).num_entities().max()) == 3
    thin = load_dataset("metaqa-3", root=tmp_path, incomplete=0.5)
    assert 0 < thin.data.kg_edge_type.numel() < len(FACTS)
    assert thin.info["incomplete"]["scope"] == "global"
    ways: dict[str, Any] = {"incomplete": 0.5, "incomplete_scope": "published"}
    assert load_dataset("metaqa-3", root=tmp_path, **ways).data.kg_edge_type.numel() == len(FACTS)


def test_one_hop_may_lead_to_a_thing_of_the_same_name(tmp_path: Path) -> None:
    walk = walked(read_base(official(tmp_path)))
    assert walk.moves("director_to_movie_to_actor") == [(0, False), (2, True)]
    base = read_base(tmp_path / "metaqa")
    name = {number: name for name, number in base.entities.items()}
    assert [name[e] for e in walk(base.entities["D0"], "director_to_movie")] == ["M0", "M3", "M6"]
    assert base.entities["D0"] in walk.topics("director_to_movie")


def test_only_so_many_questions_can_be_made(tmp_path: Path) -> None:
    base = read_base(official(tmp_path))
    known = read_part(tmp_path / "metaqa", "dev", 3, base) or []
    made = regenerated(base, known, {KIND: 1000}, 0)
    assert len(made) == 7 * 2  # topics that aren't asked about, in both ways
    with pytest.raises(UserError, match="no known question is of type actor_to_movie"):
        regenerated(base, known, {"actor_to_movie": 1}, 0)


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lacks kb\.txt, 3-hop/vanilla/qa_dev\.txt, .* countries"):
        load_dataset("metaqa-3", root=tmp_path)
    folder = official(tmp_path, training=False)
    with pytest.raises(UserError, match="has no official training questions"):
        load_dataset("metaqa-3", root=tmp_path, training="official")
    with pytest.raises(UserError, match="training is 'none'; it is one of"):
        load_dataset("metaqa-3", root=tmp_path, training="none")
    path = folder / "3-hop" / "vanilla" / "qa_dev.txt"
    for line, message in (
        ("who made it\tM1", r"line 1: words with a \[topic\], a tab and answers"),
        ("who made [it]\tM1", "line 1: the knowledge base has no entity 'it'"),
    ):
        path.write_text(f"{line}\n" * 2)
        with pytest.raises(UserError, match=message):
            load_dataset("metaqa-3", root=tmp_path)
    path.write_text(f"{lines(range(1), 0)[0]}\n")
    with pytest.raises(UserError, match="has 1 questions, and there are types of 2"):
        load_dataset("metaqa-3", root=tmp_path)
    (folder / "kb.txt").write_text("a|b\n")
    with pytest.raises(UserError, match=r"kb\.txt, line 1: head\|relation\|tail was expected"):
        load_dataset("metaqa-3", root=tmp_path)


def test_the_real_files(test_data: Path) -> None:
    folder = test_data / "metaqa"
    base = read_base(folder)
    assert (len(base.entities), len(base.relations), len(base.facts)) == (43234, 9, 133582)
    walk = walked(base)
    for hop, count, least in ((1, 9992, 0.94), (2, 14872, 0.9999), (3, 14274, 1.0)):
        asked: list[Question] = read_part(folder, "dev", hop, base) or []
        assert len(asked) == count
        some = asked[::50]
        same = [tuple(sorted(q.answers)) == walk(q.topic, q.kind) for q in some]
        assert sum(same) / len(same) >= least - 0.02 * (hop == 1)
    kinds = Counter(read_types(folder, "train", 3))
    assert sum(kinds.values()) == 114196
