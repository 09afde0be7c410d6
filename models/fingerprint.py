"""Molecular fingerprints and gradient-boosted trees: the baseline without a neural network.

Paper: "Molecular Fingerprints Are Strong Models for Peptide Function Prediction", Jakub Adamczyk, Piotr
Ludynia, Wojciech Czech, 2025, https://arxiv.org/abs/2501.17901: counts of a molecule's fragments, hashed into
a few thousand columns, and LightGBM. Their fragments are had by ``torsions`` and ``paths``; the trees here
are scikit-learn's histogram-based ones, which follow LightGBM
(https://scikit-learn.org/stable/modules/ensemble.html#histogram-based-gradient-boosting).

Fragments: atoms with their surroundings up to a radius (ECFP; "Extended-Connectivity Fingerprints", David
Rogers, Mathew Hahn, 2010, https://doi.org/10.1021/ci100050t); optionally pairs of atoms with their distance,
chains of four atoms, rdkit's paths of bonds, and rdkit's physico-chemical descriptors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from graphkit.chem import import_rdkit, read_smiles
from graphkit.errors import UserError
from graphkit.nn.checks import require_positive
from graphkit.registry import register_model

__all__ = ["Fingerprint", "fingerprints"]

Kind = Literal["regression", "binary", "classes"]
Loss = Literal["squared_error", "absolute_error"]
MOST = 255  # counts above it are taken as it: trees tell no more values of a column apart
LEAST = 1e-12  # probability of a class that wasn't seen


def fingerprints(
    smiles: Sequence[str],
    *,
    radius: int = 2,
    bits: int = 2048,
    counts: bool = True,
    atom_pairs: bool = False,
    torsions: bool = False,
    paths: bool = False,
    descriptors: bool = False,
) -> np.ndarray:
    """Turns molecules into rows of numbers.

    Args:
        smiles: One for each molecule.
        radius: Of the surroundings of atoms, in bonds.
        bits: Columns of each fingerprint.
        counts: Count fragments; else only say which are there.
        atom_pairs: Append the fingerprint of pairs of atoms.
        torsions: Append the fingerprint of chains of four atoms.
        paths: Append the fingerprint of paths and branches of up to seven bonds.
        descriptors: Append rdkit's descriptors, some 200 numbers (slow: milliseconds a molecule).

    Returns:
        ``[n, bits]``, or as many for each fingerprint, uint8; float32 with descriptors.

    Raises:
        UserError: A SMILES stands for no molecule; rdkit isn't installed.
    """
    make = import_rdkit("rdkit.Chem.rdFingerprintGenerator")
    generators = [make.GetMorganGenerator(radius=radius, fpSize=bits)]
    if atom_pairs:
        generators.append(make.GetAtomPairGenerator(fpSize=bits))
    if torsions:
        generators.append(make.GetTopologicalTorsionGenerator(fpSize=bits))
    if paths:
        generators.append(make.GetRDKitFPGenerator(fpSize=bits))
    out = np.zeros((len(smiles), len(generators) * bits), np.uint8)
    more = []
    for row, text in enumerate(smiles):
        molecule = _molecule(text)
        for place, generator in enumerate(generators):
            count = generator.GetCountFingerprintAsNumPy(molecule)
            out[row, place * bits : (place + 1) * bits] = np.minimum(count, MOST if counts else 1)
        if descriptors:
            more.append(list(import_rdkit("rdkit.Chem.Descriptors").CalcMolDescriptors(molecule).values()))
    if not descriptors:
        return out
    limit = np.finfo(np.float32).max
    table = np.clip(np.array(more, np.float64).reshape(len(more), -1), -limit, limit)
    return np.concatenate([out, table], axis=1, dtype=np.float32, casting="same_kind")


def _molecule(text: str) -> Any:
    """Returns a molecule; unlike elsewhere, also one whose valences rdkit deems wrong.

    Old data sets hold a few of these, metal complexes for the most part; their fragments can be told anyway.
    """
    try:
        return read_smiles(text)
    except UserError:
        chem = import_rdkit("rdkit.Chem")
        molecule = chem.MolFromSmiles(text, sanitize=False)
        if molecule is None or molecule.GetNumAtoms() == 0:
            raise
        molecule.UpdatePropertyCache(strict=False)
        flags = chem.SanitizeFlags
        chem.SanitizeMol(molecule, flags.SANITIZE_ALL ^ flags.SANITIZE_PROPERTIES, catchErrors=True)
        chem.FastFindRings(molecule)
        return molecule


@register_model("fingerprint", task="graph", paper="arXiv:2501.17901")
class Fingerprint(nn.Module):
    """Molecular fingerprints and gradient-boosted trees, fitted at once; it has no parameters to train.

    Args:
        in_channels: Not used: molecules are read from SMILES.
        out_channels: Targets, labels or classes ``T``.
        node_categories: Not used.
        edge_categories: Not used.
        edge_channels: Not used.
        radius: Of the surroundings of atoms, in bonds.
        bits: Columns of each fingerprint.
        counts: Count fragments; else only say which are there.
        atom_pairs: Append the fingerprint of pairs of atoms.
        torsions: Append the fingerprint of chains of four atoms.
        paths: Append the fingerprint of paths and branches of up to seven bonds.
        descriptors: Append rdkit's descriptors (slow: milliseconds a molecule).
        trees: Rounds of boosting; each adds a tree for every target, label or class.
        learning_rate: Share of each tree.
        leaves: Leaves of a tree at most.
        min_leaf: Molecules of a leaf at least.
        l2: Regularisation of the leaves' values.
        columns: Share of the columns that each split may choose from.
        loss: Of regression.
        early_stopping: Hold out a tenth of the molecules and stop once ten rounds didn't help there.
    """

    wants_smiles = True

    def __init__(
        self,
        in_channels: int | None = None,
        out_channels: int | None = None,
        node_categories: Sequence[int] | None = None,
        edge_categories: Sequence[int] | None = None,
        edge_channels: int | None = None,
        *,
        radius: int = 2,
        bits: int = 2048,
        counts: bool = True,
        atom_pairs: bool = False,
        torsions: bool = False,
        paths: bool = False,
        descriptors: bool = False,
        trees: int = 100,
        learning_rate: float = 0.1,
        leaves: int = 31,
        min_leaf: int = 20,
        l2: float = 0.0,
        columns: float = 1.0,
        loss: Loss = "squared_error",
        early_stopping: bool = False,
    ) -> None:
        super().__init__()
        if out_channels is None:
            raise ValueError("out_channels is None; this data set has no graph targets")
        for name, value in (("out_channels", out_channels), ("bits", bits), ("trees", trees)):
            require_positive(name, value)
        require_positive("min_leaf", min_leaf)
        if radius < 0:
            raise ValueError(f"radius is {radius}; it must be at least 0")
        if leaves < 2:
            raise ValueError(f"leaves is {leaves}; it must be at least 2")
        if not learning_rate > 0:
            raise ValueError(f"learning_rate is {learning_rate}; it must be positive")
        if l2 < 0:
            raise ValueError(f"l2 is {l2}; it must be at least 0")
        if not 0 < columns <= 1:
            raise ValueError(f"columns is {columns}; it must lie in (0, 1]")
        if loss not in get_args(Loss):
            raise ValueError(f"loss is {loss!r}; it must be one of {', '.join(get_args(Loss))}")
        self.out_channels, self.min_leaf, self.loss_name = out_channels, min_leaf, loss
        self.features: dict[str, Any] = {
            "radius": radius,
            "bits": bits,
            "counts": counts,
            "atom_pairs": atom_pairs,
            "torsions": torsions,
            "paths": paths,
            "descriptors": descriptors,
        }
        self.boosting = {
            "max_iter": trees,
            "learning_rate": learning_rate,
            "max_leaf_nodes": leaves,
            "min_samples_leaf": min_leaf,
            "l2_regularization": l2,
            "max_features": columns,
            "early_stopping": early_stopping,
            "random_state": int(torch.randint(2**31 - 1, (1,))),
        }
        self.kind: str = ""
        self._kept = np.empty(0, np.int64)
        self._predictors: list[Callable[[np.ndarray], np.ndarray]] = []

    @property
    def fitted(self) -> bool:
        """Whether :meth:`fit` was called."""
        return bool(self.kind)

    def fit(self, smiles: Sequence[str], y: Tensor, kind: str) -> None:
        """Fits the trees.

        Args:
            smiles: ``n`` molecules.
            y: ``[n, T]`` values or labels in 0 and 1, NaN where unknown; or ``[n]`` int64 classes.
            kind: ``regression``, ``binary`` or ``classes``.

        Raises:
            ValueError: If an argument is none of these, or shapes don't fit.
            UserError: A SMILES stands for no molecule; rdkit isn't installed.
        """
        if kind not in get_args(Kind):
            raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(get_args(Kind))}")
        shape = (len(smiles),) if kind == "classes" else (len(smiles), self.out_channels)
        if y.shape != shape or not smiles:
            raise ValueError(f"y has shape {tuple(y.shape)} for {len(smiles)} molecules; it must be {shape}")
        x = fingerprints(smiles, **self.features)
        self._kept = _divisible(x, self.min_leaf)
        x, truth = x[:, self._kept], y.detach().cpu().numpy()
        if kind == "classes":
            self._predictors = [self._fit_classes(x, truth)]
        else:
            fit = self._fit_values if kind == "regression" else self._fit_labels
            self._predictors = [fit(x, column) for column in truth.T]
        self.kind = kind

    def predict(self, smiles: Sequence[str]) -> Tensor:
        """Returns values, logits or the logarithms of classes' probabilities, ``[n, T]`` float32.

        Raises:
            UserError: Nothing was fitted yet; a SMILES stands for no molecule; rdkit isn't installed.
        """
        if not self.fitted:
            raise UserError("the fingerprint model must be fitted before it can predict")
        if not smiles:
            return torch.zeros(0, self.out_channels)
        x = fingerprints(smiles, **self.features)[:, self._kept]
        parts = [predictor(x).reshape(len(smiles), -1) for predictor in self._predictors]
        return torch.from_numpy(np.concatenate(parts, axis=1).astype(np.float32))

    def forward(self, smiles: Sequence[str]) -> Tensor:
        return self.predict(smiles)

    def _fit_values(self, x: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """Fits one target; one that is the same everywhere is predicted as such, one without values as 0."""
        from sklearn.ensemble import HistGradientBoostingRegressor

        known = ~np.isnan(y)
        x, y = x[known], y[known]
        if not len(y) or not x.shape[1] or (y == y[0]).all():
            return _constant(float(y.mean()) if len(y) else 0.0)
        trees: Any = HistGradientBoostingRegressor(loss=self.loss_name, **self.boosting)
        return trees.fit(x, y).predict

    def _fit_labels(self, x: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """Fits one label; one that is the same everywhere gets the logit of Laplace's rule of succession."""
        from sklearn.ensemble import HistGradientBoostingClassifier

        known = ~np.isnan(y)
        x, y = x[known], y[known]
        positive = int(y.sum())
        if not x.shape[1] or positive in (0, len(y)):
            return _constant(math.log((positive + 1) / (len(y) - positive + 1)))
        trees: Any = HistGradientBoostingClassifier(**self.boosting)
        return trees.fit(x, y).decision_function

    def _fit_classes(self, x: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """Fits all classes; those that weren't seen get the least probability."""
        from sklearn.ensemble import HistGradientBoostingClassifier

        seen, count = np.unique(y, return_counts=True)
        if seen[0] < 0 or seen[-1] >= self.out_channels:
            raise ValueError(
                f"y holds classes {seen[0]} to {seen[-1]}; known are 0 to {self.out_channels - 1}"
            )
        trees: Any = None
        if len(seen) > 1 and x.shape[1]:
            trees = HistGradientBoostingClassifier(**self.boosting).fit(x, y)

        def scores(x: np.ndarray) -> np.ndarray:
            probability = np.full((len(x), self.out_channels), LEAST)
            probability[:, seen] = count / count.sum() if trees is None else trees.predict_proba(x)
            return np.log(np.maximum(probability, LEAST))

        return scores


def _constant(value: float) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a predictor that always says the same."""
    return lambda x: np.full(len(x), value)


def _divisible(x: np.ndarray, least: int) -> np.ndarray:
    """Returns the columns whose values can be divided into two groups of at least so many rows.

    No tree could split another column, so leaving these out changes nothing but time and memory. Only a
    column whose most frequent value leaves too few others is surely of no use; 0 is taken for that value.
    """
    others = np.count_nonzero(x, axis=0)
    return np.flatnonzero((others >= least) & (x != x[:1]).any(0))
