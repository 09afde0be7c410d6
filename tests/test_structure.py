"""What keeps the code in one piece: which part may import which, small files, documented names."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("graphkit", "models", "datasets", "tests", "benchmarks", "scripts")
PACKAGES = {"graphkit": "graphkit", "models": "graphkit.models", "datasets": "graphkit.datasets"}

# What the zoo's two packages may take from the framework, beside their own modules.
BASE = (
    *("nn", "kernels", "sparse", "registry", "data", "sampling", "errors", "evaluation", "compat", "files"),
    *("tables", "mapped", "graphs", "chem", "incomplete", "ppr", "questions"),
)
ZOO = ("graphkit.models", "graphkit.datasets")


def sources(*folders: str) -> list[Path]:
    """Returns the Python files of top-level folders, sorted."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    """Returns the dotted name that a file is imported by."""
    folder, *rest = path.relative_to(ROOT).with_suffix("").parts
    return ".".join((PACKAGES.get(folder, folder), *rest)).removesuffix(".__init__")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yields line and dotted name of everything a file imports, relative imports resolved.

    ``from a.b import c`` gives ``a.b.c``: whether ``c`` is a module or a name in one, ``a.b`` is a prefix.
    """
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            for alias in node.names:
                yield node.lineno, ".".join([*base, *([node.module] if node.module else []), alias.name])


def within(name: str, packages: tuple[str, ...]) -> bool:
    """Tells whether a dotted name is one of the packages or inside one."""
    return any(name == package or name.startswith(package + ".") for package in packages)


def offences(paths: list[Path], forbidden: tuple[str, ...], allowed: tuple[str, ...] = ()) -> list[str]:
    """Lists imports of forbidden packages as ``file:line imports name``."""
    return [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in paths
        for line, name in imports(path)
        if within(name, forbidden) and not within(name, allowed)
    ]


@pytest.mark.parametrize("folder", ["models", "datasets"])
def test_the_zoo_knows_the_base_only(folder: str) -> None:
    allowed = (PACKAGES[folder], *(f"graphkit.{name}" for name in BASE))
    assert offences(sources(folder), ("graphkit",), allowed) == []


def test_the_core_names_no_model_and_no_data_set() -> None:
    assert offences(sources("graphkit"), ZOO) == []


@pytest.mark.parametrize(
    ("part", "forbidden"),
    [
        *((name, ("train", "tasks", "config", "distributed")) for name in BASE),
        ("tasks", ("train",)),
    ],
)
def test_the_core_depends_one_way(part: str, forbidden: tuple[str, ...]) -> None:
    paths = [p for p in sources("graphkit") if within(module_name(p), (f"graphkit.{part}",))]
    made = ("graphkit.distributed",) if part == "nn" else ()  # tables over ranks, by the factory alone
    factory = [p for p in paths if module_name(p) == "graphkit.nn.embedding.factory"] if made else []
    others = [p for p in paths if p not in factory]
    names = tuple(f"graphkit.{name}" for name in forbidden)
    assert offences(others, names) == []
    assert offences(factory, names, made) == []


def test_only_scripts_import_the_command_line() -> None:
    own = ("graphkit.cli", "graphkit.__main__")
    paths = [p for p in sources("graphkit", "models", "datasets") if not within(module_name(p), own)]
    assert offences(paths, ("graphkit.cli",)) == []


def test_the_import_reader_sees_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / "models" / "sub" / "layer.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "import graphkit.cli as c\nfrom graphkit import train\nfrom . import a\nfrom .b import x\n"
        "from .. import other\nfrom ...tasks import link\ndef f():\n    from graphkit.cli import main\n"
    )
    found = [name for _, name in imports(path)]
    assert found == [
        "graphkit.cli",
        "graphkit.train",
        "graphkit.models.sub.a",
        "graphkit.models.sub.b.x",
        "graphkit.models.other",
        "graphkit.tasks.link",
        "graphkit.cli.main",
    ]
    assert len(offences([path], ("graphkit",), ("graphkit.models",))) == 4


def test_files_are_short() -> None:
    def lines(path: Path) -> int:
        return len(path.read_text().splitlines())

    long = {str(p.relative_to(ROOT)): lines(p) for p in sources(*FOLDERS) if lines(p) > 450}
    long |= {str(p.relative_to(ROOT)): lines(p) for p in sources("scripts") if lines(p) > 40}
    assert long == {}, "split these: 450 lines a file, 40 a script"


def test_names_of_files() -> None:
    assert [p for p in sources(*FOLDERS) if p.name in ("utils.py", "util.py", "helpers.py")] == [], (
        "say what it holds"
    )
    assert list((ROOT / "tests").rglob("__init__.py")) == [], "it would put the root on sys.path"
    assert [p for folder in FOLDERS for p in (ROOT / folder).rglob("*") if p.is_symlink()] == []


def test_no_fixed_device() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sources("graphkit", "models", "datasets", "scripts", "benchmarks")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if ".cuda(" in line
    ]
    assert found == [], "use .to(device)"


def test_public_names_are_documented() -> None:
    missing = []
    for path in sources(*PACKAGES):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                overload = any(ast.unparse(d).endswith("overload") for d in node.decorator_list)
                if not node.name.startswith("_") and not overload and not ast.get_docstring(node):
                    missing.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert missing == []
