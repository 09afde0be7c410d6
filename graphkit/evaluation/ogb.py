"""OGB's own evaluators, the reported truth for OGB's data sets, behind guards.

Unguarded, ogb 1.3.6 gives NaN positives a reciprocal rank of 1.0 (every comparison with NaN is false) and
Hits@K = 1.0 to fewer than K negatives; its numpy branch for MRR raises. Here scores are checked first and are
always handed over as torch tensors.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from graphkit.compat import import_ogb
from graphkit.errors import UserError, did_you_mean
from graphkit.evaluation.metrics import check_scores

__all__ = ["OGBEvaluator", "OGBLinkEvaluator", "ogb_evaluator"]

_MODULES = {"ogbl": "ogb.linkproppred", "ogbn": "ogb.nodeproppred", "ogbg": "ogb.graphproppred"}


def _wrapped(name: str, families: tuple[str, ...]) -> Any:
    """Returns OGB's evaluator for a data set of one of the families."""
    family = name.split("-")[0]
    if family not in families:
        raise UserError(
            f"'{name}' is no OGB name; one of {', '.join(f'{f}-...' for f in families)} was expected"
        )
    module = import_ogb(_MODULES[family])
    evaluate = import_ogb(f"{_MODULES[family]}.evaluate")
    import pandas as pd

    table = pd.read_csv(f"{(module.__path__)[0]}/master.csv", index_col=0, nrows=0)
    if name not in table:
        raise UserError(f"unknown OGB data set '{name}'{did_you_mean(name, table.columns)}")
    return evaluate.Evaluator(name)


def _warn_if_constant(*scores: Tensor) -> None:
    first = scores[0].reshape(-1)[0]
    if sum(s.numel() for s in scores) > len(scores) and all(bool((s == first).all()) for s in scores):
        warnings.warn(f"all scores are {float(first):g}: this ranks nothing", stacklevel=3)


class OGBLinkEvaluator:
    """OGB's evaluator of a link data set: ``evaluator(pos, neg) -> {"hits@50": ...}``.

    Args:
        name: ``"ogbl-collab"``, ``"ogbl-citation2"``, ...

    Attributes:
        metric: The deciding key of the result: ``"hits@K"``, ``"mrr"`` or ``"rocauc"``.
        k: K of Hits@K, else ``None``.

    Raises:
        UserError: Unknown name. When called: no scores, non-finite ones, fewer than K negatives, or shapes
            that don't belong together (``pos`` ``[P]``; ``neg`` ``[N]``, for MRR ``[P, K]``).
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._evaluator = _wrapped(name, ("ogbl",))
        self.metric: str = self._evaluator.eval_metric
        self.k: int | None = getattr(self._evaluator, "K", None)

    def __call__(self, pos: Tensor, neg: Tensor) -> dict[str, float]:
        pos, neg = pos.detach().cpu(), neg.detach().cpu()
        pos = pos.reshape(-1) if pos.dim() == 2 and pos.size(1) == 1 else pos
        if self.metric != "mrr":
            neg = neg.reshape(-1) if neg.dim() == 2 and neg.size(1) == 1 else neg
        check_scores(pos, "positive scores")
        check_scores(neg, "negative scores")
        want = "[P, K] with the positives' P" if self.metric == "mrr" else "[N]"
        fits = neg.dim() == 2 and neg.size(0) == pos.numel() if self.metric == "mrr" else neg.dim() == 1
        if pos.dim() != 1 or not fits:
            raise UserError(
                f"{self.name} takes positives [P] and negatives {want}, "
                f"not {list(pos.shape)} and {list(neg.shape)}"
            )
        if self.k is not None and neg.numel() < self.k:
            raise UserError(f"{self.metric} needs at least {self.k} negatives; there are {neg.numel()}")
        _warn_if_constant(pos, neg)
        result = self._evaluator.eval({"y_pred_pos": pos, "y_pred_neg": neg})
        lists = {key: torch.as_tensor(value, dtype=torch.float64) for key, value in result.items()}
        return {key.removesuffix("_list"): float(value.mean()) for key, value in lists.items()}

    def __repr__(self) -> str:
        return f"{type(self).__name__}('{self.name}')"


class OGBEvaluator:
    """OGB's evaluator of a node or graph data set: ``evaluator(predictions, y) -> {"rocauc": ...}``.

    Args:
        name: ``"ogbn-arxiv"``, ``"ogbg-molhiv"``, ...

    Attributes:
        metric: The deciding key of the result: ``"acc"``, ``"rocauc"``, ``"ap"``, ``"rmse"`` or ``"F1"``.

    Raises:
        UserError: Unknown name. When called: nothing to evaluate, non-finite predictions, shapes that don't
            belong together, or (``rocauc``, ``ap``) no label with both positives and negatives.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._evaluator = _wrapped(name, ("ogbn", "ogbg"))
        self.metric: str = self._evaluator.eval_metric

    def __call__(self, predictions: Any, y: Any) -> dict[str, float]:
        if self.metric == "F1":
            return self._sequences(predictions, y)
        predictions, y = predictions.detach().cpu(), y.detach().cpu()
        y = y[:, None] if y.dim() == 1 else y
        if predictions.numel() == 0 or y.numel() == 0:
            raise UserError("there are no predictions: the split is empty")
        if predictions.is_floating_point():
            check_scores(predictions, "predictions")
            _warn_if_constant(predictions)
            if self.metric == "acc":  # class scores [n, C]; OGB wants classes
                predictions = predictions.argmax(1)
        predictions = predictions[:, None] if predictions.dim() == 1 else predictions
        if predictions.shape != y.shape:
            raise UserError(f"predictions have shape {list(predictions.shape)}, the truth {list(y.shape)}")
        if self.metric in ("rocauc", "ap") and not ((y == 1).any(0) & (y == 0).any(0)).any():
            raise UserError(
                "there is nothing to rank: no label of this split has both positives and negatives"
            )
        result = self._evaluator.eval({"y_pred": predictions, "y_true": y})
        return {key: float(value) for key, value in result.items()}

    def _sequences(
        self, predictions: Sequence[Sequence[str]], y: Sequence[Sequence[str]]
    ) -> dict[str, float]:
        """Evaluates predicted token lists (ogbg-code2); returns F1, precision and recall."""
        if len(y) == 0 or len(predictions) != len(y):
            raise UserError(f"{len(predictions)} predicted sequences for {len(y)}; as many, and at least one")
        result = self._evaluator.eval({"seq_ref": list(y), "seq_pred": list(predictions)})
        return {key: float(value) for key, value in result.items()}

    def __repr__(self) -> str:
        return f"{type(self).__name__}('{self.name}')"


def ogb_evaluator(name: str) -> OGBLinkEvaluator | OGBEvaluator:
    """Returns the guarded evaluator of any OGB data set by its name."""
    return OGBLinkEvaluator(name) if name.startswith("ogbl-") else OGBEvaluator(name)
