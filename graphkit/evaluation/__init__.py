"""Metrics, and OGB's own evaluators behind guards."""

from graphkit.evaluation.metrics import LinkEvaluator, NodeEvaluator, accuracy, auc, hits_at_k, mrr

__all__ = ["LinkEvaluator", "NodeEvaluator", "accuracy", "auc", "hits_at_k", "mrr"]
