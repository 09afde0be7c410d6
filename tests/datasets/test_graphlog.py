"""GraphLog: worlds in JSON lines, from folders and archives."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from graphkit.datasets.graphlog import ARCHIVES, PARTS, load_graphlog, read_graphlog
from graphkit.errors import UserError

# The query's source is neither node 0 nor the first edge's end; numbers have gaps, edges turn back.
GRAPH: dict[str, Any] = {
    "edges": [[3, 1, "R_2"], [7, 3, "R_10"], [1, 3, "R_2"], [7, 4, "UNK"]],
    "query": [7, 1, "R_5"],
    "resolution_path": [7, 3, 1],
}
NAMED = {"edges": [["a", "b", "R_2"]], "query": ["a", "b", "R_2"], "resolution_path": ["a", "b"]}


def text(*graphs: Any) -> str:
    return "".join(f"{json.dumps(graph)}\n" for graph in graphs)


def write(folder: Path, **changes: str) -> Path:
    contents = {"train": text(GRAPH, NAMED), "valid": text(NAMED) + "\n", "test": text(GRAPH)} | changes
    folder.mkdir(parents=True, exist_ok=True)
    for part, content in contents.items():
        (folder / f"{part}.jsonl").write_text(content)
    return folder


def test_a_world(tmp_path: Path) -> None:
    write(tmp_path / "graphlog" / "rule_6")
    made = load_graphlog(root=tmp_path)
    data = made.data
    assert {part: split["index"].tolist() for part, split in made.splits.items()} == {
        "train": [0, 1],
        "valid": [2],
        "test": [3],
    }
    assert made.target_names == ["R_10", "R_2", "R_5", "UNK"]
    assert data.ptr.tolist() == [0, 4, 6, 8, 12]
    assert data.edge_index[:, :4].T.tolist() == [[1, 2], [0, 1], [2, 1], [0, 3]], "the source is node 0"
    assert data.edge_type[:4].tolist() == [1, 0, 1, 3]
    assert (data.source.tolist(), data.target.tolist()) == ([0] * 4, [2, 1, 1, 2])
    assert data.y.tolist() == [2, 1, 1, 2]
    assert data.k.tolist() == [2, 1, 1, 2]
    assert data.node_on_path[:4].tolist() == [True, True, True, False]
    assert made.spec.num_relations == 4
    assert made.info["test_graphs_in_train"] == 1.0
    assert load_graphlog(root=tmp_path, world="rule_6").fingerprint == made.fingerprint


def test_graphs_without_their_path_have_no_k(tmp_path: Path) -> None:
    plain = {key: value for key, value in GRAPH.items() if key != "resolution_path"}
    write(tmp_path / "graphlog" / "mine", test=text(plain))
    assert "k" not in load_graphlog(root=tmp_path, world="mine").data


def test_folders_of_the_unpacked_archive_and_the_archive_itself(tmp_path: Path) -> None:
    write(tmp_path / "graphlog" / "train" / "rule_0")
    first = load_graphlog(root=tmp_path, world=0)
    folder = write(tmp_path / "apart")
    with zipfile.ZipFile(tmp_path / "graphlog" / ARCHIVES["v1.1"], "w") as file:
        for part in PARTS:
            file.write(folder / f"{part}.jsonl", f"graphlog_v1.1/valid/rule_51/{part}.jsonl")
    second = load_graphlog(root=tmp_path, world=51)
    assert second.fingerprint == first.fingerprint
    with pytest.raises(UserError, match=r"graphlog_v1.1.zip holds no rule_5/train.jsonl"):
        load_graphlog(root=tmp_path, world=5)
    (tmp_path / "graphlog" / ARCHIVES["v1.0"]).write_bytes(b"PK")
    with pytest.raises(UserError, match=r"graphlog_icml_data.zip is damaged .*; delete it to fetch it again"):
        load_graphlog(root=tmp_path, world=51, release="v1.0")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "train.jsonl, line 3 isn't a graph"),
        ("[]", "line 3 isn't a graph"),
        ('{"edges": [[0, 1]], "query": [0, 1, "R"]}', "line 3 isn't a graph"),
        ('{"edges": [[0, 1, "R"]]}', "line 3 isn't a graph"),
        ('{"edges": [[0, 1, 2]], "query": [0, 1, "R"]}', "relations that are names"),
        ('{"edges": [], "query": [0, 1, "R"]}', "relations that are names"),
    ],
)
def test_lines_that_are_no_graph(tmp_path: Path, line: str, message: str) -> None:
    texts = {"train": (text(NAMED, NAMED) + line).encode(), "valid": b"", "test": b""}
    with pytest.raises(UserError) as caught:
        read_graphlog(texts, tmp_path)
    assert message in str(caught.value)


def test_other_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"valid.jsonl holds no graphs"):
        read_graphlog({"train": text(NAMED).encode(), "valid": b"\n"}, tmp_path)
    for options, message in (
        ({"world": 57}, "world is 57; it must lie between 0 and 56"),
        ({"world": "-1"}, "world is -1"),
        ({"release": "v2"}, "unknown release 'v2': it is v1.0 or v1.1"),
    ):
        with pytest.raises(UserError, match=message):
            load_graphlog(root=tmp_path, **options)
