"""Classification of nodes from the command line, and embeddings chosen there."""

from __future__ import annotations

import csv
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import graphkit
from graphkit.cli import main
from graphkit.errors import UserError
from graphkit.tasks.node import NodeBatch, NodeTask
from graphkit.train import Stopped
from graphkit.train.checkpoint import load_best

SMALL = ["--dataset", "digits", "--model.hidden_channels", "8", "--train.epochs", "2", "--device", "cpu"]
SMALL += ["--no-tensorboard"]
SAMPLED = ["--task.fanouts", "[4, 4]", "--train.batch_size", "256"]
TT = ["--model.embedding.dim", "8", "--model.embedding.rank", "2"]

Call = Callable[..., Any]


def run_folders(runs: Path) -> list[Path]:
    return [path.parent for path in sorted(runs.glob("*/*/config.yaml"))]


def only_run(runs: Path) -> Path:
    (folder,) = run_folders(runs)
    return folder


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def config_of(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "config.yaml").read_text())


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


@pytest.fixture(scope="module", params=["gcn", "tt-gnn"])
def classified(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, for tests that only look at it."""
    runs = tmp_path_factory.mktemp("classified")
    flags = TT if request.param == "tt-gnn" else []
    command = ["train", request.param, *SMALL, *flags, "--runs", runs, "--data-root", runs / "data"]
    assert main([str(word) for word in command]) == 0
    return only_run(runs)


def test_model_chooses_the_task(classified: Path) -> None:
    config, result = config_of(classified), result_of(classified)
    assert (config["dataset_name"], config["task_name"]) == ("digits", "node")
    assert 0 <= result["test"]["accuracy"] <= 1
    assert (result["model"], result["epochs"]) == (config["model_name"], 2)


def test_model_for_another_task_is_refused(call: Call, tmp_path: Path) -> None:
    done = call("train", "gcn", *SMALL, "--task-name", "link", "--runs", tmp_path)
    assert done.code == 2
    assert "model 'gcn' is for node prediction; data set 'digits' serves link and node" in done.complaint
    assert run_folders(tmp_path) == []


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_evaluate_gives_the_metrics_of_the_result_exactly(call: Call, classified: Path, split: str) -> None:
    done = call("evaluate", classified, "--split", split, "--device", "cpu")
    assert done.code == 0
    printed = json.loads(done.out)
    stored = result_of(classified).get(split, {})
    assert {key: printed[key] for key in stored} == stored
    assert 0 <= printed["accuracy"] <= 1


def test_predict_gives_the_likeliest_class_of_nodes(call: Call, classified: Path) -> None:
    done = call("predict", classified, "--nodes", "1796,0,5")
    rows = rows_of(done.out)
    assert done.code == 0
    assert [row["node"] for row in rows] == ["1796", "0", "5"]
    assert {int(row["class"]) for row in rows} <= set(range(10))
    assert all(0.1 <= float(row["probability"]) <= 1 for row in rows)


def test_a_loaded_run_classifies_nodes(classified: Path) -> None:
    predictor = graphkit.load(classified, device="cpu")
    probability = predictor.classify([5, 0])
    assert probability.shape == (2, 10)
    torch.testing.assert_close(probability.sum(1), torch.ones(2))
    assert torch.equal(probability, predictor.classify(torch.tensor([5, 0])))
    with pytest.raises(UserError, match="can't score node pairs"):
        predictor.score([[0, 1]])


def test_predictions_of_a_split_have_the_accuracy_of_the_result(call: Call, classified: Path) -> None:
    rows = rows_of(call("predict", classified, "--split", "test").out)
    opened = graphkit.load(classified, data_root=classified.parents[1] / "data")
    truth = opened.benchmark.data.y
    assert [int(row["node"]) for row in rows] == opened.benchmark.splits["test"]["index"].tolist()
    right = [int(row["class"]) == int(truth[int(row["node"])]) for row in rows]
    assert sum(right) / len(right) == pytest.approx(result_of(classified)["test"]["accuracy"])


def test_bad_request_for_a_prediction_is_refused(call: Call, classified: Path) -> None:
    for flags, message in (
        ([], "give either --nodes NODES or --split SPLIT"),
        (["--nodes", "1797"], "1797 is no node; the graph has ids 0 to 1796"),
    ):
        done = call("predict", classified, *flags)
        assert done.code == 2
        assert message in done.complaint


def test_run_for_nodes_scores_no_pairs(classified: Path) -> None:
    opened = graphkit.load(classified)
    assert opened.evaluate() == result_of(classified)["test"]
    for ask in (lambda: opened.score([[0, 1]]), lambda: opened.top(0)):
        with pytest.raises(UserError, match=r"was trained for node; it can't .* node pairs"):
            ask()


def test_hops_that_do_not_fit_the_layers_are_refused_before_a_run_is_made(call: Call, tmp_path: Path) -> None:
    done = call("train", "gcn", *SMALL, "--task.fanouts", "[5]", "--runs", tmp_path)
    assert done.code == 2
    assert "task.fanouts has 1 hops for a model of 2 layers; give one number a layer" in done.complaint
    assert run_folders(tmp_path) == []


# --- Interrupted runs --------------------------------------------------------------------------------------


def stop_at(monkeypatch: pytest.MonkeyPatch, epoch: int, step: int, how: Callable[[], None]) -> None:
    """Interferes when a batch is asked for the first time."""
    plain, done = NodeTask.batch, []

    def batch(self: NodeTask, *place: int) -> NodeBatch:
        if place == (epoch, step) and not done:
            done.append(place)
            how()
        return plain(self, *place)

    monkeypatch.setattr(NodeTask, "batch", batch)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def break_down() -> None:
    raise RuntimeError("power cut")  # nothing is saved


def test_sampled_run_that_was_stopped_resumes_to_the_same_weights(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["tt-gnn", *SMALL, *TT, *SAMPLED, "--task.eval_fanouts", "[3, 3]", "--task.cluster", 4]
    flags += ["--data-root", tmp_path / "data"]
    assert call("train", *flags, "--runs", tmp_path / "whole").code == 0
    with monkeypatch.context() as patch:
        stop_at(patch, 1, 2, terminate)
        with pytest.raises(Stopped) as stopped:
            call("train", *flags, "--runs", tmp_path / "stopped")
        assert stopped.value.code == 143
    folder, whole = only_run(tmp_path / "stopped"), only_run(tmp_path / "whole")
    assert not (folder / "result.json").exists()
    assert call("train", "--resume", folder, "--data-root", tmp_path / "data").code == 0
    assert_same_outcome(folder, whole)


def test_sampled_run_that_broke_down_resumes_to_the_same_weights(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["sage", *SMALL, *SAMPLED, "--model.dropout", 0.3, "--train.checkpoint_steps", 2]
    assert call("train", *flags, "--runs", tmp_path / "whole").code == 0
    with monkeypatch.context() as patch:
        stop_at(patch, 1, 3, break_down)
        with pytest.raises(RuntimeError, match="power cut"):
            call("train", *flags, "--runs", tmp_path / "broken")
    folder = only_run(tmp_path / "broken")
    assert call("train", "--resume", folder).code == 0
    assert_same_outcome(folder, only_run(tmp_path / "whole"))


def assert_same_outcome(folder: Path, whole: Path) -> None:
    ours, theirs = (load_best(run / "checkpoints") for run in (folder, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    facts = ("valid", "test", "best_epoch", "epochs", "parameters")
    assert [result_of(folder)[key] for key in facts] == [result_of(whole)[key] for key in facts]


# --- Embeddings and variants -------------------------------------------------------------------------------


def test_kind_of_embedding_with_a_typo_is_refused(call: Call, tmp_path: Path) -> None:
    done = call("train", "tt-gnn", *SMALL, "--model.embedding.kind", "tensortrain", "--runs", tmp_path)
    assert done.code == 2
    assert "model.embedding.kind is 'tensortrain'" in done.complaint
    assert "'tensor_train'" in done.complaint
    assert run_folders(tmp_path) == []


def test_option_of_an_embedding_with_a_typo_is_refused(call: Call, tmp_path: Path) -> None:
    done = call("train", "tt-gnn", *SMALL, "--model.embedding.knd", "dense", "--runs", tmp_path)
    assert done.code == 2
    assert "unknown option '--model.embedding.knd'; did you mean '--model.embedding.kind'?" in done.complaint


def test_variant_that_is_no_recipe_is_refused(call: Call, tmp_path: Path) -> None:
    done = call("train", "tt-gnn", "--dataset", "digits@nothing", "--runs", tmp_path)
    assert done.code == 2
    assert "model 'tt-gnn' has no recipe 'digits@nothing'; known: " in done.complaint
    done = call("train", "tt-gnn", "--dataset", "cora@randm", "--runs", tmp_path)
    assert "did you mean 'cora@random'?" in done.complaint


@pytest.mark.parametrize("kind", ["tensor_train", "hash"])
def test_links_of_a_graph_without_features_are_predicted_on_any_embedding(
    call: Call, tmp_path: Path, kind: str
) -> None:
    rng = np.random.default_rng(0)
    pairs = {(i, (i + 1) % 40) for i in range(40)}
    pairs |= {(int(i), int(j)) for i, j in rng.integers(0, 40, (80, 2)) if i < j}
    (tmp_path / "edges.csv").write_text("".join(f"{i},{j}\n" for i, j in sorted(pairs)))
    done = call(
        *("train", "ncn", "--dataset", "custom", "--data.edges", tmp_path / "edges.csv"),
        *("--model.embedding.kind", kind, "--model.embedding.rank", 4, "--model.hidden_channels", 8),
        *("--train.epochs", 1, "--train.batch_size", 64, "--runs", tmp_path / "runs", "--device", "cpu"),
        *("--data-root", tmp_path / "data", "--no-tensorboard"),
    )
    assert done.code == 0, done.err
    folder = only_run(tmp_path / "runs")
    assert config_of(folder)["model"]["embedding"]["kind"] == kind
    assert call("evaluate", folder).code == 0
    rows = rows_of(call("predict", folder, "--source", 3, "--top", 2).out)
    assert [row["source"] for row in rows] == ["3", "3"]
