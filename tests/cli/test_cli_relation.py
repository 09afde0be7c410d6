"""Reasoning from the command line: train, evaluate, ask about one's own facts; and complete a graph."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from graphkit.cli import main
from graphkit.pictures import cells_of

Call = Callable[..., Any]
RELATIONS = ["DC", "EC", "PO", "TPP", "NTPP", "TPPI", "NTPPI", "EQ"]
SMALL_DATA = ["--data.train_per_relation", "6", "--data.test_per_relation", "2"]
CELLS = ["--data.test_k", "[2,3]", "--data.test_b", "[1,2]"]
PORTIONS = ["--train.batch_size", "64", "--train.eval_batch_size", "64"]
EPOCHS = ["--train.epochs", "2", "--optim.lr", "0.01", "--device", "cpu"]


def only_run(runs: Path) -> Path:
    (config,) = runs.glob("*/*/config.yaml")
    return config.parent


@pytest.fixture(scope="module")
def reasoner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of epignn on a few problems of RCC-8."""
    place = tmp_path_factory.mktemp("reasoner")
    where = ["--runs", str(place / "runs"), "--data-root", str(place / "data")]
    flags = [*SMALL_DATA, *CELLS, *PORTIONS, *EPOCHS, *where]
    assert main(["train", "epignn", "--dataset", "rcc8", *flags]) == 0
    return only_run(place / "runs")


def test_run_holds_accuracy_by_cell_and_its_picture(reasoner: Path) -> None:
    result = json.loads((reasoner / "result.json").read_text())
    assert set(cells_of(result["test"])) == {(k, b) for k in (2, 3) for b in (1, 2)}
    assert 0 <= result["test"]["accuracy"] <= 1
    for name in ("cells.png", "curves.png"):
        assert (reasoner / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_evaluate_gives_the_metrics_of_the_result(call: Call, reasoner: Path, split: str) -> None:
    done = call("evaluate", reasoner, "--split", split, "--device", "cpu")
    assert done.code == 0
    stored = json.loads((reasoner / "result.json").read_text()).get(split, {})
    printed = json.loads(done.out)
    assert {key: printed[key] for key in stored} == stored
    assert "accuracy" in printed


def test_query_over_own_facts_is_answered_and_drawn(call: Call, reasoner: Path, tmp_path: Path) -> None:
    (tmp_path / "facts.csv").write_text("desk,TPP,room\nroom,NTPP,house\nhouse,DC,garden\n")
    request = ["--facts", tmp_path / "facts.csv", "--query", "desk,garden", "--device", "cpu"]
    done = call("predict", reasoner, *request, "--draw", tmp_path / "answer.svg")
    rows = list(csv.DictReader(done.out.splitlines()))
    assert done.code == 0
    assert {(row["source"], row["target"]) for row in rows} == {("desk", "garden")}
    assert sorted(row["relation"] for row in rows) == sorted(RELATIONS)
    values = [float(row["probability"]) for row in rows]
    assert values == sorted(values, reverse=True)
    assert sum(values) == pytest.approx(1, abs=1e-4)
    picture = (tmp_path / "answer.svg").read_text()
    assert "<svg" in picture


@pytest.mark.parametrize(
    ("fact", "query", "hint"),
    [
        ("room,NTP,house", "desk,house", "line 2: unknown relation 'NTP'; did you mean"),
        ("room,NTPP,house", "desk,hose", "no fact names 'hose'; did you mean 'house'?"),
        ("hall,NTPP,house", "desk,house", "there is no path between 'desk' and 'house'"),
    ],
)
def test_question_without_an_answer_is_refused(
    call: Call, reasoner: Path, tmp_path: Path, fact: str, query: str, hint: str
) -> None:
    (tmp_path / "facts.csv").write_text(f"desk,TPP,room\n{fact}\n")
    done = call("predict", reasoner, "--facts", tmp_path / "facts.csv", "--query", query, "--device", "cpu")
    assert done.code == 2
    assert hint in done.complaint


def test_predict_answers_the_queries_of_a_split(call: Call, reasoner: Path) -> None:
    done = call("predict", reasoner, "--split", "test", "--device", "cpu")
    rows = list(csv.DictReader(done.out.splitlines()))
    assert done.code == 0
    assert len(rows) == json.loads((reasoner / "result.json").read_text())["data"]["test"]
    assert {row["relation"] for row in rows} <= set(RELATIONS)


# --- Completion --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with two rings in the layout of GraIL's files."""
    root = tmp_path_factory.mktemp("graphs")
    for folder, prefix, size in (("nell_v1", "a", 12), ("nell_v1_ind", "b", 9)):
        home = root / "inductive_kg" / folder
        home.mkdir(parents=True)
        ring = [
            f"{prefix}{i}\t{'next' if i % 2 else 'after'}\t{prefix}{(i + 1) % size}\n" for i in range(size)
        ]
        (home / "train.txt").write_text("".join(ring))
        (home / "valid.txt").write_text(f"{prefix}0\tnext\t{prefix}2\n")
        (home / "test.txt").write_text(f"{prefix}1\tafter\t{prefix}3\n")
    return root


def test_nbfnet_completes_a_graph_that_it_never_saw(call: Call, graphs: Path, tmp_path: Path) -> None:
    small = ["--model.hidden_channels", "8", "--model.num_layers", "2", "--task.negatives", "3"]
    where = ["--runs", tmp_path, "--data-root", graphs, "--device", "cpu"]
    portions = ["--train.batch_size", "4", "--train.epochs", "2"]
    done = call("train", "nbfnet", "--dataset", "nell995-v1", *small, *portions, *where)
    assert done.code == 0, done.err
    run = only_run(tmp_path)
    test = json.loads((run / "result.json").read_text())["test"]
    assert {"mrr", "hits@1", "hits@3", "hits@10", "hits@10_50", "hits@10_50_expected"} == set(test)
    assert call("evaluate", run, "--device", "cpu").code == 0
    done = call("predict", run, "--head", "b1", "--relation", "after", "--top", 3, "--device", "cpu")
    rows = list(csv.DictReader(done.out.splitlines()))
    assert [(row["head"], row["relation"]) for row in rows] == [("b1", "after")] * 3
    assert all(row["tail"].startswith("b") for row in rows)
