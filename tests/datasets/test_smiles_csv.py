"""A table of one's own molecules: what columns are taken for, what is refused and where, how it is split."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from graphkit.data import Benchmark, files_kept, load_dataset
from graphkit.datasets.molecules import graph_of
from graphkit.errors import UserError

ALCOHOLS = [f"{'C' * n}O" for n in range(1, 21)]
RINGS = (
    [f"{'C' * n}c1ccccc1" for n in range(1, 13)] + [f"{'C' * n}C1CC1" for n in range(1, 5)] + ["N1CCNC1"] * 2
)


def write(path: Path, header: str, *columns: Any, mark: str = ",") -> Path:
    lines = [header, *(mark.join(map(str, row)) for row in zip(*columns, strict=True))]
    path.write_text("\n".join(lines) + "\n")
    return path


def load(path: Path, **options: Any) -> Benchmark:
    options.setdefault("split", "random")
    return load_dataset("smiles-csv", root=path.parent, file=str(path), **options)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Twenty alcohols with two numbers, a label, a word and a name."""
    numbers = range(20)
    return write(
        tmp_path / "mine.csv",
        "Name,SMILES,boils,melts,toxic,colour,id",
        [f"M{n}" for n in numbers],
        ALCOHOLS,
        [n / 2 for n in numbers],
        ["" if n == 3 else "NaN" if n == 4 else -n for n in numbers],
        [n % 2 for n in numbers],
        ["red" if n < 9 else "blue" for n in numbers],
        numbers,
    )


def test_numbers_are_targets_by_default(table: Path, check_graphs_of: Callable[[Benchmark], Any]) -> None:
    for _ in range(2):  # the second time from the cache
        benchmark = load(table)
        graphs = check_graphs_of(benchmark)
        assert list(benchmark.target_names or []) == ["boils", "melts", "toxic"]
        assert (benchmark.targets, benchmark.metric, benchmark.spec.out_channels) == ("regression", "mae", 3)
        assert benchmark.data.y[:3].tolist() == [[0, 0, 0], [0.5, -1, 1], [1, -2, 0]]
        assert benchmark.data.y.isnan().nonzero().tolist() == [[3, 1], [4, 1]]
        assert list(benchmark.smiles or []) == ALCOHOLS
        assert torch.equal(graphs[4].x, graph_of(ALCOHOLS[4]).x)
        assert [benchmark.info[part] for part in ("train", "valid", "test")] == [16, 2, 2]
        assert "skipped" not in benchmark.info


def test_zeros_and_ones_are_labels(table: Path, check_graphs_of: Callable[[Benchmark], Any]) -> None:
    benchmark = load(table, target="toxic", metric="ap")
    check_graphs_of(benchmark)
    assert (benchmark.targets, benchmark.metric, benchmark.spec.out_channels) == ("binary", "ap", 1)
    assert load(table, target="toxic").metric == "rocauc"
    assert load(table, target="toxic", kind="regression").targets == "regression"
    as_classes = load(table, target="toxic", kind="classes")
    assert (as_classes.targets, as_classes.spec.out_channels) == ("classes", 2)
    assert list(as_classes.target_names or []) == ["0", "1"]


def test_words_are_classes(table: Path, check_graphs_of: Callable[[Benchmark], Any]) -> None:
    benchmark = load(table, target="colour")
    check_graphs_of(benchmark)
    assert (benchmark.targets, benchmark.metric) == ("classes", "accuracy")
    assert list(benchmark.target_names or []) == ["blue", "red"]
    assert benchmark.data.y.tolist() == [1] * 9 + [0] * 11


@pytest.mark.parametrize("kind", ["auto", "regression"])
def test_one_bad_number_is_named_and_makes_no_classes(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "a.csv", "smiles,logp", ALCOHOLS, ["", *range(9), "x", *range(9)])
    with pytest.raises(UserError, match=r"a.csv, line 12: 'logp' is 'x', no ") as caught:
        load(path, target="logp", kind=kind)
    if kind == "auto":
        hint = "and 18 of 19 are; mend it, or say --data.kind classes if they are names of classes"
        assert str(caught.value).endswith(hint)


