"""Names for models, data sets and tasks.

A class or a loader enters a registry through a decorator; nothing else has to be edited. The built-in
packages are imported the first time a registry is asked, never at ``import graphkit``, and other packages
join through entry points of the same group name::

    [options.entry_points]
    graphkit.models =
        mymodel = mypackage.mymodel
"""

from __future__ import annotations

import fnmatch
import importlib
import inspect
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, TypeVar

from graphkit.errors import UserError, did_you_mean

__all__ = [
    "DATASETS",
    "MODELS",
    "TASKS",
    "Entry",
    "Registry",
    "register_dataset",
    "register_model",
    "register_task",
]

T = TypeVar("T", bound=Callable[..., Any])


@dataclass(frozen=True)
class Entry:
    """One registered thing.

    Attributes:
        name: The name it is asked for by.
        target: The model class, the data set loader or the task class.
        tasks: The tasks it takes part in, the default one first.
        paper: Where it comes from (``arXiv:...``), empty if nowhere.
        summary: First line of its docstring.
    """

    name: str
    target: Callable[..., Any]
    tasks: tuple[str, ...]
    paper: str

    @property
    def summary(self) -> str:
        lines = (inspect.getdoc(self.target) or "").strip().splitlines()
        return lines[0] if lines else ""

    @property
    def documentation(self) -> str:
        """The docstring, and that of the class which has the constructor where that is inherited."""
        text = inspect.getdoc(self.target) or ""
        if not inspect.isclass(self.target) or "__init__" in vars(self.target):
            return text
        owner = next((base for base in self.target.__mro__ if "__init__" in vars(base)), object)
        about = "" if owner is object else inspect.getdoc(owner) or ""
        return f"{text}\n\n{about}" if about else text


class Registry:
    """A dictionary of names that fills itself from one package and its entry points.

    Args:
        kind: What the entries are, for messages (``"model"``).
        package: The package whose import registers the built-in entries; also the entry point group.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._entries: dict[str, Entry] = {}
        self._loaded = False
        self._lock = threading.RLock()

    def register(self, name: str, *, task: str | Sequence[str] = (), paper: str = "") -> Callable[[T], T]:
        """Returns a decorator that enters a class or function under ``name``.

        Raises:
            ValueError: If the name is taken by another object.
        """
        tasks = (task,) if isinstance(task, str) else tuple(task)

        def enter(target: T) -> T:
            old = self._entries.get(name)
            if old is not None and old.target is not target:
                raise ValueError(f"{self.kind} '{name}' is registered already, by {old.target.__module__}")
            self._entries[name] = Entry(name, target, tasks, paper)
            return target

        return enter

    def get(self, name: str) -> Entry:
        """Returns the entry called ``name``.

        Raises:
            UserError: If there is none; the message offers the closest name.
        """
        self._load()
        if name not in self._entries:
            raise UserError(f"unknown {self.kind} '{name}'{did_you_mean(name, self._entries)}")
        return self._entries[name]

    def names(self, pattern: str = "*", *, task: str | None = None) -> list[str]:
        """Returns the names that match a shell pattern, sorted, of one task if given."""
        self._load()
        return sorted(
            name
            for name, entry in self._entries.items()
            if fnmatch.fnmatchcase(name, pattern) and (task is None or task in entry.tasks)
        )

    def create(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Calls the entry's target: ``MODELS.create("ncn", in_channels=8)``."""
        return self.get(name).target(*args, **kwargs)

    def __contains__(self, name: str) -> bool:
        self._load()
        return name in self._entries

    def _load(self) -> None:
        with self._lock:
            if self._loaded:
                return
            self._loaded = True
            try:
                importlib.import_module(self.package)
                for point in entry_points(group=self.package):
                    point.load()
            except BaseException:
                self._loaded = False
                raise


MODELS = Registry("model", "graphkit.models")
DATASETS = Registry("data set", "graphkit.datasets")
TASKS = Registry("task", "graphkit.tasks")


def register_model(name: str, *, task: str | Sequence[str], paper: str = "") -> Callable[[T], T]:
    """Registers a model class; its keyword-only constructor arguments are its configuration."""
    return MODELS.register(name, task=task, paper=paper)


def register_dataset(name: str, *, task: str | Sequence[str], paper: str = "") -> Callable[[T], T]:
    """Registers a loader ``load(*, root, task, seed, **options) -> Benchmark`` for ``name``."""
    return DATASETS.register(name, task=task, paper=paper)


def register_task(name: str) -> Callable[[T], T]:
    """Registers a task class under ``name``."""
    return TASKS.register(name, task=name)
