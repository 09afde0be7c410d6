"""The published form of RCC-8 and interval problems: CSV files with Python lists in their cells.

A row holds its number, the edges, their labels in the same order, the query and the label to predict::

    0,"[(0, 1), (1, 2)]","['EC', 'NTPPI']","(0, 2)",DC

The number of edges on each path, k, and that of branches, b, are in the file's name alone:
``test_rcc8_k_9_b_3.csv``.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphkit.datasets.algebra import Algebra
from graphkit.datasets.graph_sets import Arrays, index_type, pointer
from graphkit.errors import UserError, did_you_mean

__all__ = ["problem_files", "problems_csv", "read_problems", "read_text"]

HEADER = ",edges,edge_labels,query_edge,query_label"
ROW = re.compile(
    r"""\d*,"?\[((?:\(\d+, ?\d+\)(?:, ?)?)+)\]"?,"""  # edges
    r""""?\[((?:'[^']*'(?:, ?)?)+)\]"?,"?\((\d+), ?(\d+)\)"?,([^,]+)"""
)
_LABEL = re.compile(r"'([^']*)'")
_NO_DIGITS = re.compile(r"[^0-9]+")


def read_text(path: Path) -> str:
    """Reads a text file, gzipped or not.

    Raises:
        UserError: It can't be read, is damaged, or isn't UTF-8.
    """
    try:
        content = path.read_bytes()
        return (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} isn't UTF-8 text: {error}") from error


def problem_files(folder: Path, name: str) -> dict[tuple[int, int], Path]:
    """Returns the published test files in a folder by (k, b), sorted; of a file and its gzip the file."""
    found: dict[tuple[int, int], Path] = {}
    for path in sorted(folder.glob(f"test_{name}_k_*_b_*.csv*"), reverse=True):
        match = re.fullmatch(rf"test_{name}_k_(\d+)_b_(\d+)\.csv(\.gz)?", path.name)
        if match is not None:
            found[int(match[1]), int(match[2])] = path
    return dict(sorted(found.items()))


def read_problems(path: Path, algebra: Algebra, k: int | None = None, b: int | None = None) -> Arrays:
    """Reads a file of problems.

    Args:
        path: CSV, gzipped or not.
        algebra: The relations that labels name.
        k: Edges on each path; by default edges over branches, which is right for plain branches.
        b: Branches; by default edges that leave the source.

    Returns:
        Flat arrays as :func:`~graphkit.datasets.problems.make_problems` makes them.

    Raises:
        UserError: The file can't be read or isn't of this form, or names an unknown relation; the message
            names the line.
    """
    lines = read_text(path).splitlines()
    if not lines or lines[0].strip() != HEADER:
        raise UserError(f"{path} must begin with the line '{HEADER}'")
    rows = []
    for number, line in enumerate(lines[1:], 2):
        row = ROW.fullmatch(line)
        if row is None:
            raise UserError(f"{path}, line {number}: this isn't a problem: {line[:60]}")
        rows.append(row.groups())
    if not rows:
        raise UserError(f"{path} holds no problems")
    edges, labels, sources, targets, answers = zip(*rows, strict=True)
    counts = np.array([text.count("(") for text in edges])
    ends = np.array(_NO_DIGITS.sub(" ", " ".join(edges)).split(), dtype=np.int64).reshape(-1, 2).T
    names = _LABEL.findall(" ".join(labels))
    if len(names) != ends.shape[1]:
        at = next(i for i, text in enumerate(labels) if text.count("'") != 2 * counts[i])
        raise UserError(f"{path}, line {at + 2}: {counts[at]} edges, and another number of labels")
    edge_ptr = pointer(counts)
    query = np.array([sources, targets], dtype=np.int64)
    nodes = np.maximum(np.maximum.reduceat(ends.max(0), edge_ptr[:-1]), query.max(0)) + 1
    kind = index_type(int(nodes.max()) + 1)
    leaving = np.add.reduceat(ends[0] == np.repeat(query[0], counts), edge_ptr[:-1], dtype=np.int64)
    branches = np.maximum(leaving, 1) if b is None else np.full(len(rows), b)
    return {
        "edge_index": ends.astype(kind),
        "edge_type": _numbers(path, names, algebra, counts),
        "ptr": pointer(nodes),
        "edge_ptr": edge_ptr,
        "source": query[0].astype(kind),
        "target": query[1].astype(kind),
        "y": _numbers(path, answers, algebra),
        "k": (counts // branches if k is None else np.full(len(rows), k)).astype(np.int16),
        "b": branches.astype(np.int16),
    }


def _numbers(
    path: Path, names: Any, algebra: Algebra, counts: NDArray[np.int64] | None = None
) -> NDArray[np.int8]:
    """Returns the numbers of relations; ``counts`` says how many belong to each line."""
    number = {name: at for at, name in enumerate(algebra.names)}
    try:
        return np.array([number[name] for name in names], dtype=np.int8)
    except KeyError:
        at, name = next((i, name) for i, name in enumerate(names) if name not in number)
        line = at if counts is None else int(np.searchsorted(counts.cumsum(), at, side="right"))
        hint = did_you_mean(name, algebra.names)
        raise UserError(f"{path}, line {line + 2}: '{name}' is no relation of {algebra.name}{hint}") from None


def problems_csv(arrays: Mapping[str, NDArray[Any]], algebra: Algebra) -> str:
    """Returns problems in the published form, header and all, lines ending with a line feed."""
    quoted = [f"'{name}'" for name in algebra.names]
    tail, head = (row.tolist() for row in arrays["edge_index"])
    pairs = [f"({u}, {v})" for u, v in zip(tail, head, strict=True)]
    labels = [quoted[r] for r in arrays["edge_type"].tolist()]
    at = arrays["edge_ptr"].tolist()
    query = zip(*(arrays[name].tolist() for name in ("source", "target", "y")), strict=True)
    lines = [HEADER]
    for row, (source, target, y) in enumerate(query):
        part = slice(at[row], at[row + 1])
        edges, names = ", ".join(pairs[part]), ", ".join(labels[part])
        names = f'"[{names}]"' if "," in names else f"[{names}]"
        lines.append(f'{row},"[{edges}]",{names},"({source}, {target})",{algebra.names[y]}')
    return "\n".join(lines) + "\n"
