"""Predictions for molecules, or for the graphs of a split, as a table; and a picture of one molecule."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor, nn
from torch_geometric.data import Data

from graphkit.chem import read_smiles, smiles_column
from graphkit.errors import UserError, did_you_mean
from graphkit.tables import columns_called, read_rows

if TYPE_CHECKING:
    from graphkit.tasks.graph import GraphTask

__all__ = ["Molecule", "add_arguments", "predict", "read_molecules"]


class Molecule(NamedTuple):
    """A molecule that a prediction was asked for.

    Attributes:
        smiles: What the user wrote.
        place: Where, for messages.
    """

    smiles: str
    place: str


def add_arguments(parser: argparse._ActionsContainer) -> None:
    """Adds ``--smiles``, ``--csv``, ``--smiles-column``, ``--split``, ``--draw`` and ``--draw-pairs``."""
    parser.add_argument(
        "--smiles", nargs="+", action="extend", metavar="SMILES", help="molecules, e.g. CCO 'c1ccccc1O'"
    )
    parser.add_argument("--csv", metavar="FILE", help="a table of molecules, one a line; or SMILES alone")
    parser.add_argument(
        "--smiles-column",
        metavar="NAME",
        help="its column (default: one called as in training, else smiles, smi, molecule, ...)",
    )
    parser.add_argument("--split", help="all graphs of a split: train, valid or test")
    parser.add_argument(
        "--draw",
        metavar="FILE",
        help="draw the molecule and its most attended pairs of atoms, with the attention that goes both ways "
        "(.svg, .png)",
    )
    parser.add_argument(
        "--draw-pairs", type=int, default=10, metavar="N", help="how many of them (default 10)"
    )


def predict(
    task: GraphTask, model: nn.Module, options: argparse.Namespace
) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows: a molecule or graph (and node), and a value or probability of each target.

    Of classes there is a column for the likeliest as well.

    Raises:
        UserError: Not exactly one of ``--smiles``, ``--csv`` and ``--split``; a molecule that can't be read,
            named with its line; anything to draw but one molecule.
    """
    if sum(given is not None for given in (options.smiles, options.csv, options.split)) != 1:
        raise UserError("predict: give one of --smiles SMILES, --csv FILE and --split SPLIT")
    if options.smiles_column is not None and options.csv is None:
        raise UserError("predict: --smiles-column goes with --csv FILE")
    if options.split is not None:
        if options.draw is not None:
            raise UserError("predict: --draw takes one molecule, given by --smiles")
        return _split_table(task, model, options.split)
    if task.graphs.per_node:
        raise UserError(f"{task.benchmark.name} has targets of nodes, not of molecules; use --split")
    if options.csv is not None:
        trained = str(task.benchmark.info.get("smiles column", ""))
        molecules = read_molecules(Path(options.csv), options.smiles_column, trained)
    else:
        molecules = [Molecule(smiles, "--smiles") for smiles in options.smiles]
    values = _predict_molecules(task, model, molecules)
    if options.draw is not None:
        _draw(task, model, molecules, values, options)
    return _table(task, ["smiles"], [[molecule.smiles] for molecule in molecules], values)


def read_molecules(path: Path, column: str | None = None, trained: str = "") -> list[Molecule]:
    """Reads a column of SMILES, in order.

    Args:
        path: CSV, TSV, separated by semicolons or blanks; with a header, unless it has one column only.
        column: Its name; by default that which :func:`~graphkit.chem.smiles_column` finds.
        trained: The name that it had in training, which comes before others.

    Raises:
        UserError: The file can't be read, has no such column, or a line has no molecule.
    """
    rows = list(read_rows(path))
    if not rows:
        raise UserError(f"{path} is empty")
    header = rows[0].cells
    if column is not None:
        found = columns_called(header, column)
        if len(found) != 1:
            raise UserError(
                f"{path} has {len(found) or 'no'} column{'s' if found else ''} '{column}'"
                + ("" if found else did_you_mean(column, header))
            )
        index: int | None = found[0]
    else:
        index = smiles_column(header, trained)
    if index is not None:
        rows = rows[1:]
    elif all(len(row.cells) == 1 for row in rows):
        index = 0  # SMILES alone
    else:
        raise UserError(
            f"{path}: which column holds SMILES? name one with --smiles-column: {', '.join(header)[:200]}"
        )
    molecules = []
    for line, cells in rows:
        if len(cells) <= index or not cells[index]:
            raise UserError(f"{path}, line {line}: there is no molecule in column {index + 1}")
        molecules.append(Molecule(cells[index], f"{path}, line {line}"))
    if not molecules:
        raise UserError(f"{path} holds no molecule")
    return molecules


