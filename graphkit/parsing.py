"""Command line and files to a :class:`~graphkit.config.RunConfig`: defaults < recipe < file < flags.

Defaults are those of the signatures, or of the task where it has its own.

The parser of a run is made from signatures: the model's constructor, the data set's loader, the task and the
dataclasses of :mod:`graphkit.config`. Their docstrings are its help.
"""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from graphkit.config import OptimConfig, RunConfig, TrainConfig
from graphkit.errors import UserError, did_you_mean
from graphkit.experiment import choose_task, sizes_from_data
from graphkit.recipes import SECTIONS, Recipe, all_recipes, default_recipe, find_recipe
from graphkit.registry import DATASETS, MODELS, TASKS, Entry
from graphkit.tasks.base import Task

__all__ = [
    "data_options",
    "from_file",
    "make_parser",
    "read_yaml",
    "recipe_config",
    "resolve",
    "sectioned",
    "set_values",
]

_FROM_FILE = {"csv": "smiles-csv"}
"""What a data set may be called that is a file, as in ``csv:FILE``, and the loader that reads it."""
_LOADER_ARGUMENTS: set[str | int] = {"root", "task", "seed"}
_TASK_ARGUMENTS: set[str | int] = {
    name for name in inspect.signature(Task.__init__).parameters if name != "self"
}


def make_parser(prog: str, model: Entry, dataset: Entry, task: Entry) -> ArgumentParser:
    """Returns the parser of everything that configures a run of this model, data set and task."""
    parser = ArgumentParser(prog=prog, exit_on_error=False, description=model.summary)
    parser.add_class_arguments(model.target, "model", skip=set(sizes_from_data(model)))
    parser.add_function_arguments(dataset.target, "data", skip=_LOADER_ARGUMENTS)
    parser.add_class_arguments(task.target, "task", skip=_TASK_ARGUMENTS)
    parser.add_class_arguments(OptimConfig, "optim")
    parser.add_class_arguments(TrainConfig, "train")
    for action in parser._actions:
        # jsonargparse's own option for the file of a section or of a group in it; we take one file, --config
        if _is_group(parser, *action.option_strings[:1]):
            action.help = argparse.SUPPRESS
    return parser


def from_file(dataset_name: str | None, flags: Sequence[str]) -> tuple[str | None, list[str]]:
    """Takes ``csv:FILE`` for the data set ``smiles-csv`` with its option ``--data.file FILE``.

    Returns:
        The data set's registered name, and all flags.

    Raises:
        UserError: ``csv:`` without a file.
    """
    kind, colon, file = (dataset_name or "").partition(":")
    if not colon or kind not in _FROM_FILE:
        return dataset_name, list(flags)
    if not file:
        raise UserError(f"--dataset {kind}:FILE names a table of molecules; the file is missing")
    return _FROM_FILE[kind], ["--data.file", str(Path(file).expanduser()), *flags]


def sectioned(dataset: Entry, flags: Sequence[str]) -> list[str]:
    """Writes a data set's own options out: ``--smiles NAME`` becomes ``--data.smiles NAME``."""
    own = _options_of(dataset)
    result = []
    for flag in flags:
        name, equals, value = flag.partition("=")
        key = name.removeprefix("--").replace("-", "_")
        result.append(f"--data.{key}{equals}{value}" if name.startswith("--") and key in own else flag)
    return result


def _options_of(dataset: Entry) -> set[str]:
    """Returns the names of what a data set's loader takes beside the arguments of all loaders."""
    return set(inspect.signature(dataset.target).parameters) - _LOADER_ARGUMENTS


