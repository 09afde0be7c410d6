"""Molecules: rdkit, imported when it is needed, and the column of a table that SMILES stand in."""

from __future__ import annotations

import importlib
import types
from collections.abc import Sequence
from typing import Any

from graphkit.errors import UserError
from graphkit.tables import columns_called

__all__ = ["SMILES_NAMES", "import_rdkit", "read_smiles", "smiles_column"]

SMILES_NAMES = ("smiles", "smile", "canonical_smiles", "smi", "mol", "molecule", "structure")
"""Names of a column of molecules, as :func:`~graphkit.tables.plain_name` has them, the likeliest first."""


def import_rdkit(module: str = "rdkit") -> types.ModuleType:
    """Imports rdkit, or one of its modules; its messages on standard error are silenced.

    Args:
        module: ``"rdkit"``, ``"rdkit.Chem"``, ...

    Raises:
        UserError: If rdkit isn't installed.
    """
    if module != "rdkit" and not module.startswith("rdkit."):
        raise ValueError(f"module is '{module}'; it must be rdkit or one of its modules")
    try:
        imported = importlib.import_module(module)
        logger = importlib.import_module("rdkit.RDLogger")
    except ModuleNotFoundError as error:
        if error.name != "rdkit":
            raise
        raise UserError('rdkit is not installed; pip install "graphkit[chem]"') from error
    logger.DisableLog("rdApp.*")  # what is wrong with a molecule, our errors say
    return imported


def read_smiles(text: str) -> Any:
    """Returns the ``rdkit.Chem.Mol`` that a SMILES stands for.

    Raises:
        UserError: It stands for none, or for a molecule without atoms; rdkit isn't installed.
    """
    molecule = import_rdkit("rdkit.Chem").MolFromSmiles(text)
    if molecule is None:
        raise UserError(f"'{text}' is no SMILES of a molecule")
    if molecule.GetNumAtoms() == 0:
        raise UserError(f"'{text}' is a molecule without atoms")
    return molecule


def smiles_column(header: Sequence[str], first: str = "") -> int | None:
    """Returns which column of a table holds the molecules, ``None`` if no name says so.

    Args:
        header: The names of all columns.
        first: The name to look for before those of :data:`SMILES_NAMES`.
    """
    for name in (first, *SMILES_NAMES) if first else SMILES_NAMES:
        if found := columns_called(header, name):
            return found[0]
    return None
