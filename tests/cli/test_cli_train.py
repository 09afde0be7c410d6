"""Training from the command line: what it leaves behind, and a run that is stopped in its midst."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from graphkit.errors import UserError
from graphkit.train.checkpoint import load_best

SMALL = ["--dataset", "digits", "--model.hidden_channels", "8", "--data.k", "3", "--train.batch_size", "4096"]
ONE_EPOCH = [*SMALL, "--train.epochs", "1", "--device", "cpu"]

Call = Callable[..., Any]


def run_folders(runs: Path) -> list[Path]:
    return [path.parent for path in sorted(runs.glob("*/*/config.yaml"))]


def only_run(runs: Path) -> Path:
    (folder,) = run_folders(runs)
    return folder


def config_of(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "config.yaml").read_text())


def outcome_of(folder: Path) -> dict[str, Any]:
    """The part of a result that doesn't depend on time and place."""
    result = json.loads((folder / "result.json").read_text())
    return {key: result[key] for key in ("valid", "test", "best_epoch", "epochs", "parameters", "seed")}


def test_train_leaves_a_complete_run(call: Call, tmp_path: Path) -> None:
    done = call("train", "ncn", *ONE_EPOCH, "--runs", tmp_path)
    assert done.code == 0
    folder = only_run(tmp_path)
    assert folder.parent.name == "ncn-digits"
    result = json.loads((folder / "result.json").read_text())
    assert 0 <= result["test"]["hits@100"] <= 1
    assert (result["model"], result["dataset"], result["seed"]) == ("ncn", "digits", 0)
    splits = [json.loads(line)["split"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert splits == ["train", "valid"]
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert config_of(folder)["model"]["hidden_channels"] == 8
    assert str(folder) in done.out
    assert f"test hits@100 {result['test']['hits@100']:.4f}" in done.out


def test_train_prints_the_complete_configuration_it_stores(call: Call, tmp_path: Path) -> None:
    done = call("train", "ncn", *ONE_EPOCH, "--runs", tmp_path)
    printed = yaml.safe_load(done.out[: done.out.index("ncn on digits")])
    assert printed == config_of(only_run(tmp_path))


def test_model_without_parameters_is_only_evaluated(call: Call, tmp_path: Path) -> None:
    done = call("train", "cn", "--dataset", "digits", "--data.k", 3, "--runs", tmp_path)
    assert done.code == 0
    result = json.loads((only_run(tmp_path) / "result.json").read_text())
    assert (result["parameters"], result["best_epoch"], result["epochs"]) == (0, None, 0)


def test_several_seeds_end_with_mean_and_deviation(call: Call, tmp_path: Path) -> None:
    done = call("train", "ncn", *ONE_EPOCH, "--seeds", 2, "--runs", tmp_path)
    assert done.code == 0
    results = [json.loads((folder / "result.json").read_text()) for folder in run_folders(tmp_path)]
    assert sorted(result["seed"] for result in results) == [0, 1]
    values = torch.tensor([result["test"]["hits@100"] for result in results], dtype=torch.float64)
    row = next(line for line in done.out.splitlines() if line.startswith("hits@100"))
    mean, deviation = re.findall(r"([\d.]+) ± ([\d.]+)", row)[1]
    assert float(mean) == pytest.approx(float(values.mean()), abs=0.01)
    assert float(deviation) == pytest.approx(float(values.std()), rel=0.1)


def test_one_seed_gives_the_same_weights_and_another_others(call: Call, tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert call("train", "ncn", *ONE_EPOCH, "--seed", seed, "--runs", tmp_path / name).code == 0
    first, same, other = (load_best(only_run(tmp_path / name) / "checkpoints") for name in "abc")
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_flags_win_over_the_file_the_file_over_the_recipe_the_recipe_over_defaults(
    call: Call, tmp_path: Path
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "model: {hidden_channels: 8, predictor_dropout: 0.2}\ndata: {k: 3}\n"
        "optim: {lr: 5e-4}\ntrain: {epochs: 7}\n"
    )
    done = call(
        *("train", "ncn", "--dataset", "digits", "--config", file),
        *("--train.epochs", 1, "--model.hidden_channels", 4, "--runs", tmp_path / "runs"),
    )
    assert done.code == 0
    config = config_of(only_run(tmp_path / "runs"))
    assert config["train"]["epochs"] == 1  # flag over file
    assert config["model"]["hidden_channels"] == 4  # flag over file over recipe
    assert config["model"]["predictor_dropout"] == 0.2  # file over recipe
    assert config["optim"]["lr"] == 5e-4
    assert config["model"]["node_mlp"] is True  # recipe over default
    assert config["model"]["beta"] == 1.0  # default


def test_stored_configuration_of_a_run_is_a_configuration_file(
    call: Call, tmp_path: Path, trained: Path
) -> None:
    done = call("train", "--config", trained / "config.yaml", "--runs", tmp_path)
    assert done.code == 0
    assert config_of(only_run(tmp_path)) == config_of(trained)
    assert outcome_of(only_run(tmp_path)) == outcome_of(trained)


def start(root: Path, *argv: object) -> subprocess.Popen[str]:
    command = [sys.executable, str(root / "scripts" / "train.py"), *map(str, argv)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def test_script_ends_a_bad_input_with_exit_code_2(root: Path, tmp_path: Path) -> None:
    process = start(root, "nnc", "--runs", tmp_path / "runs")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert err.startswith("graphkit: unknown model 'nnc'")
    assert err.count("\n") == 1
    assert out == ""


def test_run_that_is_stopped_by_a_signal_resumes_to_the_same_weights(
    call: Call, root: Path, tmp_path: Path
) -> None:
    flags = ["ncn", *SMALL, "--train.epochs", 20, "--train.batch_size", 256, "--device", "cpu"]
    process = start(root, *flags, "--runs", tmp_path / "stopped")
    log: list[Path] = []
    while process.poll() is None and not (log and log[0].stat().st_size > 0):
        log = list(tmp_path.glob("stopped/*/*/metrics.jsonl"))
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 143, err
    assert "--resume" in err
    folder = only_run(tmp_path / "stopped")
    assert not (folder / "result.json").exists()

    assert call("train", "--resume", folder).code == 0
    assert call("train", *flags, "--runs", tmp_path / "whole").code == 0
    whole = only_run(tmp_path / "whole")
    assert outcome_of(folder) == outcome_of(whole)
    ours, theirs = load_best(folder / "checkpoints"), load_best(whole / "checkpoints")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    positions = [(line["split"], line["epoch"], line["step"]) for line in steps]
    assert len(positions) == len(set(positions))


def test_user_error_is_a_value_error_for_library_users() -> None:
    assert issubclass(UserError, ValueError)
