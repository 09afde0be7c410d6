"""One's own graph: every accepted form, and one clear line for everything that is wrong with a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from graphkit.data import files_kept, load_dataset
from graphkit.datasets.custom import read_graph
from graphkit.errors import UserError

TRIANGLES = "a,b\nb,c\na,c\nc,d\n"


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def read(folder: Path, text: str, features: Any = None, labels: Any = None) -> tuple[list[list[int]], Any]:
    made = read_graph(write(folder, "edges.csv", text), features, labels)
    return made.tensors["edges"].T.tolist(), made.info


@pytest.mark.parametrize(
    "text",
    [
        "1,2\n2,3\n",
        "source,target\n1,2\n2,3\n",
        "SRC\tDst\n1\t2\n2\t3\n",
        "# a comment\n\n1 2\n2   3\n",
        "% another\nu;v\n1;2\n2;3\n",
        "\ufeffx,y\r\n1,2\r\n2,3\r\n",
        '"1","2"\n"2","3"\n',
        "1,2\n2,1\n2,3\n3,3\n",
    ],
)
def test_forms_of_edges(tmp_path: Path, text: str) -> None:
    edges, info = read(tmp_path, text)
    assert edges == [[0, 1], [1, 2]]
    assert info["names"] == ["1", "2", "3"]


def test_names(tmp_path: Path) -> None:
    edges, info = read(tmp_path, TRIANGLES)
    assert (edges, info["names"]) == ([[0, 1], [0, 2], [1, 2], [2, 3]], ["a", "b", "c", "d"])
    assert read(tmp_path, "source,target\nana,bob\nbob,eve\n")[1]["names"] == ["ana", "bob", "eve"]
    assert read(tmp_path, "10,9\n9,100\n")[1]["names"] == ["9", "10", "100"]  # as numbers
    assert read(tmp_path, "1,0\n1,2\n")[1]["names"] is None
    assert read(tmp_path, '"Ann, B.",Zoë\n')[1]["names"] == ["Ann, B.", "Zoë"]


def test_what_is_dropped_is_counted(tmp_path: Path) -> None:
    _, info = read(tmp_path, "0,1\n1,0\n0,1\n2,2\n1,2\n")
    assert (info["self_loops"], info["repeated"]) == (1, 2)


def test_features_and_labels(tmp_path: Path) -> None:
    features = write(tmp_path, "x.csv", "node,f1,f2\nd,1,2\nc,3,4.5\nb,5,6\na,7,8\nlonely,9,1e3\n")
    labels = write(tmp_path, "y.csv", "node,label\na,red\nc,blue\nd,red\n")
    made = read_graph(write(tmp_path, "e.csv", TRIANGLES), features, labels)
    assert made.info["names"] == ["d", "c", "b", "a", "lonely"]
    assert made.info["num_nodes"] == 5
    assert made.tensors["edges"].T.tolist() == [[0, 1], [1, 2], [1, 3], [2, 3]]
    assert made.tensors["x"].tolist() == [[1, 2], [3, 4.5], [5, 6], [7, 8], [9, 1000]]
    assert made.info["classes"] == ["blue", "red"]
    assert made.tensors["y"].tolist() == [1, 0, -1, 1, -1]


def test_arrays(tmp_path: Path) -> None:
    edges, x, y = np.array([[0, 1, 2], [1, 2, 0]]), np.ones((4, 2)), np.array([5, -1, 7, 5])
    np.savez(tmp_path / "g.npz", edge_index=edges, x=x, y=y)
    path = tmp_path / "g.npz"
    made = read_graph(path, path, path)
    assert made.tensors["edges"].tolist() == [[0, 0, 1], [1, 2, 2]]
    assert made.tensors["x"].dtype == torch.float32
    assert made.tensors["y"].tolist() == [0, -1, 1, 0]
    assert made.info["classes"] == ["5", "7"]
    assert made.info["num_nodes"] == 4
    assert made.info["names"] is None
    assert read_graph(path).info["num_nodes"] == 3
    assert read_graph(write(tmp_path, "e.csv", "0,3\n"), path).info["num_nodes"] == 4
    table = write(tmp_path, "x.csv", "2,0.5\n1,0.5\n0,0.5\n")
    assert read_graph(path, table).info["names"] == ["2", "1", "0"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no edges"),
        ("a,b\nb,c\nb\n", "e.csv, line 3: two nodes expected, got 1 columns"),
        ("source,target\n", "lists no edges"),
        ("a,b\n\n# x\nb,c,1\n", r"e.csv, line 4: two nodes expected, got 3 columns \(b, c, 1\)"),
        ("a,b\nb,\n", "e.csv, line 2: two nodes expected, an end of the edge is empty"),
        ('a,b\n"b,c\n', "e.csv isn't a proper table: .*line 2"),
    ],
)
def test_malformed_edges(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_graph(write(tmp_path, "e.csv", text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no features"),
        ("node,f\n", "holds no features"),
        ("a\nb\n", "x.csv, line 1: one column"),
        ("a,1\nb,2\nc,x\nd,1\n", "x.csv, line 3: could not convert string to float: 'x'"),
        ("a,1\nb,2,3\n", "x.csv, line 2: 3 columns; the first row has 2"),
        ("a,1\na,2\n", "x.csv, line 2: node 'a' was on line 1 already"),
        ("a,1\nb,nan\n", "x.csv, line 2: a feature isn't finite"),
        ("a,1\nb,1e60\n", "x.csv, line 2: a feature isn't finite"),
        ("a,1\nb,2\n", "2 nodes of .*e.csv aren't in .*x.csv: c, d"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_malformed_features(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_graph(write(tmp_path, "e.csv", TRIANGLES), write(tmp_path, "x.csv", text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no labels"),
        ("a,\n", "holds no labels"),
        ("a,1\nb\n", "y.csv, line 2: 1 columns"),
        ("a,1\na,1\n", "y.csv, line 2: node 'a' has a label already"),
        ("a,1\nzed,1\n", "1 nodes of .*y.csv aren't in the graph: zed"),
    ],
)
def test_malformed_labels(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_graph(write(tmp_path, "e.csv", TRIANGLES), None, write(tmp_path, "y.csv", text))


def test_malformed_arrays(tmp_path: Path) -> None:
    path = tmp_path / "e.npz"
    for array, message in (
        ({"edges": np.zeros((2, 3), int)}, "has no array 'edge_index'; it has: edges"),
        ({"edge_index": np.zeros((3, 2), int)}, r"edge_index is int64 \(3, 2\); integers \[2, E\]"),
        ({"edge_index": np.zeros((2, 3))}, "float64"),
        ({"edge_index": np.full((2, 3), -1)}, "numbered from 0"),
        ({"edge_index": np.array([[None], [1]], dtype=object)}, "cannot read .*pickle"),
    ):
        np.savez(path, **array)
        with pytest.raises(UserError, match=message):
            read_graph(path)
    path.write_bytes(b"PK nonsense")
    with pytest.raises(UserError, match="cannot read"):
        read_graph(path)
    np.savez(path, edge_index=np.array([[0], [9]]), x=np.ones((3, 2)), y=np.zeros(3, int))
    with pytest.raises(UserError, match=r"names node 9; .* has 3 rows"):
        read_graph(path, path)
    with pytest.raises(UserError, match="10 integers are needed"):
        read_graph(path, None, path)
    with pytest.raises(UserError, match="give features as a table"):
        read_graph(write(tmp_path, "e.csv", TRIANGLES), path)
    (tmp_path / "latin.csv").write_bytes(b"\xff\xfe,b\n")
    with pytest.raises(UserError, match="isn't UTF-8"):
        read_graph(tmp_path / "latin.csv")


@pytest.fixture
def club(tmp_path: Path) -> dict[str, str]:
    """A random graph of 120 named people with features and labels."""
    rng = np.random.default_rng(0)
    people = [f"p{i:03}" for i in range(120)]
    edges = "".join(f"{people[a]},{people[b]}\n" for a, b in rng.integers(120, size=(900, 2)))
    features = "".join(f"{p},{rng.random():.3f},{rng.random():.3f}\n" for p in people)
    labels = "".join(f"{p},{'xyz'[i % 3]}\n" for i, p in enumerate(people[:100]))
    return {
        "edges": str(write(tmp_path, "edges.csv", edges)),
        "features": str(write(tmp_path, "features.csv", features)),
        "labels": str(write(tmp_path, "labels.csv", labels)),
    }


def pairs(index: torch.Tensor) -> set[tuple[int, int]]:
    return {(min(a, b), max(a, b)) for a, b in index.T.tolist()}


def test_links(tmp_path: Path, club: dict[str, str]) -> None:
    link = load_dataset("custom", root=tmp_path / "data", **club)
    seen = pairs(link.data.edge_index)
    held = [pairs(link.splits[part]["pos_edge_label_index"]) for part in ("valid", "test")]
    free = [pairs(link.splits[part]["neg_edge_label_index"]) for part in ("valid", "test")]
    whole = seen | held[0] | held[1]
    assert len(whole) == len(seen) + len(held[0]) + len(held[1]) == link.info["edges"]
    assert not (free[0] | free[1]) & whole
    assert link.info["dropped"]["self_loops"] > 0
    assert link.node_names is not None
    assert link.node_names[7] == "p007"
    assert link.spec.in_channels == 2
    assert (link.metric, link.info["seed"]) == ("mrr", 0)


def test_options(tmp_path: Path, club: dict[str, str]) -> None:
    root = tmp_path / "data"
    edges = club["edges"]
    bare = load_dataset("custom", root=root, edges=edges, metric="hits@20", valid_ratio=0.05, test_ratio=0.1)
    assert bare.spec.in_channels is None
    assert bare.data.x is None
    assert bare.metric == "hits@20"
    assert bare.info["valid"] == int(bare.info["edges"] * 0.05)
    with pytest.raises(UserError, match="choose metric mrr, auc or a smaller K"):
        load_dataset("custom", root=root, edges=edges, metric="hits@1000")
    node = load_dataset("custom", root=root, task="node", normalize_features=True, **club)
    assert node.spec.num_classes == 3
    assert sum(part["index"].numel() for part in node.splits.values()) == 100
    assert torch.allclose(node.data.x.sum(1), torch.ones(120))
    assert node.info["classes"] == ["x", "y", "z"]
    with pytest.raises(UserError, match=r"needs its edges: --data\.edges"):
        load_dataset("custom", root=root)
    with pytest.raises(UserError, match="needs labels"):
        load_dataset("custom", root=root, task="node", edges=edges)
    with pytest.raises(UserError, match=r"there is no file nowhere.csv"):
        load_dataset("custom", root=root, edges="nowhere.csv")


def test_files_that_are_gone_are_found_in_the_cache(tmp_path: Path, club: dict[str, str]) -> None:
    first = load_dataset("custom", root=tmp_path, **club)
    for path in club.values():
        Path(path).unlink()
    with files_kept(first.info["files"]):
        assert load_dataset("custom", root=tmp_path, **club).fingerprint == first.fingerprint
    with pytest.raises(UserError, match=r"there is no file .*edges\.csv"):
        load_dataset("custom", root=tmp_path, **club)


def test_the_cache_follows_the_file(tmp_path: Path, club: dict[str, str]) -> None:
    first = load_dataset("custom", root=tmp_path, **club)
    again = load_dataset("custom", root=tmp_path, **club)
    assert torch.equal(first.data.edge_index, again.data.edge_index)
    assert first.node_names == again.node_names
    assert sorted(first.info["files"]) == sorted(club.values())
    with open(club["edges"], "a") as file:
        file.write("p000,p000\n")
    more = load_dataset("custom", root=tmp_path, **club)
    assert more.info["dropped"]["self_loops"] == first.info["dropped"]["self_loops"] + 1
    assert len(list((tmp_path / "custom").glob("*.json"))) == 2
