"""Recipes over their seeds, beside published figures."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import graphkit.commands.reproduce as reproduce_command
from graphkit.recipes import Recipe

Call = Callable[..., Any]


def run_folders(runs: Path) -> list[Path]:
    return [path.parent for path in sorted(runs.glob("*/*/config.yaml"))]


TINY = {
    "model": {"hidden_channels": 8},
    "data": {"k": 3},
    "train": {"epochs": 2, "batch_size": 4096, "checkpoint_every": 1},
}


@pytest.fixture
def tiny_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe of two short runs in place of all others; returns its file."""
    paper = {"mean": 1.0, "std": 0.5, "seeds": 2, "source": "nowhere"}
    expected = {"metric": "hits@100", "paper": paper, "also": ["mrr", "hits@5*"]}
    recipe = Recipe("ncn", "digits", TINY, seeds=2, expected=expected)
    path = tmp_path / "digits.yaml"
    path.write_text(yaml.safe_dump({**TINY, "seeds": 2, "expected": expected}, sort_keys=False))
    monkeypatch.setattr("graphkit.parsing.find_recipe", lambda model, dataset: recipe)
    monkeypatch.setattr(reproduce_command, "matching_recipes", lambda patterns: [recipe])
    monkeypatch.setattr(reproduce_command, "recipe_file", lambda recipe: path)
    return path


def test_reproduce_compares_with_the_published_figure(call: Call, tmp_path: Path, tiny_recipe: Path) -> None:
    before = tiny_recipe.read_text()
    done = call("reproduce", "ncn/digits", "--runs", tmp_path / "runs", "--device", "cpu")
    assert done.code == 0
    assert len(run_folders(tmp_path / "runs")) == 2
    assert "1.00 ± 0.50" in done.out
    assert re.search(r"\b(better|equal)\b", done.out)
    assert tiny_recipe.read_text() == before


def test_reproduce_uses_finished_runs_and_continues_stopped_ones(
    call: Call, tmp_path: Path, tiny_recipe: Path
) -> None:
    again = ["reproduce", "ncn/digits", "--runs", tmp_path / "runs", "--device", "cpu"]
    first = call(*again).out.splitlines()[-1]
    folders = run_folders(tmp_path / "runs")
    stopped, finished = folders
    (stopped / "result.json").unlink()
    stored = (finished / "result.json").stat().st_mtime_ns
    done = call(*again)
    assert done.out.splitlines()[-1] == first
    assert run_folders(tmp_path / "runs") == folders
    assert (stopped / "result.json").exists()
    assert (finished / "result.json").stat().st_mtime_ns == stored


def test_reproduce_records_its_result_in_the_recipe(call: Call, tmp_path: Path, tiny_recipe: Path) -> None:
    for _ in range(2):  # the second time replaces what the first wrote
        done = call("reproduce", "ncn/digits", "--runs", tmp_path / "runs", "--record", "--device", "cpu")
        assert done.code == 0
    content = yaml.safe_load(tiny_recipe.read_text())
    ours = content["expected"]["ours"]
    results = [json.loads((folder / "result.json").read_text()) for folder in run_folders(tmp_path / "runs")]
    assert ours["seeds"] == [0, 1]
    assert list(ours["curve"]) == [1, 2]
    assert all(0 <= value <= 100 for value in ours["curve"].values())
    assert sorted(ours["per_seed"]) == sorted(round(100 * r["test"]["hits@100"], 4) for r in results)
    assert set(ours["also"]) == {"mrr", "hits@50"}
    assert all(re.fullmatch(r"[\d.]+ ± [\d.]+", value) for value in ours["also"].values())
    assert "reproduce.py ncn/digits" in ours["command"]
    assert content["expected"]["paper"]["mean"] == 1.0
    assert {key: content[key] for key in TINY} == TINY
    assert tiny_recipe.read_text().count("ours:") == 1


def test_reproduce_fails_where_the_result_falls_short(call: Call, tmp_path: Path, tiny_recipe: Path) -> None:
    recipe = reproduce_command.matching_recipes([])[0]
    recipe.expected["paper"]["mean"] = 120.0
    done = call("reproduce", "ncn/digits", "--runs", tmp_path / "runs", "--seeds", "1", "--device", "cpu")
    assert done.code == 1
    assert "worse" in done.out


def commits(runs: Path, git: dict[str, Any]) -> None:
    for folder in run_folders(runs):
        result = json.loads((folder / "result.json").read_text())
        (folder / "result.json").write_text(json.dumps({**result, "git": git}))


def test_reproduce_says_that_reused_runs_are_of_another_commit(
    call: Call, tmp_path: Path, tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    present = {"commit": "a" * 40, "dirty": False}
    monkeypatch.setattr("graphkit.environment.git_state", lambda: present)
    runs = tmp_path / "runs"
    again = ["reproduce", "ncn/digits", "--runs", runs, "--record", "--device", "cpu"]
    assert "--fresh" not in call(*again).err
    assert "--fresh" not in call(*again).err  # reused, of this commit
    commits(runs, {"commit": "b" * 40, "dirty": True})
    done = call(*again)
    lines = [line for line in done.err.splitlines() if "--fresh" in line]
    assert len(lines) == 1
    assert f"2 of 2 results are of finished runs at commit {'b' * 12}+dirty, not {'a' * 12};" in lines[0]
    ours = yaml.safe_load(tiny_recipe.read_text())["expected"]["ours"]
    assert ours["commit"] == ["b" * 12 + "+dirty"]

    assert call(*again, "--fresh").code == 0
    assert len(run_folders(runs)) == 4
    ours = yaml.safe_load(tiny_recipe.read_text())["expected"]["ours"]
    assert ours["commit"] == ["a" * 12]
