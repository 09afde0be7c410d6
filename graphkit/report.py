"""From runs to what is published: curves, seeds to mean and deviation, tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from graphkit.errors import UserError
from graphkit.files import atomic_write
from graphkit.run import Run

__all__ = [
    "OWN_SCALE",
    "Summary",
    "aggregate",
    "display_scale",
    "figure",
    "format_table",
    "plot_curves",
    "published",
]

Summary = dict[str, dict[str, tuple[float, float]]]
"""``summary["test"]["hits@100"]`` is the mean and the unbiased deviation over seeds."""


def aggregate(results: Sequence[Mapping[str, Any]]) -> Summary:
    """Returns mean and **unbiased** standard deviation (``torch.std``) over runs that differ in their seed.

    Args:
        results: The runs' ``result.json``.

    Returns:
        By split and metric, those that all runs have. The deviation of a single run is NaN.

    Raises:
        UserError: No run, one seed twice, or runs of different models, data sets or metrics.
    """
    if not results:
        raise UserError("there is no result to summarise")
    for key in ("model", "dataset", "metric"):
        found = sorted({str(result[key]) for result in results})
        if len(found) > 1:
            raise UserError(f"results of different {key}s can't be averaged: {', '.join(found)}")
    seeds = [result["seed"] for result in results]
    twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    if twice:
        raise UserError(f"seed {twice[0]} is there {seeds.count(twice[0])} times; each seed counts once")
    summary: Summary = {}
    for split in ("valid", "test"):
        names = [name for name in results[0][split] if all(name in result[split] for result in results)]
        summary[split] = {}
        for name in names:
            values = torch.tensor([float(result[split][name]) for result in results], dtype=torch.float64)
            deviation = float(values.std()) if len(values) > 1 else math.nan
            summary[split][name] = (float(values.mean()), deviation)
    return summary


def format_table(
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str] | None = None,
    style: Literal["plain", "markdown"] = "plain",
) -> str:
    """Returns rows as an aligned table.

    Pairs of numbers are shown as ``mean ± deviation``, floats with four significant digits, missing values as
    a dash; columns of numbers are aligned to the right.

    Args:
        rows: One mapping a row.
        columns: Keys in order; those of the rows in order of appearance by default.
        style: Aligned text, or a Markdown table.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row)) if columns is None else list(columns)
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    right = [
        bool(rows) and all(_is_number(row.get(c)) or row.get(c) is None for row in rows) for c in columns
    ]
    widths = [max(len(line[i]) for line in [list(columns), *cells]) for i in range(len(columns))]

    def line(values: Sequence[str], gap: str) -> str:
        padded = [v.rjust(w) if r else v.ljust(w) for v, w, r in zip(values, widths, right, strict=True)]
        return gap.join(padded).rstrip() if style == "plain" else f"| {gap.join(padded)} |"

    if style == "plain":
        rule = ["-" * width for width in widths]
        return "\n".join(line(values, "  ") for values in [columns, rule, *cells])
    rule = ["-" * (w - 1) + ":" if r else "-" * w for w, r in zip(widths, right, strict=True)]
    return "\n".join(line(values, " | ") for values in [columns, rule, *cells])


def plot_curves(run: Run) -> Path:
    """Draws training loss and validation metric over epochs into the run's ``curves.png``.

    Returns:
        The picture.

    Raises:
        UserError: Nothing was logged yet.
    """
    lines = run.metrics
    train = [line for line in lines if line.get("split") == "train"]
    valid = [line for line in lines if line.get("split") == "valid"]
    if not train and not valid:
        raise UserError(f"{run.folder} has no epoch in its log yet; nothing to draw")
    result = run.result or {}
    metric = result.get("metric") or next((k for k in valid[0] if k not in _POSITION), "") if valid else ""

    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 3.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = [
        ("training loss", "#3b6fb6", [(line["epoch"], line["loss"]) for line in train]),
        (f"validation {metric}", "#c2571a", [(line["epoch"], line.get(metric)) for line in valid]),
    ]
    for axis, (title, colour, raw) in zip(figure.subplots(1, 2), panels, strict=True):
        points = [(x, float(y)) for x, y in raw if y is not None]
        marker = "o" if len(points) < 30 else None
        axis.plot(*zip(*points, strict=True), color=colour, lw=1.6, marker=marker, ms=3) if points else None
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.25, lw=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        best = result.get("best_epoch")
        if best is not None:
            axis.axvline(best, color="0.45", lw=0.9, ls="--")
            at_best = dict(points).get(best)
            if at_best is not None:
                axis.plot([best], [at_best], "o", color=colour, ms=6, mec="white", zorder=3)
                axis.set_title(
                    f"{at_best:.4g} at the best epoch, {best}", loc="right", fontsize=8, color="0.35"
                )
    figure.suptitle(run.name, fontsize=10, x=0.01, ha="left", color="0.25")
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    path = run.folder / "curves.png"
    atomic_write(path, picture.getvalue())
    return path


_POSITION = ("epoch", "step", "split", "seconds")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, tuple)) and not isinstance(value, bool)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, tuple) and len(value) == 2:
        mean, deviation = value
        if math.isnan(deviation):
            return f"{mean:.4g}"
        digits = max(0, 1 - math.floor(math.log10(deviation))) if deviation > 0 else 4
        return f"{mean:.{min(digits, 6)}f} ± {deviation:.{min(digits, 6)}f}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


OWN_SCALE = frozenset({"mae", "rmse", "mse", "r2", "loss", "perplexity"})
"""Metrics that are shown as they are: errors in the target's unit, and ratios that aren't shares."""


def display_scale(metric: str) -> float:
    """Returns what tables multiply a metric by: 1 for :data:`OWN_SCALE`, 100 for others, which are shares."""
    return 1.0 if metric.lower() in OWN_SCALE else 100.0


def figure(mean: float, std: float | None) -> str:
    """Returns a result as papers print it, ``89.05 ± 0.96``; the value alone where no deviation is known."""
    digits = 2 if abs(mean) >= 1 else 4
    spread = std is not None and math.isfinite(std)
    return f"{mean:.{digits}f} ± {std:.{digits}f}" if spread else f"{mean:.{digits}f}"


def published(paper: Mapping[str, Any] | None) -> str:
    """Returns a recipe's published result, marked where it is of another protocol."""
    if paper is None:
        return "-"
    return figure(paper["mean"], paper.get("std")) + (
        "" if paper.get("comparable", True) else " (other protocol)"
    )
