"""Molecules of one's own: a table of SMILES and targets. No code to edit.

::

    python scripts/train.py graph-gin --dataset smiles-csv --data.file molecules.csv

The first line names the columns. Whatever is wrong with the file is reported with its line.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from graphkit.chem import smiles_column
from graphkit.data import Benchmark, file_hash
from graphkit.datasets.graph_sets import Arrays, graph_benchmark, kept_graphs, texts_of
from graphkit.datasets.molecules import features_key, featurise, graph_of, molecule_spec
from graphkit.datasets.splits import random_node_split, scaffold_split
from graphkit.errors import UserError, did_you_mean
from graphkit.evaluation.graph import METRICS, GraphEvaluator
from graphkit.registry import register_dataset
from graphkit.tables import Row, columns_called, is_number, plain_name, read_rows

__all__ = ["load_smiles_csv", "read_table"]

_log = logging.getLogger("graphkit")

Kind = Literal["regression", "binary", "classes"]

_NUMBERS = {"", "id", "index", "no", "nr", "mol_id", "molecule_id", "compound_id", "cid", "unnamed:_0"}
_UNKNOWN = {"", "na", "n/a", "nan", "none", "null"}
_DEFAULT: dict[Kind, str] = {"regression": "mae", "binary": "rocauc", "classes": "accuracy"}


@dataclass
class _Table:
    """What a file holds.

    Attributes:
        column: The name of the molecules' column.
        smiles: Molecules, ``n`` of them.
        lines: The line of each.
        y: ``[n, T]`` float32 with NaN where unknown, or ``[n]`` int64 classes.
        kind: What ``y`` holds.
        names: The names of the targets, or of the classes.
    """

    column: str
    smiles: list[str]
    lines: list[int]
    y: NDArray[Any]
    kind: Kind
    names: list[str]


def _column(path: Path, header: Sequence[str], name: str) -> int:
    """Returns where the one column called ``name`` is."""
    found = columns_called(header, name)
    if len(found) != 1:
        problem = f"has no column '{name}'" if not found else f"has {len(found)} columns '{name}'"
        raise UserError(
            f"{path}, line 1: the table {problem}{did_you_mean(name, header) if not found else ''}"
        )
    return found[0]


def _smiles_column(path: Path, header: Sequence[str], name: str) -> int:
    """Returns where the molecules are: in the named column, else in one with a usual name."""
    if name:
        return _column(path, header, name)
    found = smiles_column(header)
    if found is None:
        raise UserError(
            f"{path}, line 1: no column is called smiles, but {', '.join(header)}; "
            "name it: --data.smiles NAME"
        )
    return found


def _is_unknown(cell: str) -> bool:
    return cell.lower() in _UNKNOWN


def _target_columns(
    path: Path, header: Sequence[str], rows: Sequence[Row], molecules: int, names: str
) -> list[int]:
    """Returns where the targets are: the named columns, else all that hold numbers alone."""
    if names:
        found = [_column(path, header, name.strip()) for name in names.split(",") if name.strip()]
        if not found or len(set(found)) != len(found) or molecules in found:
            raise UserError(
                f"target is '{names}'; it must name other columns than that of the molecules, once"
            )
        return found
    found = []
    for at, name in enumerate(header):
        if at == molecules or plain_name(name) in _NUMBERS:
            continue
        known = [row for row in rows if not _is_unknown(row.cells[at])]
        words = [row for row in known if not is_number(row.cells[at])]
        if known and not words:
            found.append(at)
        elif 2 * len(words) < len(known):
            what = f"'{name}' is no target, since line {words[0].line} says '{words[0].cells[at]}', no number"
            _log.warning(f"{path}: {what}; mend it, or say --data.target")
    if not found:
        raise UserError(
            f"{path}: no column but the molecules' holds numbers alone; name the targets: --data.target A,B"
        )
    return found


def read_table(
    path: Path, smiles: str = "", target: str = "", kind: Literal["auto"] | Kind = "auto"
) -> _Table:
    """Reads molecules and their targets.

    Args:
        path: A table whose first line names the columns; see :mod:`graphkit.tables`.
        smiles: The column of the molecules.
        target: The columns of the targets, separated by commas.
        kind: What the targets are; see :func:`load_smiles_csv`.

    Raises:
        UserError: No such column, or a line with other columns, no molecule or a bad target; names the line.
    """
    rows = list(read_rows(path))
    if len(rows) < 2:
        raise UserError(f"{path} holds no molecules: a line of names and a line a molecule were expected")
    header, rows = rows[0].cells, rows[1:]
    for line, cells in rows:
        if len(cells) != len(header):
            raise UserError(f"{path}, line {line}: {len(cells)} columns; the first line has {len(header)}")
    molecules = _smiles_column(path, header, smiles)
    columns = _target_columns(path, header, rows, molecules, target)
    for line, cells in rows:
        if not cells[molecules]:
            raise UserError(f"{path}, line {line}: the molecule is missing")
    texts, lines = [row.cells[molecules] for row in rows], [row.line for row in rows]
    place = header[molecules]
    if kind == "classes" or (kind == "auto" and len(columns) == 1 and _words(path, rows, header, columns[0])):
        names, classes = _classes(path, rows, columns)
        return _Table(place, texts, lines, classes, "classes", names)
    y = np.array([[_value(path, row, header, at) for at in columns] for row in rows], dtype=np.float32)
    labels = np.isnan(y) | (y == 0) | (y == 1)
    if kind == "binary" and not labels.all():
        row, column = (int(i) for i in np.argwhere(~labels)[0])
        raise UserError(
            f"{path}, line {lines[row]}: '{header[columns[column]]}' is {y[row, column]:g}, not 0 or 1"
        )
    names = [header[at] for at in columns]
    for name, column in zip(names, y.T, strict=True):
        if np.isnan(column).all():
            raise UserError(f"{path}: the column '{name}' holds no target")
    found: Kind = "binary" if kind != "regression" and labels.all() else "regression"
    return _Table(place, texts, lines, y, found, names)


def _words(path: Path, rows: Sequence[Row], header: Sequence[str], at: int) -> bool:
    """Tells whether a column holds words; a mixture may be numbers with a slip, or classes: who knows."""
    known = [row for row in rows if not _is_unknown(row.cells[at])]
    words = [row for row in known if not is_number(row.cells[at])]
    if words and len(words) < len(known):
        raise UserError(
            f"{path}, line {words[0].line}: '{header[at]}' is '{words[0].cells[at]}', no number, and "
            f"{len(known) - len(words)} of {len(known)} are; mend it, or say --data.kind classes if they are "
            "names of classes"
        )
    return bool(words)


def _value(path: Path, row: Row, header: Sequence[str], at: int) -> float:
    cell = row.cells[at]
    if _is_unknown(cell):
        return float("nan")
    if not is_number(cell) or not abs(float(cell)) <= float(np.finfo(np.float32).max):
        raise UserError(f"{path}, line {row.line}: '{header[at]}' is '{cell}', no finite number")
    return float(cell)


def _classes(path: Path, rows: Sequence[Row], columns: Sequence[int]) -> tuple[list[str], NDArray[np.int64]]:
    """Reads one class a molecule; numbers come in their order, words in the alphabet's."""
    if len(columns) != 1:
        raise UserError(f"{path}: classes are one column, not {len(columns)}; name it: --data.target NAME")
    cells = [row.cells[columns[0]] for row in rows]
    for row, cell in zip(rows, cells, strict=True):
        if _is_unknown(cell):
            raise UserError(f"{path}, line {row.line}: the class is missing")
    distinct = set(cells)
    names = sorted(distinct, key=float) if all(map(is_number, distinct)) else sorted(distinct)
    if len(names) < 2:
        raise UserError(f"{path}: all molecules are of the class '{names[0]}'")
    number = {name: at for at, name in enumerate(names)}
    return names, np.array([number[cell] for cell in cells], dtype=np.int64)