def data_options(prog: str, dataset: Entry, flags: Sequence[str]) -> dict[str, Any]:
    """Returns the options of a data set's loader: its defaults, and ``--data.key value`` tokens over them.

    Raises:
        UserError: Anything unknown or of the wrong type.
    """
    parser = ArgumentParser(prog=prog, exit_on_error=False)
    parser.add_function_arguments(dataset.target, "data", skip=_LOADER_ARGUMENTS)
    flags = sectioned(dataset, flags)
    _refuse_unknown_flags(parser, flags, dataset)
    try:
        values = parser.parse_args(list(flags))
    except argparse.ArgumentError as error:
        raise UserError(_plain(error)) from None
    return _section(values, "data")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Reads a configuration file.

    Raises:
        UserError: It can't be read, is no YAML, or no mapping.
    """
    try:
        content = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"can't read configuration file {path}: {error}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a mapping with sections such as {', '.join(SECTIONS)}")
    known = (*SECTIONS, "model_name", "dataset_name", "task_name", "seed")
    for key in content:
        if key not in known:
            raise UserError(f"{path}: unknown key '{key}'{did_you_mean(str(key), known)}")
    for key, kind in (("model_name", str), ("dataset_name", str), ("task_name", str), ("seed", int)):
        if key in content and type(content[key]) is not kind:
            raise UserError(f"{path}: {key} is {content[key]!r}; it must be {_words(kind.__name__)}")
    return content


def resolve(
    model_name: str | None,
    dataset_name: str | None,
    flags: Sequence[str] = (),
    *,
    task_name: str | None = None,
    file: str | Path | None = None,
    seed: int | None = None,
    prog: str = "train",
) -> RunConfig:
    """Returns the complete configuration of a run.

    Args:
        model_name: Registered model; may stand in the file instead.
        dataset_name: Registered data set, or ``DATASET@VARIANT`` for a variant of its recipe, or ``csv:FILE``
            for a table of molecules; by default the file's, else that of the model's first recipe.
        flags: ``--section.key value`` tokens; ``--key value`` for options of the data set.
        task_name: The task, where a data set serves several.
        file: A YAML file in the form of a run's ``config.yaml``, not necessarily complete.
        seed: The run's seed; by default the file's, else 0.
        prog: Name of the command for its help.

    Raises:
        UserError: Anything unknown, of the wrong type or out of range.
    """
    content = read_yaml(file) if file is not None else {}
    model = MODELS.get(_named("model", model_name or content.get("model_name"), prog))
    chosen, flags = from_file(dataset_name or content.get("dataset_name"), flags)
    recipe = find_recipe(model.name, chosen) if chosen else default_recipe(model.name)
    if chosen and "@" in chosen:
        if recipe is None:
            names = [r.name.partition("/")[2] for r in all_recipes() if r.model_name == model.name]
            raise UserError(f"model '{model.name}' has no recipe '{chosen}'{did_you_mean(chosen, names)}")
        chosen = recipe.dataset_name
    if chosen is None and recipe is None:
        raise UserError(f"model '{model.name}' has no recipe, so name a data set with --dataset NAME")
    dataset = DATASETS.get(chosen or recipe.dataset_name)  # type: ignore[union-attr]
    asked = task_name or content.get("task_name") or (recipe.task_name if recipe else None)
    task = TASKS.get(choose_task(model, dataset, asked))

    parser = make_parser(f"{prog} {model.name}", model, dataset, task)
    set_values(parser, getattr(task.target, "defaults", {}), f"task {task.name}")
    if recipe is not None:
        set_values(parser, recipe.values, f"recipe {recipe.name}")
    set_values(parser, {key: content[key] or {} for key in SECTIONS if key in content}, str(file))
    flags = sectioned(dataset, flags)
    _refuse_unknown_flags(parser, flags, dataset)
    try:
        values = parser.parse_args(flags)
    except argparse.ArgumentError as error:
        raise UserError(_plain(error)) from None
    sections = {section: _section(values, section) for section in SECTIONS}
    return RunConfig.from_dict(
        {
            "model_name": model.name,
            "dataset_name": dataset.name,
            "task_name": task.name,
            "seed": seed if seed is not None else content.get("seed", 0),
            **sections,
        }
    )


def recipe_config(recipe: Recipe, seed: int = 0, flags: Sequence[str] = ()) -> RunConfig:
    """Returns the complete configuration of a recipe's run."""
    where = recipe.name.partition("/")[2]
    return resolve(recipe.model_name, where, flags, task_name=recipe.task_name, seed=seed)


def _named(kind: str, name: str | None, prog: str) -> str:
    if name is None:
        raise UserError(
            f"the {kind} comes first: {prog} MODEL [--dataset NAME]; known: {', '.join(MODELS.names())}"
        )
    return name


def _section(values: Namespace, section: str) -> dict[str, Any]:
    part = values.get(section)
    return part.as_dict() if part is not None else {}


