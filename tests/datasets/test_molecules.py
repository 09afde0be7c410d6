"""Molecules: OGB's features and none else, scaffolds, and rdkit's own five thousand."""

from __future__ import annotations

import gzip
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from graphkit.chem import import_rdkit
from graphkit.compat import import_ogb
from graphkit.data import Benchmark, load_dataset
from graphkit.datasets import molecules, nci
from graphkit.datasets.graph_sets import Texts
from graphkit.datasets.molecules import atom_categories, bond_categories, featurise, graph_of
from graphkit.datasets.splits import scaffold_split
from graphkit.errors import UserError

SMILES = [
    "O1C=C[C@H]([C@H]1O2)c3c2cc(OC)c4c3OC(=O)C5=C4CCC(=O)5",
    "C",
    "[Na+].[Cl-]",
    "F/C=C/F",
    "CC#N",
    "N[C@@H](C)C(=O)O",
    "[Pt]",
    "c1ccccc1C(=O)[O-]",
]


def arrays(data: Any) -> list[Any]:
    return [data.x.tolist(), data.edge_index.tolist(), data.edge_attr.tolist()]


@pytest.mark.parametrize("text", SMILES)
def test_a_graph_is_that_of_ogb(text: str) -> None:
    theirs = import_ogb("ogb.utils.mol").smiles2graph(text)
    ours = graph_of(text)
    assert arrays(ours) == [theirs[name].tolist() for name in ("node_feat", "edge_index", "edge_feat")]
    assert ours.num_nodes == theirs["num_nodes"]
    assert ours.edge_index.shape == (2, ours.edge_attr.size(0))
    assert ours.edge_index.dtype == torch.int64


def test_simple_features_are_the_first_two_columns() -> None:
    full, simple = graph_of(SMILES[0]), graph_of(SMILES[0], 2)
    assert torch.equal(simple.x, full.x[:, :2])
    assert torch.equal(simple.edge_attr, full.edge_attr[:, :2])


def test_categories_have_the_sizes_of_ogb() -> None:
    assert atom_categories() == (119, 5, 12, 12, 10, 6, 6, 2, 2)
    assert bond_categories() == (5, 6, 2)
    with pytest.raises(UserError, match="'CCX' is no SMILES"):
        graph_of("CCX")


