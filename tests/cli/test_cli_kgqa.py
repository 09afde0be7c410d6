"""Questions from the command line: train on a folder of one's own, evaluate, ask, draw."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import graphkit.datasets.kgqa_folder
import graphkit.models.rearev
import graphkit.tasks.kgqa  # noqa: F401 - registers, as the others do
from graphkit.cli import main
from graphkit.inference import load

Call = Callable[..., Any]
LANDS = {
    "France": ("Paris", ["Spain", "Germany"]),
    "Spain": ("Madrid", ["France", "Portugal"]),
    "Germany": ("Berlin", ["France", "Austria"]),
    "Austria": ("Vienna", ["Germany"]),
    "Portugal": ("Lisbon", ["Spain"]),
}
SMALL = ["--model.hidden_channels", "16", "--model.layers", "2", "--model.dropout", "0"]
TEXT = ["--task.encoder", "hash:32"]
EPOCHS = ["--train.epochs", "8", "--train.batch_size", "4", "--optim.lr", "0.01", "--device", "cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Facts about five countries, and questions about them."""
    place = tmp_path_factory.mktemp("lands")
    facts, questions = [], []
    for land, (capital, neighbours) in LANDS.items():
        facts += [f"{land}\tcapital\t{capital}", *(f"{land}\tborders\t{other}" for other in neighbours)]
        split = "test" if land == "Austria" else "valid" if land == "Portugal" else "train"
        for text, hop, answers in (
            ("what is the capital of {}", 1, [capital]),
            ("who are the neighbours of {}", 1, neighbours),
            ("what are the capitals of the neighbours of {}", 2, [LANDS[n][0] for n in neighbours]),
        ):
            row = {"question": text.format(land), "entities": [land], "answers": answers}
            questions.append(json.dumps({**row, "hop": hop, "split": split}))
    (place / "kb.tsv").write_text("\n".join(facts))
    (place / "questions.jsonl").write_text("\n".join(questions))
    return place


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of rearev on the folder."""
    place = tmp_path_factory.mktemp("run")
    where = ["--runs", str(place / "runs"), "--data-root", str(place / "data")]
    flags = ["--dataset", "kgqa-folder", "--data.path", str(folder), *SMALL, *TEXT, *EPOCHS, *where]
    assert main(["train", "rearev", *flags]) == 0
    (config,) = (place / "runs").glob("*/*/config.yaml")
    return config.parent


def test_a_run_holds_metrics_by_hop(run: Path) -> None:
    test = json.loads((run / "result.json").read_text())["test"]
    metrics = {"hits@1", "f1", "precision", "recall", "any_hit"}
    assert set(test) == metrics | {f"{name}@hop{h}" for name in ("hits@1", "f1") for h in (1, 2)}


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_evaluate_gives_the_metrics_of_the_result(call: Call, run: Path, split: str) -> None:
    done = call("evaluate", run, "--split", split, "--device", "cpu")
    assert done.code == 0
    stored = json.loads((run / "result.json").read_text()).get(split, {})
    printed = json.loads(done.out)
    assert {key: printed[key] for key in stored} == pytest.approx(stored)
    assert "hits@1" in printed


def test_a_question_is_answered_with_paths_and_drawn(call: Call, run: Path, tmp_path: Path) -> None:
    question = "What are the capitals of the neighbours of Austria?"
    done = call("predict", run, question, "--draw", tmp_path / "answer.png", "--device", "cpu", "--top", "20")
    assert done.code == 0, done.err
    assert "about Austria: " in done.err
    rows = list(csv.DictReader(done.out.splitlines()))
    assert [row["rank"] for row in rows] == [str(rank) for rank in range(1, 10)]
    assert {"probability", "retrieved", "path", "iteration 1", "iteration 2"} < set(rows[0])
    berlin = next(row for row in rows if row["answer"] == "Berlin")
    assert berlin["path"].startswith("Austria -[borders]-> Germany")
    assert (tmp_path / "answer.png").read_bytes().startswith(b"\x89PNG")


def test_a_loaded_run_gives_the_same_answer(call: Call, run: Path) -> None:
    done = call("predict", run, "who are the neighbours of Austria", "--device", "cpu")
    rows = list(csv.DictReader(done.out.splitlines()))
    opened: Any = load(run)
    told = opened.task.answer(opened.model, "who are the neighbours of Austria")
    assert [c.name for c in told.candidates] == [row["answer"] for row in rows]
    assert [f"{c.probability:.6f}" for c in told.candidates] == [row["probability"] for row in rows]


@pytest.mark.parametrize(
    ("question", "hint"),
    [
        ("", "the question is empty"),
        ("who are the neighbours of Mordor", "names no entity that the graph has"),
        ("who are the neighbours of [Germanicus]", "there is no entity 'Germanicus'; like it are Germany"),
    ],
)
def test_a_question_outside_the_graph_is_refused(call: Call, run: Path, question: str, hint: str) -> None:
    done = call("predict", run, question, "--device", "cpu")
    assert done.code == 2
    assert hint in done.complaint


def test_all_retrieved_are_named_and_the_first_ones_explained(call: Call, run: Path) -> None:
    question = "who are the neighbours of France"
    opened: Any = load(run)
    whole, some = (opened.answer(question, top=top) for top in (50, 1))
    assert len(whole.names) > 1
    assert some.names == whole.names
    assert [bool(c.paths) for c in some.candidates] == [True, *[False] * (len(some.candidates) - 1)]
    assert all(c.retrieved or c.probability >= 1e-3 for c in whole.candidates)
    done = call("predict", run, question, "--device", "cpu", "--top", "1")
    assert f"1 of {len(whole.names)} answers shown; --top {len(whole.names)} shows all" in done.err
    assert len(done.out.splitlines()) == 2


def test_words_that_training_lacks_are_told(call: Call, run: Path) -> None:
    told = "no training question says 'president' or 'visits', so this may answer another question"
    assert told in call("predict", run, "which president visits France", "--device", "cpu").err
    assert "training question" not in call("predict", run, "the neighbour of France", "--device", "cpu").err


def test_a_misspelt_name_is_told(call: Call, run: Path) -> None:
    done = call("predict", run, "who are the neighbours of Astria", "--device", "cpu")
    assert done.code == 0
    assert "'Astria' is taken for 'Austria'" in done.err


def test_predict_answers_the_questions_of_a_split(call: Call, run: Path) -> None:
    done = call("predict", run, "--split", "test", "--device", "cpu")
    rows = list(csv.DictReader(done.out.splitlines()))
    assert [row["question"] for row in rows if "Austria" in row["question"]] == [r["question"] for r in rows]
    assert len(rows) == 3
