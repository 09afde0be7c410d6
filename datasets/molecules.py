"""Molecules as graphs with OGB's features (arXiv:2005.00687): atoms are nodes, bonds edges both ways.

An atom has nine categories (element, chirality, degree, charge, hydrogens, radical electrons, hybridisation,
aromatic, in a ring), a bond three (type, stereo, conjugated). The ogb package's own functions say which, so
a molecule has here what it has in OGB's files; a graph equals that of ``ogb.utils.smiles2graph``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch_geometric.data import Data

from graphkit.chem import import_rdkit, read_smiles
from graphkit.compat import import_ogb
from graphkit.data import DataSpec
from graphkit.datasets.graph_sets import Arrays, index_type, join_texts, pointer, with_inverse
from graphkit.errors import UserError

__all__ = ["atom_categories", "bond_categories", "features_key", "featurise", "graph_of", "molecule_spec"]

_log = logging.getLogger("graphkit")
_CHUNK = 4096
_REPORTED = 10_000


def atom_categories() -> tuple[int, ...]:
    """Returns the number of categories of each feature of an atom: 119, 5, 12, 12, 10, 6, 6, 2, 2."""
    return tuple(import_ogb("ogb.utils.features").get_atom_feature_dims())


def bond_categories() -> tuple[int, ...]:
    """Returns the number of categories of each feature of a bond: 5, 6, 2."""
    return tuple(import_ogb("ogb.utils.features").get_bond_feature_dims())


def molecule_spec(targets: int, columns: int | None = None) -> DataSpec:
    """Returns the sizes of a set of molecules; ``columns`` is as in :func:`graph_of`."""
    atoms, bonds = atom_categories()[:columns], bond_categories()[:columns]
    return DataSpec(out_channels=targets, node_categories=atoms, edge_categories=bonds)


@cache
def features_key() -> str:
    """Returns what features depend on, for a cache's key: the versions of ogb and rdkit."""
    ogb, rdkit = import_ogb("ogb.version"), import_rdkit()
    return f"features 1, ogb {ogb.__version__}, rdkit {rdkit.__version__}"


class _Flat:
    """Molecules as they are put together: flat lists, packed into arrays now and then."""

    def __init__(self) -> None:
        features = import_ogb("ogb.utils.features")
        self.of_atom, self.of_bond = features.atom_to_feature_vector, features.bond_to_feature_vector
        self.sizes: list[int] = []
        self.bonds: list[int] = []
        self._lists: tuple[list[Any], list[Any], list[Any]] = ([], [], [])
        self._packed: list[list[NDArray[Any]]] = [[], [], []]

    def add(self, molecule: Any) -> None:
        """Appends an ``rdkit.Chem.Mol``."""
        atoms, ends, bonds = self._lists
        atoms.extend(map(self.of_atom, molecule.GetAtoms()))
        before = len(bonds)
        for bond in molecule.GetBonds():
            ends.append((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()))
            bonds.append(self.of_bond(bond))
        self.sizes.append(molecule.GetNumAtoms())
        self.bonds.append(len(bonds) - before)
        if len(self.sizes) % _CHUNK == 0:
            self._pack()

    def _pack(self) -> None:
        for values, packed, columns, kind in zip(
            self._lists, self._packed, (9, 2, 3), (np.int8, np.int32, np.int8), strict=True
        ):
            packed.append(np.array(values, dtype=kind).reshape(-1, columns))
            values.clear()

    def arrays(self) -> Arrays:
        """Returns ``x`` int8, ``edge_index``, ``edge_attr`` int8 and the pointers."""
        self._pack()
        x, ends, bonds = (np.concatenate(packed) for packed in self._packed)
        edges = np.ascontiguousarray(ends.T).astype(index_type(max(self.sizes, default=0)))
        return {
            "x": x,
            "edge_index": with_inverse(edges),
            "edge_attr": np.repeat(bonds, 2, axis=0),
            "ptr": pointer(self.sizes),
            "edge_ptr": pointer(2 * np.array(self.bonds, dtype=np.int64)),
        }


