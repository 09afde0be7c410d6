"""A finished run, opened by library code."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import graphkit
from graphkit import experiment
from graphkit.commands.train import run_once
from graphkit.errors import UserError
from graphkit.inference import Predictor
from graphkit.parsing import resolve
from graphkit.run import Run
from graphkit.tasks.base import Task
from graphkit.train.checkpoint import load_best

FLAGS = ["--model.hidden_channels", "8", "--data.k", "3", "--train.batch_size", "4096", "--train.epochs", "1"]
PAIRS = [[0, 1], [5, 9], [1796, 3]]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    run_once(resolve("ncn", "digits", FLAGS), runs, runs, "cpu")
    return next(runs.glob("*/*"))


@pytest.fixture(scope="module")
def predictor(folder: Path) -> Predictor:
    return graphkit.load(folder)


def test_loaded_model_has_the_best_weights_in_evaluation_mode(predictor: Predictor, folder: Path) -> None:
    best = load_best(folder / "checkpoints")
    assert not predictor.model.training
    assert all(torch.equal(value, best[name]) for name, value in predictor.model.state_dict().items())


def test_metrics_are_those_of_the_result(predictor: Predictor, folder: Path) -> None:
    stored = Run.open(folder).result
    assert predictor.evaluate("valid") == stored["valid"]
    assert predictor.evaluate() == stored["test"]


@pytest.mark.parametrize(
    "pairs",
    [
        pytest.param(torch.tensor(PAIRS), id="[B, 2] tensor"),
        pytest.param(torch.tensor(PAIRS).t(), id="[2, B] tensor"),
        pytest.param(np.array(PAIRS), id="[B, 2] array"),
        pytest.param(np.array(PAIRS, dtype=np.int32).T, id="[2, B] array of int32"),
        pytest.param(PAIRS, id="list"),
    ],
)
def test_pairs_come_in_either_shape(predictor: Predictor, pairs: Any) -> None:
    expected = predictor.task.score(predictor.model, torch.tensor(PAIRS).t())
    found = predictor.score(pairs)
    assert found.shape == (3,)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


def test_two_pairs_are_read_as_two_rows_of_ends(predictor: Predictor) -> None:
    square = predictor.score([[0, 1], [2, 3]])
    torch.testing.assert_close(square, predictor.score([[0, 1, 5], [2, 3, 5]])[:2])


@pytest.mark.parametrize(
    "empty", [[], torch.zeros(2, 0, dtype=torch.int64), np.zeros((0, 2), dtype=np.int64)]
)
def test_no_pairs_have_no_scores(predictor: Predictor, empty: Any) -> None:
    assert predictor.score(empty).shape == (0,)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([[0.5, 1.0, 2.0]] * 2, r"integers of shape \[2, B\] or \[B, 2\], not torch.float64"),
        ([1, 2, 3], r"not torch.int64 \(3,\)"),
        ([[1, 2, 3]] * 3, r"not torch.int64 \(3, 3\)"),
        ([[0, 1797, 1], [1, 2, 3]], "ids 0 to 1796"),
        ([[0, -1, 1], [1, 2, 3]], "ids 0 to 1796"),
    ],
)
def test_bad_pairs_are_refused(predictor: Predictor, pairs: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        predictor.score(pairs)


def test_top_scores_are_those_of_their_pairs(predictor: Predictor) -> None:
    node, logit = predictor.top(7, k=4)
    torch.testing.assert_close(predictor.score([[7, int(n)] for n in [*node, 0]])[:4], logit)


def test_nodes_without_names_have_none(predictor: Predictor) -> None:
    assert predictor.node_names() is None


def test_run_is_found_in_the_folder_of_its_model(folder: Path) -> None:
    assert graphkit.load(folder.parent).run.folder == folder


def test_missing_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run folder"):
        graphkit.load(tmp_path / "none")


def test_run_without_a_checkpoint_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "ncn-digits" / "copy")
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(UserError, match="checkpoint"):
        graphkit.load(copy)


def test_task_that_scores_no_pairs_says_so(predictor: Predictor) -> None:
    other = Predictor(predictor.run, predictor.benchmark, object(), predictor.model)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="was trained for link; it can't score node pairs"):
        other.score(PAIRS)


def test_a_link_run_classifies_no_nodes(predictor: Predictor) -> None:
    with pytest.raises(UserError, match="was trained for link; it can't classify nodes"):
        predictor.classify([0, 1])


def test_unknown_device_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="device 'abacus' can't be used here"):
        graphkit.load(folder, device="abacus")


def with_data(folder: Path, target: Path, **facts: Any) -> Path:
    """Copies a run and adds facts about its data to the result."""
    copy = shutil.copytree(folder, target / "ncn-digits" / "copy")
    result = json.loads((copy / "result.json").read_text())
    result["data"] |= facts
    (copy / "result.json").write_text(json.dumps(result))
    return copy


def test_data_that_is_still_the_same_is_taken(folder: Path, tmp_path: Path, predictor: Predictor) -> None:
    same = with_data(folder, tmp_path, fingerprint=predictor.benchmark.fingerprint)
    assert graphkit.load(same).benchmark.fingerprint == predictor.benchmark.fingerprint


@pytest.mark.parametrize(
    ("facts", "hint"),
    [({"edges": 7}, r"edges was 7 and is \d+; restore"), ({}, "its content differs .* was 0{16}.*; restore")],
)
def test_data_that_changed_is_refused(folder: Path, tmp_path: Path, facts: dict[str, Any], hint: str) -> None:
    other = with_data(folder, tmp_path, fingerprint="0" * 16, **facts)
    with pytest.raises(UserError, match=f"'digits' is no longer what .* was trained on: {hint}") as caught:
        graphkit.load(other)
    assert "\n" not in str(caught.value)


def test_data_root_is_the_runs_own(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []

    def load_dataset(name: str, *, root: Path, **options: Any) -> Any:
        taken.append(root)
        return graphkit.load_dataset(name, root=root, **options)

    monkeypatch.setattr(experiment, "load_dataset", load_dataset)
    monkeypatch.setattr(Run, "data_root", tmp_path, raising=False)
    graphkit.load(folder)
    graphkit.load(folder, data_root="elsewhere")
    monkeypatch.setattr(Run, "data_root", tmp_path / "gone")
    graphkit.load(folder)
    monkeypatch.setattr(Run, "data_root", None)
    graphkit.load(folder)
    assert taken == [tmp_path, Path("elsewhere"), Path("data"), Path("data")]


def test_split_that_cannot_be_evaluated_is_refused(predictor: Predictor) -> None:
    assert predictor.task.evaluation_splits == ("valid", "test")
    with pytest.raises(UserError, match="digits has no negatives for its training split; take valid or test"):
        predictor.evaluate("train")


def test_task_without_predictions_says_so(predictor: Predictor) -> None:
    parser = argparse.ArgumentParser()
    Task.add_predict_arguments(parser)
    with pytest.raises(UserError, match="task 'link' has no predictions to write"):
        Task.predict(predictor.task, predictor.model, parser.parse_args([]))
