"""Every model equals its reference implementation on stored arrays, forward and backward.

A folder of arrays is a family of models, and `golden_checks/FAMILY.py` has the function `check(path)` that
reads its files; one without fails, so that none is overlooked.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from graphkit.registry import MODELS

TESTS = Path(__file__).parent
SHARED = TESTS.parent.parent / "shared" / "golden"
NOT_YET: set[str] = set()  # families whose model isn't in the zoo so far


def golden_root() -> Path:
    named = os.environ.get("GRAPHKIT_GOLDEN")
    return Path(named) if named else SHARED if SHARED.is_dir() else TESTS / "golden"


def golden_files() -> Iterator[Any]:
    for path in sorted({*golden_root().rglob("*.npz"), *(TESTS / "golden").rglob("*.npz")}):
        place = "repository" if TESTS in path.parents else "shared"
        yield pytest.param(path, id=f"{place}-{path.parent.name}-{path.stem}")


@functools.cache
def check_of(family: str) -> Callable[[Path], None]:
    path = TESTS / "golden_checks" / f"{family}.py"
    assert path.is_file(), f"no check reads the arrays of {family}; write {path}"
    spec = importlib.util.spec_from_file_location(f"golden_checks_{family}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where data classes look for their module
    spec.loader.exec_module(module)
    check: Callable[[Path], None] = module.check
    return check


@pytest.mark.parametrize("path", list(golden_files()))
def test_model_reproduces_its_reference(path: Path) -> None:
    family = path.parent.name
    if family in NOT_YET:
        pytest.skip(f"{family} isn't in the zoo yet")
    check_of(family)(path)


@pytest.mark.parametrize("family", sorted(NOT_YET))
def test_no_registered_model_goes_without_its_check(family: str) -> None:
    assert not MODELS.names(f"{family}*"), f"{family} is registered: take it from NOT_YET and write its check"