def set_values(parser: ArgumentParser, values: Mapping[str, Any], where: str) -> None:
    """Makes the values of a recipe or file the parser's defaults, after checking keys and types."""
    known = _known_keys(parser)
    flat: dict[str, Any] = {}
    for section, content in values.items():
        if not isinstance(content, Mapping):
            raise UserError(f"{where}: '{section}' must be a mapping, not {content!r}")
        for name, value in _leaves(section, content, known):
            if name not in known:
                raise UserError(f"{where}: unknown key '{name}'{did_you_mean(name, known)}")
            flat[name] = value
    try:
        # the file's floats may be written as 1e-3, which YAML 1.1 reads as text; the parser's types settle it
        parser.parse_object(_nested(flat))
    except argparse.ArgumentError as error:
        raise UserError(f"{where}: {_plain(error)}") from None
    parser.set_defaults(flat)


def _leaves(prefix: str, values: Mapping[str, Any], known: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yields dotted names and values; a group of options (``model.embedding``) is gone into."""
    for key, value in values.items():
        name = f"{prefix}.{key}"
        if isinstance(value, Mapping) and any(option.startswith(f"{name}.") for option in known):
            yield from _leaves(name, value, known)
        else:
            yield name, value


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *path, key = name.split(".")
        place = nested
        for part in path:
            place = place.setdefault(part, {})
        place[key] = value
    return nested


def _is_group(parser: ArgumentParser, option: str = "") -> bool:
    """Whether an option stands for a whole section or group of options."""
    others = (other for action in parser._actions for other in action.option_strings)
    return option.startswith("--") and any(other.startswith(f"{option}.") for other in others)


def _known_keys(parser: ArgumentParser) -> list[str]:
    options = [option for action in parser._actions for option in action.option_strings]
    return [o.removeprefix("--") for o in options if "." in o and not _is_group(parser, o)]


def _refuse_unknown_flags(parser: ArgumentParser, flags: Sequence[str], dataset: Entry) -> None:
    known = [f"--{key}" for key in _known_keys(parser)]
    for flag in flags:
        name = flag.split("=", 1)[0]
        is_flag = name.startswith("--") and len(name) > 2
        entry = any(name.startswith(f"{key}.") for key in known)  # one item of a dictionary
        if is_flag and name not in known and name not in ("--help", "--print_config") and not entry:
            if others := _data_sets_with(name, dataset):
                raise UserError(f"unknown option '{name}' of data set '{dataset.name}'; {others}")
            short = [f"--{key[7:]}" for key in known if key.startswith("--data.")] if "." not in name else []
            raise UserError(f"unknown option '{name}'{did_you_mean(name, [*known, *short])}")


def _data_sets_with(flag: str, dataset: Entry) -> str:
    """Says which other data sets of the same tasks have an option, and how these are named."""
    key = flag.removeprefix("--").removeprefix("data.").replace("-", "_")
    entries = map(DATASETS.get, DATASETS.names())
    names = [e.name for e in entries if {*e.tasks} & {*dataset.tasks} and key in _options_of(e)]
    if not names:
        return ""
    more = [f"{len(names) - 3} more"] if len(names) > 4 else []
    shown = [f"'{name}'" for name in (names[:3] if more else names)] + more
    listed = " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
    if len(names) > 1:
        return f"{listed} have it (--dataset NAME)"
    file = next((f"{kind}:FILE" for kind, name in _FROM_FILE.items() if name == names[0]), names[0])
    return f"{listed} has it (--dataset {file})"


def _plain(error: argparse.ArgumentError) -> str:
    """Words jsonargparse's message in one line."""
    text = " ".join(str(error).split())
    match = re.match(r'Parser key "([^"]+)": (.*)', text)
    if match is None:
        return text
    choice = re.search(r"Subtypes: \[(.*?)\] Errors: .* Given value: (.*)", match[2])
    if choice is not None:
        kinds = re.split(r", (?![^\[]*\])", choice[1])  # at commas outside brackets
        return f"{match[1]} is {choice[2]!r}; it must be {' or '.join(map(_words, kinds))}"
    expected = re.search(r"Expected an? (.+?)\. Got value: (.*)", match[2])
    if expected is None:
        return f"{match[1]}: {match[2]}"
    return f"{match[1]} is {expected[2]!r}; it must be {_words(expected[1])}"


_KINDS = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "NoneType": "null",
    "list": "a list",
    "list[int]": "a list of integers",
}


def _words(kind: str) -> str:
    kind = re.sub(r"<class '([\w.]+)'>", r"\1", kind).replace("typing.", "")
    literal = re.fullmatch(r"Literal\[(.*)\]", kind)
    return f"one of {literal[1]}" if literal else _KINDS.get(kind, kind)
