"""Evidence of models that write.

Turns texts, and how likely the reference's own answers are, into `TextEvidence`. evaluation/text_evaluator.py calls `score_text`.
Gates compare two things of a row: the NLL of the answer that it should have had, and how near what was written comes to it
(chrF, Popović 2015). It deliberately generates nothing and judges nothing.

NLL is of a token. Between two models it is the candidate's tokens that count: another tokenizer cuts the same answer into more or
fewer, which makes it no likelier.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from pipelines.calibration import sequence_confidence
from pipelines.dataset.files import FileRow
from pipelines.evaluation.evidence.evidence import Bias, Bools, Evidence, Floats, Score, Uncalibrated, slices
from pipelines.evaluation.evidence.labels import bias_of
from pipelines.metrics import paired_tests, point, probabilistic
from schemas.manifests import Calibration
from schemas.reports import EvaluationReport, Measure
from schemas.targets import Task
from serving.inference import calibration as applied

ACCEPTED = 0.5  # chrF from which on a text counts as one that people would take; an exact match always does
FELL = 0.1  # chrF that a reviewer would miss
RESAMPLES = 400


@dataclass(frozen=True)
class Likelihood:
    """How likely the answers of n rows are to a model: negative log-likelihood [n] of each, and its tokens [n]."""

    nll: Floats
    tokens: Floats

    @property
    def perplexity(self) -> float:
        """Of a token."""
        return float(np.exp(self.nll.sum() / self.tokens.sum()))


@dataclass(frozen=True)
class TextEvidence(Evidence):
    """Generation; `texts` [n] were written, `near` [n] is their chrF."""

    task: ClassVar[Task] = "generation"
    measure: ClassVar[str] = "chrF"
    guess: ClassVar[str] = "always writing the commonest answer"
    bounds: ClassVar[str] = ""
    cheap: ClassVar[str] = "the answer of the most similar training row"

    report: EvaluationReport
    rows: Sequence[FileRow]
    texts: Sequence[str]
    near: Floats
    likelihood: Likelihood
    logprobs: Sequence[Sequence[float]]  # of each text's tokens; empty: nothing is claimed
    calibration: Calibration

    @property
    def answers(self) -> NDArray[np.str_]:
        """The texts [n]."""
        return np.array(self.texts)

    @cached_property
    def confidence(self) -> Floats | None:
        """That people accept the text [n]."""
        fitted = self.calibration.sequence
        return applied.sequence_confidence(fitted, self.logprobs) if fitted and self.logprobs else None

    @cached_property
    def passes(self) -> Bools:
        """Accepted [n]."""
        return accepted(self.texts, self.rows)

    @property
    def score(self) -> Score:
        """Mean chrF, and that of always writing the commonest answer of these very rows."""
        truth = [row.label for row in self.rows]
        commonest = Counter(truth).most_common(1)[0][0]
        guessed = point.row_chrf([[one] for one in truth], [commonest] * len(truth))
        moved = paired_tests.Saved(self.near, "")
        return Score(moved.observed, moved.interval(), float(guessed.mean()))

    @cached_property
    def losses(self) -> dict[str, Floats]:
        """NLL of a token [n]."""
        return {"nll": self.likelihood.nll / self.likelihood.tokens}

    def moved(self, before: Self, metric: str = "accuracy", rows: Any = slice(None)) -> paired_tests.Saved:
        """By NLL, or else by chrF."""
        if metric == "nll":
            saved = (before.likelihood.nll - self.likelihood.nll) / self.likelihood.tokens
            return paired_tests.Saved(saved[rows], "NLL of a token lower by {:.4f}")
        mine, theirs = self.near[rows], before.near[rows]
        return paired_tests.Saved(mine - theirs, f"chrF {mine.mean():.3f} for {theirs.mean():.3f}, {{:+.4f}}")

    def worse_than(self, before: Self) -> list[int]:
        """Rows whose text came farther from the reference, by how much."""
        fell = before.near - self.near
        return sorted(np.flatnonzero(fell > FELL).tolist(), key=lambda n: -fell[n])

    @property
    def bias(self) -> Bias | None:
        """Confidence against acceptance, where it was fitted."""
        if not _claims(self.calibration) or self.confidence is None:
            return None
        return bias_of(*probabilistic.bias(self.confidence, self.passes, self.calibration.fitted_rows))

    @property
    def scores(self) -> Sequence[float]:
        """None: a text has no set around it."""
        return ()

    def held(self, coverage: float) -> Bools:  # noqa: ARG002
        """Nothing is promised."""
        return np.zeros(len(self.rows), dtype=bool)

    def width(self, coverage: float) -> float:  # noqa: ARG002
        """Nothing is promised."""
        return 0.0

    @property
    def uncalibrated(self) -> Uncalibrated:
        """Of the mean probability of a text's tokens."""
        if not self.logprobs:
            return Uncalibrated()
        raw = np.exp(applied.mean_logprob(self.logprobs))
        return Uncalibrated(probabilistic.reliability(raw, self.passes), None, probabilistic.ece(raw, self.passes))


