"""Lists of node pairs: what is a header, and nothing that vanishes."""

from __future__ import annotations

from pathlib import Path

import pytest

from graphkit.errors import UserError
from graphkit.tables import read_pairs, read_rows


def pairs(folder: Path, text: str, numbered: bool | None = None) -> list[list[str]]:
    path = folder / "pairs.txt"
    path.write_text(text, encoding="utf-8")
    return [row.cells for row in read_pairs(path, numbered=numbered)]


@pytest.mark.parametrize(
    "head", ["source,target", "Src,DST", "from,to", "node1,node2", "ID_1,ID_2", "From Node Id,To Node Id"]
)
@pytest.mark.parametrize("numbered", [None, True, False])
def test_usual_names_are_a_header(tmp_path: Path, head: str, numbered: bool | None) -> None:
    assert pairs(tmp_path, f"{head}\n7,8\n", numbered) == [["7", "8"]]
    assert pairs(tmp_path, f"{head}\n", numbered) == []


@pytest.mark.parametrize("head", ["u,v", "i,j", "x,y", "person,friend", "user1,user2"])
def test_other_words_are_a_header_where_nodes_are_numbers(tmp_path: Path, head: str) -> None:
    assert pairs(tmp_path, f"{head}\n7,8\n", True) == [["7", "8"]]
    assert pairs(tmp_path, f"{head}\n7,8\n") == [["7", "8"]]
    assert pairs(tmp_path, f"{head}\nann,bob\n", False) == [head.split(","), ["ann", "bob"]]
    assert pairs(tmp_path, f"{head}\nann,bob\n") == [head.split(","), ["ann", "bob"]]


@pytest.mark.parametrize("first", ["1,x", "x,1", "-1,2", "1.5,x"])
def test_a_line_with_a_number_is_no_header(tmp_path: Path, first: str) -> None:
    assert pairs(tmp_path, f"{first}\n7,8\n", True)[0] == first.split(",")


def test_only_the_first_line_is_a_header(tmp_path: Path) -> None:
    assert pairs(tmp_path, "a,b\nsource,target\n") == [["a", "b"], ["source", "target"]]


@pytest.mark.parametrize(
    "text", ["1,2\n3,4\n", "1\t2\n3\t4", "1  2\n\n3 4\n", "1; 2\n3;4", "%\n# 9,9\n1 2\n3 4"]
)
def test_separators(tmp_path: Path, text: str) -> None:
    assert pairs(tmp_path, text) == [["1", "2"], ["3", "4"]]


def test_lines_are_counted_over_what_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text("# head\n\na,b\n\nc,d\n")
    assert [(row.line, row.cells) for row in read_rows(path)] == [(3, ["a", "b"]), (5, ["c", "d"])]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("alice,bob\nalice,,carol\n", r"line 2: two nodes expected, got 3 columns \(alice, , carol\)"),
        ("alice,bob\nalice,\n", "line 2: two nodes expected, an end of the edge is empty"),
        ("alice bob\nalice\n", r"line 2: two nodes expected, got 1 columns \(alice\)"),
        ("source,target,weight\na,b,1\n", "line 1: two nodes expected, got 3 columns"),
        ('a,b\n"b,c\n', "isn't a proper table: .*line 2"),
    ],
)
def test_what_is_no_pair_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=f"pairs.txt.*{message}"):
        pairs(tmp_path, text)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"can't read .*none\.csv"):
        read_pairs(tmp_path / "none.csv")
    (tmp_path / "latin.csv").write_bytes(b"\xff\xfe,b\n")
    with pytest.raises(UserError, match="isn't UTF-8"):
        read_pairs(tmp_path / "latin.csv")