def _read(
    path: Path, smiles: str, target: str, kind: Any, *, skip_invalid: bool
) -> tuple[Arrays, dict[str, Any]]:
    table = read_table(path, smiles, target, kind)
    made = featurise(
        table.smiles,
        name=path.name,
        where=lambda number: f"{path}, line {table.lines[number]}",
        skip_invalid=skip_invalid,
        scaffolds=True,
    )
    kept = made.pop("kept")
    left = sorted(set(range(len(table.smiles))) - set(kept.tolist()))
    info = {"kind": table.kind, "names": table.names, "column": table.column}
    return {**made, "y": table.y[kept]}, {**info, "skipped": [table.lines[number] for number in left]}


@register_dataset("smiles-csv", task="graph")
def load_smiles_csv(
    *,
    root: str | Path = "data",
    task: str = "graph",
    seed: int = 0,
    file: str = "",
    smiles: str = "",
    target: str = "",
    kind: Literal["auto", "regression", "binary", "classes"] = "auto",
    metric: Literal["auto", "mae", "rmse", "rocauc", "ap", "accuracy", "balanced_accuracy"] = "auto",
    split: Literal["scaffold", "random"] = "scaffold",
    valid_ratio: float = 0.1,
    test_ratio: float = 0.1,
    skip_invalid: bool = False,
) -> Benchmark:
    """Molecules of your own, from a CSV file of SMILES and targets.

    Args:
        root: The graphs, once made, are kept in ``root/smiles-csv``.
        task: ``"graph"``.
        seed: Seeds the random split.
        file: CSV or TSV whose first line names the columns.
        smiles: The column of the molecules; by default one called smiles, canonical_smiles, smi, mol, ...
        target: The columns of the targets, separated by commas; by default all that hold numbers alone, but
            for those called id or index. An empty cell, or ``nan``, is a target that isn't known.
        kind: What the targets are: ``regression``, ``binary`` labels 0 and 1, or ``classes`` in one column.
            By default labels where there are no other values than 0 and 1, classes where the one column
            holds words alone, else regression.
        metric: What decides; by default ``mae``, ``rocauc`` or ``accuracy``.
        split: ``scaffold``: molecules of one ring system are in one part, the rarest ones are tested; or
            ``random``, where a molecule that is listed twice may be in two parts.
        valid_ratio: Share for validation.
        test_ratio: Share for test.
        skip_invalid: Whether lines that are no molecule are left out; else the first one is an error.

    Raises:
        UserError: A missing or malformed file, or too few molecules for the split.
    """
    if not file:
        raise UserError(
            "the data set 'smiles-csv' needs its molecules: --data.file FILE (CSV with a column smiles)"
        )
    path = Path(file)
    digest = file_hash(path)
    for name, value, allowed in (
        ("kind", kind, ("auto", *METRICS)),
        ("split", split, ("scaffold", "random")),
    ):
        if value not in allowed:
            raise UserError(f"{name} is '{value}'; it must be one of {', '.join(allowed)}")
    kept = kept_graphs(
        Path(root) / "smiles-csv",
        f"smiles-csv/2/{features_key()}/{digest}/{[smiles, target, kind, skip_invalid]}",
        lambda: _read(path, smiles, target, kind, skip_invalid=skip_invalid),
    )
    found: Kind = kept.info["kind"]
    decides = _DEFAULT[found] if metric == "auto" else metric
    if decides not in METRICS[found]:
        raise UserError(f"metric is '{metric}'; for {found} it must be one of {', '.join(METRICS[found])}")
    y = kept.tensors["y"]
    if split == "scaffold":
        splits = scaffold_split(kept.tensors["scaffold"], valid_ratio, test_ratio)
    else:
        splits = random_node_split(torch.arange(len(y)), seed, valid_ratio, test_ratio, what="molecules")
    info: dict[str, Any] = {"source": str(path), "files": {str(path): digest}, "split": split, "kind": found}
    info["smiles column"] = kept.info["column"]
    info |= {"seed": seed} if split == "random" else {}
    if skipped := kept.info["skipped"]:
        info |= {"skipped": len(skipped), "skipped lines": skipped[:10]}
    names = kept.info["names"]
    return graph_benchmark(
        "smiles-csv",
        kept.tensors,
        splits,
        molecule_spec(len(names)),
        targets=found,
        evaluator=GraphEvaluator(found, decides),
        metric=decides,
        info=info,
        target_names=names,
        smiles=texts_of(kept.tensors),
        from_smiles=graph_of,
    )
