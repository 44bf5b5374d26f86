"""Metrics of what a model answered, all of them a library's: scikit-learn's, SciPy's, sacrebleu's and rouge-score's.

Turns true and given answers into named numbers. Training shows them by epoch, evaluation reports them. Pure functions that
deliberately implement nothing: metrics/probabilistic.py holds what asks for probabilities.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rouge_score import rouge_scorer
from sacrebleu.metrics import BLEU, CHRF
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


def generation(references: Sequence[Sequence[str]], answers: Sequence[str]) -> dict[str, float]:
    """Of texts [n], each with the texts that would do: BLEU, chrF, ROUGE-1, -2 and -L, exact match; all from 0 to 1.

    BLEU (Papineni et al. 2002; sacrebleu, Post 2018) is of all texts together, the others are means over texts, each against
    the reference that fits best. Exact match knows no case and no white space.
    """
    by_row = row_generation(references, answers)
    return {"bleu": bleu(references, answers), **{name: float(values.mean()) for name, values in by_row.items()}}


def bleu(references: Sequence[Sequence[str]], answers: Sequence[str]) -> float:
    """Of all texts together."""
    most = max(map(len, references))
    streams = [[given[n] if n < len(given) else None for given in references] for n in range(most)]
    return float(BLEU().corpus_score(list(answers), streams).score / 100)


def row_generation(references: Sequence[Sequence[str]], answers: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """All of `generation` that texts have each by itself: name -> [n]."""
    exact = [_plain(answer) in map(_plain, given) for given, answer in zip(references, answers, strict=True)]
    return {
        "chrf": row_chrf(references, answers),
        **{name: np.array(values) for name, values in _rouge(references, answers).items()},
        "exact_match": np.array(exact, dtype=np.float64),
    }


def row_chrf(references: Sequence[Sequence[str]], answers: Sequence[str]) -> NDArray[np.float64]:
    """Character n-gram F-score of each text [n], from 0 to 1 (Popović 2015), against the reference that fits best."""
    chrf = CHRF()
    pairs = zip(references, answers, strict=True)
    return np.array([chrf.sentence_score(answer, list(given)).score / 100 for given, answer in pairs])


def _rouge(references: Sequence[Sequence[str]], answers: Sequence[str]) -> dict[str, list[float]]:
    """F-scores (Lin 2004) of each text."""
    names = ("rouge1", "rouge2", "rougeL")
    scorer = rouge_scorer.RougeScorer(names, use_stemmer=False)
    found = [scorer.score_multi(list(given), answer) for given, answer in zip(references, answers, strict=True)]
    return {name.lower(): [one[name].fmeasure for one in found] for name in names}


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


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
