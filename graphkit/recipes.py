"""Recipes: one YAML file for one model on one data set, with the result it should give.

A recipe holds the values that differ from the defaults, in the sections of a run's configuration (``model``,
``data``, ``task``, ``optim``, ``train``), and beside them::

    task_name: link          where the data set serves several tasks
    default: true            taken when the model is trained without naming a data set
    seeds: 10                how many seeds its result is made of
    parameters: 764163       of the model it builds
    expected:
      metric: hits@100
      paper: {mean: 89.05, std: 0.96, seeds: 10, source: ...}     # comparable: false if its protocol differs
      also: ["accuracy@*"]   further test metrics that are recorded with ours, by pattern
      ours: {...}            written by ``reproduce --record``

A file ``DATASET@VARIANT.yaml`` holds what a variant does otherwise than ``DATASET.yaml``, and its own
results: ``tt-gnn/cora@random`` is ``tt-gnn/cora`` with another order of the nodes, and nothing else.
"""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from graphkit.errors import UserError, did_you_mean

__all__ = ["Recipe", "all_recipes", "default_recipe", "find_recipe", "matching_recipes", "recipe_file"]

SECTIONS = ("model", "data", "task", "optim", "train")
_FIELDS = (*SECTIONS, "task_name", "default", "seeds", "parameters", "expected")
_OWN = ("default", "parameters", "expected")  # what a variant doesn't take over


@dataclass(frozen=True)
class Recipe:
    """A parsed recipe file.

    Attributes:
        model_name: Registered model, from the folder's name.
        dataset_name: Registered data set, from the file's name.
        values: The sections' values, nested as in a run's configuration.
        task_name: The task, ``None`` for the first that both serve.
        default: Whether it is the model's first recipe.
        seeds: Number of seeds of its result.
        parameters: Number of trainable values of its model; ``None`` if not stated.
        expected: Published and measured results.
        variant: What follows ``@`` in the file's name; empty for the data set's own recipe.
    """

    model_name: str
    dataset_name: str
    values: Mapping[str, Mapping[str, Any]]
    task_name: str | None = None
    default: bool = False
    seeds: int = 1
    parameters: int | None = None
    expected: Mapping[str, Any] = field(default_factory=dict)
    variant: str = ""

    @property
    def name(self) -> str:
        """``<model>/<dataset>`` or ``<model>/<dataset>@<variant>``."""
        return f"{self.model_name}/{self.dataset_name}" + (f"@{self.variant}" if self.variant else "")


def parse_recipe(model: str, stem: str, text: str, base: str | None = None) -> Recipe:
    """Reads a recipe's text.

    Args:
        model: Registered model.
        stem: The file's name without its ending: ``DATASET`` or ``DATASET@VARIANT``.
        text: The file's content.
        base: Of a variant, the content of the recipe that it varies.

    Raises:
        UserError: It is no YAML mapping, or has an unknown key; a variant without a base.
    """
    dataset, _, variant = stem.partition("@")
    content = _content(f"recipe {model}/{stem}", text)
    if variant:
        if base is None:
            raise UserError(f"recipe {model}/{stem} is a variant, and there is no recipe {model}/{dataset}")
        origin = _content(f"recipe {model}/{dataset}", base)
        content = _overlaid({k: v for k, v in origin.items() if k not in _OWN}, content)
    values = {section: content.pop(section) or {} for section in SECTIONS if section in content}
    return Recipe(model, dataset, values, variant=variant, **content)


def _content(where: str, text: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{where} is no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{where} must be a mapping")
    for key in content:
        if key not in _FIELDS:
            raise UserError(f"{where}: unknown key '{key}'{did_you_mean(str(key), _FIELDS)}")
    return content


def _overlaid(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Returns ``below`` with the values of ``above`` put over it, mappings key by key."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = _overlaid(old, value) if both else value  # type: ignore[arg-type]
    return merged


@functools.cache
def all_recipes() -> tuple[Recipe, ...]:
    """Returns every recipe of the package, by name."""
    found = []
    for folder in resources.files("graphkit.models").joinpath("recipes").iterdir():
        if not folder.is_dir():
            continue
        texts = {
            file.name.removesuffix(".yaml"): file.read_text()
            for file in folder.iterdir()
            if file.name.endswith(".yaml")
        }
        for stem, text in texts.items():
            found.append(parse_recipe(folder.name, stem, text, texts.get(stem.partition("@")[0])))
    return tuple(sorted(found, key=lambda recipe: recipe.name))


def find_recipe(model: str, dataset: str) -> Recipe | None:
    """Returns the recipe for a model on a data set (``DATASET@VARIANT`` for a variant), if there is one."""
    return next((r for r in all_recipes() if r.name == f"{model}/{dataset}"), None)


def default_recipe(model: str) -> Recipe | None:
    """Returns the recipe that a model is trained by when no data set is named."""
    own = [r for r in all_recipes() if r.model_name == model and not r.variant]
    return next((r for r in own if r.default), own[0] if own else None)


def matching_recipes(patterns: Iterable[str]) -> list[Recipe]:
    """Returns the recipes whose name matches any shell pattern; a bare model name means all of its recipes.

    Raises:
        UserError: A pattern that matches nothing.
    """
    chosen: dict[str, Recipe] = {}
    names = [recipe.name for recipe in all_recipes()]
    for pattern in patterns:
        full = pattern if "/" in pattern else f"{pattern}/*"
        hits = [recipe for recipe in all_recipes() if fnmatch.fnmatchcase(recipe.name, full)]
        if not hits:
            raise UserError(f"no recipe '{pattern}'{did_you_mean(pattern, names)}")
        chosen |= {recipe.name: recipe for recipe in hits}
    return list(chosen.values())


def recipe_file(recipe: Recipe) -> Path:
    """Returns where a recipe's file lies."""
    folder = resources.files("graphkit.models").joinpath("recipes", recipe.model_name)
    return Path(str(folder)) / f"{recipe.name.partition('/')[2]}.yaml"
