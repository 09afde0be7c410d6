"""ZINC: molecules with their penalised solubility, the customary test of graph models (arXiv:2003.00982).

The archive's files are pickles of tensors; they are read by an unpickler that knows data alone and kept in
``<root>/zinc/processed`` as numbers. In place of them the 12,000 molecules may come as one npz of flat arrays
(``zinc12k_rebuilt.npz``), whose training graphs were made anew from SMILES: aromatic bonds then alternate the
other way in about a third of them, and a figure needs the word "rebuilt" beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphkit.data import Benchmark, DataSpec
from graphkit.datasets.archives import find_files, raw_files
from graphkit.datasets.graph_sets import (
    Arrays,
    check_graphs,
    graph_benchmark,
    index_type,
    kept_graphs,
    pointer,
    split_at,
)
from graphkit.datasets.ogb_raw import damaged
from graphkit.datasets.pickles import read_pickle
from graphkit.errors import UserError
from graphkit.evaluation.graph import GraphEvaluator
from graphkit.files import fetch, sha256
from graphkit.registry import register_dataset

__all__ = ["load_zinc", "load_zinc_full", "read_npz", "read_pickles"]

URL = "https://www.dropbox.com/s/feo9qle74kg48gy/molecules.zip?dl=1"
INDEX_URL = "https://raw.githubusercontent.com/graphdeeplearning/benchmarking-gnns/master/data/molecules"
CITATION = (
    "Dwivedi, Joshi, Luu, Laurent, Bengio, Bresson: Benchmarking Graph Neural Networks, JMLR 24, 2023, "
    "arXiv:2003.00982; molecules: Irwin et al., ZINC, J. Chem. Inf. Model. 52, 2012"
)
REBUILT = "zinc12k_rebuilt.npz"
PARTS = ("train", "val", "test")
SIZES = {"zinc": (10_000, 1_000, 1_000), "zinc-full": (220_011, 24_445, 5_000)}
ATOMS = {"zinc": (21,), "zinc-full": (28,)}
BONDS = (4,)  # none, single, double, triple
NODES, EDGES = 277_864, 597_970  # of the 12,000


def read_npz(path: Path, sizes: Sequence[int] | None = SIZES["zinc"]) -> tuple[Arrays, dict[str, Any]]:
    """Reads flat arrays ``<part>_x``, ``_edge_index``, ``_edge_attr``, ``_node_ptr``, ``_edge_ptr``, ``_y``.

    Args:
        path: The file; ``part`` is train, val and test.
        sizes: The expected number of graphs of each part; any if ``None``.

    Returns:
        ``x`` ``[N, 1]`` and ``edge_attr`` ``[E, 1]`` int8, ``edge_index`` ``[2, E]``, ``ptr``, ``edge_ptr``,
        ``y`` ``[G, 1]`` float32, and the number of graphs of each part.

    Raises:
        UserError: The file is damaged, lacks an array, or has other counts.
    """
    names = ("x", "edge_index", "edge_attr", "node_ptr", "edge_ptr", "y")
    with damaged(path), np.load(path, allow_pickle=False) as file:
        lacking = [f"{part}_{name}" for part in PARTS for name in names if f"{part}_{name}" not in file]
        if lacking:
            raise UserError(f"{path} lacks the arrays {', '.join(lacking)}")
        parts = [{name: file[f"{part}_{name}"] for name in names} for part in PARTS]
    nodes, edges = ([np.diff(part[f"{what}_ptr"]) for part in parts] for what in ("node", "edge"))
    made = {
        "x": np.concatenate([part["x"].reshape(-1, 1) for part in parts]),
        "edge_index": np.concatenate([part["edge_index"] for part in parts], axis=1),
        "edge_attr": np.concatenate([part["edge_attr"].reshape(-1, 1) for part in parts]),
        "y": np.concatenate([part["y"].reshape(-1, 1) for part in parts]).astype(np.float32),
        "ptr": pointer(np.concatenate(nodes)),
        "edge_ptr": pointer(np.concatenate(edges)),
    }
    return _checked(path, made, "zinc", sizes, [len(part["node_ptr"]) - 1 for part in parts])


def _checked(
    where: Path, made: Arrays, name: str, sizes: Sequence[int] | None, found: list[int]
) -> tuple[Arrays, dict[str, Any]]:
    """Compares counts, and narrows types."""
    if sizes is not None and found != list(sizes):
        raise UserError(f"{where} isn't {name}: it holds {found} graphs, published are {list(sizes)}")
    check_graphs(where, made, ATOMS[name], BONDS)
    if sum(found) != len(made["y"]) or not np.isfinite(made["y"]).all():
        raise UserError(f"{where}: the targets must be {sum(found):,} finite numbers, one a molecule")
    largest = int(np.diff(made["ptr"]).max(initial=0))
    made["x"], made["edge_attr"] = made["x"].astype(np.int8), made["edge_attr"].astype(np.int8)
    made["edge_index"] = made["edge_index"].astype(index_type(largest))
    return made, {"sizes": found}


def read_pickles(
    files: Sequence[Path], indices: Sequence[Path] | None, name: str, sizes: Sequence[int] | None
) -> tuple[Arrays, dict[str, Any]]:
    """Reads the benchmark's own files, one a part.

    Args:
        files: Pickles of a list of molecules: ``atom_type`` ``[n]``, ``bond_type`` ``[n, n]`` (0 where there
            is no bond) and ``logP_SA_cycle_normalized``.
        indices: The molecules that count, numbers separated by commas; all if ``None``.
        name: ``"zinc"`` or ``"zinc-full"``.
        sizes: As in :func:`read_npz`.

    Returns:
        As :func:`read_npz`.
    """
    atoms: list[NDArray[Any]] = []
    edges: list[NDArray[Any]] = []
    bonds: list[NDArray[Any]] = []
    y: list[float] = []
    found = []
    for at, path in enumerate(files):
        molecules = read_pickle(path)
        chosen = range(len(molecules)) if indices is None else _read_index(indices[at], len(molecules))
        with damaged(path):
            for number in chosen:
                molecule = molecules[number]
                bond = np.asarray(molecule["bond_type"])
                ends = np.stack(np.nonzero(bond))
                atoms.append(np.asarray(molecule["atom_type"]).reshape(-1).astype(np.int8))
                edges.append(ends.astype(np.int16))
                bonds.append(bond[ends[0], ends[1]].astype(np.int8))
                y.append(float(molecule["logP_SA_cycle_normalized"]))
        found.append(len(chosen))
    made = {
        "x": np.concatenate(atoms)[:, None],
        "edge_index": np.concatenate(edges, axis=1),
        "edge_attr": np.concatenate(bonds)[:, None],
        "ptr": pointer([len(atom) for atom in atoms]),
        "edge_ptr": pointer([len(bond) for bond in bonds]),
        "y": np.array(y, dtype=np.float32)[:, None],
    }
    return _checked(files[0].parent, made, name, sizes, found)


def _read_index(path: Path, count: int) -> list[int]:
    """Reads numbers below ``count``, each once."""
    try:
        index = [int(cell) for cell in path.read_text("ascii").strip().strip(",").split(",")]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} isn't a list of molecules: {error}") from error
    if len(set(index)) != len(index) or min(index) < 0 or max(index) >= count:
        raise UserError(f"{path} must hold distinct numbers from 0 to {count - 1}")
    return index


def _raw(root: Path, name: str) -> tuple[list[Path], str]:
    """Returns the files to read, those of the benchmark before rebuilt ones, and where they are from."""
    homes = [root / "zinc", root / "ZINC"]
    pickles, index = ([f"{part}.{ending}" for part in PARTS] for ending in ("pickle", "index"))
    raw = [home / "raw" for home in homes]
    if name == "zinc" and find_files(raw, pickles + index) is None:
        rebuilt = find_files([*homes, *raw, root], [REBUILT])
        if rebuilt is not None:
            return rebuilt, f"{REBUILT}: training graphs rebuilt from SMILES"
    hint = "the molecules of 'nci-tpsa' need no download"
    files = raw_files(raw, pickles, URL, "molecules.zip", hint=hint)
    if name == "zinc":
        files += [fetch(f"{INDEX_URL}/{file}", files[0].parent / file, hint=f"; {hint}") for file in index]
    return files, URL


def _read(files: Sequence[Path], name: str, sizes: Sequence[int] | None) -> tuple[Arrays, dict[str, Any]]:
    if len(files) > 1:
        return read_pickles(files[:3], files[3:] or None, name, sizes)
    made, info = read_npz(files[0], sizes)
    found = (int(made["ptr"][-1]), int(made["edge_ptr"][-1]))
    if sizes is not None and found != (NODES, EDGES):
        raise UserError(f"{files[0]} holds {found} nodes and edges; published are {(NODES, EDGES)}")
    return made, info


def load_molecules(name: str, root: Path, sizes: Sequence[int] | None) -> Benchmark:
    """Loads ZINC, its 12,000 molecules or all, or with ``sizes`` ``None`` a set of any size in its layout."""
    files, source = _raw(root, name)
    key = f"{name}/1/{sizes}/" + "/".join(sha256(path) for path in files)
    kept = kept_graphs(root / "zinc" / "processed", key, lambda: _read(files, name, sizes))
    info: dict[str, Any] = {"source": source, "raw": str(files[0].parent), "split": "fixed"}
    return graph_benchmark(
        name,
        kept.tensors,
        split_at(*kept.info["sizes"]),
        DataSpec(out_channels=1, node_categories=ATOMS[name], edge_categories=BONDS),
        targets="regression",
        evaluator=GraphEvaluator("regression", "mae"),
        metric="mae",
        info=info,
        citation=CITATION,
        target_names=["penalised logP"],
    )


@register_dataset("zinc", task="graph", paper="arXiv:2003.00982")
def load_zinc(*, root: str | Path = "data", task: str = "graph", seed: int = 0) -> Benchmark:
    """ZINC-12k: 12,000 molecules of about 23 atoms, their penalised solubility; 21 kinds of atom, 3 of bond.

    Split 10,000/1,000/1,000, mean absolute error.

    Args:
        root: Holds ``zinc/raw`` or ``ZINC/raw`` with the benchmark's ``train.pickle``, ``train.index`` and so
            on, or ``zinc/zinc12k_rebuilt.npz``, or ``zinc/raw/molecules.zip``; fetched if not.
        task: ``"graph"``.
        seed: Not used: the split is fixed.

    Raises:
        UserError: Files missing offline, damaged, or of other counts.
    """
    return load_molecules("zinc", Path(root), SIZES["zinc"])


@register_dataset("zinc-full", task="graph", paper="arXiv:2003.00982")
def load_zinc_full(*, root: str | Path = "data", task: str = "graph", seed: int = 0) -> Benchmark:
    """ZINC: all 249,456 molecules, their penalised solubility; 28 kinds of atom, 3 of bond.

    Split 220,011/24,445/5,000, mean absolute error.

    Args:
        root: Holds ``zinc/raw`` or ``ZINC/raw`` with the benchmark's ``train.pickle`` and so on, or
            ``zinc/raw/molecules.zip``; fetched if not.
        task: ``"graph"``.
        seed: Not used: the split is fixed.

    Raises:
        UserError: Files missing offline, damaged, or of other counts.
    """
    return load_molecules("zinc-full", Path(root), SIZES["zinc-full"])
