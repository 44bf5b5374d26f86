"""Evidence for generation: one text a row.

Turns generated texts, and the likelihood of the reference answers, into `TextEvidence`. evaluation/text_evaluator.py calls
`score_text`. The gates compare two values of a row: the NLL of the reference answer, and the similarity of the generated text
to it (chrF, Popović 2015).

NLL is per token. Where two models are compared, the NLLs of both are divided by the candidate's number of tokens: a tokenizer
that cuts the same answer into more tokens does not make it more likely.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from pipelines.calibration import sequence_confidence
from pipelines.dataset.files import FileRow
from pipelines.evaluation.evidence.evidence import Bias, Bools, Evidence, Floats, Score, Uncalibrated, slices
from pipelines.evaluation.evidence.labels import bias_of
from pipelines.metrics import paired_tests, point, probabilistic
from schemas.manifests import Calibration, SequenceCalibration
from schemas.reports import EvaluationReport, Measure
from schemas.targets import Task
from serving.inference import calibration as applied

ACCEPTED_CHRF = 0.5  # at least this chrF, or an exact match, counts as accepted by people
CHRF_DROP = 0.1  # a larger drop is shown to reviewers
RESAMPLES = 400

TextMetric = Literal["chrf", "nll"]


@dataclass(frozen=True)
class Likelihood:
    """Likelihood of n reference answers under a model: negative log-likelihood [n] and number of tokens [n]."""

    nll: Floats
    tokens: Floats

    @property
    def perplexity(self) -> float:
        """Return the perplexity per token."""
        return float(np.exp(self.nll.sum() / self.tokens.sum()))


@dataclass(frozen=True)
class TextEvidence(Evidence):
    """Evidence for generation; `texts` [n] were generated, `chrf` [n] is their similarity to the reference answers."""

    task: ClassVar[Task] = "generation"
    metrics: ClassVar[tuple[str, ...]] = get_args(TextMetric)
    measure: ClassVar[str] = "chrF"
    constant_baseline: ClassVar[str] = "always giving the most frequent answer"
    region: ClassVar[str] = ""
    baseline: ClassVar[str] = "the answer of the most similar training row"
    copying_competes: ClassVar[bool] = True

    report: EvaluationReport
    rows: Sequence[FileRow]
    texts: Sequence[str]
    chrf: Floats
    likelihood: Likelihood
    logprobs: Sequence[Sequence[float]]  # of each text's tokens; empty: no confidence
    calibration: Calibration
    fold: NDArray[np.int64] | None = None  # texts of one number are judged under a confidence fitted without them

    @property
    def answers(self) -> NDArray[np.str_]:
        """Return the generated texts [n]."""
        return np.array(self.texts)

    @cached_property
    def confidence(self) -> Floats | None:
        """Return the probability that people accept each text [n]."""
        fitted = self.calibration.sequence
        if fitted is None or not self.logprobs:
            return None
        return _confidence(fitted, self.logprobs, self.passes, self.fold)

    @cached_property
    def passes(self) -> Bools:
        """Return which texts [n] count as accepted."""
        return accepted(self.texts, self.rows)

    @property
    def score(self) -> Score:
        """Return mean chrF, beside that of the most frequent answer of these rows."""
        truth = [row.label for row in self.rows]
        frequent = Counter(truth).most_common(1)[0][0]
        constant = point.row_chrf([[one] for one in truth], [frequent] * len(truth))
        return Score(float(self.chrf.mean()), paired_tests.mean_interval(self.chrf), float(constant.mean()))

    @cached_property
    def losses(self) -> dict[str, Floats]:
        """Return the NLL per token [n]."""
        return {"nll": self.likelihood.nll / self.likelihood.tokens}

    def _compared(self, before: Self, metric: str, rows: Any) -> paired_tests.MeanGain:
        """Compare by NLL per token of this model, or by chrF."""
        if metric == "nll":
            gains = (before.likelihood.nll - self.likelihood.nll) / self.likelihood.tokens
            return paired_tests.MeanGain(gains[rows], "NLL per token lower by {:.4f}")
        mine, theirs = self.chrf[rows], before.chrf[rows]
        return paired_tests.MeanGain(mine - theirs, f"chrF {mine.mean():.3f} against {theirs.mean():.3f}, {{:+.4f}}")

    def worse_than(self, before: Self) -> list[int]:
        """Return the rows whose chrF dropped by more than CHRF_DROP, the largest drop first."""
        drop = before.chrf - self.chrf
        return sorted(np.flatnonzero(drop > CHRF_DROP).tolist(), key=lambda n: -drop[n])

    @property
    def bias(self) -> Bias | None:
        """Return mean confidence minus the share accepted; None if the confidence was not fitted."""
        if not _is_fitted(self.calibration) or self.confidence is None:
            return None
        return bias_of(*probabilistic.bias(self.confidence, self.passes, self.calibration.fitted_rows))

    @property
    def scores(self) -> Sequence[float]:
        """Return no scores: a generated text has no prediction set."""
        return ()

    def covered(self, coverage: float) -> Bools:  # noqa: ARG002
        """Return False for every row [n]: no coverage is promised."""
        return np.zeros(len(self.rows), dtype=bool)

    def mean_width(self, coverage: float) -> float:  # noqa: ARG002
        """Return 0: there are no sets."""
        return 0.0

    @property
    def uncalibrated(self) -> Uncalibrated:
        """Return reliability and ECE of the mean token probability."""
        if not self.logprobs:
            return Uncalibrated()
        raw = np.exp(applied.mean_logprob(self.logprobs))
        return Uncalibrated(probabilistic.reliability(raw, self.passes), None, probabilistic.ece(raw, self.passes))


def accepted(texts: Sequence[str], rows: Sequence[FileRow]) -> Bools:
    """Return which texts [n] are close enough to their row's answer; a proxy for acceptance by people."""
    similarity = point.row_generation([[row.label] for row in rows], texts)
    return np.asarray((similarity["chrf"] >= ACCEPTED_CHRF) | (similarity["exact_match"] > 0))


