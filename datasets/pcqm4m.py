"""PCQM4Mv2 of OGB's large-scale challenge (arXiv:2103.09430): the energy gap of 3.5 million molecules.

The challenge's test labels are hidden. So, as is customary since GraphGPS (arXiv:2205.12454), 150,000 of the
training molecules validate and the official validation set is tested; the official test molecules are left
out. Making the graphs takes about half an hour, once; they are kept in ``<root>/pcqm4mv2/processed``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from graphkit.compat import ogb_safe_globals
from graphkit.data import Benchmark
from graphkit.datasets.archives import raw_files
from graphkit.datasets.graph_sets import Arrays, graph_benchmark, texts_of
from graphkit.datasets.molecules import features_key, featurise, graph_of, molecule_spec
from graphkit.datasets.ogb_benchmark import kept
from graphkit.datasets.ogb_raw import damaged
from graphkit.datasets.pickles import read_tensors
from graphkit.errors import UserError
from graphkit.evaluation.graph import GraphEvaluator
from graphkit.files import sha256
from graphkit.registry import register_dataset

__all__ = ["load_pcqm4mv2", "load_quantum", "read_quantum"]

URL = "https://dgl-data.s3-accelerate.amazonaws.com/dataset/OGB-LSC/pcqm4m-v2.zip"
CITATION = (
    "Hu, Fey, Ren, Nakata, Dong, Leskovec: OGB-LSC: A Large-Scale Challenge for Machine Learning on Graphs, "
    "NeurIPS 2021, arXiv:2103.09430; molecules: Nakata, Shimazaki, PubChemQC, 2017"
)
LABELLED = (3_378_606, 73_545)  # official training and validation molecules
HELD_OUT = 150_000
SHUFFLE = 42


def _official(path: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Reads the official training and validation molecules."""
    with ogb_safe_globals():
        stored = read_tensors(path)
    if not isinstance(stored, Mapping) or not {"train", "valid"} <= stored.keys():
        raise UserError(f"{path} must hold the indices train and valid")
    with damaged(path):
        train, valid = (np.asarray(stored[part]).reshape(-1).astype(np.int64) for part in ("train", "valid"))
    return train, valid


def read_quantum(table: Path, split: Path, held_out: int) -> Arrays:
    """Reads the molecules with a known gap and makes them graphs.

    Args:
        table: CSV, gzipped, with ``smiles`` and ``homolumogap``.
        split: Indices of the official parts.
        held_out: Molecules of the official training part that validate: the first ones of
            ``numpy.random.default_rng(42).permutation`` of it.

    Returns:
        The arrays of :func:`~graphkit.datasets.molecules.featurise`, ``y`` ``[G, 1]`` float32 in eV, and
        ``train``, ``valid`` and ``test``.

    Raises:
        UserError: A file is damaged, or a molecule of the split has no gap.
    """
    import pandas as pd

    train, test = _official(split)
    with damaged(table):
        frame = pd.read_csv(table, usecols=["smiles", "homolumogap"])
        gap = frame["homolumogap"].to_numpy(np.float32)
        smiles = frame["smiles"].astype(str).tolist()
    listed = np.sort(np.concatenate([train, test]))
    if listed.size == 0 or listed[0] < 0 or listed[-1] >= len(gap) or (np.diff(listed) == 0).any():
        raise UserError(f"{split} must name molecules from 0 to {len(gap) - 1}, each once at most")
    if not np.isfinite(gap[listed]).all():
        line = int(listed[~np.isfinite(gap[listed])][0]) + 2
        raise UserError(f"{table}, line {line}: a molecule of the training or validation part has no gap")
    if not 0 < held_out < len(train):
        raise UserError(f"{split} names {len(train):,} training molecules; {held_out:,} are to be held out")
    shuffled = np.random.default_rng(SHUFFLE).permutation(train)
    parts = {"train": shuffled[held_out:], "valid": shuffled[:held_out], "test": test}
    made = featurise(
        [smiles[at] for at in listed.tolist()],
        name="pcqm4mv2",
        where=lambda number: f"{table}, line {listed[number] + 2}",
    )
    made.pop("kept")
    made["y"] = gap[listed, None]
    return made | {part: np.sort(np.searchsorted(listed, index)) for part, index in parts.items()}


def load_quantum(root: Path, held_out: int = HELD_OUT, *, published: bool = True) -> Benchmark:
    """Loads PCQM4Mv2, or with ``published`` false a set in its layout of any size."""
    homes = [root / "pcqm4mv2", root / "pcqm4m-v2", root / "pcqm4mv2" / "raw" / "pcqm4m-v2"]
    raw, rest = [home / "raw" for home in homes], ["split_dict.pt"]
    source = {"url": URL, "archive": "pcqm4m-v2.zip", "hint": "the molecules of 'nci-tpsa' need no download"}
    table = raw_files(raw, ["data.csv.gz"], **source, optional=rest)[0]
    split = raw_files([table.parent, table.parent.parent], rest, **source)[0]
    tensors = kept(
        root / "pcqm4mv2" / "processed",
        f"pcqm4mv2/1/{features_key()}/{held_out}/{sha256(table)}/{sha256(split)}",
        lambda: read_quantum(table, split, held_out),
        mapped=True,
    )
    parts = {part: {"index": tensors[part].clone()} for part in ("train", "valid", "test")}
    found = (sum(parts[part]["index"].numel() for part in ("train", "valid")), parts["test"]["index"].numel())
    if published and found != LABELLED:
        raise UserError(f"{table.parent} isn't PCQM4Mv2: its parts hold {found}, published are {LABELLED}")
    info = {"source": URL, "raw": str(table.parent), "split": f"{held_out:,} of training held out"}
    return graph_benchmark(
        "pcqm4mv2",
        tensors,
        parts,
        molecule_spec(1),
        targets="regression",
        evaluator=GraphEvaluator("regression", "mae"),
        metric="mae",
        info=info,
        citation=CITATION,
        target_names=["HOMO-LUMO gap"],
        smiles=texts_of(tensors),
        from_smiles=graph_of,
    )


@register_dataset("pcqm4mv2", task="graph", paper="arXiv:2103.09430")
def load_pcqm4mv2(*, root: str | Path = "data", task: str = "graph", seed: int = 0) -> Benchmark:
    """PCQM4Mv2: 3,452,151 molecules of about 14 atoms, the energy gap between their orbitals in eV.

    Split 3,228,606/150,000/73,545: of the official training molecules 150,000 validate, chosen by a fixed
    seed, and the official validation set is tested. Mean absolute error. Arrays are memory-mapped.

    Args:
        root: Holds ``pcqm4mv2`` or ``pcqm4m-v2`` with OGB's ``raw/data.csv.gz`` and ``split_dict.pt``;
            fetched if not.
        task: ``"graph"``.
        seed: Not used: the split is fixed.

    Raises:
        UserError: Files missing offline, damaged, or of other counts; rdkit is missing.
    """
    return load_quantum(Path(root))
