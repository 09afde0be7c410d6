"""Molecules that need no download: the first 5,000 of the NCI's open database, which rdkit brings along."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from graphkit.chem import import_rdkit
from graphkit.data import Benchmark
from graphkit.datasets.graph_sets import Arrays, graph_benchmark, kept_graphs, texts_of
from graphkit.datasets.molecules import features_key, featurise, graph_of, molecule_spec
from graphkit.datasets.splits import random_node_split, scaffold_split
from graphkit.errors import UserError
from graphkit.evaluation.graph import GraphEvaluator
from graphkit.files import sha256
from graphkit.registry import register_dataset

__all__ = ["load_nci_tpsa", "read_tpsa"]

CITATION = (
    "Ertl, Rohde, Selzer: Fast Calculation of Molecular Polar Surface Area as a Sum of Fragment-Based "
    "Contributions and Its Application to the Prediction of Drug Transport Properties, J. Med. Chem. 43, "
    "2000; molecules of the NCI Open Database as distributed with rdkit"
)
TABLE = "first_5k.tpsa.csv"


def table() -> Path:
    """Returns the file of molecules and areas within rdkit.

    Raises:
        UserError: If this rdkit doesn't have it.
    """
    path = Path(import_rdkit("rdkit.RDConfig").RDDataDir) / "NCI" / TABLE
    if not path.is_file():
        raise UserError(f"this rdkit has no {path}; rdkit from PyPI does (pip install rdkit)")
    return path


def read_tpsa(path: Path) -> tuple[Arrays, dict[str, Any]]:
    """Reads molecules and their areas; what rdkit can't read, or had before, is left out.

    Args:
        path: Lines of a SMILES, a comma and a number, with comments (``#``). Quotes have no meaning.

    Returns:
        The arrays of :func:`~graphkit.datasets.molecules.featurise` with scaffolds and ``y`` ``[G, 1]``
        float32, and the number of molecules left out.

    Raises:
        UserError: A line isn't a molecule and a number; names file and line.
    """
    smiles, areas = [], []
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"can't read {path}: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        text, _, cell = line.rpartition(",")
        try:
            area = float(cell)
        except ValueError:
            area = float("nan")
        if not text or not np.isfinite(area):
            raise UserError(f"{path}, line {number}: a SMILES, a comma and a number were expected")
        smiles.append(text)
        areas.append(area)
    where = f"{path}, molecule {{}}".format
    made = featurise(
        smiles, name="nci-tpsa", where=where, skip_invalid=True, skip_repeated=True, scaffolds=True
    )
    made["y"] = np.array(areas, dtype=np.float32)[made.pop("kept"), None]
    return made, {"left out": len(smiles) - len(made["y"])}


@register_dataset("nci-tpsa", task="graph")
def load_nci_tpsa(
    *,
    root: str | Path = "data",
    task: str = "graph",
    seed: int = 0,
    split: Literal["random", "scaffold"] = "random",
    valid_ratio: float = 0.1,
    test_ratio: float = 0.1,
) -> Benchmark:
    """nci-tpsa: 4,892 molecules, their polar surface area in square angstroms. Needs no download.

    The area is Ertl's sum of fragments, computed by Daylight's tools; it follows from the atoms' surroundings
    alone, so a model that sees them can learn it well. Of rdkit's 4,999 molecules 107 are left out: 8 that it
    can't read, and 99 that were listed before.

    Args:
        root: The graphs, once made, are kept in ``root/nci-tpsa``.
        task: ``"graph"``.
        seed: Seeds the random split.
        split: ``random``, or ``scaffold``: the molecules of one ring system are in one part, the rarest ones
            are tested.
        valid_ratio: Share for validation.
        test_ratio: Share for test.

    Raises:
        UserError: rdkit is missing, or a share is out of range.
    """
    if split not in ("random", "scaffold"):
        raise UserError(f"split is '{split}'; it must be one of random, scaffold")
    path = table()
    kept = kept_graphs(
        Path(root) / "nci-tpsa" / "processed",
        f"nci-tpsa/1/{features_key()}/{sha256(path)}",
        lambda: read_tpsa(path),
    )
    tensors = kept.tensors
    if split == "scaffold":
        splits = scaffold_split(tensors["scaffold"], valid_ratio, test_ratio)
    else:
        every = torch.arange(tensors["y"].size(0))
        splits = random_node_split(every, seed, valid_ratio, test_ratio, what="molecules")
    info: dict[str, Any] = {"source": "rdkit, NCI open database", "split": split, **kept.info}
    return graph_benchmark(
        "nci-tpsa",
        tensors,
        splits,
        molecule_spec(1),
        targets="regression",
        evaluator=GraphEvaluator("regression", "mae"),
        metric="mae",
        info=info | ({"seed": seed} if split == "random" else {}),
        citation=CITATION,
        target_names=["polar surface area"],
        smiles=texts_of(tensors),
        from_smiles=graph_of,
    )
