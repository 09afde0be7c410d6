"""``graphkit generate``: problems in the published form, the same for the same seed."""

from __future__ import annotations

import gzip
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from graphkit.datasets.algebra import algebra_of
from graphkit.datasets.problems import Conditions, make_problems
from graphkit.datasets.reasoning_csv import problems_csv, read_problems

Call = Callable[..., Any]


def test_problems_are_written_in_the_published_form(call: Call, tmp_path: Path) -> None:
    out = tmp_path / "new" / "test_rcc8_k_5_b_3.csv"
    done = call("generate", "rcc8", "--k", 5, "--b", 3, "--rows", 4, "--seed", 7, "--out", out)
    assert done.code == 0, done.err
    assert done.out == f"32 problems of rcc8 written to {out}\n"
    algebra = algebra_of("rcc8")
    assert out.read_text() == problems_csv(make_problems(algebra, [5], [3], 4, 7), algebra)
    assert read_problems(out, algebra, 5, 3)["y"].tolist() == [r for r in range(8) for _ in range(4)]


def test_several_cells_under_conditions_and_gzipped(call: Call, tmp_path: Path) -> None:
    arguments = ("generate", "interval", "--k", "2,3", "--b", "2,3", "--rows", "3", "--dedupe")
    conditions = ("--require-multipath", "--max-identity-share", "0.5")
    for name in ("one.csv.gz", "two.csv.gz"):
        assert call(*arguments, *conditions, "--out", tmp_path / name).code == 0
    content = (tmp_path / "one.csv.gz").read_bytes()
    assert content == (tmp_path / "two.csv.gz").read_bytes()
    algebra = algebra_of("interval")
    made = make_problems(algebra, [2, 3], [2, 3], 3, 0, Conditions(True, True, 0.5))
    assert gzip.decompress(content).decode() == problems_csv(made, algebra)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the data set comes first: generate DATASET --out FILE"),
        (["--k", "3"], "the data set comes first"),
        (["rcc9"], "unknown data set 'rcc9'; did you mean 'rcc8'?"),
        (["digits"], "data set 'digits' isn't generated"),
        (["rcc8", "--k", "3"], "where shall it go? generate rcc8 ... --out FILE"),
        (["rcc8", "--k", "3,x", "--out", "f"], "'3,x' must be integers with commas, as 2,3,4"),
        (["rcc8", "--k", "1", "--out", "f"], "k is 1; it must lie between 2 and 64"),
        (["rcc8", "--kk", "1", "--out", "f"], "unrecognized arguments: --kk 1"),
        (["rcc8", "--require-multipath", "--out", "f"], "no problems with k = 2 and b = 1"),
        (["rcc8", "--max-identity-share", "0", "--out", "f"], "max_identity_share is 0.0"),
    ],
)
def test_mistakes_are_told_in_one_line(call: Call, arguments: list[str], message: str) -> None:
    done = call("generate", *arguments)
    assert done.code == 2
    assert message in done.complaint
    assert not Path("f").exists()


def test_a_file_that_cannot_be_written(call: Call, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = call("generate", "rcc8", "--rows", 1, "--out", tmp_path / "file" / "below.csv")
    assert done.code == 2
    assert "cannot create the folder" in done.complaint


def test_the_script_is_the_command(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, root / "scripts" / "generate.py", "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: generate DATASET")
