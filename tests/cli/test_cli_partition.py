"""``graphkit partition``: orders computed before the runs that use them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from graphkit import partition
from graphkit.data import load_dataset
from graphkit.partition import cached_order, hierarchical_order, order_statistics

Call = Callable[..., Any]

FACTORS = ("12", "12", "13")
DIGITS = ("digits", "--task", "node", "--factors", ",".join(FACTORS))


def table(text: str) -> list[list[str]]:
    """Returns the cells below the table's rule."""
    lines = text.splitlines()
    (rule,) = (i for i, line in enumerate(lines) if line.startswith("------"))
    return [line.split() for line in lines[rule + 1 :] if line[:1] == " "]


def test_the_order_is_kept_where_a_run_looks_for_it(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = call("partition", *DIGITS, "--data-root", tmp_path)
    assert done.code == 0, done.err
    assert "level 2 of 2: 1,797 nodes" in done.err

    data = load_dataset("digits", root=tmp_path, task="node").data
    factors = [int(p) for p in FACTORS]
    wanted = hierarchical_order(data.edge_index, 1797, factors)
    monkeypatch.setattr(partition, "hierarchical_order", None)  # nothing is computed any more
    assert torch.equal(cached_order(tmp_path / "orders", data.edge_index, 1797, factors), wanted)

    found = order_statistics(wanted, data.edge_index, factors, data.y)
    assert found.purity is not None
    assert table(done.out) == [
        [str(k + 1), str(cells), f"{100 * found.shared[k]:.4g}", f"{100 * found.purity[k]:.4g}"]
        for k, cells in enumerate((12, 144))
    ]
    assert "hierarchical order of digits (node): 1,797 nodes in 144 leaves of at most 13" in done.out
    assert "12 x 12 x 13 positions, 4.2 % padding" in done.out

    again = call("partition", *DIGITS, "--data-root", tmp_path)
    assert again.code == 0
    assert again.err == ""
    assert table(again.out) == table(done.out)


def test_positions_can_be_written_to_a_file(call: Call, tmp_path: Path) -> None:
    out = tmp_path / "new" / "order.npy"
    done = call(
        "partition", *DIGITS, "--method", "random", "--seed", 3, "--data-root", tmp_path, "--out", out
    )
    assert done.code == 0
    assert f"positions written to {out}" in done.out
    assert not (tmp_path / "orders").exists(), "a random order takes no time"
    assert np.array_equal(np.load(out), torch.randperm(1797, generator=torch.Generator().manual_seed(3)))


def test_data_options_and_the_seed_decide_the_graph(call: Call, tmp_path: Path) -> None:
    data = load_dataset("digits", root=tmp_path, task="link", seed=5, k=4).data
    done = call(
        *("partition", "digits", "--factors", "40,50", "--data.k", "4", "--seed", "5"),
        *("--method", "one_level", "--data-root", tmp_path, "--out", tmp_path / "order.npy"),
    )
    assert done.code == 0
    wanted = hierarchical_order(data.edge_index, 1797, [40, 50], method="one_level", seed=5)
    assert np.array_equal(np.load(tmp_path / "order.npy"), wanted)


def test_factors_are_a_tensor_trains_own_by_default(call: Call, tmp_path: Path) -> None:
    from graphkit.nn.embedding.tt_shape import TTShape

    done = call(
        *("partition", "digits", "--dim", "64", "--rank", "4", "--cores", "4", "--method", "identity"),
        *("--data-root", tmp_path),
    )
    assert done.code == 0
    factors = TTShape.auto(1797, 64, num_cores=4, rank=4).row_factors
    assert f"{' x '.join(map(str, factors))} positions" in done.out
    assert len(table(done.out)) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the data set comes first: partition DATASET"),
        (["--factors", "3"], "the data set comes first"),
        (["digit"], "unknown data set 'digit'; did you mean 'digits'?"),
        (["digits", "--factors", "12,12"], "factors (12, 12) give 144 positions for 1,797 nodes"),
        (["digits", "--factors", "12,x"], "'12,x' must be integers with commas, as 55,55,56"),
        (["digits", "--factors", "0,12"], "each at least 1"),
        (["digits", "--cores", "1"], "num_cores is 1"),
        (["digits", "--method", "metis"], "invalid choice: 'metis'"),
        (["digits", "--data.kk", "3"], "unknown option '--data.kk'; did you mean '--data.k'?"),
        (["digits", "--data.k", "x"], "data.k is 'x'; it must be an integer"),
        (["digits", "--task", "graph"], "data set 'digits' has no task 'graph'"),
    ],
)
def test_mistakes_are_told_in_one_line(
    call: Call, tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = call("partition", *arguments, *(["--data-root", tmp_path] if arguments else []))
    assert done.code == 2
    assert message in done.complaint


def test_without_pymetis(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymetis", None)
    done = call("partition", *DIGITS, "--data-root", tmp_path)
    assert done.code == 2
    assert "pip install pymetis" in done.err.splitlines()[-1]
    assert not list((tmp_path / "orders").glob("*.safetensors"))


def test_the_script_is_the_command(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, root / "scripts" / "partition.py", "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: partition DATASET")
