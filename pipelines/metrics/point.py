"""Point metrics of predictions, computed by scikit-learn, SciPy, sacrebleu and rouge-score.

Turns true and predicted values into named numbers. Training logs them by epoch, evaluation reports them. Metrics of
probabilities are in probabilistic.py. Pure functions.
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

from serving.inference.normalise import folded

AVERAGES = ("macro", "micro", "weighted")


def classification(truth: NDArray[np.int64], answers: NDArray[np.int64]) -> dict[str, float]:
    """Return accuracy, balanced accuracy, precision, recall and F1 (macro, micro, weighted) of label numbers [n].

    Only labels that occur count; one that is never predicted has precision 0.
    """
    with _quiet():
        balanced = float(metrics.balanced_accuracy_score(truth, answers))
    return {"accuracy": float(metrics.accuracy_score(truth, answers)), "balanced_accuracy": balanced} | _averages(
        truth, answers
    )


def confusion(truth: NDArray[np.int64], answers: NDArray[np.int64], labels: int) -> NDArray[np.int64]:
    """Return counts [labels, labels] by true label (rows) and predicted label (columns)."""
    return np.asarray(metrics.confusion_matrix(truth, answers, labels=range(labels)))


def multilabel(truth: NDArray[np.bool_], answers: NDArray[np.bool_]) -> dict[str, float]:
    """Return subset accuracy, Hamming loss, precision, recall and F1 (macro, micro, weighted, samples) of label sets [n, k].

    Two empty sets agree; a label that is never true nor predicted has F1 0.
    """
    samples = metrics.precision_recall_fscore_support(truth, answers, average="samples", zero_division=1.0)[2]
    return {
        "subset_accuracy": float(metrics.accuracy_score(truth, answers)),
        "hamming_loss": float(metrics.hamming_loss(truth, answers)),
        "samples_f1": float(samples),
    } | _averages(truth, answers)


def regression(truth: NDArray[np.float64], answers: NDArray[np.float64]) -> dict[str, float]:
    """Return MAE and RMSE in the targets' unit, R² and Spearman's rank correlation of numbers [n]; NaN where undefined."""
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
    """Return BLEU, chrF, ROUGE-1, -2 and -L and exact match of texts [n] against their references; all from 0 to 1.

    BLEU (Papineni et al. 2002; sacrebleu, Post 2018) is of the whole corpus. The others are means over texts, each against its
    best reference. Exact match ignores case and white space.
    """
    by_row = row_generation(references, answers)
    return {"bleu": bleu(references, answers), **{name: float(values.mean()) for name, values in by_row.items()}}


def bleu(references: Sequence[Sequence[str]], answers: Sequence[str]) -> float:
    """Return corpus BLEU, from 0 to 1."""
    most = max(map(len, references))
    streams = [[given[n] if n < len(given) else None for given in references] for n in range(most)]
    return float(BLEU().corpus_score(list(answers), streams).score / 100)


def row_generation(references: Sequence[Sequence[str]], answers: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Return the metrics of `generation` that exist for a single text: name -> [n]."""
    exact = [folded(answer) in map(folded, given) for given, answer in zip(references, answers, strict=True)]
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
    """Return the F-scores (Lin 2004) of each text, by name."""
    names = ("rouge1", "rouge2", "rougeL")
    scorer = rouge_scorer.RougeScorer(names, use_stemmer=False)
    scores = [scorer.score_multi(list(given), answer) for given, answer in zip(references, answers, strict=True)]
    return {name.lower(): [one[name].fmeasure for one in scores] for name in names}


def _averages(truth: NDArray[Any], answers: NDArray[Any], names: Sequence[str] = AVERAGES) -> dict[str, float]:
    scores: dict[str, float] = {}
    for average in names:
        values = metrics.precision_recall_fscore_support(truth, answers, average=average, zero_division=0.0)
        scores |= {
            f"{average}_{name}": float(v) for name, v in zip(("precision", "recall", "f1"), values, strict=False)
        }
    return scores


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings on constant predictions and on labels that only predictions have; both are usual during training."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
