"""Inductive completion: two graphs without a common entity, relations shared."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from graphkit.datasets import inductive_kg
from graphkit.datasets.inductive_kg import COUNTS, NAMES, load_inductive
from graphkit.errors import UserError
from graphkit.registry import DATASETS

FACTS = {
    "": {
        "train": "b\tlikes\ta\nb\tknows\tc\n",
        "valid": "c\tknows\ta\n",
        "test": "d\tlikes\tc\n",
    },
    "_ind": {
        "train": "x\tknows\ty\n\ny\tknows\tz\n",
        "valid": "z\tlikes\ty\n",
        "test": "x\tlikes\tz\n",
    },
}


def write(root: Path, folder: str, **changes: str) -> None:
    for end, parts in FACTS.items():
        home = root / "inductive_kg" / f"{folder}{end}"
        home.mkdir(parents=True)
        for part, text in parts.items():
            (home / f"{part}.txt").write_text(changes.get(f"{part}{end}", text))


def test_a_pair_of_graphs(tmp_path: Path) -> None:
    write(tmp_path, "nell_v4")
    made = DATASETS.create("nell995-v4", root=tmp_path)
    data = made.data
    assert data.edge_index.tolist() == [[1, 1], [0, 2]]
    assert data.edge_type.tolist() == [1, 0]
    assert (data.num_nodes, data.inference_num_nodes) == (4, 3)
    assert data.inference_edge_index.tolist() == [[0, 1], [1, 2]]
    assert data.inference_edge_type.tolist() == [0, 0]
    assert {part: split["triple"].T.tolist() for part, split in made.splits.items()} == {
        "train": [[1, 1, 0], [1, 0, 2]],
        "valid": [[2, 0, 0]],
        "test": [[0, 1, 2]],
    }
    assert data.known_triple.T.tolist() == [[3, 1, 2]]
    assert data.inference_known_triple.T.tolist() == [[2, 1, 1]]
    assert (made.task, made.metric, made.spec.num_relations) == ("kgc", "mrr", 2)
    assert made.target_names == ["knows", "likes"]
    assert list(made.node_names or ()) == ["x", "y", "z"]
    assert (made.info["train"], made.info["valid"], made.info["test"]) == (2, 1, 1)
    assert DATASETS.create("nell995-v4", root=tmp_path).fingerprint == made.fingerprint


def test_all_twelve_are_registered_for_their_task() -> None:
    assert len(NAMES) == 12
    for name in NAMES:
        entry = DATASETS.get(name)
        assert entry.tasks == ("kgc",)
        assert entry.paper == "arXiv:1911.06962"
        assert "inductive" in entry.summary


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": "a\tlikes\n"}, "train.txt, line 1: head, relation and tail were expected: a"),
        ({"valid": "a\tknows\tb\n\na\t\tb\n"}, "valid.txt, line 3: head, relation and tail"),
        ({"test_ind": "\n"}, "test.txt holds no facts"),
        ({"test_ind": "x\thates\ty\n"}, "relation 'hates' isn't in the training facts"),
        ({"valid_ind": "x\tlikes\ta\n"}, "share 1 entities, 'a' among them: this isn't an inductive pair"),
    ],
)
def test_wrong_files_are_told(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    write(tmp_path, "fb237_v2", **changes)
    with pytest.raises(UserError) as caught:
        load_inductive("fb15k237-v2", tmp_path)
    assert message in str(caught.value)


def test_counts_are_checked_where_they_are_known(tmp_path: Path) -> None:
    write(tmp_path, "WN18RR_v1")
    with pytest.raises(UserError, match=r"WN18RR_v1 has \(\(2, 1, 1\), .* facts; \(\(5410, 630, 638\)"):
        load_inductive("wn18rr-v1", tmp_path)


def test_missing_files_are_fetched_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def served(url: str, path: Path) -> Path:
        folder, name = url.rsplit("/", 2)[1:]
        assert folder.startswith("fb237_v4")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(FACTS["_ind" if folder.endswith("_ind") else ""][name.removesuffix(".txt")])
        return path

    monkeypatch.setattr(inductive_kg, "fetch", served)
    assert load_inductive("fb15k237-v4", tmp_path).info["train"] == 2
    assert (tmp_path / "inductive_kg" / "fb237_v4_ind" / "test.txt").is_file()


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_published_pairs(test_data: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "inductive_kg").mkdir()
    for folder in (test_data / "inductive_kg").iterdir():
        os.symlink(folder, tmp_path / "inductive_kg" / folder.name)
    made = load_inductive(name, tmp_path)
    first, second = COUNTS[name]
    sizes = tuple(made.splits[part]["triple"].size(1) for part in ("train", "valid"))
    assert (*sizes, made.data.known_triple.size(1)) == first
    graph, known, test = made.data.inference_edge_index, made.data.inference_known_triple, made.splits["test"]
    assert (graph.size(1), known.size(1), test["triple"].size(1)) == second
    relations = {"wn18rr-v1": 9, "wn18rr-v2": 10, "fb15k237-v1": 180, "fb15k237-v3": 215, "nell995-v2": 88}
    assert made.spec.num_relations == relations[name]
    everything = torch.cat([graph.reshape(-1), known[[0, 2]].reshape(-1), test["triple"][[0, 2]].reshape(-1)])
    assert len(everything.unique()) == made.data.inference_num_nodes == len(made.node_names or ())