def _predict_molecules(task: GraphTask, model: nn.Module, molecules: Sequence[Molecule]) -> Tensor:
    """Predicts molecules, each made a graph by itself first, so that a bad one is named with its place."""
    by_name = getattr(model, "wants_smiles", False)
    made: list[str | Data] = []
    for molecule in molecules:
        try:
            if by_name:
                read_smiles(molecule.smiles)
            made.append(molecule.smiles if by_name else task.make_graph(molecule.smiles))
        except UserError as error:
            raise UserError(f"{molecule.place}: {error}") from None
    return task.predictions(model, made)


def _split_table(task: GraphTask, model: nn.Module, split: str) -> tuple[list[str], list[list[str]]]:
    task.check_split(split)
    ids = task.benchmark.splits[split]["index"]
    values = task.predictions(model, ids)
    if task.graphs.per_node:
        sizes = task.graphs.sizes(ids).tolist()
        places = [
            [str(graph), str(node)]
            for graph, size in zip(ids.tolist(), sizes, strict=True)
            for node in range(size)
        ]
        return _table(task, ["graph", "node"], places, values)
    smiles = task.benchmark.smiles
    if smiles is None:
        return _table(task, ["graph"], [[str(graph)] for graph in ids.tolist()], values)
    return _table(task, ["graph", "smiles"], [[str(graph), smiles[graph]] for graph in ids.tolist()], values)


def _table(
    task: GraphTask, first: Sequence[str], places: Sequence[Sequence[str]], values: Tensor
) -> tuple[list[str], list[list[str]]]:
    names = _target_names(task, values.size(1))
    header = [*first, *(["class"] if task.kind == "classes" else []), *names]
    rows = []
    for place, row in zip(places, values.tolist(), strict=True):
        best = [names[max(range(len(row)), key=row.__getitem__)]] if task.kind == "classes" else []
        rows.append([*place, *best, *(f"{value:.6g}" for value in row)])
    return header, rows


def _target_names(task: GraphTask, count: int) -> list[str]:
    names = task.benchmark.target_names
    if names is not None and len(names) == count:
        return [str(name) for name in names]
    if task.kind == "classes":
        return [str(number) for number in range(count)]
    what = {"regression": "value", "binary": "probability"}[task.kind]
    return [what] if count == 1 else [f"{what} {number}" for number in range(count)]


def _draw(
    task: GraphTask,
    model: nn.Module,
    molecules: Sequence[Molecule],
    values: Tensor,
    options: argparse.Namespace,
) -> None:
    from graphkit.drawing import draw_molecule, strongest_pairs

    if len(molecules) != 1:
        raise UserError(f"predict: --draw takes one molecule, and there are {len(molecules)}")
    if options.draw_pairs < 1:
        raise UserError(f"--draw-pairs is {options.draw_pairs}; it must be at least 1")
    smiles = molecules[0].smiles
    pairs, strength = strongest_pairs(*task.attention(model, smiles), options.draw_pairs)
    shown = [
        f"{name} {value:.4g}"
        for name, value in zip(_target_names(task, values.size(1)), values[0].tolist(), strict=True)
    ]
    legend = ", ".join(shown) if len(shown) <= 3 else ""
    draw_molecule(options.draw, smiles, pairs, strength, legend=legend)
