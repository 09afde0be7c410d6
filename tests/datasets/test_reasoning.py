"""RCC-8 and interval algebra as data sets: splits, caches, the published files and their form."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from graphkit.data import Benchmark
from graphkit.datasets import reasoning
from graphkit.datasets.algebra import algebra_of
from graphkit.datasets.problems import make_problems
from graphkit.datasets.reasoning import load_interval, load_rcc8, symbolic_baselines
from graphkit.datasets.reasoning_csv import HEADER, problem_files, problems_csv, read_problems
from graphkit.datasets.relation_graphs import graph_keys, held_out
from graphkit.errors import UserError
from graphkit.graphs import GraphSet

SMALL: dict[str, Any] = {
    "train_k": [2, 3],
    "train_b": [1, 2],
    "train_per_relation": 12,
    "test_k": [3, 5],
    "test_b": [1, 2],
    "test_per_relation": 3,
}
ROWS = """,edges,edge_labels,query_edge,query_label
0,"[(0, 1), (1, 2)]","['EC', 'NTPPI']","(0, 2)",DC
1,"[(0, 1), (1, 3), (0, 2), (2, 3)]","['PO', 'TPP', 'TPPI', 'PO']","(0, 3)",PO
2,"[(0, 1)]",['EQ'],"(0, 1)",EQ
"""


def keys(benchmark: Benchmark, part: str) -> set[int]:
    data = {name: value.numpy() for name, value in benchmark.data.to_dict().items() if name != "num_nodes"}
    return set(graph_keys(data)[benchmark.splits[part]["index"].numpy()].tolist())


@pytest.mark.parametrize(("load", "relations"), [(load_rcc8, 8), (load_interval, 13)])
def test_a_benchmark_of_queries(tmp_path: Path, load: Any, relations: int) -> None:
    made = load(root=tmp_path, **SMALL)
    data, index = made.data, {part: split["index"] for part, split in made.splits.items()}
    assert {part: len(ids) for part, ids in index.items()} == {
        part: made.info[part] for part in ("train", "valid", "test")
    }
    assert torch.cat([*index.values()]).sort().values.tolist() == list(range(len(data.y)))
    assert len(index["train"]) + len(index["valid"]) == 4 * 12 * relations
    assert len(index["test"]) == 4 * 3 * relations
    assert torch.bincount(data.y[index["test"]]).tolist() == [12] * relations
    cells = set(zip(data.k[index["test"]].tolist(), data.b[index["test"]].tolist(), strict=True))
    assert cells == {(3, 1), (3, 2), (5, 1), (5, 2)}
    assert (made.metric, made.maximize, made.targets, made.task) == ("accuracy", True, "classes", "relation")
    assert made.spec.num_relations == len(made.target_names) == relations
    assert all(data[name].dtype == torch.int64 for name in ("y", "source", "target", "edge_type", "k", "b"))
    assert made.info["converse"][made.target_names[1]] in made.target_names
    graphs = GraphSet(data)
    batch = graphs.batch(torch.tensor([5, 0, len(data.y) - 1]))
    ends = torch.cat([batch.source + batch.ptr[:-1], batch.target + batch.ptr[:-1]])
    assert batch.node_on_path[ends].all()
    one = graphs[int(index["test"][0])]
    assert int(one.node_on_path.sum()) == int(one.k) + 1, "every path is a shortest one"


def test_the_relations_have_their_published_order(tmp_path: Path) -> None:
    rcc8, interval = load_rcc8(root=tmp_path, **SMALL), load_interval(root=tmp_path, **SMALL)
    assert rcc8.target_names == ["DC", "EC", "PO", "TPP", "NTPP", "TPPI", "NTPPI", "EQ"]
    assert interval.target_names == ["=", "<", ">", "d", "di", "o", "oi", "m", "mi", "s", "si", "f", "fi"]
    assert rcc8.info["converse"]["NTPP"] == "NTPPI"
    assert interval.info["converse"]["o"] == "oi"


def test_equal_graphs_stay_on_one_side_of_the_validation_split(tmp_path: Path) -> None:
    groups = load_rcc8(root=tmp_path, **SMALL)
    rows = load_rcc8(root=tmp_path, **SMALL, split="rows")
    assert not keys(groups, "train") & keys(groups, "valid")
    assert keys(rows, "train") & keys(rows, "valid"), "most small graphs occur often"
    assert rows.info["valid"] == 76
    assert 60 <= groups.info["valid"] <= 76
    other = load_rcc8(root=tmp_path, **SMALL, seed=1)
    assert torch.equal(other.data.y, groups.data.y), "the seed chooses, it doesn't make"
    assert other.splits["valid"]["index"].tolist() != groups.splits["valid"]["index"].tolist()
    inside = keys(groups, "test") & (keys(groups, "train") | keys(groups, "valid"))
    assert groups.info["test_graphs_in_train"] > 0
    assert inside


def test_what_was_made_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_rcc8(root=tmp_path, **SMALL)
    monkeypatch.setattr(reasoning, "make_problems", None)
    again = load_rcc8(root=tmp_path, **SMALL)
    assert again.fingerprint == first.fingerprint
    assert again.info == first.info
    assert len(list((tmp_path / "rcc8" / "processed").glob("*.safetensors"))) == 2


def test_training_and_test_are_made_from_different_numbers(tmp_path: Path) -> None:
    options = {**SMALL, "train_k": [5], "train_b": [2], "test_k": [5], "test_b": [2]}
    made = load_interval(root=tmp_path, **options)
    assert not keys(made, "test") & (keys(made, "train") | keys(made, "valid"))
    other = load_interval(root=tmp_path, **options, problem_seed=1)
    assert keys(other, "test") != keys(made, "test")
    train = make_problems(algebra_of("interval"), [5], [2], 12, seed=2)
    assert set(graph_keys(train).tolist()) == keys(other, "train") | keys(other, "valid")


def test_conditions_are_passed_on_and_what_they_leave_out_is_told(tmp_path: Path) -> None:
    options = {**SMALL, "train_b": [2], "test_b": [2]}
    made = load_rcc8(root=tmp_path, **options, require_multipath=True, dedupe=True)
    assert made.info["conditions"] == {
        "dedupe": True,
        "require_multipath": True,
        "max_identity_share": 1.0,
    }
    assert set(made.info["train_cells_lack"]) >= {"DC", "NTPP", "NTPPI", "EQ"}
    assert made.info["different_train_graphs"] == made.info["train"] + made.info["valid"]
    assert symbolic_baselines(made)["entailed"]["accuracy"] == 0


def test_symbolic_solvers_by_cell(tmp_path: Path) -> None:
    made = load_interval(root=tmp_path, **{**SMALL, "test_k": [2, 5], "test_per_relation": 40})
    found = symbolic_baselines(made)
    assert set(found) == {"exact", "single_path", "entailed"}
    assert set(found["exact"]) == {"accuracy", *(f"accuracy@k{k}b{b}" for k in (2, 5) for b in (1, 2))}
    assert set(found["exact"].values()) == {1.0}
    assert found["single_path"]["accuracy@k2b1"] == 1
    assert 0.6 < found["entailed"]["accuracy@k2b2"] < found["single_path"]["accuracy@k2b2"] < 0.95
    mean = np.mean([found["entailed"][f"accuracy@k{k}b{b}"] for k in (2, 5) for b in (1, 2)])
    assert found["entailed"]["accuracy"] == pytest.approx(mean)


def test_bad_options_are_told(tmp_path: Path) -> None:
    for options, message in (
        ({"split": "random"}, "unknown split 'random'"),
        ({"valid_ratio": 1.0}, "valid_ratio is 1.0; it must lie between 0 and 1"),
        ({"valid_ratio": 0.001}, "valid_ratio 0.001 of 384 graphs"),
        ({"published": str(tmp_path)}, r"has no files test_rcc8_k_\*_b_\*.csv\[.gz\]$"),
        ({"published": str(tmp_path / "no")}, "has no files"),
    ):
        with pytest.raises(UserError, match=message):
            load_rcc8(root=tmp_path, **SMALL, **options)


def test_half_of_two_groups_is_held_out() -> None:
    found = held_out(10, 0.5, 0, np.array([3] * 4 + [5] * 6))
    assert found.tolist() in ([True] * 4 + [False] * 6,)
    with pytest.raises(UserError, match=r"of 10 graphs \(1 different\) leaves a split empty"):
        held_out(10, 0.5, 0, np.zeros(10, dtype=np.int64))


# --- The published form -----------------------------------------------------------------------------------


def test_a_file_in_the_published_form(tmp_path: Path) -> None:
    rcc8 = algebra_of("rcc8")
    path = tmp_path / "test_rcc8_k_2_b_1.csv"
    path.write_text(ROWS)
    read = read_problems(path, rcc8)
    assert read["edge_index"].T.tolist() == [[0, 1], [1, 2], [0, 1], [1, 3], [0, 2], [2, 3], [0, 1]]
    assert [rcc8.names[r] for r in read["edge_type"]] == ["EC", "NTPPI", "PO", "TPP", "TPPI", "PO", "EQ"]
    assert read["ptr"].tolist() == [0, 3, 7, 9]
    assert read["edge_ptr"].tolist() == [0, 2, 6, 7]
    assert (read["source"].tolist(), read["target"].tolist()) == ([0, 0, 0], [2, 3, 1])
    assert [rcc8.names[r] for r in read["y"]] == ["DC", "PO", "EQ"]
    assert (read["k"].tolist(), read["b"].tolist()) == ([2, 2, 1], [1, 2, 1])
    assert read_problems(path, rcc8, 9, 8)["k"].tolist() == [9, 9, 9]
    assert problems_csv(read, rcc8) == ROWS.replace('"[(0, 1)]"', '"[(0, 1)]"')
    zipped = tmp_path / "test_rcc8_k_2_b_2.csv.gz"
    zipped.write_bytes(gzip.compress(ROWS.encode()))
    assert read_problems(zipped, rcc8)["y"].tolist() == read["y"].tolist()
    assert problem_files(tmp_path, "rcc8") == {(2, 1): path, (2, 2): zipped}
    assert problem_files(tmp_path, "interval") == {}


@pytest.mark.parametrize("name", ["rcc8", "interval"])
def test_writing_and_reading_again_changes_nothing(tmp_path: Path, name: str) -> None:
    algebra = algebra_of(name)
    made = make_problems(algebra, [4, 6], [2], 3)
    path = tmp_path / "problems.csv"
    path.write_text(problems_csv(made, algebra))
    read = read_problems(path, algebra)
    assert set(read) == set(made)
    for array in sorted(set(made) - {"k", "b"}):
        assert np.array_equal(read[array], made[array]), array
    assert read["k"][made["k"] == 4].tolist() == [4] * 3 * len(algebra)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", f"must begin with the line '{HEADER}'"),
        ("edges,labels\n", "must begin with the line"),
        (HEADER + "\n", "holds no problems"),
        (ROWS + "3,nothing\n", "line 5: this isn't a problem: 3,nothing"),
        (ROWS.replace("'NTPPI'", "'NTPI'"), "line 2: 'NTPI' is no relation of rcc8; did you mean 'NTPP"),
        (ROWS.replace(",PO\n", ",PP\n"), "line 3: 'PP' is no relation of rcc8"),
        (ROWS.replace("['EC', 'NTPPI']", "['EC']"), "line 2: 2 edges, and another number of labels"),
    ],
)
def test_malformed_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "test.csv"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_problems(path, algebra_of("rcc8"))
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "test.csv.gz"
    for content in (b"no gzip", gzip.compress(ROWS.encode())[:-20], gzip.compress(b"\xff\xfe\x00")):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"test.csv.gz"):
            read_problems(path, algebra_of("rcc8"))
    with pytest.raises(UserError, match=r"cannot read .*missing.csv: No such file"):
        read_problems(tmp_path / "missing.csv", algebra_of("rcc8"))


def test_published_files_are_the_test_where_they_are_given(tmp_path: Path) -> None:
    rcc8 = algebra_of("rcc8")
    folder = tmp_path / "published"
    folder.mkdir()
    for k, b in ((3, 1), (7, 2)):
        text = problems_csv(make_problems(rcc8, [k], [b], 2), rcc8)
        (folder / f"test_rcc8_k_{k}_b_{b}.csv").write_text(text)
    few = {"train_k": [2], "train_b": [2], "train_per_relation": 20}
    made = load_rcc8(root=tmp_path, published=str(folder), **few)
    test = made.splits["test"]["index"]
    assert made.data.k[test].tolist() == [3] * 16 + [7] * 16
    assert made.data.b[test].tolist() == [1] * 16 + [2] * 16
    assert made.info["published_training"] is False
    assert set(symbolic_baselines(made)["exact"].values()) == {1.0}
    assert load_rcc8(root=tmp_path, published=str(folder), test_k=[7], **few).info["test"] == 16
    with pytest.raises(UserError, match=r"of the cells chosen; it has k3b1, k7b2"):
        load_rcc8(root=tmp_path, published=str(folder), test_b=[3], **few)
    (folder / "train_rcc8.csv").write_text(problems_csv(make_problems(rcc8, [3, 4], [2], 5), rcc8))
    made = load_rcc8(root=tmp_path, published=str(folder))
    train = torch.cat([made.splits[part]["index"] for part in ("train", "valid")]).sort().values
    assert made.info["published_training"] is True
    assert made.data.k[train].tolist() == [3] * 40 + [4] * 40
    assert set(made.data.b[train].tolist()) == {2}


@pytest.mark.parametrize("name", ["rcc8", "interval"])
def test_published_files_byte_by_byte(test_data: Path, name: str) -> None:
    algebra = algebra_of(name)
    path = problem_files(test_data / "rcc8_interval", name)[5, 1]
    read = read_problems(path, algebra, 5, 1)
    assert problems_csv(read, algebra).encode() == gzip.decompress(path.read_bytes())
    assert len(read["y"]) == 800 * len(algebra)
