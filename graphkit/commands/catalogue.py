"""``list`` and ``show``: what is in the zoo."""

from __future__ import annotations

import fnmatch
import inspect
import re
from collections.abc import Sequence
from typing import Any

from graphkit.commands.parser import Parser
from graphkit.errors import UserError, did_you_mean
from graphkit.experiment import sizes_from_data
from graphkit.recipes import Recipe, all_recipes, recipe_file
from graphkit.registry import DATASETS, MODELS, Entry
from graphkit.report import figure, format_table

__all__ = ["list_", "show"]


def list_(argv: Sequence[str]) -> int:
    """Prints tables of models, data sets and recipes; returns the exit code."""
    parser = Parser("list", "Lists models, data sets and recipes.")
    parser.add_argument("pattern", nargs="?", default="*", help="shell pattern for the names, e.g. 'ncn*'")
    options = parser.parse_args(argv)
    for registry, title in ((MODELS, "model"), (DATASETS, "data set")):
        names = registry.names(options.pattern)
        entries = [registry.get(name) for name in names]
        rows = [
            {title: e.name, "tasks": ", ".join(e.tasks), "source": e.paper, "what it is": plain(e.summary)}
            for e in entries
        ]
        if rows:
            print(format_table(rows), end="\n\n")
    pattern = options.pattern if "/" in options.pattern or options.pattern == "*" else f"{options.pattern}/*"
    rows = [_recipe_row(r) for r in all_recipes() if pattern == "*" or fnmatch.fnmatchcase(r.name, pattern)]
    if rows:
        print(format_table(rows))
    return 0


def show(argv: Sequence[str]) -> int:
    """Prints all about one model, data set or recipe; returns the exit code."""
    parser = Parser("show", "Shows parameters, paper, recipes and results of a model, data set or recipe.")
    parser.add_argument("name")
    name = parser.parse_args(argv).name
    recipe = next((r for r in all_recipes() if r.name == name), None)
    if recipe is not None:
        print(recipe_file(recipe).read_text(), end="")
        return 0
    if name not in MODELS and name not in DATASETS:
        known = [*MODELS.names(), *DATASETS.names(), *(r.name for r in all_recipes())]
        raise UserError(f"nothing is called '{name}'{did_you_mean(name, known)}")
    registry = MODELS if name in MODELS else DATASETS
    _describe(registry.get(name), registry.kind)
    own = [r for r in all_recipes() if name in (r.model_name, r.dataset_name)]
    if own:
        print("\n" + format_table([_recipe_row(r) for r in own]))
    return 0


def _describe(entry: Entry, kind: str) -> None:
    print(f"{kind} {entry.name} ({', '.join(entry.tasks)}){'  ' + entry.paper if entry.paper else ''}")
    print(f"{entry.target.__module__}.{entry.target.__qualname__}\n\n{inspect.getdoc(entry.target) or ''}\n")
    decided = sizes_from_data(entry) if kind == "model" else ["root", "task", "seed"]
    rows = []
    for parameter in inspect.signature(entry.target).parameters.values():
        if parameter.name in decided or parameter.kind is parameter.VAR_KEYWORD:
            continue
        default = "" if parameter.default is parameter.empty else repr(parameter.default)
        rows.append({"parameter": parameter.name, "type": str(parameter.annotation), "default": default})
    if rows:
        print(format_table(rows))


def plain(text: str) -> str:
    """Returns a docstring's line without its markup."""
    return re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"\1", text).replace("``", "")


def _recipe_row(recipe: Recipe) -> dict[str, Any]:
    row: dict[str, Any] = {"recipe": recipe.name, "seeds": recipe.seeds}
    for title, key in (("published", "paper"), ("ours", "ours")):
        result = recipe.expected.get(key)
        row[title] = figure(result["mean"], result["std"]) if result else None
    return row