def graph_of(smiles: str, columns: int | None = None) -> Data:
    """Makes the graph of one molecule.

    Args:
        smiles: The molecule.
        columns: How many columns of features there are, of atoms and of bonds: 2 are OGB's simple ones
            (element and chirality, bond type and stereo); all by default.

    Returns:
        ``x`` ``[n, 9]`` int8, ``edge_index`` ``[2, E]`` int64, ``edge_attr`` ``[E, 3]`` int8; both directions
        of a bond follow each other.

    Raises:
        UserError: ``smiles`` is no molecule.
    """
    flat = _Flat()
    flat.add(read_smiles(smiles))
    made = {name: torch.from_numpy(array) for name, array in flat.arrays().items()}
    x, edge_attr = made["x"][:, :columns], made["edge_attr"][:, :columns]
    nodes = x.size(0)
    return Data(x=x, edge_index=made["edge_index"].long(), edge_attr=edge_attr, num_nodes=nodes)


def _scaffold(molecule: Any) -> str:
    """Returns the Bemis-Murcko scaffold: rings and what links them, without chirality."""
    murcko = import_rdkit("rdkit.Chem.Scaffolds.MurckoScaffold")
    text: str = murcko.MurckoScaffoldSmiles(mol=molecule, includeChirality=False)
    return text


def featurise(
    smiles: Sequence[str],
    *,
    name: str,
    where: Callable[[int], str] = "molecule {}".format,
    skip_invalid: bool = False,
    skip_repeated: bool = False,
    scaffolds: bool = False,
) -> Arrays:
    """Makes the graphs of molecules, in flat arrays.

    Args:
        smiles: ``G'`` molecules.
        name: What they are, for the lines that say how far this is, one for 10,000 molecules.
        where: Says where a molecule comes from, for messages.
        skip_invalid: Whether what is no molecule is left out.
        skip_repeated: Whether a molecule that was there before, however it was written, is left out.
        scaffolds: Whether to look for scaffolds as well.

    Returns:
        For G molecules: ``x`` ``[N, 9]`` int8, ``edge_index`` ``[2, E]`` of the smallest type that holds it,
        ``edge_attr`` ``[E, 3]`` int8, ``ptr``, ``edge_ptr`` ``[G + 1]`` int64, ``smiles`` as
        :func:`~graphkit.datasets.graph_sets.join_texts` has them, ``kept`` ``[G]`` int64 their places in
        ``smiles``, and with ``scaffolds`` ``scaffold`` ``[G]`` int64, the same number for the same scaffold.

    Raises:
        UserError: One is no molecule and isn't to be skipped, or none is one.
    """
    canonical = import_rdkit("rdkit.Chem").MolToSmiles
    flat, known, seen = _Flat(), dict[str, int](), set[str]()
    kept: list[int] = []
    scaffold: list[int] = []
    for number, text in enumerate(smiles):
        if number and number % _REPORTED == 0:
            _log.info("%s: %s of %s molecules made graphs", name, f"{number:,}", f"{len(smiles):,}")
        try:
            molecule = read_smiles(text)
        except UserError as error:
            if skip_invalid:
                continue
            raise UserError(f"{where(number)}: {error}") from error
        if skip_repeated:
            if (same := canonical(molecule)) in seen:
                continue
            seen.add(same)
        flat.add(molecule)
        kept.append(number)
        if scaffolds:
            scaffold.append(known.setdefault(_scaffold(molecule), len(known)))
    if not kept:
        raise UserError(f"{where(0)}: none of {len(smiles):,} lines is a molecule")
    made = flat.arrays()
    made["smiles"] = join_texts([" ".join(smiles[number].split()) for number in kept])
    made["kept"] = np.array(kept, dtype=np.int64)
    if scaffolds:
        made["scaffold"] = np.array(scaffold, dtype=np.int64)
    return made
