"""What is shipped: the wheel's content, declared and pinned dependencies, three folders as one package."""

from __future__ import annotations

import ast
import configparser
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
FOLDERS = {"graphkit": "graphkit", "models": "graphkit/models", "datasets": "graphkit/datasets"}


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg")
    return parser


def lines(text: str) -> list[str]:
    """Returns the lines of a list-valued option."""
    return [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]


def requirements(*, extras: bool) -> set[str]:
    """Returns the names of what graphkit requires, of its extras too if asked."""
    config = setup_cfg()
    found = lines(config["options"]["install_requires"])
    if extras:
        for value in config["options.extras_require"].values():
            found += lines(value)
    return {canonicalize_name(Requirement(line).name) for line in found}


def shipped() -> set[str]:
    """Returns the names that the wheel must hold for the three folders."""
    kinds = ("*.py", "py.typed", "recipes/**/*.yaml")
    return {
        f"{prefix}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, prefix in FOLDERS.items()
        for kind in kinds
        for path in (ROOT / folder).rglob(kind)
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built without network from a copy of the repository, as it is installed by users."""
    folder = tmp_path_factory.mktemp("wheel")
    names = (
        ".venv",
        ".git",
        ".*_cache",
        ".hypothesis",
        "__pycache__",
        "*.egg-info",
        "build",
        "dist",
        "data",
        "runs",
    )
    shutil.copytree(
        ROOT,
        folder / "tree",
        ignore=lambda at, found: (
            shutil.ignore_patterns(*names)(at, found) if Path(at) == ROOT else {"__pycache__"} & {*found}
        ),
    )
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--no-build-isolation",
    ]
    done = subprocess.run(
        [*command, "--wheel-dir", str(folder), str(folder / "tree")],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


def test_wheel_holds_all_of_graphkit_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    info = {name for name in names if name.split("/")[0].endswith(".dist-info")}
    assert names - info == shipped()
    assert "graphkit/py.typed" in names
    assert any(name.endswith("/licenses/LICENSE") for name in info)


def test_wheel_works(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = (
        "import graphkit, graphkit.models, graphkit.datasets\n"
        "print(*graphkit.__path__, *graphkit.models.__path__, *graphkit.datasets.__path__)"
    )
    done = run_python(code, tmp_path, PYTHONPATH=str(site))
    folders = [f"{site}/graphkit", f"{site}/graphkit/models", f"{site}/graphkit/datasets"]
    assert done.stdout.split() == folders, done.stderr


def test_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith("METADATA"))
        text = archive.read(name).decode()
    assert "License-Expression: MIT" in text
    assert "Requires-Python: <3.14,>=3.10" in text
    assert "Description-Content-Type: text/markdown" in text


def test_packages_are_the_folders() -> None:
    listed = lines(setup_cfg()["options"]["packages"])
    found = [
        ".".join((prefix.replace("/", "."), *path.parent.relative_to(ROOT / folder).parts))
        for folder, prefix in FOLDERS.items()
        for path in (ROOT / folder).rglob("__init__.py")
    ]
    assert listed == sorted(found), "list every package in setup.cfg, sorted"
    stray = [
        str(path.relative_to(ROOT))
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        if not (path.parent / "__init__.py").exists()
    ]
    assert stray == [], "a folder with modules needs an __init__.py"


def run_python(code: str, cwd: Path, *flags: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a new interpreter, with `python -c`'s own sys.path unless told otherwise."""
    plain = {key: value for key, value in os.environ.items() if key not in ("PYTHONSAFEPATH", "PYTHONPATH")}
    return subprocess.run(
        [sys.executable, *flags, "-c", code],
        cwd=cwd,
        env={**plain, **env},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", ["models", "datasets"])
def test_folders_refuse_other_names(name: str) -> None:
    done = run_python(f"import {name}", ROOT)
    assert done.returncode == 1
    assert f"this folder is graphkit.{name}, not '{name}'" in done.stderr
    assert "PYTHONSAFEPATH=1" in done.stderr


def test_checkout_on_the_path_is_enough(tmp_path: Path) -> None:
    # The hook of an editable installation is taken away, so that only graphkit's __path__ is left.
    code = (
        "import sys\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in getattr(f, '__module__', '')]\n"
        "import graphkit.models, graphkit.datasets\n"
        "print(graphkit.models.__file__, graphkit.datasets.__file__)"
    )
    done = run_python(code, tmp_path, PYTHONPATH=str(ROOT))
    assert done.stdout.split() == [f"{ROOT}/models/__init__.py", f"{ROOT}/datasets/__init__.py"], done.stderr


def imported(tree: ast.AST, *, at_import: bool) -> Iterator[str]:
    """Yields the top-level names imported in a file, if asked only those that its own import needs."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]
        elif at_import and (isinstance(node, FUNCTION) or "if TYPE_CHECKING" in ast.unparse(node)[:16]):
            continue
        else:
            yield from imported(node, at_import=at_import)


@pytest.mark.parametrize("at_import", [True, False])
def test_imports_are_declared(at_import: bool) -> None:
    """What a module needs at import is required; what it needs later is required or in an extra."""
    providers = packages_distributions()
    known = requirements(extras=not at_import)
    missing = {}
    for folder in (*FOLDERS, "scripts"):
        for path in (ROOT / folder).rglob("*.py"):
            for name in imported(ast.parse(path.read_text()), at_import=at_import):
                if name in sys.stdlib_module_names or name == "graphkit":
                    continue
                names = {canonicalize_name(provider) for provider in providers.get(name, [name])}
                if not names & known:
                    missing.setdefault(name, str(path.relative_to(ROOT)))
    assert missing == {}, "declare these in setup.cfg"


def test_requirements_are_used() -> None:
    """Nothing is installed that no code asks for."""
    providers = packages_distributions()
    used = {
        canonicalize_name(provider)
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        for name in imported(ast.parse(path.read_text()), at_import=False)
        for provider in providers.get(name, [])
    }
    # torch-scatter is used by PyTorch Geometric, ogb is imported through graphkit.compat.import_ogb, and of
    # countryinfo only the data files are read.
    assert requirements(extras=False) - used <= {"torch-scatter", "ogb", "countryinfo"}


def constraints() -> list[Requirement]:
    return [Requirement(line) for line in lines((ROOT / ".ci" / "constraints.txt").read_text())]


def test_everything_is_pinned() -> None:
    pins = {canonicalize_name(pin.name): pin for pin in constraints()}
    assert len(pins) == len(constraints()), "a package is listed twice"
    for pin in pins.values():
        assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), f"{pin} isn't exact"
    assert requirements(extras=True) <= {*pins}
    for name in {*pins} - {"graphkit"}:
        try:
            needs = metadata(name).get_all("Requires-Dist") or []
        except PackageNotFoundError:  # of another Python or system
            continue
        for need in map(Requirement, needs):
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                assert canonicalize_name(need.name) in pins or need.name.startswith("nvidia"), (
                    f"{name} needs {need}"
                )


def test_pins_that_need_a_newer_python_say_so() -> None:
    for pin in constraints():
        try:
            needs = metadata(pin.name)["Requires-Python"]
        except PackageNotFoundError:
            continue
        if needs and not SpecifierSet(needs).contains("3.10.13"):
            assert pin.marker is not None, f"add to {pin}: ; python_version >= ..."
            assert not pin.marker.evaluate({"python_version": "3.10"}), pin


def test_no_registry_and_no_machine_is_named() -> None:
    """Set-up works with whatever package index pip is configured for."""
    for name in (
        "scripts/setup.sh",
        ".ci/run",
        ".ci/constraints.txt",
        "Makefile",
        "setup.cfg",
        "pyproject.toml",
    ):
        text = (ROOT / name).read_text()
        assert not re.search(r"--(extra-)?index-url|https?://|/home/|/root/", text), name
