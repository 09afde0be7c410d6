"""The README's generated tables, from the registry and the recipes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from graphkit.commands.catalogue import plain
from graphkit.commands.parser import Parser
from graphkit.errors import UserError
from graphkit.files import atomic_write
from graphkit.recipes import all_recipes
from graphkit.registry import DATASETS, MODELS
from graphkit.report import figure, format_table, published

__all__ = ["also_table", "cells_table", "readme", "results_table", "zoo_table"]

_CELL = re.compile(r"accuracy@k(\d+)(?:b(\d+))?")  # by path length and number of paths


def readme(argv: Sequence[str]) -> int:
    """Writes the tables between their markers, or only checks that they are current (exit code 1 if not)."""
    parser = Parser("readme", "Brings the README's tables up to date with registry and recipes.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a table is out of date")
    parser.add_argument("--file", default="README.md", metavar="FILE")
    options = parser.parse_args(argv)
    path = Path(options.file)
    try:
        text = path.read_text()
    except OSError as error:
        raise UserError(f"can't read {path}: {error}") from error
    current = text
    tables = {"models": zoo_table, "datasets": dataset_table, "results": results_table}
    for name, table in {**tables, "cells": cells_table, "also": also_table}.items():
        current = _between(current, name, table())
    if current == text:
        return 0
    if options.check:
        print(f"the tables of {path} are out of date; run: python scripts/readme.py")
        return 1
    atomic_write(path, current)
    return 0


def zoo_table() -> str:
    """Returns the table of models."""
    rows = []
    for name in MODELS.names():
        entry = MODELS.get(name)
        recipes = ", ".join(r.name.partition("/")[2] for r in all_recipes() if r.model_name == name)
        rows.append(
            {
                "name": f"`{name}`",
                "class": f"`{entry.target.__name__}`",
                "task": ", ".join(entry.tasks),
                "what it is": plain(entry.summary),
                "paper": _link(entry.paper),
                "recipes": recipes or "-",
            }
        )
    return format_table(rows, style="markdown")


def dataset_table() -> str:
    """Returns the table of data sets."""
    entries = [DATASETS.get(name) for name in DATASETS.names()]
    rows = [
        {"name": f"`{e.name}`", "tasks": ", ".join(e.tasks), "what it is": plain(e.summary)} for e in entries
    ]
    return format_table(rows, style="markdown")


def results_table() -> str:
    """Returns published and measured results of every recipe that states one."""
    rows = []
    for recipe in all_recipes():
        paper, ours = (recipe.expected.get(key) for key in ("paper", "ours"))
        if paper is None and ours is None:
            continue
        rows.append(
            {
                "recipe": f"`{recipe.name}`",
                "metric": recipe.expected.get("metric", "-"),
                "published": published(paper),
                "ours": figure(ours["mean"], ours["std"]) if ours else "not run",
                "valid": figure(ours["valid_mean"], ours["valid_std"]) if ours else "-",
                "seeds": str(len(ours["seeds"])) if ours else "-",
                "parameters": f"{recipe.parameters:,}" if recipe.parameters is not None else "-",
                "s/epoch": str(ours["seconds_per_epoch"] or "-") if ours else "-",
                "commit": ", ".join(ours["commit"]) if ours else "-",
            }
        )
    return format_table(rows, style="markdown")


def cells_table() -> str:
    """Returns accuracy by path length k and number of paths b, of recipes that record it."""
    rows: dict[tuple[str, int], dict[str, str]] = {}
    for recipe in all_recipes():
        for name, value in recipe.expected.get("ours", {}).get("also", {}).items():
            cell = _CELL.fullmatch(name)
            if cell is not None:
                row = rows.setdefault(
                    (recipe.name, int(cell[1])), {"recipe": f"`{recipe.name}`", "k": cell[1]}
                )
                row[f"b = {cell[2]}" if cell[2] else "any b"] = value
    return format_table(list(rows.values()), style="markdown")


def also_table() -> str:
    """Returns the further test metrics of recipes that record some, but for accuracy by cell."""
    rows = []
    for recipe in all_recipes():
        also = recipe.expected.get("ours", {}).get("also", {})
        rest = {name: value for name, value in also.items() if not _CELL.fullmatch(name)}
        if rest:
            rows.append({"recipe": f"`{recipe.name}`", **rest})
    return format_table(rows, style="markdown")


def _link(source: str) -> str:
    kind, _, number = source.partition(":")
    address = {"arXiv": "https://arxiv.org/abs/", "doi": "https://doi.org/"}.get(kind)
    return f"[{source}]({address}{number})" if address else source


def _between(text: str, name: str, table: str) -> str:
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise UserError(f"the README has no markers <!-- {name} --> ... <!-- /{name} -->")
    return pattern.sub(lambda found: f"{found[1]}{table}\n{found[2]}", text)
