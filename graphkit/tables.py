"""Tables of text: rows of cells with their line numbers, and lists of node pairs.

A list of node pairs has two columns, separated by tabs, commas, semicolons or blanks. Its first line is a
header if it holds usual names for the two ends (:data:`END_NAMES`) or, where nodes are numbers, if neither of
its cells is a number. Every other line is a pair.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from graphkit.errors import UserError

__all__ = [
    "END_NAMES",
    "Row",
    "columns_called",
    "is_id",
    "is_number",
    "plain_name",
    "read_pairs",
    "read_rows",
]

END_NAMES = frozenset(
    {
        *(("source", "target"), ("src", "dst"), ("source", "destination"), ("from", "to"), ("head", "tail")),
        *((f"{end}1", f"{end}2") for end in ("node", "id", "node_", "id_", "node_id")),
        *(("node_a", "node_b"), ("node_u", "node_v"), ("node_i", "node_j"), ("from_node", "to_node")),
        *(("source_id", "target_id"), ("source_node", "target_node"), ("from_id", "to_id")),
        *(("fromnodeid", "tonodeid"), ("from_node_id", "to_node_id"), ("src_id", "dst_id")),
    }
)
"""Headers of the two columns of a list of pairs, in small letters with ``_`` for a blank. Single letters
(u, v, i, j) are left out: they are as likely two nodes, and where nodes are numbers they aren't needed."""


class Row(NamedTuple):
    """A row of a table.

    Attributes:
        line: Its line in the file, from 1.
        cells: Its cells, stripped.
    """

    line: int
    cells: list[str]


def is_id(cell: str) -> bool:
    """Tells whether a cell is a node's number: digits alone."""
    return cell.isascii() and cell.isdecimal()


def is_number(cell: str) -> bool:
    """Tells whether a cell is any number."""
    try:
        float(cell)
    except ValueError:
        return False
    return True


def plain_name(name: str) -> str:
    """Returns a column's name in small letters with ``_`` for blanks and hyphens."""
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def columns_called(header: Sequence[str], name: str) -> list[int]:
    """Returns where the columns called ``name`` are; capitals, blanks and hyphens count if they decide."""
    exact = [at for at, cell in enumerate(header) if cell == name]
    return exact or [at for at, cell in enumerate(header) if plain_name(cell) == plain_name(name)]


def read_rows(path: Path) -> Iterator[Row]:
    """Yields the rows of a table but empty lines and comments (``#`` or ``%``).

    The separator is the first of tab, comma and semicolon in the first line, else blanks.

    Raises:
        UserError: The file can't be read, isn't UTF-8, or a quotation doesn't end.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            text = file.read()
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} isn't UTF-8 text: {error}") from error
    first = next((line for line in io.StringIO(text) if line.strip() and line[0] not in "#%"), "")
    mark = next((mark for mark in "\t,;" if mark in first), None)
    if mark is None:
        for number, line in enumerate(io.StringIO(text), 1):
            if line.strip() and line[0] not in "#%":
                yield Row(number, line.split())
        return
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if any(cells) and cells[0][:1] not in ("#", "%"):
                yield Row(reader.line_num, cells)
    except csv.Error as error:
        raise UserError(f"{path} isn't a proper table: {error} (line {reader.line_num})") from error


def read_pairs(path: Path, *, numbered: bool | None = None) -> list[Row]:
    """Reads a list of node pairs, without its header if there is one (see the module's rule).

    Args:
        path: The file.
        numbered: Whether nodes are numbers; by default they are if all lines after the first say so.

    Returns:
        Rows of two cells each, none of them empty.

    Raises:
        UserError: As :func:`read_rows`, or a line isn't two nodes; names file and line.
    """
    rows = list(read_rows(path))
    for line, cells in rows:
        if len(cells) != 2:
            shown = ", ".join(cells)[:60]
            raise UserError(f"{path}, line {line}: two nodes expected, got {len(cells)} columns ({shown})")
        if not all(cells):
            raise UserError(f"{path}, line {line}: two nodes expected, an end of the edge is empty")
    if numbered is None:
        numbered = len(rows) > 1 and all(is_id(cell) for _, cells in rows[1:] for cell in cells)
    return rows[1:] if rows and _is_header(rows[0].cells, numbered) else rows


def _is_header(cells: list[str], numbered: bool) -> bool:
    first, second = (cell.lower().replace(" ", "_") for cell in cells)
    return (first, second) in END_NAMES or (numbered and not any(map(is_number, cells)))
