"""rdkit, imported when it is needed and with one clear line where it is missing."""

from __future__ import annotations

import importlib
import types
from typing import Any

from graphkit.errors import UserError

__all__ = ["import_rdkit", "read_smiles"]


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
