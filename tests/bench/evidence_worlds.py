"""Simulated worlds for bench/evidence.py and the tests of gates: two models whose true difference is known.

Turns accuracies and churn into logits of champion and candidate, and logits into the evidence that the gates read. A row has a
true label and one noisy view of it; each model adds noise of its own. Both then know exactly how sure they may be, so confidence,
accuracy and Brier score belong together as they do in a calibrated model. `two_opinions` is the opposite: confidences say nothing
beyond right and wrong, so nothing but accuracy can show a gain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from pipelines.calibration import maps, refit_null
from pipelines.dataset.files import FileRow
from pipelines.evaluation.evidence.classification import LabelEvidence
from pipelines.metrics import probabilistic
from schemas.manifests import Calibration
from schemas.reports import EvaluationReport
from serving.inference import calibration as applied

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
LABELS, ACCURACY, CHURN = 10, 0.88, 0.07
FITTING_ROWS = 60_000


@dataclass(frozen=True)
class World:
    """Noise of champion and candidate, and the share of noise that they have in common."""

    champion: float
    candidate: float
    shared: float
    labels: int = LABELS
    wrong_labels: float = 0.0  # share of reference rows with a random label

    def draw(self, n: int, draw: np.random.Generator) -> tuple[Integers, Floats, Floats]:
        """Return truth [n], and the calibrated logits [n, k] of champion and candidate."""
        rows = self.rows(n, draw)
        return rows.given, self.logits(rows, self.champion, draw), self.logits(rows, self.candidate, draw)

    def rows(self, n: int, draw: np.random.Generator) -> Rows:
        """Return n rows: their true and given labels, and the view of them that all models share."""
        truth = draw.integers(0, self.labels, n)
        given = np.where(draw.random(n) < self.wrong_labels, draw.integers(0, self.labels, n), truth)
        return Rows(np.eye(self.labels)[truth], given, draw.normal(size=(n, self.labels)))

    def logits(self, rows: Rows, noise: float, draw: np.random.Generator) -> Floats:
        """Return the logits [n, k] of a model with this noise, of which a part is its own."""
        alone = draw.normal(size=rows.common.shape)
        seen = rows.signal + noise * (np.sqrt(self.shared) * rows.common + np.sqrt(1 - self.shared) * alone)
        return np.asarray(seen / noise**2)


@dataclass(frozen=True)
class Rows:
    """True labels as indicators [n, k], the labels that the reference file gives [n], and the shared noise [n, k]."""

    signal: Floats
    given: Integers
    common: Floats


@cache
def world(gain: float, churn: float = CHURN, accuracy: float = ACCURACY, labels: int = LABELS) -> World:
    """Return the world in which the candidate's accuracy is higher by `gain`, and `churn` rows differ in being right."""

    def right(noise: float) -> float:
        draw = np.random.default_rng(1)
        seen = noise * draw.normal(size=(FITTING_ROWS, labels))
        seen[:, 0] += 1
        return float((seen.argmax(axis=1) == 0).mean())

    champion = brentq(lambda noise: right(noise) - accuracy, 0.05, 5, xtol=1e-4)
    candidate = brentq(lambda noise: right(noise) - accuracy - gain, 0.05, 5, xtol=1e-4) if gain else champion

    def differing(shared: float) -> float:
        truth, before, after = World(champion, candidate, shared, labels).draw(FITTING_ROWS, np.random.default_rng(2))
        return float(((before.argmax(axis=1) == truth) != (after.argmax(axis=1) == truth)).mean())

    return World(champion, candidate, brentq(lambda shared: differing(shared) - churn, 0.2, 0.9999, xtol=1e-4), labels)


def two_opinions(gain: float, n: int, draw: np.random.Generator) -> tuple[Integers, Floats, Floats]:
    """Return truth and logits of two models whose confidences are drawn apart, given who is right."""
    chance = draw.random(n)
    before = chance < ACCURACY
    after = np.where(before, chance >= (CHURN - gain) / 2, chance < ACCURACY + (CHURN + gain) / 2)
    truth = draw.integers(0, LABELS, n)

    def logits(right: NDArray[np.bool_]) -> Floats:
        sure = np.clip(np.where(right, draw.beta(6, 1, n), draw.beta(3, 2, n)), 0.2, 0.999)
        answer = np.where(right, truth, (truth + 1) % LABELS)
        rest = np.full((n, LABELS), 1.0) * ((1 - sure) / (LABELS - 1))[:, None]
        rest[np.arange(n), answer] = np.maximum(sure, 0.2)
        return np.log(rest)

    return truth, logits(before), logits(after)


def rows_of(truth: Integers) -> list[FileRow]:
    """Return rows with these labels, and a channel as metadata."""
    return [FileRow("", str(label), {"channel": "web" if n % 3 else "ios"}) for n, label in enumerate(truth.tolist())]


def known(
    logits: Floats,
    truth: Integers,
    rows: list[FileRow],
    null: float | None = None,
    calibration: Calibration | None = None,
) -> LabelEvidence:
    """Return evidence of a model whose calibration is known to be right: no map is fitted."""
    return _evidence(applied.softmax(logits), truth, rows, calibration or Calibration(), None, null)


def cross_fitted(logits: Floats, truth: Integers, rows: list[FileRow]) -> LabelEvidence:
    """Return evidence as a round makes it: a map is chosen and fitted on these very rows, by cross-fitting."""
    fitted = maps.cross_fit(logits, truth)
    shift = refit_null.label_shift(logits, fitted)
    probabilities = fitted.probabilities
    draws = _imagined(probabilities, np.random.default_rng(0))
    confidence, best = probabilities.max(axis=1), probabilities.argmax(axis=1)
    residuals = (draws == best) - confidence - shift(draws)
    null = float(np.quantile(probabilistic.binned_errors(confidence, residuals), 0.99))
    return _evidence(probabilities, truth, rows, fitted.calibration, fitted.fold, null)


def _imagined(probabilities: Floats, draw: np.random.Generator, draws: int = 400) -> Integers:
    cumulative = probabilities.cumsum(axis=1)
    uniform = draw.random((draws, len(probabilities), 1)) * cumulative[:, -1:]
    return np.asarray((uniform > cumulative).sum(axis=2).clip(0, probabilities.shape[1] - 1))


def _evidence(
    probabilities: Floats,
    truth: Integers,
    rows: list[FileRow],
    calibration: Calibration,
    fold: Integers | None,
    null: float | None,
) -> LabelEvidence:
    """Return evidence with what the gates read of its report and no more: thousands of runs need no bootstrap."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    report = EvaluationReport(
        model_version="simulated",
        split="simulated",
        n=len(truth),
        accuracy=float(right.mean()),
        nll=float(probabilistic.row_nll(probabilities, truth).mean()),
        ece=probabilistic.ece(confidence, right),
        ece_null_99=probabilistic.ece_null(confidence) if null is None else null,
    )
    names = [str(n) for n in range(probabilities.shape[1])]
    return LabelEvidence(report, rows, names, len(names), probabilities, truth, calibration, None, fold)


Drawn = Callable[[int, np.random.Generator], tuple[Integers, Floats, Floats]]