def accepted(texts: Sequence[str], rows: Sequence[FileRow]) -> Bools:
    """Whether each text [n] would do in the place of its row's answer: a stand-in for people, who are not there to ask."""
    found = point.row_generation([[row.label] for row in rows], texts)
    return np.asarray((found["chrf"] >= ACCEPTED) | (found["exact_match"] > 0))


def score_text(
    texts: Sequence[str],
    likelihood: Likelihood,
    rows: Sequence[FileRow],
    *,
    version: str,
    split: str,
    logprobs: Sequence[Sequence[float]] = (),
    calibration: Calibration | None = None,
) -> TextEvidence:
    """Score what was written.

    Args:
        texts: n of them.
        likelihood: of the rows' own answers.
        rows: n rows with the answers that they should have had.
        version: for the report.
        split: for the report.
        logprobs: of the tokens of each text.
        calibration: what makes them a confidence.

    """
    if not rows:
        raise ValueError(f"{split}: no rows to score {version} on")
    fitted, truth = calibration or Calibration(), [[row.label] for row in rows]
    by_row = {**point.row_generation(truth, texts), "nll": likelihood.nll / likelihood.tokens}
    found = _measures(by_row, likelihood) | {"bleu": _exactly(point.bleu(truth, texts))}
    honest, reliability = {}, []
    if fitted.sequence and _claims(fitted) and logprobs:
        took = accepted(texts, rows)
        honest = sequence_confidence.measure(fitted.sequence, logprobs, took)
        reliability = probabilistic.reliability(applied.sequence_confidence(fitted.sequence, logprobs), took)
        found["confidence_auroc"] = _exactly(honest["auroc"])
    report = EvaluationReport(
        model_version=version,
        split=split,
        n=len(rows),
        nll=float(by_row["nll"].mean()),
        ece=honest.get("ece"),
        ece_null_99=honest.get("ece_null_99"),
        by_slice={
            name: {"n": len(own)} | {key: float(by_row[key][own].mean()) for key in ("chrf", "nll")}
            for name, own in slices(rows, "generation").items()
        },
        measures=found,
        reliability=reliability,
    )
    return TextEvidence(report, rows, texts, by_row["chrf"], likelihood, logprobs, fitted)


def _claims(fitted: Calibration) -> bool:
    """Whether the confidence was fitted to acceptance: a mean probability of tokens promises nothing."""
    return fitted.sequence is not None and fitted.sequence.kind != "none"


def _measures(by_row: dict[str, Floats], likelihood: Likelihood) -> dict[str, Measure]:
    """Means over rows and the perplexity of a token, with bootstrap intervals over rows."""
    n = len(likelihood.nll)
    counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    drawn = {name: (float(values.mean()), counts @ values / n) for name, values in by_row.items()}
    drawn["perplexity"] = likelihood.perplexity, np.exp(counts @ likelihood.nll / (counts @ likelihood.tokens))
    return {
        name: Measure(value=value, low=float(np.quantile(each, 0.025)), high=float(np.quantile(each, 0.975)))
        for name, (value, each) in drawn.items()
    }


def _exactly(value: float) -> Measure:
    """Of all texts together: there is nothing to resample cheaply."""
    return Measure(value=value, low=value, high=value)
