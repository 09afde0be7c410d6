"""Seeds to mean and deviation, tables, curves."""

import json
import math

import numpy as np
import pytest

from graphkit import environment
from graphkit.errors import UserError
from graphkit.report import OWN_SCALE, aggregate, display_scale, format_table, plot_curves
from graphkit.run import Run
from graphkit.testing import TinyModel, tiny_config


def result(seed, value, **changes):
    metrics = {"valid": {"mrr": value}, "test": {"mrr": value / 2, "hits@10": 1.0}}
    return {"model": "m", "dataset": "d", "metric": "mrr", "seed": seed, **metrics, **changes}


def test_deviation_is_unbiased():
    values = [0.1, 0.4, 0.35]
    summary = aggregate([result(i, v) for i, v in enumerate(values)])
    mean, deviation = summary["valid"]["mrr"]
    assert mean == pytest.approx(np.mean(values))
    assert deviation == pytest.approx(np.std(values, ddof=1))
    assert summary["test"]["hits@10"] == (1.0, 0.0)
    assert math.isnan(aggregate([result(0, 0.5)])["valid"]["mrr"][1])


def test_metrics_that_some_runs_lack_are_left_out():
    lacking = result(1, 0.2, test={"mrr": 0.1})
    assert list(aggregate([result(0, 0.1), lacking])["test"]) == ["mrr"]
    assert list(aggregate([lacking, result(0, 0.1)])["test"]) == ["mrr"]


def test_what_cannot_be_averaged():
    with pytest.raises(UserError, match="no result"):
        aggregate([])
    with pytest.raises(UserError, match="seed 1 is there 2 times"):
        aggregate([result(1, 0.1), result(1, 0.2)])
    with pytest.raises(UserError, match="different datasets can't be averaged: d, e"):
        aggregate([result(0, 0.1), result(1, 0.2, dataset="e")])


ROWS = [
    {"model": "ncnc", "hits@100": (0.89654, 0.00356), "parameters": 1234},
    {"model": "a longer name", "hits@100": (0.5, math.nan), "parameters": None},
]


def test_plain_table():
    assert format_table(ROWS).splitlines() == [
        "model                 hits@100  parameters",
        "-------------  ---------------  ----------",
        "ncnc           0.8965 ± 0.0036        1234",
        "a longer name              0.5           -",
    ]


def test_markdown_table():
    lines = format_table(ROWS, ["model", "parameters", "absent"], "markdown").splitlines()
    assert lines[0] == "| model         | parameters | absent |"
    assert lines[1] == "| ------------- | ---------: | -----: |"
    assert lines[3] == "| a longer name |          - |      - |"
    assert format_table([], ["a"]) == "a\n-"


@pytest.mark.parametrize("epochs", [0, 1, 50])
def test_curves(epochs, tmp_path):
    run = Run.create(tmp_path, tiny_config())
    if epochs == 0:
        with pytest.raises(UserError, match="nothing to draw"):
            plot_curves(run)
        return
    with open(run.metrics_path, "w") as file:
        for epoch in range(1, epochs + 1):
            mark = {"epoch": epoch, "step": 3 * epoch, "seconds": 0.1}
            value = "nan" if epoch == 2 else 1 - 1 / epoch
            file.write(json.dumps({**mark, "split": "train", "loss": 1 / epoch}) + "\n")
            file.write(json.dumps({**mark, "split": "valid", "r2": value}) + "\n")
    if epochs > 1:
        run.write_result({"metric": "r2", "best_epoch": epochs})
    picture = plot_curves(run).read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 10_000


def test_shares_are_shown_in_percent():
    assert {display_scale(name) for name in ("hits@100", "mrr", "auc", "accuracy")} == {100.0}
    assert {display_scale(name) for name in (*OWN_SCALE, "RMSE")} == {1.0}


def test_command_names_no_place_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["ncn", "--runs", f"{tmp_path}/runs", "--data-root=/somewhere/data", "--optim.lr=0.1"]
    shown = ["ncn", "--runs", "runs", "--data-root=.../data", "--optim.lr=0.1"]
    for script, name in (("/opt/x/scripts/train.py", "scripts/train.py"), ("/opt/bin/graphkit", "graphkit")):
        monkeypatch.setattr("sys.argv", [script, *flags])
        assert environment.command_line() == [name, *shown]


def test_environment_facts():
    versions = environment.versions()
    assert versions["torch"]
    assert versions["python"].startswith("3.")
    assert environment.hardware()["cores"] >= 1
    assert environment.parameter_count(TinyModel()) == sum(p.numel() for p in TinyModel().parameters())
    state = environment.git_state()
    assert state.keys() == {"commit", "dirty"}
    assert (state["commit"] is None) == (state["dirty"] is None)
