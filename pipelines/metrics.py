"""Metrics of what a model answered, all of them a library's: scikit-learn's and SciPy's.

Turns true and given answers into named numbers. Training shows them by epoch, evaluation reports them. Pure functions that
deliberately implement nothing: measures.py holds what asks for probabilities.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics

AVERAGES = ("macro", "micro", "weighted")


def classification(truth: NDArray[np.int64], answers: NDArray[np.int64]) -> dict[str, float]:
    """Of label numbers [n]: accuracy, balanced accuracy, precision, recall and F1 by macro, micro and weighted average.

    Labels are those that occur; one that is never answered has precision 0.
    """
    with _quiet():
        balanced = float(metrics.balanced_accuracy_score(truth, answers))
    return {"accuracy": float(metrics.accuracy_score(truth, answers)), "balanced_accuracy": balanced} | _averages(
        truth, answers
    )


def confusion(truth: NDArray[np.int64], answers: NDArray[np.int64], labels: int) -> NDArray[np.int64]:
    """Counts [labels, labels] by true label (rows) and answer (columns)."""
    return np.asarray(metrics.confusion_matrix(truth, answers, labels=range(labels)))


def multilabel(truth: NDArray[np.bool_], answers: NDArray[np.bool_]) -> dict[str, float]:
    """Of sets of labels [n, k]: subset accuracy, Hamming loss, precision, recall and F1 by macro, micro, weighted, samples.

    Two empty sets agree; a label that is neither true nor said anywhere has F1 0.
    """
    samples = metrics.precision_recall_fscore_support(truth, answers, average="samples", zero_division=1.0)[2]
    return {
        "subset_accuracy": float(metrics.accuracy_score(truth, answers)),
        "hamming_loss": float(metrics.hamming_loss(truth, answers)),
        "samples_f1": float(samples),
    } | _averages(truth, answers)


def regression(truth: NDArray[np.float64], answers: NDArray[np.float64]) -> dict[str, float]:
    """Of numbers [n]: MAE and RMSE in their unit, R², Spearman's rank correlation. The last two are NaN where undefined."""
    varied = len(truth) > 1
    with _quiet():
        spearman = float(stats.spearmanr(truth, answers).statistic) if varied else float("nan")
    return {
        "mae": float(metrics.mean_absolute_error(truth, answers)),
        "rmse": float(metrics.root_mean_squared_error(truth, answers)),
        "r2": float(metrics.r2_score(truth, answers)) if varied else float("nan"),
        "spearman": spearman,
    }


def _averages(truth: NDArray[Any], answers: NDArray[Any], names: Sequence[str] = AVERAGES) -> dict[str, float]:
    found: dict[str, float] = {}
    for average in names:
        values = metrics.precision_recall_fscore_support(truth, answers, average=average, zero_division=0.0)
        found |= {f"{average}_{name}": float(v) for name, v in zip(("precision", "recall", "f1"), values, strict=False)}
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Constant answers and labels that occur among answers alone are no news during training."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
