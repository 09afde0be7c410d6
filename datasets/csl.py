"""Circular skip links: ten regular graphs to tell apart (arXiv:1903.02541, protocol of arXiv:2003.00982).

A graph is a ring of 41 nodes with further links of one length; there are ten lengths that give graphs which
differ, and 15 drawings of each. All have degree 4 and no features, so plain message passing sees no
difference and is right in one case out of ten.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from graphkit.data import Benchmark, DataSpec, Split
from graphkit.datasets.archives import raw_files
from graphkit.datasets.graph_sets import (
    Arrays,
    check_graphs,
    graph_benchmark,
    index_type,
    kept_graphs,
    pointer,
)
from graphkit.datasets.pickles import SparseParts, read_pickle, read_tensors
from graphkit.errors import UserError
from graphkit.evaluation.graph import GraphEvaluator
from graphkit.files import fetch, sha256
from graphkit.registry import register_dataset

__all__ = ["load_csl", "read_csl"]

URL = "https://www.dropbox.com/s/rnbkp5ubgk82ocu/CSL.zip?dl=1"
INDEX_URL = "https://raw.githubusercontent.com/graphdeeplearning/benchmarking-gnns/master/data/CSL"
CITATION = (
    "Murphy, Srinivasan, Rao, Ribeiro: Relational Pooling for Graph Representations, ICML 2019, "
    "arXiv:1903.02541; split: Dwivedi et al., Benchmarking Graph Neural Networks, arXiv:2003.00982"
)
GRAPHS, LABELS = "graphs_Kary_Deterministic_Graphs.pkl", "y_Kary_Deterministic_Graphs.pt"
INDICES = {
    part: f"CSL_{name}.index" for part, name in (("train", "train"), ("valid", "val"), ("test", "test"))
}
FOLDS, CLASSES = 5, 10


def _read_folds(path: Path, count: int) -> list[list[int]]:
    """Reads one line of graph numbers for each fold."""
    try:
        lines = [line for line in path.read_text("ascii").splitlines() if line.strip()]
        folds = [[int(cell) for cell in line.split(",")] for line in lines]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} isn't a list of graphs: {error}") from error
    numbers = [number for fold in folds for number in fold]
    if len(folds) != FOLDS or not numbers or min(numbers) < 0 or max(numbers) >= count:
        raise UserError(f"{path} must hold {FOLDS} lines of graphs from 0 to {count - 1}")
    return folds


def read_csl(graphs: Path, labels: Path, indices: Sequence[Path]) -> tuple[Arrays, dict[str, Any]]:
    """Reads the graphs, without their stored self loops, and the folds.

    Args:
        graphs: Pickled list of scipy's sparse adjacency matrices.
        labels: Tensor ``[G]`` of classes.
        indices: The folds of training, validation and test.

    Returns:
        ``edge_index`` ``[2, E]``, ``ptr``, ``edge_ptr`` and ``y`` ``[G]`` int64; and the folds, for each
        part a list of lists.

    Raises:
        UserError: A file is missing, damaged or of something else, or a graph is in two parts of a fold.
    """
    matrices, classes = read_pickle(graphs), read_tensors(labels)
    if not isinstance(matrices, list) or not all(isinstance(matrix, SparseParts) for matrix in matrices):
        raise UserError(f"{graphs} isn't a list of sparse matrices")
    y = np.asarray(classes).reshape(-1).astype(np.int64)
    if len(y) != len(matrices) or y.min(initial=0) < 0 or y.max(initial=0) >= CLASSES:
        raise UserError(f"{labels} must hold {len(matrices)} classes from 0 to {CLASSES - 1}")
    edges: list[NDArray[np.int64]] = []
    sizes = []
    for number, matrix in enumerate(matrices):
        try:
            row, column, size = matrix.coordinates()
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{graphs}: graph {number} is no graph: {error}") from error
        edges.append(np.stack([row, column])[:, row != column])
        sizes.append(size)
    made: Arrays = {"edge_index": np.concatenate(edges, axis=1).astype(index_type(max(sizes)))}
    made |= {"ptr": pointer(sizes), "edge_ptr": pointer([edge.shape[1] for edge in edges]), "y": y}
    check_graphs(graphs, made)
    folds = {part: _read_folds(path, len(y)) for part, path in zip(INDICES, indices, strict=True)}
    for fold in range(FOLDS):
        numbers = [number for part in folds.values() for number in part[fold]]
        if len(set(numbers)) != len(numbers):
            raise UserError(f"{indices[0].parent}: fold {fold} has a graph in two of its parts")
    return made, {"folds": folds}


@register_dataset("csl", task="graph", paper="arXiv:1903.02541")
def load_csl(
    *, root: str | Path = "data", task: str = "graph", seed: int = 0, fold: int | None = None
) -> Benchmark:
    """CSL: 150 graphs of 41 nodes of degree 4 without features; which of ten is it? Needs expressiveness.

    Five folds of 90/30/30 graphs, in each of which all classes are equally frequent. Accuracy.

    Args:
        root: Holds ``csl`` or ``CSL`` with the two ``*_Kary_Deterministic_Graphs`` files and the three
            ``CSL_*.index`` files, in ``raw`` or not; fetched if not.
        task: ``"graph"``.
        seed: Chooses the fold if ``fold`` doesn't: its remainder by 5.
        fold: The fold, from 0 to 4.

    Raises:
        UserError: Files missing offline or damaged, or no such fold.
    """
    chosen = seed % FOLDS if fold is None else fold
    if not 0 <= chosen < FOLDS:
        raise UserError(f"fold is {fold}; it must lie between 0 and {FOLDS - 1}")
    homes = [Path(root) / "csl" / "raw", Path(root) / "csl", Path(root) / "CSL" / "raw", Path(root) / "CSL"]
    hint = "'digits-graphs' needs no download"
    files = raw_files(homes, [GRAPHS, LABELS], URL, "CSL.zip", hint=hint)
    files += [
        fetch(f"{INDEX_URL}/{name}", files[0].parent / name, hint=f"; {hint}") for name in INDICES.values()
    ]
    kept = kept_graphs(
        Path(root) / "csl" / "processed",
        "csl/1/" + "/".join(sha256(path) for path in files),
        lambda: read_csl(files[0], files[1], files[2:]),
    )
    splits: dict[str, Split] = {
        part: {"index": torch.tensor(sorted(folds[chosen]))} for part, folds in kept.info["folds"].items()
    }
    return graph_benchmark(
        "csl",
        kept.tensors,
        splits,
        DataSpec(out_channels=CLASSES),
        targets="classes",
        evaluator=GraphEvaluator("classes", "accuracy"),
        metric="accuracy",
        info={"source": URL, "raw": str(files[0].parent), "split": "folds", "fold": chosen},
        citation=CITATION,
    )
