"""Metrics, and OGB's own evaluators behind guards."""

from graphkit.evaluation.graph import (
    GraphEvaluator,
    average_precision,
    balanced_accuracy,
    mae,
    rmse,
    roc_auc,
)
from graphkit.evaluation.kgqa import KgqaEvaluator, rescore
from graphkit.evaluation.metrics import LinkEvaluator, NodeEvaluator, accuracy, auc, hits_at_k, mrr

__all__ = [
    "GraphEvaluator",
    "KgqaEvaluator",
    "LinkEvaluator",
    "NodeEvaluator",
    "accuracy",
    "auc",
    "average_precision",
    "balanced_accuracy",
    "hits_at_k",
    "mae",
    "mrr",
    "rescore",
    "rmse",
    "roc_auc",
]
