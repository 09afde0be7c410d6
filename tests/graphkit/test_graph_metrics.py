"""Metrics of graph tasks: equal to scikit-learn's and OGB's, NaN labels left out, nothing from nothing."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from graphkit.compat import import_ogb
from graphkit.errors import UserError
from graphkit.evaluation import (
    GraphEvaluator,
    average_precision,
    balanced_accuracy,
    mae,
    rmse,
    roc_auc,
)
from graphkit.evaluation.graph import METRICS
from graphkit.report import display_scale

RANKS = {"rocauc": roc_auc, "ap": average_precision}


@st.composite
def ranked(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Scores of few values, so that many are tied, and labels of several tasks, some unknown."""
    n, tasks = draw(st.integers(1, 30)), draw(st.integers(1, 4))
    levels = draw(st.sampled_from([2, 5, 1000]))
    scores = draw(hnp.arrays(np.int64, (n, tasks), elements=st.integers(-levels, levels)))
    labels = draw(hnp.arrays(np.int64, (n, tasks), elements=st.integers(-1, 1)))
    y = torch.from_numpy(labels).float()
    y[y < 0] = math.nan
    return torch.from_numpy(scores) / 7, y


def theirs(name: str, scores: Tensor, y: Tensor) -> float | None:
    """scikit-learn's metric, averaged over the tasks that have both classes."""
    from sklearn import metrics

    function = {"rocauc": metrics.roc_auc_score, "ap": metrics.average_precision_score}[name]
    values = []
    for t in range(y.size(1)):
        known = ~torch.isnan(y[:, t])
        if len(set(y[known, t].tolist())) == 2:
            values.append(function(y[known, t].numpy(), scores[known, t].numpy()))
    return sum(values) / len(values) if values else None


@pytest.mark.parametrize("name", list(RANKS))
@given(case=ranked())
@pytest.mark.filterwarnings("ignore:all .* scores are")
def test_rank_metrics_are_scikit_learns(name: str, case: tuple[Tensor, Tensor]) -> None:
    expected = theirs(name, *case)
    if expected is None:
        with pytest.raises(UserError, match="no label of this split has both positives and negatives"):
            RANKS[name](*case)
    else:
        assert RANKS[name](*case) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("data_set", "ours", "key"),
    [
        ("ogbg-moltox21", roc_auc, "rocauc"),
        ("ogbg-molpcba", average_precision, "ap"),
        ("ogbg-molesol", rmse, "rmse"),
    ],
)
def test_metrics_are_ogbs(data_set: str, ours: Callable[[Tensor, Tensor], float], key: str) -> None:
    evaluator = import_ogb("ogb.graphproppred").Evaluator(data_set)
    tasks = int(evaluator.num_tasks)
    guess = torch.randn(60, tasks).mul(3).round()
    y = torch.randn(60, tasks) if key == "rmse" else torch.randint(2, (60, tasks)).float()
    y[torch.rand(60, tasks) < 0.2] = math.nan
    assert ours(guess, y) == pytest.approx(evaluator.eval({"y_true": y, "y_pred": guess})[key])


@given(case=ranked())
def test_errors_are_means_over_what_is_known(case: tuple[Tensor, Tensor]) -> None:
    predictions, y = case
    absolute, roots = [], []
    for t in range(y.size(1)):
        errors = [
            float(p) - float(v)
            for p, v in zip(predictions[:, t].double(), y[:, t], strict=True)
            if not math.isnan(v)
        ]
        if errors:
            absolute.append(sum(map(abs, errors)) / len(errors))
            roots.append(math.sqrt(sum(e * e for e in errors) / len(errors)))
    if not absolute:
        with pytest.raises(UserError, match="no value of this split is known"):
            mae(predictions, y)
    else:
        assert mae(predictions, y) == pytest.approx(sum(absolute) / len(absolute))
        assert rmse(predictions, y) == pytest.approx(sum(roots) / len(roots))


