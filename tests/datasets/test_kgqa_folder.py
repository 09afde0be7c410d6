"""A folder of one's own: facts and questions in, a benchmark or one clear line out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from graphkit.commands.extract import extract
from graphkit.data import Benchmark
from graphkit.datasets.kgqa_folder import load_kgqa_folder, masked
from graphkit.errors import UserError
from graphkit.questions import QuestionSet

FACTS = (
    "France\tborders\tSpain\nSpain\tborders\tPortugal\nFrance\tlanguage\tFrench\nSpain\tlanguage\tSpanish\n"
)
QUESTIONS: list[dict[str, Any]] = [
    {
        "question": "what is spoken in  france?",
        "entities": ["France"],
        "answers": ["French"],
        "split": "train",
    },
    {"question": "who borders [Spain]?", "answers": ["France", "Portugal"], "split": "valid", "hop": 1},
    {"question": "what do Spain and France share?", "entities": ["Spain", "France"], "split": "test"},
]


def write(folder: Path, questions: list[Any] = QUESTIONS, facts: str = FACTS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kb.tsv").write_text(facts)
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    return folder


def load(tmp_path: Path, questions: list[Any] = QUESTIONS, facts: str = FACTS, **options: Any) -> Benchmark:
    return load_kgqa_folder(
        root=tmp_path / "root", path=str(write(tmp_path / "own", questions, facts)), **options
    )


def names_of(made: Benchmark, ids: torch.Tensor) -> list[str]:
    return [(made.node_names or ())[i] for i in ids.tolist()]


@pytest.mark.parametrize("times", [1, 2])
def test_facts_and_questions_become_a_benchmark(tmp_path: Path, times: int) -> None:
    for _ in range(times):  # the second time from the cache
        made = load(tmp_path, max_entities=4)
    assert made.node_names == ["France", "French", "Portugal", "Spain", "Spanish"]
    assert made.target_names == ["borders", "language"]
    assert made.questions == [
        "what is spoken in france?",
        "who borders Spain?",
        "what do Spain and France share?",
    ]
    assert made.question_texts == ["what is spoken in NE?", "who borders NE?", "what do NE and NE share?"]
    assert {part: split["index"].tolist() for part, split in made.splits.items()} == {
        "train": [0],
        "valid": [1],
        "test": [2],
    }
    questions = QuestionSet.of(made.data)
    assert questions.hop.tolist() == [0, 1, 0]
    batch = questions.batch(torch.arange(3))
    assert names_of(made, batch.entity[batch.seed]) == ["France", "Spain", "Spain", "France"]
    assert batch.ptr.tolist() == [0, 4, 8, 12]
    assert names_of(made, batch.entity[batch.answer]) == ["French", "France", "Portugal"]
    assert made.data.kg_edge_index.shape == (2, 4)
    assert made.info["mask"] == "NE"
    assert (made.info["max_entities"], made.info["restart"]) == (4, 0.8)
    assert load(tmp_path, mask=False).question_texts is None


def test_questions_without_splits_are_dealt_out(tmp_path: Path) -> None:
    rows = [{"question": f"number {k} of [France]?", "answers": ["Spain"]} for k in range(20)]
    made, other = load(tmp_path, rows), load(tmp_path, rows, seed=1)
    assert [part["index"].numel() for part in made.splits.values()] == [16, 2, 2]
    assert torch.cat([part["index"] for part in made.splits.values()]).sort().values.tolist() == list(
        range(20)
    )
    assert made.splits["test"]["index"].tolist() != other.splits["test"]["index"].tolist()
    assert load(tmp_path, rows, num_train=3).splits["train"]["index"].numel() == 3


def test_a_graph_with_facts_missing_lacks_them_everywhere(tmp_path: Path) -> None:
    facts = "".join(f"a{k}\tr\ta{k + 1}\n" for k in range(200))
    rows = [
        {"question": "what of [a7]?", "answers": ["a8"], "split": part} for part in ("train", "valid", "test")
    ]
    made = load(tmp_path, rows, facts, incomplete=0.5)
    assert 60 < made.data.kg_edge_type.numel() < 140
    assert made.info["incomplete"]["rate"] == 0.5
    assert QuestionSet.of(made.data).answers(torch.tensor([0]))[0].numel() == 1
    by_question = load(tmp_path, rows, facts, incomplete=0.5, incomplete_scope="per_question")
    assert by_question.data.kg_edge_type.numel() == 200
    assert QuestionSet.of(by_question.data).num_graphs == 3


def test_longer_names_are_masked_first_and_whole_words_only() -> None:
    assert masked("is New York in york or Yorkshire?", ["York", "New York"]) == "is NE in NE or Yorkshire?"


@pytest.mark.parametrize(
    ("questions", "facts", "message"),
    [
        (QUESTIONS, "a\tb\n", "kb.tsv, line 1: head, relation and tail with tabs between were expected"),
        (QUESTIONS, "", "kb.tsv holds no facts"),
        ([], FACTS, "questions.jsonl holds no questions"),
        ([{"question": "and [Frence]?"}], FACTS, "line 1: no fact is about 'Frence'; did you mean 'France'?"),
        (
            [{"question": "[France]?", "answers": None}],
            FACTS,
            "line 1: 'answers' is null; a list of names was",
        ),
        ([{"question": "who?", "entities": "France"}], FACTS, "line 1: 'entities' is \"France\"; a list"),
        ([{"question": "and France?"}], FACTS, "line 1 names no entity: list some in 'entities' or mark"),
        ([{"entities": ["France"]}], FACTS, 'line 1: {"question": ...'),
        (["words"], FACTS, 'line 1: {"question": ...'),
        ([{"question": "[Spain]?", "split": "dev"}], FACTS, "line 1: split 'dev' and hop 0"),
        ([QUESTIONS[0], {"question": "[Spain]?"}], FACTS, "question 2 has no 'split', which others have"),
    ],
)
def test_mistakes_are_told_in_one_line(
    tmp_path: Path, questions: list[Any], facts: str, message: str
) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, questions, facts)
    assert message in str(caught.value)


def test_no_folder_or_not_the_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="which folder"):
        load_kgqa_folder(root=tmp_path)
    with pytest.raises(UserError, match=r"lacks kb\.tsv"):
        load_kgqa_folder(root=tmp_path, path=str(tmp_path))
    (write(tmp_path) / "questions.jsonl").unlink()
    with pytest.raises(UserError, match=r"lacks questions\.jsonl"):
        load_kgqa_folder(root=tmp_path, path=str(tmp_path))


# --- The command ------------------------------------------------------------------------------------------


def test_what_is_extracted_is_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = load(tmp_path, max_entities=4)
    out, root = tmp_path / "out", tmp_path / "root"
    assert (
        extract([str(tmp_path / "own"), "--max-entities", "4", "--out", str(out), "--root", str(root)]) == 0
    )
    assert f"3 questions written to {out}: 4 entities and" in capsys.readouterr().out
    after = load_kgqa_folder(root=root, path=str(out))
    assert (after.node_names, after.target_names) == (before.node_names, before.target_names)
    assert after.questions == before.questions
    ids = torch.arange(3)
    one, other = (QuestionSet.of(made.data) for made in (before, after))
    for a, b in zip(one.batch(ids), other.batch(ids), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(one.answers(ids)[0], other.answers(ids)[0])
    assert torch.equal(one.hop, other.hop)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the folder comes first: extract FOLDER --out FOLDER"),
        (["there"], "where shall they go? extract there --out FOLDER"),
        (["there", "--out", "x"], "there lacks kb.tsv"),
        (["there", "--out", "x", "--threads", "0"], "--threads is 0"),
    ],
)
def test_a_wrong_call_is_told(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        extract(arguments)
    assert message in str(caught.value)
