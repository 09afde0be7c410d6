"""Registries: names in, things out, and helpful complaints."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

import graphkit.registry
from graphkit.errors import UserError, did_you_mean
from graphkit.registry import DATASETS, MODELS, TASKS, Entry, Registry


class Point:
    """An entry point that counts how often it is loaded."""

    def __init__(self, registry: Registry, name: str) -> None:
        self.registry, self.name, self.loads = registry, name, 0

    def load(self) -> None:
        self.loads += 1
        self.registry.register(self.name, task="link")(type(self.name, (), {"__doc__": "From elsewhere."}))


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A registry whose package registers nothing."""
    monkeypatch.setattr(graphkit.registry, "entry_points", lambda group: [])
    return Registry("model", "graphkit")


def test_registered_things_are_found_and_created(registry: Registry) -> None:
    @registry.register("box", task=("link", "node"), paper="arXiv:1")
    class Box:
        """Holds a size.

        And more."""

        def __init__(self, size: int = 1) -> None:
            self.size = size

    entry = registry.get("box")
    assert (entry.name, entry.target, entry.tasks, entry.paper) == ("box", Box, ("link", "node"), "arXiv:1")
    assert entry.summary == "Holds a size."
    assert registry.create("box", size=3).size == 3
    assert "box" in registry
    assert "fox" not in registry


def test_second_registration_of_a_name_is_an_error(registry: Registry) -> None:
    registry.register("box", task="link")(Point)
    with pytest.raises(ValueError, match="model 'box' is registered already, by "):
        registry.register("box", task="link")(Registry)
    assert registry.get("box").target is Point


def test_registering_the_same_thing_again_is_none(registry: Registry) -> None:
    registry.register("box", task="link")(Point)
    registry.register("box", task="link")(Point)
    assert registry.names() == ["box"]


def test_names_are_sorted_and_filtered_by_pattern_and_task(registry: Registry) -> None:
    for name, task in (("ncnc", "link"), ("gat", "node"), ("ncn", "link")):
        registry.register(name, task=task)(type(name, (), {}))
    assert registry.names() == ["gat", "ncn", "ncnc"]
    assert registry.names("nc*") == ["ncn", "ncnc"]
    assert registry.names(task="node") == ["gat"]


@pytest.mark.parametrize(
    ("name", "close"), [("nnc", "ncn"), ("ncncc", "ncnc"), ("gaee", "gae"), ("adamic", None)]
)
def test_unknown_name_is_refused_with_the_closest_one(name: str, close: str | None) -> None:
    with pytest.raises(UserError, match=f"unknown model '{name}'") as refused:
        MODELS.get(name)
    if close is None:
        assert "; known: aa, cn, " in str(refused.value)
    else:
        assert f"did you mean '{close}" in str(refused.value)


@pytest.mark.parametrize(
    ("name", "close"), [("hiden_channels", "hidden_channels"), ("epocs", "epochs"), ("coar", "cora")]
)
def test_closest_name_forgives_a_missing_letter_or_two_swapped_ones(name: str, close: str) -> None:
    assert did_you_mean(name, ["hidden_channels", "epochs", "cora", "x"]) == f"; did you mean '{close}'?"


def test_distant_name_is_answered_with_the_known_ones() -> None:
    assert did_you_mean("zzz", ["b", "a"]) == "; known: a, b"
    assert did_you_mean("zzz", [f"name{i:02}" for i in range(20)]).endswith("name11, ...")
    assert did_you_mean("zzz", []) == ""


def test_entry_points_of_other_packages_join(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry("model", "graphkit")
    point, groups = Point(registry, "theirs"), []

    def entry_points(group: str) -> list[Any]:
        groups.append(group)
        return [point]

    monkeypatch.setattr(graphkit.registry, "entry_points", entry_points)
    assert registry.names() == ["theirs"]
    assert registry.get("theirs").summary == "From elsewhere."
    assert (groups, point.loads) == (["graphkit"], 1)


def test_package_that_cannot_be_imported_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry("model", "graphkit")
    monkeypatch.setattr(graphkit.registry, "entry_points", lambda group: [])

    def fail(name: str) -> None:
        raise ImportError("half installed")

    with monkeypatch.context() as patch:
        patch.setattr(importlib, "import_module", fail)
        with pytest.raises(ImportError, match="half installed"):
            registry.names()
    assert registry.names() == []


@pytest.mark.parametrize("entries", [MODELS, DATASETS, TASKS], ids=lambda r: r.kind)
def test_every_built_in_entry_says_what_it_is(entries: Registry) -> None:
    assert entries.names()
    for name in entries.names():
        assert entries.get(name).summary.endswith((".", "?"))
        assert set(entries.get(name).tasks) <= set(TASKS.names())


class _Plain:
    """Has no constructor of its own."""


class _Base:
    """Takes a width.

    Args:
        width: Of everything.
    """

    def __init__(self, width: int = 1) -> None:
        self.width = width


class _Derived(_Base):
    """Inherits its constructor."""


class _Own(_Base):
    """Has its own.

    Args:
        height: Of everything.
    """

    def __init__(self, height: int = 1) -> None:
        super().__init__()
        self.height = height


def test_documentation_of_an_inherited_constructor_is_that_of_its_class() -> None:
    def text(target: Any) -> str:
        return Entry("name", target, (), "").documentation

    assert text(_Derived).startswith("Inherits its constructor.\n\nTakes a width.")
    assert "width: Of everything." in text(_Derived)
    assert "width" not in text(_Own)
    assert text(_Plain) == "Has no constructor of its own."
    assert text(test_documentation_of_an_inherited_constructor_is_that_of_its_class) == ""
