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
from graphkit.registry import DATASETS, MODELS, TASKS, Entry
from graphkit.report import figure, format_table, published
from graphkit.tasks.base import Task

__all__ = ["list_", "show"]


def list_(argv: Sequence[str]) -> int:
    """Prints tables of models, data sets and recipes; returns the exit code.

    Raises:
        UserError: Nothing matches.
    """
    parser = Parser("list", "Lists models, data sets and recipes.")
    parser.add_argument("pattern", nargs="?", default="*", help="shell pattern for the names, e.g. 'ncn*'")
    options = parser.parse_args(argv)
    tables = []
    for registry, title in ((MODELS, "model"), (DATASETS, "data set")):
        names = registry.names(options.pattern)
        entries = [registry.get(name) for name in names]
        rows = [
            {title: e.name, "tasks": ", ".join(e.tasks), "source": e.paper, "what it is": plain(e.summary)}
            for e in entries
        ]
        tables += [format_table(rows)] if rows else []
    pattern = options.pattern if "/" in options.pattern or options.pattern == "*" else f"{options.pattern}/*"
    rows = [_recipe_row(r) for r in all_recipes() if pattern == "*" or fnmatch.fnmatchcase(r.name, pattern)]
    tables += [format_table(rows)] if rows else []
    if not tables:
        pattern = options.pattern
        hint = "" if set(pattern) & set("*?[") else did_you_mean(pattern, _known())
        raise UserError(f"no model, data set or recipe matches '{pattern}'{hint}")
    print("\n\n".join(tables))
    return 0


def show(argv: Sequence[str]) -> int:
    """Prints all about one model, data set, task or recipe; returns the exit code.

    Raises:
        UserError: Nothing is called that.
    """
    description = "Shows parameters, paper, recipes and results of a model, data set, task or recipe."
    parser = Parser("show", description)
    parser.add_argument("name")
    name = parser.parse_args(argv).name
    recipe = next((r for r in all_recipes() if r.name == name), None)
    if recipe is not None:
        print(recipe_file(recipe).read_text(), end="")
        return 0
    registry = next((each for each in (MODELS, DATASETS, TASKS) if name in each), None)
    if registry is None:
        raise UserError(f"nothing is called '{name}'{did_you_mean(name, [*_known(), *TASKS.names()])}")
    _describe(registry.get(name), registry.kind)
    if registry is TASKS:
        print(f"\nmodels: {', '.join(MODELS.names(task=name))}")
        print(f"data sets: {', '.join(DATASETS.names(task=name))}")
    own = [r for r in all_recipes() if name in (r.model_name, r.dataset_name)]
    if own:
        print("\n" + format_table([_recipe_row(r) for r in own]))
    return 0


def _known() -> list[str]:
    return [*MODELS.names(), *DATASETS.names(), *(recipe.name for recipe in all_recipes())]


def _describe(entry: Entry, kind: str) -> None:
    serves = f" ({', '.join(entry.tasks)})" if kind != TASKS.kind else ""
    print(f"{kind} {entry.name}{serves}{'  ' + entry.paper if entry.paper else ''}")
    print(f"{entry.target.__module__}.{entry.target.__qualname__}\n\n{entry.documentation}\n")
    given = {
        MODELS.kind: sizes_from_data(entry),
        DATASETS.kind: ["root", "task", "seed"],
        TASKS.kind: [name for name in inspect.signature(Task.__init__).parameters if name != "self"],
    }
    rows = []
    for parameter in inspect.signature(entry.target).parameters.values():
        if parameter.name in given[kind] or parameter.kind is parameter.VAR_KEYWORD:
            continue
        default = "" if parameter.default is parameter.empty else repr(parameter.default)
        rows.append({"parameter": parameter.name, "type": str(parameter.annotation), "default": default})
    if rows:
        print(format_table(rows))


def plain(text: str) -> str:
    """Returns a docstring's line without its markup."""
    return re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"\1", text).replace("``", "")


def _recipe_row(recipe: Recipe) -> dict[str, Any]:
    ours = recipe.expected.get("ours")
    return {
        "recipe": recipe.name,
        "seeds": recipe.seeds,
        "published": published(recipe.expected.get("paper")),
        "ours": figure(ours["mean"], ours.get("std")) if ours else None,
    }
