"""``reproduce``: recipes over their seeds, beside the published results."""

from __future__ import annotations

import fnmatch
import logging
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from graphkit import environment
from graphkit.commands.parser import Parser
from graphkit.commands.train import parse_seeds, run_once
from graphkit.config import RunConfig
from graphkit.distributed.ranks import same_everywhere
from graphkit.errors import UserError
from graphkit.files import atomic_write
from graphkit.parsing import recipe_config
from graphkit.recipes import Recipe, all_recipes, matching_recipes, recipe_file
from graphkit.report import aggregate, display_scale, figure, format_table
from graphkit.run import Run
from graphkit.train.result import Result

__all__ = ["find_run", "learning_curve", "record", "reproduce"]

CURVE_POINTS = 20

_log = logging.getLogger("graphkit")


def reproduce(argv: Sequence[str]) -> int:
    """The command; returns 1 if a result falls short of its recipe's expectation."""
    parser = Parser(
        "reproduce",
        "Runs recipes (all without a name; ncnc for all of a model; ncnc/cora for one) over their seeds and\n"
        "prints mean and unbiased deviation beside the published figures. Finished runs count and stopped\n"
        "ones are continued, so the command can be repeated until all is done; --fresh starts all anew.",
    )
    parser.add_argument("recipe", nargs="*", metavar="RECIPE")
    parser.add_argument("--seeds", metavar="N|LIST", help="default: what the recipe says")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--data-root", default="data", metavar="DIR")
    parser.add_argument("--runs", default="runs", metavar="DIR")
    parser.add_argument("--fresh", action="store_true", help="start new runs, whatever runs there are")
    parser.add_argument("--record", action="store_true", help="write the result into the recipe's file")
    options = parser.parse_args(argv)
    recipes = matching_recipes(options.recipe) if options.recipe else list(all_recipes())
    rows, missed = [], False
    for recipe in recipes:
        seeds = parse_seeds(options.seeds or str(recipe.seeds))
        results = _results(recipe, seeds, options)
        row, short = _compare(recipe, results)
        rows.append(row)
        missed |= short
        if options.record and environment.rank_and_world()[0] == 0:
            seeds_flag = f" --seeds {options.seeds}" if options.seeds else ""
            runs = [find_run(options.runs, recipe_config(recipe, seed)) for seed in seeds]
            curve = learning_curve([run for run in runs if run is not None], results[0].metric)
            record(recipe, results, f"python scripts/reproduce.py {recipe.name}{seeds_flag}", curve)
    print(format_table(rows))
    return int(missed)


def find_run(root: str | Path, config: RunConfig) -> Run | None:
    """Returns a run of exactly this configuration, a finished one before others, or ``None``."""
    folder = Path(root) / f"{config.model_name}-{config.dataset_name}"
    same = []
    for path in sorted(folder.glob("*/config.yaml")):
        try:
            run = Run.open(path.parent)
        except UserError as error:
            _log.warning("%s", error)
            continue
        if run.config.hash() == config.hash():
            same.append(run)
    return next((run for run in same if run.result is not None), same[-1] if same else None)


def learning_curve(runs: Sequence[Run], metric: str) -> dict[int, float]:
    """Returns the mean of a validation metric over runs by epoch, at 20 evenly spaced epochs at most.

    Epochs count that all runs evaluated; the first and the last of them are always there.
    """
    lines = [[line for line in run.metrics if line.get("split") == "valid"] for run in runs]
    values = [{line["epoch"]: line[metric] for line in part if metric in line} for part in lines]
    epochs = sorted(set.intersection(*(set(part) for part in values))) if values else []
    steps = min(len(epochs), CURVE_POINTS) - 1
    chosen = [epochs[round(k * (len(epochs) - 1) / max(steps, 1))] for k in range(steps + 1)]
    return {epoch: statistics.fmean(part[epoch] for part in values) for epoch in chosen}


def record(
    recipe: Recipe, results: Sequence[Result], command: str, curve: Mapping[int, float] | None = None
) -> None:
    """Replaces ``expected.ours``, which is the last part of a recipe's file, by these results."""
    path = recipe_file(recipe)
    text = path.read_text().split("\n  ours:")[0].rstrip()
    if not recipe.expected:
        text += f"\nexpected:\n  metric: {results[0].metric}"
    ours = _measured(results, command)
    also = _also(results, recipe.expected.get("also", ()))
    if also:
        ours["also"] = also
    if curve:
        scale = display_scale(results[0].metric)
        ours["curve"] = {epoch: round(scale * value, 4) for epoch, value in curve.items()}
    block = yaml.safe_dump({"ours": ours}, sort_keys=False, width=110)
    indented = "".join(f"  {line}\n" for line in block.splitlines())
    atomic_write(path, f"{text}\n{indented}")