@pytest.mark.parametrize("chunk", [1, 3, 4096])
def test_flat_arrays_hold_the_same_graphs(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(molecules, "_CHUNK", chunk)
    made = featurise(SMILES, name="these")
    for number, text in enumerate(SMILES):
        nodes = slice(*made["ptr"][number : number + 2])
        edges = slice(*made["edge_ptr"][number : number + 2])
        found = [made["x"][nodes], made["edge_index"][:, edges], made["edge_attr"][edges]]
        assert [part.tolist() for part in found] == arrays(graph_of(text))
    assert made["x"].dtype == made["edge_index"].dtype == made["edge_attr"].dtype == np.int8
    assert list(Texts(torch.from_numpy(made["smiles"].copy()))) == SMILES
    assert made["kept"].tolist() == list(range(len(SMILES)))


def test_what_is_no_molecule_is_an_error_or_left_out() -> None:
    lines = ["CC", "nonsense", "", "C(C)", "OCC"]
    with pytest.raises(UserError, match="line 7: 'nonsense' is no SMILES"):
        featurise(lines, name="these", where=lambda number: f"line {number + 6}")
    assert featurise(lines, name="these", skip_invalid=True)["kept"].tolist() == [0, 3, 4]
    few = featurise(lines, name="these", skip_invalid=True, skip_repeated=True)
    assert few["kept"].tolist() == [0, 4]
    with pytest.raises(UserError, match="none of 2 lines is a molecule"):
        featurise(["x", "y"], name="these", skip_invalid=True)


def test_a_scaffold_is_rings_and_what_links_them() -> None:
    lines = ["CCO", "c1ccccc1C", "CCN", "Oc1ccccc1", "C1CC1Cc1ccccc1", "CC1CC1Cc1ccccc1"]
    made = featurise(lines, name="these", scaffolds=True)
    assert made["scaffold"].tolist() == [0, 1, 0, 1, 2, 2]


def test_long_work_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(molecules, "_REPORTED", 2)
    with caplog.at_level(logging.INFO, logger="graphkit"):
        featurise(["C"] * 5, name="these")
    assert caplog.messages == ["these: 2 of 5 molecules made graphs", "these: 4 of 5 molecules made graphs"]


@pytest.mark.parametrize("name", ["ogbg_molesol", "ogbg_molfreesolv"])
def test_the_split_by_scaffold_is_the_official_one(test_data: Path, name: str) -> None:
    import pandas as pd

    folder = test_data / "ogb" / name
    smiles = pd.read_csv(folder / "mapping" / "mol.csv.gz")["smiles"].tolist()
    scaffold = featurise(smiles, name=name, scaffolds=True)["scaffold"]
    for part, index in scaffold_split(torch.from_numpy(scaffold)).items():
        stored = gzip.decompress((folder / "split" / "scaffold" / f"{part}.csv.gz").read_bytes())
        assert index["index"].tolist() == [int(line) for line in stored.split()]


# --- rdkit's molecules ---


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the molecules are kept from one test to the next."""
    return tmp_path_factory.mktemp("nci")


def test_nci_needs_no_download(root: Path, check_graphs_of: Callable[[Benchmark], Any]) -> None:
    benchmark = load_dataset("nci-tpsa", root=root)
    graphs = check_graphs_of(benchmark)
    assert len(graphs) == 4892
    assert (benchmark.metric, benchmark.maximize, benchmark.spec.out_channels) == ("mae", False, 1)
    assert [benchmark.info[part] for part in ("train", "valid", "test")] == [3914, 489, 489]
    assert benchmark.info["left out"] == 107
    assert benchmark.from_smiles is not None
    assert benchmark.smiles is not None
    for number in (0, 17, 4891):
        again = benchmark.from_smiles(benchmark.smiles[number])
        assert torch.equal(again.x, graphs[number].x)
        assert torch.equal(again.edge_index, graphs[number].edge_index)


def test_nci_areas_belong_to_their_molecules(root: Path) -> None:
    benchmark = load_dataset("nci-tpsa", root=root)
    chem, descriptors = import_rdkit("rdkit.Chem"), import_rdkit("rdkit.Chem.rdMolDescriptors")
    assert benchmark.smiles is not None
    chosen = range(0, 4892, 7)
    areas = [descriptors.CalcTPSA(chem.MolFromSmiles(benchmark.smiles[number])) for number in chosen]
    off = (torch.tensor(areas) - benchmark.data.y[list(chosen), 0]).abs() > 0.02
    assert int(off.sum()) <= 2  # of all molecules two differ between rdkit and the file


def test_nci_molecules_are_distinct(root: Path) -> None:
    benchmark = load_dataset("nci-tpsa", root=root)
    chem = import_rdkit("rdkit.Chem")
    assert benchmark.smiles is not None
    part = [chem.MolToSmiles(chem.MolFromSmiles(text)) for text in benchmark.smiles[:600]]
    assert len(set(part)) == len(part)


def test_nci_splits(root: Path) -> None:
    first, again, other = (load_dataset("nci-tpsa", root=root, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.splits["test"]["index"], again.splits["test"]["index"])
    assert not torch.equal(first.splits["test"]["index"], other.splits["test"]["index"])
    by_scaffold = load_dataset("nci-tpsa", root=root, split="scaffold", valid_ratio=0.2)
    assert by_scaffold.info["valid"] == pytest.approx(0.2 * 4892, abs=2)
    assert "seed" not in by_scaffold.info
    with pytest.raises(UserError, match="split is 'time'; it must be one of random, scaffold"):
        load_dataset("nci-tpsa", root=root, split="time")
    with pytest.raises(UserError, match="must be positive"):
        load_dataset("nci-tpsa", root=root, valid_ratio=0)


def test_nci_lines_are_read_strictly(tmp_path: Path) -> None:
    path = tmp_path / "areas.csv"
    path.write_text("# comment\nCCO,20.23\n\nOCC,20.23\nnonsense,1\nCC,0\n")
    made, info = nci.read_tpsa(path)
    assert made["y"].tolist() == [[pytest.approx(20.23)], [0.0]]
    assert info == {"left out": 2}
    for line in ("CC", "CC,", ",3", "CC,much", "CC,nan"):
        path.write_text(f"CCO,1\n{line}\n")
        with pytest.raises(UserError, match=r"areas.csv, line 2: a SMILES, a comma and a number"):
            nci.read_tpsa(path)
    with pytest.raises(UserError, match="can't read"):
        nci.read_tpsa(tmp_path / "absent")