def test_words_and_numbers_are_classes_if_the_user_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "smiles,y", ALCOHOLS, ["0", "1", "2+", "none of it"] * 5)
    assert list(load(path, target="y", kind="classes").target_names or []) == ["0", "1", "2+", "none of it"]


def test_classes_that_are_numbers_keep_their_order(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "smiles,y", ALCOHOLS, [(5 * n) % 11 for n in range(20)])
    assert list(load(path, kind="classes").target_names or []) == [str(n) for n in range(11)]


def test_columns_are_found_by_any_usual_name(tmp_path: Path) -> None:
    for name, mark in (("mol", ","), ("Canonical SMILES", ";"), ("smiles", "\t"), ("SMI", ",")):
        path = write(tmp_path / f"{name}.csv", f"y{mark}{name}", range(20), ALCOHOLS, mark=mark)
        benchmark = load(path)
        assert list(benchmark.smiles or []) == ALCOHOLS
        assert benchmark.info["smiles column"] == name
    path = write(tmp_path / "a.csv", "Y,Drug", range(20), ALCOHOLS)
    assert list(load(path, smiles="drug", target="y").target_names or []) == ["Y"]
    with pytest.raises(
        UserError, match=r"line 1: no column is called smiles, but Y, Drug; name it: --data.smiles"
    ):
        load(path)
    with pytest.raises(UserError, match=r"the table has no column 'Drugs'; did you mean 'Drug'\?"):
        load(path, smiles="Drugs")