@given(y=hnp.arrays(np.int64, st.integers(1, 40), elements=st.integers(0, 4)), seed=st.integers(0, 2**31))
def test_balanced_accuracy_is_the_mean_recall_of_classes_that_occur(
    y: np.ndarray[tuple[int], np.dtype[np.int64]], seed: int
) -> None:
    from sklearn.metrics import balanced_accuracy_score

    scores = torch.randn(len(y), 5, generator=torch.Generator().manual_seed(seed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes that are predicted alone
        expected = balanced_accuracy_score(y, scores.argmax(1).numpy())
    assert balanced_accuracy(scores, torch.from_numpy(y)) == pytest.approx(expected)


def test_binary_labels_are_decided_at_logit_zero() -> None:
    logits = torch.tensor([[1.0], [2.0], [-1.0], [-3.0], [5.0]])
    y = torch.tensor([[1.0], [0.0], [0.0], [0.0], [math.nan]])
    assert balanced_accuracy(logits, y) == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert GraphEvaluator("binary", "accuracy")(logits, y)["accuracy"] == pytest.approx(3 / 4)


def test_evaluator_reports_what_decides_first_and_the_others() -> None:
    y = torch.tensor([[0.0], [1.0], [1.0]])
    guess = torch.tensor([[-1.0], [0.5], [2.0]])
    assert list(GraphEvaluator("regression", "rmse")(guess, y)) == ["rmse", "mae"]
    assert GraphEvaluator("binary", "ap")(guess, y) == {"ap": 1.0, "rocauc": 1.0}
    assert list(GraphEvaluator("binary", "balanced_accuracy")(guess, y)) == [
        "balanced_accuracy",
        "rocauc",
        "ap",
        "accuracy",
    ]
    classes = GraphEvaluator("classes", "accuracy")(torch.eye(3), torch.tensor([0, 1, 1]))
    assert classes == {"accuracy": pytest.approx(2 / 3), "balanced_accuracy": pytest.approx(3 / 4)}


def test_other_metric_that_cannot_be_computed_is_left_out() -> None:
    one_class = GraphEvaluator("binary", "accuracy")(torch.tensor([[1.0], [2.0]]), torch.ones(2, 1))
    assert one_class == {"accuracy": 1.0, "balanced_accuracy": 1.0}


@pytest.mark.parametrize("kind", list(METRICS))
def test_predictions_that_are_not_finite_are_refused(kind: str) -> None:
    y = torch.tensor([0, 1]) if kind == "classes" else torch.tensor([[0.0], [1.0]])
    wide = 2 if kind == "classes" else 1
    for metric in METRICS[kind]:
        evaluator = GraphEvaluator(kind, metric)  # type: ignore[arg-type]
        with pytest.raises(UserError, match="aren't finite"):
            evaluator(torch.full((2, wide), math.nan), y)
        with pytest.raises(UserError, match="empty"):
            evaluator(torch.empty(0, wide), y[:0])
        with pytest.raises(UserError, match=r"shape|predictions for"):
            evaluator(torch.randn(3, wide), y)


def test_scores_that_are_all_equal_are_warned_of() -> None:
    y = torch.tensor([[0.0], [1.0]])
    for function in (roc_auc, average_precision):
        with pytest.warns(UserWarning, match="all 2 scores are 3: this ranks nothing"):
            assert function(torch.full((2, 1), 3.0), y) == 0.5
    with pytest.warns(UserWarning, match="this decides nothing"):
        balanced_accuracy(torch.zeros(2, 3), torch.tensor([0, 1]))


def test_labels_must_be_zero_or_one() -> None:
    with pytest.raises(UserError, match=r"must be 0, 1 or NaN \(unknown\), not 2"):
        roc_auc(torch.randn(2, 1), torch.tensor([[2.0], [0.0]]))
    with pytest.raises(UserError, match="infinite"):
        mae(torch.randn(2, 1), torch.tensor([[math.inf], [0.0]]))


def test_unknown_kind_or_metric_is_refused() -> None:
    with pytest.raises(ValueError, match="kind is 'ranking'; it must be one of regression, binary, classes"):
        GraphEvaluator("ranking", "mae")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'rocau' is no metric for binary; did you mean 'rocauc'"):
        GraphEvaluator("binary", "rocau")


def test_errors_are_shown_as_they_are_and_shares_in_percent() -> None:
    scales = {name: display_scale(name) for names in METRICS.values() for name in names}
    assert {name for name, scale in scales.items() if scale == 1} == {"mae", "rmse"}
