"""Prediction of graphs and molecules from the command line."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
import yaml

import graphkit
from graphkit.cli import main
from graphkit.registry import MODELS
from graphkit.tasks.graph import GraphBatch, GraphTask
from graphkit.train import Stopped
from graphkit.train.checkpoint import load_best

pytest.importorskip("rdkit")

SMALL = ["--model.hidden_channels", "8", "--model.num_layers", "2", "--train.epochs", "2", "--device", "cpu"]
SMALL += ["--train.batch_size", "16", "--no-tensorboard"]
ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"

Call = Callable[..., Any]


def config_of(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "config.yaml").read_text())


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def only_run(runs: Path) -> Path:
    (config,) = sorted(runs.glob("*/*/config.yaml"))
    return config.parent


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty chains with a number, a label that is sometimes unknown, and a kind."""
    draw = random.Random(0)
    lines = ["name,structure,length,oxygen,kind"]
    for number in range(60):
        smiles = "".join(draw.choice(["C", "CC", "O", "N", "C(=O)", "S"]) for _ in range(draw.randint(2, 6)))
        label = "" if number % 7 == 0 else int("O" in smiles)
        kind = "abc"[len(smiles) % 3]
        lines.append(f"m{number},{smiles},{1.5 * len(smiles)},{label},{kind}")
    path = tmp_path_factory.mktemp("table") / "molecules.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def flags_of(table: Path, target: str) -> list[str]:
    return ["--dataset", f"csv:{table}", "--smiles", "structure", "--target", target, "--split", "random"]