def score_text(
    texts: Sequence[str],
    likelihood: Likelihood,
    rows: Sequence[FileRow],
    *,
    version: str,
    split: str,
    logprobs: Sequence[Sequence[float]] = (),
    calibration: Calibration | None = None,
    fold: NDArray[np.int64] | None = None,
) -> TextEvidence:
    """Score generated texts. Raise ValueError without rows.

    Args:
        texts: n generated texts.
        likelihood: of the n reference answers.
        rows: n rows with their reference answers.
        version: for the report.
        split: for the report.
        logprobs: of the tokens of each generated text.
        calibration: the map from log-probabilities to confidence.
        fold: [n], where each text is judged under a map fitted without the texts of its number; None: under `calibration`.

    """
    if not rows:
        raise ValueError(f"{split}: no rows to score {version} on")
    fitted, truth = calibration or Calibration(), [[row.label] for row in rows]
    by_row = {**point.row_generation(truth, texts), "nll": likelihood.nll / likelihood.tokens}
    measures = _measures(by_row, likelihood) | {"bleu": _without_interval(point.bleu(truth, texts))}
    confidence, reliability = {}, []
    if fitted.sequence and _is_fitted(fitted) and logprobs:
        outcome = accepted(texts, rows)
        claimed = _confidence(fitted.sequence, logprobs, outcome, fold)
        confidence = sequence_confidence.measure(claimed, outcome, logprobs, fold)
        reliability = probabilistic.reliability(claimed, outcome)
        measures["confidence_auroc"] = _without_interval(confidence["auroc"])
    report = EvaluationReport(
        model_version=version,
        split=split,
        n=len(rows),
        nll=float(by_row["nll"].mean()),
        ece=confidence.get("ece"),
        ece_null_99=confidence.get("ece_null_99"),
        by_slice={
            name: {"n": len(members)} | {key: float(by_row[key][members].mean()) for key in ("chrf", "nll")}
            for name, members in slices(rows, "generation").items()
        },
        measures=measures,
        reliability=reliability,
    )
    return TextEvidence(report, rows, texts, by_row["chrf"], likelihood, logprobs, fitted, fold)


def _confidence(
    fitted: SequenceCalibration,
    logprobs: Sequence[Sequence[float]],
    outcome: Bools,
    fold: NDArray[np.int64] | None,
) -> Floats:
    """Return the confidence of n texts: by the fitted map, or with a `fold` by maps fitted on the other texts."""
    if fold is None or fitted.kind == "none":
        return applied.sequence_confidence(fitted, logprobs)
    return sequence_confidence.cross_fitted(logprobs, outcome, fold)


def _is_fitted(fitted: Calibration) -> bool:
    """Return whether confidence was fitted to acceptance; otherwise it is a mean token probability, which gates ignore."""
    return fitted.sequence is not None and fitted.sequence.kind != "none"


def _measures(by_row: dict[str, Floats], likelihood: Likelihood) -> dict[str, Measure]:
    """Return means over rows and the perplexity per token, with bootstrap intervals over rows."""
    n = len(likelihood.nll)
    counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    drawn = {name: (float(values.mean()), counts @ values / n) for name, values in by_row.items()}
    drawn["perplexity"] = likelihood.perplexity, np.exp(counts @ likelihood.nll / (counts @ likelihood.tokens))
    return {
        name: Measure(value=value, low=float(np.quantile(each, 0.025)), high=float(np.quantile(each, 0.975)))
        for name, (value, each) in drawn.items()
    }


def _without_interval(value: float) -> Measure:
    """Return a corpus measure, which is too slow to resample."""
    return Measure(value=value, low=value, high=value)
