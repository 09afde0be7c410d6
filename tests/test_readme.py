"""What the README says holds: its code runs, its tables are current, its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from graphkit.cli import main


@pytest.fixture
def text(root: Path) -> str:
    return (root / "README.md").read_text()


def test_tables_are_current(root: Path) -> None:
    assert main(["readme", "--check", "--file", str(root / "README.md")]) == 0


def test_an_outdated_table_is_noticed_and_renewed(root: Path, tmp_path: Path, text: str) -> None:
    copy = tmp_path / "README.md"
    copy.write_text(text.replace("| `ncnc` ", "| `ncnd` "))
    assert main(["readme", "--check", "--file", str(copy)]) == 1
    assert main(["readme", "--file", str(copy)]) == 0
    assert copy.read_text() == text


def test_python_examples_run(text: str) -> None:
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    for block in blocks:
        names: dict[str, object] = {}
        exec(compile(block, "README.md", "exec"), names)
        assert names["logits"].isfinite().all()  # type: ignore[attr-defined]


def test_links_to_files_lead_somewhere(root: Path, text: str) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (root / target).exists(), target
