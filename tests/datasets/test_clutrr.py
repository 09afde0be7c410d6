"""CLUTRR: stories as graphs, both published settings, what is wrong with an archive."""

from __future__ import annotations

import csv
import io
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from graphkit.datasets import clutrr
from graphkit.datasets.clutrr import load_clutrr, read_clutrr
from graphkit.errors import UserError

HEADER = ["", "id", "story", "target", "story_edges", "edge_types", "query_edge"]
STORY = 'One "quoted", with a comma\nand a second line'
CHAIN = ("[(0, 1), (1, 2)]", "['father', 'father-in-law']", "(0, 2)", "son")
AROUND = ("[(0, 1), (1, 2), (2, 0), (0, 3)]", "['wife', 'son', 'father', 'aunt']", "(0, 3)", "aunt")
LONG = ("[(0, 1), (1, 2), (2, 3)]", "['son', 'son', 'wife']", "(0, 3)", "mother")


def table(*rows: tuple[str, str, str, str]) -> str:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(HEADER)
    for number, (edges, types, query, target) in enumerate(rows):
        writer.writerow([number, "x", STORY, target, edges, types, query])
    return out.getvalue()


def archive(path: Path, **changes: str | None) -> Path:
    """Writes an archive of ten training stories and two tests."""
    files: dict[str, str | None] = {
        "1.2,1.3_train.csv": table(*[CHAIN] * 8, LONG, AROUND),
        "1.10_test.csv": table(AROUND, LONG),
        "1.2_test.csv": table(CHAIN),
        "config.json": "{}",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        for name, content in (files | changes).items():
            if content is not None:
                file.writestr(name, content)
    return path


def test_a_story_is_a_graph(tmp_path: Path) -> None:
    arrays, info = read_clutrr(archive(tmp_path / "a.zip"))
    assert info == {
        "relations": ["aunt", "father", "father-in-law", "mother", "son", "wife"],
        "train": 10,
        "test": {"2": 1, "10": 2},
    }
    names = info["relations"]
    assert arrays["edge_ptr"].tolist() == [*range(0, 17, 2), 19, 23, 25, 29, 32]
    assert arrays["edge_index"][:, 19:23].T.tolist() == [[0, 1], [1, 2], [2, 0], [0, 3]]
    assert [names[r] for r in arrays["edge_type"][:2]] == ["father", "father-in-law"]
    assert [names[r] for r in arrays["y"]] == ["son"] * 8 + ["mother", "aunt", "son", "aunt", "mother"]
    assert arrays["k"].tolist() == [2] * 8 + [3, 4, 2, 4, 3]
    assert (arrays["source"] == 0).all()
    assert arrays["target"].tolist() == [2] * 8 + [3, 3, 2, 3, 3]
    on_path = arrays["node_on_path"][arrays["ptr"][9] : arrays["ptr"][10]]
    assert on_path.tolist() == [True, False, False, True], "the last fact alone joins both"


def test_only_plain_chains_if_wanted(tmp_path: Path) -> None:
    _, info = read_clutrr(archive(tmp_path / "a.zip"), only_chains=True)
    assert (info["train"], info["test"]) == (9, {"2": 1, "10": 1})


def test_the_data_set(tmp_path: Path) -> None:
    path = archive(tmp_path / "mine.zip")
    made = load_clutrr(root=tmp_path, archive=str(path), valid_ratio=0.3)
    index = {part: split["index"] for part, split in made.splits.items()}
    assert {part: len(ids) for part, ids in index.items()} == {"train": 7, "valid": 3, "test": 3}
    assert index["test"].tolist() == [10, 11, 12]
    assert made.spec.num_relations == 6
    assert made.target_names == ["aunt", "father", "father-in-law", "mother", "son", "wife"]
    assert made.data.edge_type.dtype == made.data.k.dtype == torch.int64
    assert (made.info["different_train_graphs"], made.info["test_graphs_in_train"]) == (3, 1.0)
    again = load_clutrr(root=tmp_path, archive=str(path), valid_ratio=0.3)
    assert again.fingerprint == made.fingerprint
    groups = load_clutrr(root=tmp_path, archive=str(path), valid_ratio=0.3, split="groups")
    assert groups.splits["valid"]["index"].tolist() in ([8], [9], [8, 9]), "the eight equal ones don't fit"


def test_published_archives_have_published_counts(tmp_path: Path, network_attempts: list[str]) -> None:
    archive(tmp_path / "clutrr" / "data_089907f8.zip")
    with pytest.raises(UserError, match=r"data_089907f8.zip has .* rows; .*10094.* are published"):
        load_clutrr(root=tmp_path, max_train_k=3)
    assert network_attempts == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"1.2,1.3_train.csv": None}, "must hold one table"),
        ({"1.5_train.csv": table(CHAIN)}, "must hold one table"),
        ({"1.2_test.csv": None, "1.10_test.csv": None}, "must hold one table"),
        ({"1.2_test.csv": "a,b\n1,2\n"}, "1.2_test.csv has no column story_edges, edge_types"),
        ({"1.2_test.csv": table(("[(0, 1)]", "['son', 'son']", "(0, 1)", "son"))}, "isn't a query"),
        ({"1.2_test.csv": table(("[]", "[]", "(0, 1)", "son"))}, "isn't a query over facts"),
        ({"1.2_test.csv": table(("[(0, 1)]", "['son']", "(0)", "son"))}, "line 3: this isn't a query"),
        ({"1.2_test.csv": 'a,"b\n'}, "is damaged"),
    ],
)
def test_wrong_archives_are_told(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = archive(tmp_path / "a.zip", **changes)
    with pytest.raises(UserError) as caught:
        read_clutrr(path)
    assert message in str(caught.value)


def test_damaged_files_and_bad_options(tmp_path: Path) -> None:
    broken = tmp_path / "broken.zip"
    broken.write_bytes(b"PK nothing")
    with pytest.raises(UserError, match=r"broken.zip is damaged"):
        load_clutrr(root=tmp_path, archive=str(broken))
    for options, message in (
        ({"archive": str(tmp_path / "no.zip")}, "there is no file"),
        ({"max_train_k": 5}, "max_train_k is 5; it must be 3 or 4"),
        ({"split": "chains"}, "unknown split 'chains'"),
    ):
        with pytest.raises(UserError, match=message):
            load_clutrr(root=tmp_path, **options)


def test_published_data(test_data: Path, tmp_path: Path) -> None:
    (tmp_path / "clutrr").mkdir()
    shutil.copyfile(test_data / "clutrr" / "data_db9b8f04.zip", tmp_path / "clutrr" / clutrr.ARCHIVES[4])
    made = load_clutrr(root=tmp_path)
    test = made.splits["test"]["index"]
    assert torch.bincount(made.data.k[test])[2:].tolist() == [38, 107, 77, 185, 105, 155, 135, 124, 122]
    assert made.info["train"] + made.info["valid"] == 15083
    assert made.spec.num_relations == len(made.target_names) == 20
    assert len(made.data.y.unique()) == 18
    assert len(made.data.edge_type.unique()) == 14
    assert torch.equal(made.data.edge_ptr.diff(), made.data.k), "k facts each"
    chains = load_clutrr(root=tmp_path, only_chains=True)
    hardest = (chains.data.k[chains.splits["test"]["index"]] == 10).sum()
    assert int(hardest) == 37, "of 122 stories"


def test_a_small_published_archive(test_data: Path, tmp_path: Path) -> None:
    made = load_clutrr(root=tmp_path, archive=str(test_data / "clutrr" / "data_29884c23.zip"))
    assert made.info["train"] + made.info["valid"] == 188
    assert sorted(set(made.data.k[made.splits["test"]["index"]].tolist())) == [3, 4, 5, 6, 7, 8, 9]
