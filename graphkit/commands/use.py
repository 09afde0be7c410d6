"""``evaluate`` and ``predict``: what a finished run is good for."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from graphkit.commands.parser import Parser
from graphkit.files import atomic_write
from graphkit.inference import load
from graphkit.registry import TASKS
from graphkit.run import Run

__all__ = ["evaluate", "predict"]

TOLERANCE = 1e-4
"""Metrics that differ by a smaller share count as the same: another device rounds otherwise."""


def evaluate(argv: Sequence[str]) -> int:
    """Evaluates a run's best weights; returns the exit code, 1 if metrics aren't those of the result."""
    parser = _parser("evaluate", "Evaluates a run's best weights and prints the metrics as JSON.")
    parser.add_argument("--split", default="test", help="valid, test, ... (default test)")
    options = parser.parse_args(argv)
    predictor = load(options.run, data_root=options.data_root, device=options.device)
    metrics = predictor.evaluate(options.split)
    print(json.dumps({"run": str(predictor.run.folder), "split": options.split, **metrics}, indent=1))
    stored = (predictor.run.result or {}).get(options.split)
    found = _differences(stored, metrics) if isinstance(stored, dict) else []
    if found:
        print(f"graphkit: these differ from the run's result.json: {'; '.join(found)}", file=sys.stderr)
    return 1 if found else 0


def predict(argv: Sequence[str]) -> int:
    """Predicts with a run's best weights, in the form that its task gives; returns the exit code."""
    options = _predict_parser(TASKS.names()).parse_known_args(argv)[0]
    run = Run.open(options.run)
    options = _predict_parser([run.config.task_name]).parse_intermixed_args(argv)
    predictor = load(run.folder, data_root=options.data_root, device=options.device)
    header, rows = predictor.task.predict(predictor.model, options)
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([header, *rows])
    if options.out is None and not options.save:
        print(table.getvalue(), end="")
        return 0
    path = Path(options.out) if options.out is not None else _free_name(run.predictions)
    atomic_write(path, table.getvalue())
    print(f"{len(rows)} rows written to {path}")
    return 0


def _parser(prog: str, description: str) -> Parser:
    parser = Parser(prog, description)
    parser.add_argument(
        "run", metavar="RUN", help="a run's folder, or runs/<model>-<dataset> for its newest run"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default auto)")
    parser.add_argument(
        "--data-root", metavar="DIR", help="folder of the data sets (default: the one that the run used)"
    )
    return parser


def _predict_parser(tasks: Sequence[str]) -> Parser:
    """Returns a parser with the arguments of some tasks: of all of them until the run tells its own."""
    parser = _parser("predict", "Predicts with a run's best weights and prints CSV.")
    parser.conflict_handler = "resolve"
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--out", metavar="FILE", help="write CSV there instead of printing it")
    place.add_argument("--save", action="store_true", help="write it to RUN/predictions/<time>.csv")
    for name in tasks:
        group = parser.add_argument_group(f"{name} runs")
        task: Any = TASKS.get(name).target
        task.add_predict_arguments(group)
    return parser


def _free_name(folder: Path) -> Path:
    """Returns a file named by the time that isn't there yet."""
    stem = time.strftime("%Y%m%d-%H%M%S")
    path, attempt = folder / f"{stem}.csv", 0
    while path.exists():
        attempt += 1
        path = folder / f"{stem}.{attempt}.csv"
    return path


def _differences(stored: Mapping[str, float], metrics: Mapping[str, float]) -> list[str]:
    """Names the metrics that aren't the stored ones."""
    return [
        f"{name} is {metrics.get(name)}, was {stored.get(name)}"
        for name in sorted({*stored, *metrics})
        if name not in stored
        or name not in metrics
        or not math.isclose(stored[name], metrics[name], rel_tol=TOLERANCE)
    ]