@pytest.fixture(scope="module", params=["length", "oxygen", "kind"])
def trained(request: pytest.FixtureRequest, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of each kind of target, for tests that only look at it."""
    runs = tmp_path_factory.mktemp("graphs")
    command = ["train", "graph-gin", *flags_of(table, request.param), *SMALL, "--runs", runs]
    assert main([str(word) for word in [*command, "--data-root", runs / "data"]]) == 0
    return only_run(runs)


def test_table_and_its_columns_are_stored_as_options_of_the_data(trained: Path, table: Path) -> None:
    config, result = config_of(trained), result_of(trained)
    assert (config["dataset_name"], config["task_name"]) == ("smiles-csv", "graph")
    assert (config["data"]["file"], config["data"]["smiles"]) == (str(table), "structure")
    metric = {"length": "mae", "oxygen": "rocauc", "kind": "accuracy"}[config["data"]["target"]]
    assert result["metric"] == metric
    assert result["maximize"] == (metric != "mae")
    assert (trained / "curves.png").is_file()


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_evaluate_gives_the_metrics_of_the_result_exactly(call: Call, trained: Path, split: str) -> None:
    done = call("evaluate", trained, "--split", split, "--device", "cpu")
    assert done.code == 0
    printed, stored = json.loads(done.out), result_of(trained).get(split, {})
    assert {key: printed[key] for key in stored} == stored
    assert result_of(trained)["metric"] in printed


def test_molecules_are_predicted_as_from_python(call: Call, trained: Path) -> None:
    done = call("predict", trained, "--smiles", ASPIRIN, "CCO", "--smiles", "N")
    rows = rows_of(done.out)
    assert done.code == 0
    assert [row["smiles"] for row in rows] == [ASPIRIN, "CCO", "N"]
    values = graphkit.load(trained).predict([ASPIRIN, "CCO", "N"])
    target = config_of(trained)["data"]["target"]
    if target == "kind":
        assert [row["class"] for row in rows] == ["abc"[k] for k in values.argmax(1).tolist()]
    columns = ["a", "b", "c"] if target == "kind" else [target]
    printed = torch.tensor([[float(row[name]) for name in columns] for row in rows])
    torch.testing.assert_close(printed, values, rtol=1e-4, atol=1e-4)
    if target != "length":
        assert bool(((printed >= 0) & (printed <= 1)).all())


def test_table_of_molecules_is_predicted_in_its_order(call: Call, trained: Path, table: Path) -> None:
    done = call("predict", trained, "--csv", table, "--smiles-column", "structure")
    wanted = [row["structure"] for row in csv.DictReader(table.read_text().splitlines())]
    assert [row["smiles"] for row in rows_of(done.out)] == wanted


def test_run_is_of_use_once_the_table_that_it_was_trained_on_is_moved(
    call: Call, trained: Path, table: Path, tmp_path: Path
) -> None:
    command = ["predict", trained, "--smiles", ASPIRIN, "CCO"]
    before = call(*command).out
    moved = table.rename(tmp_path / "elsewhere.csv")
    try:
        assert call(*command).out == before
        assert call("evaluate", trained, "--device", "cpu").code == 0
        assert [r["smiles"] for r in rows_of(call("predict", trained, "--csv", moved).out)]  # 'structure'
        done = call("predict", trained, "--smiles", "CCO", "--data-root", tmp_path / "empty")
        assert (done.code, "can't read" in done.complaint, str(table) in done.complaint) == (2, True, True)
        done = call("train", "graph-gin", *flags_of(table, "length"), *SMALL, "--runs", tmp_path / "runs")
        assert (done.code, f"there is no file {table}" in done.complaint) == (2, True)
    finally:
        moved.rename(table)


def test_split_is_predicted_as_its_molecules_are(call: Call, trained: Path) -> None:
    rows = rows_of(call("predict", trained, "--split", "test").out)
    opened = graphkit.load(trained)
    assert [int(row["graph"]) for row in rows] == opened.benchmark.splits["test"]["index"].tolist()
    alone = rows_of(call("predict", trained, "--smiles", *(row["smiles"] for row in rows)).out)
    for one, other in zip(rows, alone, strict=True):
        for name in other.keys() - {"smiles", "class"}:
            assert float(one[name]) == pytest.approx(float(other[name]), rel=1e-4, abs=1e-5)


def test_molecule_that_cannot_be_read_is_named_with_its_line(
    call: Call, trained: Path, tmp_path: Path
) -> None:
    (tmp_path / "m.csv").write_text("smiles\nCCO\nC(C\n")
    done = call("predict", trained, "--csv", tmp_path / "m.csv", "--out", tmp_path / "out.csv")
    assert done.code == 2
    assert "m.csv, line 3: 'C(C' is no SMILES of a molecule" in done.complaint
    assert not (tmp_path / "out.csv").exists()


def test_model_without_pair_attention_draws_nothing(call: Call, trained: Path, tmp_path: Path) -> None:
    done = call("predict", trained, "--smiles", "CCO", "--draw", tmp_path / "a.svg")
    assert done.code == 2
    assert "GraphGIN has no attention between pairs of nodes to draw" in done.complaint
    assert list(tmp_path.iterdir()) == []


def test_most_attended_pairs_of_a_molecule_are_drawn(call: Call, table: Path, tmp_path: Path) -> None:
    runs = ["--runs", tmp_path, "--data-root", tmp_path / "data"]
    assert call("train", "grit", *flags_of(table, "length"), *SMALL, "--model.heads", 2, *runs).code == 0
    folder = only_run(tmp_path)
    done = call("predict", folder, "--smiles", ASPIRIN, "--draw", tmp_path / "a.svg", "--draw-pairs", 7)
    assert [row["smiles"] for row in rows_of(done.out)] == [ASPIRIN]
    root = ElementTree.fromstring((tmp_path / "a.svg").read_text())
    assert len([node for node in root.iter() if node.get("class") == "attention"]) == 7
    assert len([node for node in root.iter() if node.get("class") == "strength"]) == 7
    assert call("predict", folder, "--smiles", "C", "--draw", tmp_path / "a.png").code == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_classes_of_graphs_that_are_no_molecules(call: Call, tmp_path: Path) -> None:
    flags = ["--dataset", "digits-graphs", *SMALL, "--train.epochs", "1", "--train.batch_size", "128"]
    runs = ["--runs", tmp_path, "--data-root", tmp_path / "data"]
    assert call("train", "graph-gcn", *flags, *runs).code == 0
    folder = only_run(tmp_path)
    rows = rows_of(call("predict", folder, "--split", "test").out)
    truth = graphkit.load(folder).benchmark.data.y
    right = [int(row["class"]) == int(truth[int(row["graph"])]) for row in rows]
    assert sum(right) / len(right) == pytest.approx(result_of(folder)["test"]["accuracy"])
    done = call("predict", folder, "--smiles", "CCO")
    assert done.code == 2
    assert "digits-graphs isn't made of molecules; it takes no SMILES" in done.complaint


def test_run_that_was_stopped_resumes_to_the_same_weights(
    call: Call, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["gated-gcn", *flags_of(table, "length,oxygen"), *SMALL, "--model.dropout", 0.2]
    flags += ["--kind", "regression", "--train.accumulate", 2, "--data-root", tmp_path / "data"]
    assert call("train", *flags, "--runs", tmp_path / "whole").code == 0
    plain, done = GraphTask.batch, []

    def batch(self: GraphTask, *place: int) -> GraphBatch:
        if place == (1, 1) and not done:
            done.append(place)
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, *place)

    monkeypatch.setattr(GraphTask, "batch", batch)
    with pytest.raises(Stopped):
        call("train", *flags, "--runs", tmp_path / "stopped")
    folder, whole = only_run(tmp_path / "stopped"), only_run(tmp_path / "whole")
    assert not (folder / "result.json").exists()
    assert call("train", "--resume", folder).code == 0
    ours, theirs = (load_best(run / "checkpoints") for run in (folder, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert [result_of(folder)[k] for k in ("valid", "test")] == [
        result_of(whole)[k] for k in ("valid", "test")
    ]


def test_model_that_is_fitted_at_once_gives_the_same_again(call: Call, table: Path, tmp_path: Path) -> None:
    runs = ["--device", "cpu", "--no-tensorboard", "--runs", tmp_path, "--data-root", tmp_path / "data"]
    assert call("train", "fingerprint", *flags_of(table, "length"), *runs).code == 0
    folder = only_run(tmp_path)
    assert call("evaluate", folder).code == 0  # 1 if a metric weren't the result's
    assert result_of(folder)["parameters"] == 0
    rows = rows_of(call("predict", folder, "--smiles", "CCO", ASPIRIN).out)
    values = graphkit.load(folder).predict(["CCO", ASPIRIN])
    assert [float(row["length"]) for row in rows] == pytest.approx(values[:, 0].tolist(), rel=1e-4)


def test_model_for_another_task_is_told_which_ones_would_do(call: Call, tmp_path: Path) -> None:
    done = call("train", "ncn", "--dataset", "digits-graphs", "--runs", tmp_path)
    assert done.code == 2
    assert f"models for graph prediction: {', '.join(MODELS.names(task='graph'))}" in done.complaint


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        (["--dataset", "csv:"], "the file is missing"),
        (["--dataset", "csv:nowhere.csv"], "nowhere.csv"),
        (["--dataset", "digits-graphs", "--smils", "a"], "unknown option '--smils'"),
        (["--dataset", "digits-graphs", "--task.loss", "mae"], "task.loss is 'mae'; for classes it must be"),
    ],
)
def test_bad_input_ends_with_one_line(call: Call, tmp_path: Path, flags: list[str], hint: str) -> None:
    done = call("train", "graph-gin", *flags, "--runs", tmp_path)
    assert done.code == 2
    assert hint in done.complaint
    assert list(tmp_path.iterdir()) == []