def _measured(results: Sequence[Result], command: str) -> dict[str, Any]:
    metric = results[0].metric
    summary = aggregate([r.to_dict() for r in results])
    test, valid = summary["test"][metric], summary["valid"][metric]
    scale = display_scale(metric)
    epoch_seconds = [r.seconds_per_epoch for r in results if r.seconds_per_epoch is not None]
    return {
        "mean": round(test[0] * scale, 4),
        "std": round(test[1] * scale, 4),
        "valid_mean": round(valid[0] * scale, 4),
        "valid_std": round(valid[1] * scale, 4),
        "seeds": [r.seed for r in results],
        "per_seed": [round(r.test[metric] * scale, 4) for r in results],
        "seconds_per_epoch": round(statistics.median(epoch_seconds), 3) if epoch_seconds else None,
        "seconds_per_run": round(statistics.median(r.seconds for r in results), 1),
        "command": command,
        "commit": sorted({_revision(r.git) for r in results}),
        "hardware": environment.hardware_line(results[0].hardware),
        "versions": {key: results[0].versions.get(key) for key in ("python", "torch", "torch_geometric")},
        "date": time.strftime("%Y-%m-%d"),
    }


def _also(results: Sequence[Result], patterns: Sequence[str]) -> dict[str, str]:
    """Returns further test metrics, those whose names match a pattern: mean and deviation as shown."""
    summary = aggregate([r.to_dict() for r in results])["test"]
    chosen = [name for name in summary if any(fnmatch.fnmatchcase(name, p) for p in patterns)]
    return {name: figure(*(display_scale(name) * value for value in summary[name])) for name in chosen}


def _results(recipe: Recipe, seeds: Sequence[int], options: Any) -> list[Result]:
    """Returns a result of each seed; says so where finished runs are of another source than the present."""
    results, elsewhere = [], []
    present = _revision(environment.git_state())
    for config in [recipe_config(recipe, seed) for seed in seeds]:
        run = None if options.fresh else same_everywhere(find_run(options.runs, config))
        if run is not None and run.result is not None:
            results.append(Result.from_dict(run.result))
            elsewhere += [revision for revision in [_revision(results[-1].git)] if revision != present]
        else:
            results.append(run_once(config, options.runs, options.data_root, options.device, run))
    if elsewhere:
        _log.warning(
            "%s: %d of %d results are of finished runs at commit %s, not %s; --fresh runs them anew",
            *(recipe.name, len(elsewhere), len(results), ", ".join(sorted(set(elsewhere))), present),
        )
    return results


def _revision(git: Mapping[str, Any]) -> str:
    """Returns the commit that a result stems from, ``+dirty`` if the source was changed since."""
    commit = git.get("commit")
    if not commit:
        return "unknown"
    return str(commit)[:12] + ("+dirty" if git.get("dirty") else "")


def _compare(recipe: Recipe, results: Sequence[Result]) -> tuple[dict[str, Any], bool]:
    """Returns a table row, and whether the mean is worse than published by more than its deviation."""
    metric, scale = results[0].metric, display_scale(results[0].metric)
    mean, std = (scale * value for value in aggregate([r.to_dict() for r in results])["test"][metric])
    row: dict[str, Any] = {
        "recipe": recipe.name,
        "seeds": len(results),
        "metric": f"{metric}, %" if scale == 100 else metric,
        "ours": figure(mean, std),
    }
    paper = recipe.expected.get("paper")
    if paper is None:
        return row, False
    row["published"] = figure(paper["mean"], paper.get("std"))
    if not paper.get("comparable", True):
        return {**row, "verdict": "another protocol"}, False
    gain = mean - paper["mean"] if results[0].maximize else paper["mean"] - mean
    spread = paper.get("std", std if math.isfinite(std) else 0.0)  # ours, where theirs isn't known
    row["verdict"] = "worse" if gain < -spread else "better" if gain > spread else "equal"
    return row, gain < -spread