@pytest.mark.parametrize(
    ("line", "options", "message"),
    [
        ("CO,1", {}, "line 3: 2 columns; the first line has 3"),
        (",1,2", {}, "line 3: the molecule is missing"),
        ("nonsense,1,2", {}, "line 3: 'nonsense' is no SMILES"),
        ("CO,much,2", {"target": "a,b"}, "line 3: 'a' is 'much', no finite number"),
        ("CO,inf,2", {}, "line 3: 'a' is 'inf', no finite number"),
        ("CO,1e60,2", {}, "line 3: 'a' is '1e60', no finite number"),
        ("CO,0.5,1", {"kind": "binary"}, "line 3: 'a' is 0.5, not 0 or 1"),
        ("CO,,2", {"kind": "classes", "target": "a"}, "line 3: the class is missing"),
        ("CO,0,2", {"kind": "classes", "target": "a"}, "all molecules are of the class '0'"),
        ("CO,0,2", {"kind": "classes"}, "classes are one column, not 2"),
        ("CO,0,2", {"target": "c"}, "has no column 'c'"),
        ("CO,0,2", {"target": "a,a"}, "target is 'a,a'; it must name other columns"),
        ("CO,0,2", {"target": "smiles"}, "target is 'smiles'; it must name other columns"),
        ("CO,0,2", {"target": ","}, "target is ','; it must name other columns"),
        ("CO,0,2", {"metric": "ap"}, "metric is 'ap'; for regression it must be one of mae, rmse"),
        ("CO,0,2", {"split": "time"}, "split is 'time'; it must be one of scaffold, random"),
        ("CO,0,2", {"kind": "words"}, "kind is 'words'; it must be one of auto, regression"),
        ("CO,0,2", {"test_ratio": 0.0}, "must be positive"),
        ("CO,0,2", {}, "2 molecules are too few"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, line: str, options: dict[str, Any], message: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"smiles,a,b\nC,0,0\n{line}\n")
    with pytest.raises(UserError, match=message) as caught:
        load(path, **options)
    assert "\n" not in str(caught.value)


def test_a_table_needs_targets_and_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    for text in ("", "smiles,y\n"):
        path.write_text(text)
        with pytest.raises(UserError, match=r"a.csv holds no molecules"):
            load(path)
    path.write_text("smiles,id,name\nC,1,x\n")
    with pytest.raises(UserError, match=r"a.csv: no column .* holds numbers alone; name the targets"):
        load(path)
    path.write_text("smiles,y\nC,\n")
    with pytest.raises(UserError, match=r"the column 'y' holds no target"):
        load(path, target="y")
    with pytest.raises(UserError, match=r"needs its molecules: --data.file FILE"):
        load_dataset("smiles-csv", root=tmp_path)
    with pytest.raises(UserError, match="there is no file"):
        load(tmp_path / "absent.csv")


def test_bad_molecules_can_be_left_out(tmp_path: Path, check_graphs_of: Callable[[Benchmark], Any]) -> None:
    smiles = list(ALCOHOLS)
    smiles[2] = smiles[7] = "nonsense"
    benchmark = load(write(tmp_path / "a.csv", "smiles,y", smiles, range(20)), skip_invalid=True)
    assert len(check_graphs_of(benchmark)) == 18
    assert benchmark.data.y[:, 0].tolist() == [n for n in range(20) if n not in (2, 7)]
    assert (benchmark.info["skipped"], benchmark.info["skipped lines"]) == (2, [4, 9])


def test_file_that_is_gone_is_found_in_the_cache_by_the_hash_that_a_run_kept(table: Path) -> None:
    benchmark = load(table, target="melts")
    hashes = benchmark.info["files"]
    table.unlink()
    with files_kept(hashes):
        assert load(table, target="melts").fingerprint == benchmark.fingerprint
        with pytest.raises(UserError, match=r"can't read .*mine.csv"):  # never read with this target
            load(table, target="boils")
    for kept in (files_kept({}), files_kept({"other.csv": hashes[str(table)]}), nullcontext()):
        with kept, pytest.raises(UserError, match=r"there is no file .*mine.csv"):
            load(table, target="melts")


def test_file_that_is_there_counts_whatever_a_run_kept(table: Path) -> None:
    before = load(table, target="melts")
    table.write_text(table.read_text().replace(",-19,", ",-99,"))
    with files_kept(before.info["files"]):
        assert load(table, target="melts").data.y[19] == -99


def test_one_scaffold_is_in_one_part(tmp_path: Path, check_graphs_of: Callable[[Benchmark], Any]) -> None:
    path = write(tmp_path / "a.csv", "smiles,y", RINGS, range(len(RINGS)))
    benchmark = load(path, split="scaffold", valid_ratio=0.2, test_ratio=0.12)
    check_graphs_of(benchmark)
    index = {part: split["index"].tolist() for part, split in benchmark.splits.items()}
    assert index == {"train": list(range(12)), "test": [12, 13, 14, 15], "valid": [16, 17]}
    assert "seed" not in benchmark.info


def test_random_splits_follow_the_seed(table: Path) -> None:
    first, again, other = (load(table, seed=seed).splits["train"]["index"] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_scaffold_split_is_the_official_one_of_ogb(test_data: Path, tmp_path: Path) -> None:
    for name in ("ogbg_molesol", "ogbg_molfreesolv"):
        home = test_data / "ogb" / name
        path = tmp_path / f"{name}.csv"
        path.write_bytes(gzip.decompress((home / "mapping" / "mol.csv.gz").read_bytes()))
        for part, split in load(path, split="scaffold").splits.items():
            stored = gzip.decompress((home / "split" / "scaffold" / f"{part}.csv.gz").read_bytes())
            assert split["index"].tolist() == [int(line) for line in stored.split()]


def test_a_column_that_a_slip_makes_no_target_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    numbers = list(range(20))
    columns = ALCOHOLS, numbers, ["x", *numbers[1:]], ["red"] * 20
    path = write(tmp_path / "slip.csv", "smiles,boils,melts,colour", *columns)
    with caplog.at_level("WARNING", "graphkit"):
        assert load(path).target_names == ["boils"]
    assert f"{path}: 'melts' is no target, since line 2 says 'x', no number; mend it" in caplog.text
    assert "colour" not in caplog.text
