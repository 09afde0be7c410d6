"""Peptides: molecules of about 150 atoms of the Long Range Graph Benchmark (arXiv:2206.08164).

The benchmark's files are a table of SMILES and targets and a pickle of the split's indices, which is read by
an unpickler that knows arrays alone. The graphs, made with OGB's features as the benchmark's loader does, are
kept in ``<root>/<name>/processed``: making them takes about a minute.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from graphkit.data import Benchmark
from graphkit.datasets.archives import find_files
from graphkit.datasets.graph_sets import Arrays, graph_benchmark, kept_graphs, texts_of
from graphkit.datasets.molecules import features_key, featurise, graph_of, molecule_spec
from graphkit.datasets.ogb_raw import damaged
from graphkit.datasets.pickles import read_pickle
from graphkit.errors import UserError
from graphkit.evaluation.graph import GraphEvaluator
from graphkit.files import fetch, sha256
from graphkit.registry import register_dataset

__all__ = ["FUNC", "STRUCT", "Peptides", "load_peptides", "load_peptides_func", "load_peptides_struct"]

CITATION = (
    "Dwivedi, Rampasek, Galkin, Parviz, Wolf, Luu, Beaini: Long Range Graph Benchmark, NeurIPS 2022, "
    "arXiv:2206.08164"
)


@dataclass(frozen=True)
class Peptides:
    """One of the two sets.

    Attributes:
        name: Its registered name.
        long_name: The name of its folder in the benchmark's own loader.
        table: Its table, and where it is.
        split: Its split, and where it is.
        md5: The hash of each.
        targets: The columns of the targets, or none where one column ``labels`` holds lists of them.
        kind: ``"binary"`` labels or ``"regression"``.
        metric: What decides.
        width: Targets of a molecule.
    """

    name: str
    long_name: str
    table: tuple[str, str]
    split: tuple[str, str]
    md5: tuple[str, str]
    targets: tuple[str, ...]
    kind: Literal["binary", "regression"]
    metric: str
    width: int


DROPBOX = "https://www.dropbox.com/s"
SPLIT_MD5 = "5a0114bdadc80b94fc7ae974f13ef061"
SIZES = {"train": 10_873, "valid": 2_331, "test": 2_331}
FUNC = Peptides(
    name="peptides-func",
    long_name="peptides-functional",
    table=(
        "peptide_multi_class_dataset.csv.gz",
        f"{DROPBOX}/ol2v01usvaxbsr8/peptide_multi_class_dataset.csv.gz?dl=1",
    ),
    split=(
        "splits_random_stratified_peptide.pickle",
        f"{DROPBOX}/j4zcnx2eipuo0xz/splits_random_stratified_peptide.pickle?dl=1",
    ),
    md5=("701eb743e899f4d793f0e13c8fa5a1b4", SPLIT_MD5),
    targets=(),
    kind="binary",
    metric="ap",
    width=10,
)
STRUCT = Peptides(
    name="peptides-struct",
    long_name="peptides-structural",
    table=(
        "peptide_structure_dataset.csv.gz",
        f"{DROPBOX}/464u3303eu2u4zp/peptide_structure_dataset.csv.gz?dl=1",
    ),
    split=(
        "splits_random_stratified_peptide_structure.pickle",
        f"{DROPBOX}/9dfifzft1hqgow6/splits_random_stratified_peptide_structure.pickle?dl=1",
    ),
    md5=("9786061a34298a0684150f2e4ff13f47", SPLIT_MD5),
    targets=(
        *(f"Inertia_{of}_{axis}" for of in ("mass", "valence") for axis in "abc"),
        *(f"length_{axis}" for axis in "abc"),
        "Spherocity",
        "Plane_best_fit",
    ),
    kind="regression",
    metric="mae",
    width=11,
)


def read_table(path: Path, source: Peptides) -> tuple[list[str], NDArray[np.float32]]:
    """Reads molecules and their targets.

    Returns:
        SMILES, and ``y`` ``[G, T]`` float32: labels 0 and 1, or values of which each column has, over all
        molecules, mean 0 and standard deviation 1, as the benchmark's loader makes them.

    Raises:
        UserError: The table is damaged, lacks a column, or a molecule has other targets; names the line.
    """
    import pandas as pd

    wanted = source.targets or ("labels",)
    with damaged(path):
        frame = pd.read_csv(path)
        lacking = [name for name in ("smiles", *wanted) if name not in frame]
        if lacking:
            raise UserError(f"{path} lacks the columns {', '.join(lacking)}")
        smiles = [str(text) for text in frame["smiles"]]
        if not source.targets:
            return smiles, _labels(path, [str(cell) for cell in frame["labels"]], source.width)
        values = np.stack([frame[name].to_numpy(np.float64) for name in wanted], axis=1)
    wrong = ~np.isfinite(values).all(1)
    if wrong.any():
        raise UserError(f"{path}, line {int(wrong.argmax()) + 2}: a target isn't a finite number")
    spread = values.std(0, ddof=1)
    return smiles, ((values - values.mean(0)) / np.where(spread > 0, spread, 1)).astype(np.float32)


def _labels(path: Path, cells: Sequence[str], width: int) -> NDArray[np.float32]:
    """Reads lists of 0 and 1."""
    rows = []
    for number, cell in enumerate(cells):
        try:
            row = json.loads(cell)
        except ValueError:
            row = None
        if not isinstance(row, list) or len(row) != width or any(label not in (0, 1) for label in row):
            raise UserError(f"{path}, line {number + 2}: a list of {width} labels 0 or 1 was expected")
        rows.append(row)
    return np.array(rows, dtype=np.float32)


def read_split(path: Path, count: int) -> Arrays:
    """Reads indices of ``train``, ``val`` and ``test``, disjoint and in range.

    Raises:
        UserError: They aren't, or the file is damaged.
    """
    stored = read_pickle(path)
    if not isinstance(stored, Mapping) or not {"train", "val", "test"} <= stored.keys():
        raise UserError(f"{path} must hold the indices train, val and test")
    with damaged(path):
        parts = {
            name: np.asarray(stored[key]).reshape(-1).astype(np.int64)
            for name, key in (("train", "train"), ("valid", "val"), ("test", "test"))
        }
    joined = np.concatenate(list(parts.values()))
    if joined.size == 0 or joined.min() < 0 or joined.max() >= count or len(np.unique(joined)) != joined.size:
        raise UserError(f"{path} must name molecules from 0 to {count - 1}, each once at most")
    return parts


def _read(table: Path, split: Path, source: Peptides) -> tuple[Arrays, dict[str, Any]]:
    smiles, y = read_table(table, source)
    parts = read_split(split, len(smiles))
    made = featurise(smiles, name=source.name, where=lambda number: f"{table}, line {number + 2}")
    made.pop("kept")
    return {**made, "y": y, **parts}, {}


def _find(root: Path, source: Peptides, which: Literal["table", "split"], *, published: bool) -> Path:
    """Returns a file in place, else fetches it; a fetched one must be the published one."""
    (name, url), md5 = getattr(source, which), source.md5[which == "split"]
    homes = [root / folder for folder in (source.name, source.name.replace("-", "_"), source.long_name)]
    places = [place for home in homes for place in (home / "raw", home)]
    hint = "; the molecules of 'nci-tpsa' need no download"
    found = find_files([*places, root], [name])
    path = found[0] if found else fetch(url, places[0] / name, hint=hint)
    if published and hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() != md5:
        raise UserError(f"{path} isn't the published file: its MD5 differs; move it away to fetch that")
    return path


def load_peptides(source: Peptides, root: Path, *, published: bool = True) -> Benchmark:
    """Loads one of the two sets, or with ``published`` false any table and split in its layout."""
    table, split = (_find(root, source, which, published=published) for which in ("table", "split"))
    kept = kept_graphs(
        root / source.name / "processed",
        f"{source.name}/1/{features_key()}/{sha256(table)}/{sha256(split)}",
        lambda: _read(table, split, source),
    ).tensors
    parts = {name: {"index": kept[name].clone()} for name in SIZES}
    sizes = {name: part["index"].numel() for name, part in parts.items()}
    if published and sizes != SIZES:
        raise UserError(f"{split} isn't the split of {source.name}: it holds {sizes}, published are {SIZES}")
    return graph_benchmark(
        source.name,
        kept,
        parts,
        molecule_spec(source.width),
        targets=source.kind,
        evaluator=GraphEvaluator(source.kind, source.metric),
        metric=source.metric,
        info={"source": source.table[1], "raw": str(table.parent), "split": "stratified random, fixed"},
        citation=CITATION,
        target_names=source.targets or None,
        smiles=texts_of(kept),
        from_smiles=graph_of,
    )


@register_dataset("peptides-func", task="graph", paper="arXiv:2206.08164")
def load_peptides_func(*, root: str | Path = "data", task: str = "graph", seed: int = 0) -> Benchmark:
    """Peptides-func: 15,535 peptides of about 151 atoms; which of 10 functions do they have?

    Split 10,873/2,331/2,331, average precision over the ten labels.

    Args:
        root: Holds ``peptides-func``, ``peptides_func`` or ``peptides-functional`` with the benchmark's
            ``peptide_multi_class_dataset.csv.gz`` and ``splits_random_stratified_peptide.pickle``, in ``raw``
            or not; fetched if not.
        task: ``"graph"``.
        seed: Not used: the split is fixed.

    Raises:
        UserError: Files missing offline, damaged, or other than the published ones; rdkit is missing.
    """
    return load_peptides(FUNC, Path(root))


@register_dataset("peptides-struct", task="graph", paper="arXiv:2206.08164")
def load_peptides_struct(*, root: str | Path = "data", task: str = "graph", seed: int = 0) -> Benchmark:
    """Peptides-struct: the same 15,535 peptides, 11 properties of their shape in space.

    Split 10,873/2,331/2,331, mean absolute error of targets scaled to a standard deviation of 1.

    Args:
        root: Holds ``peptides-struct``, ``peptides_struct`` or ``peptides-structural`` with the benchmark's
            ``peptide_structure_dataset.csv.gz`` and ``splits_random_stratified_peptide_structure.pickle``,
            in ``raw`` or not; fetched if not.
        task: ``"graph"``.
        seed: Not used: the split is fixed.

    Raises:
        UserError: Files missing offline, damaged, or other than the published ones; rdkit is missing.
    """
    return load_peptides(STRUCT, Path(root))
