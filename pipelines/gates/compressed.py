"""Gates for compressed artefacts: may int8, or a distilled student, replace the round's full-precision model?

Turns two runtimes and the reference rows into a `CompressedTrial`: verdict, speed and one sentence. candidates.py keeps the
fastest artefact that passes. The champion plays no part, so a trial is not a look at the evidence.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.dataset.files import FileRow
from pipelines.evaluation.answer_rule import AnswerRule
from pipelines.evaluation.evaluators import evaluate
from pipelines.evaluation.evidence.evidence import Evidence, OutputEvidence
from pipelines.evaluation.evidence.labels import RightOrWrong
from pipelines.gates.against_champion import main_metric_holds, slice_changes, slices_hold
from pipelines.gates.policy import CompressedPolicy, Policy
from pipelines.gates.result import gate_result
from pipelines.gates.verdict import gate_report
from pipelines.metrics import paired_tests
from schemas.reports import GateReport, GateResult, Verdict
from serving.inference.encoder_runtime import Runtime

STUDENT = "student-int8"
TIMED_TEXTS, TIMED_BATCH, TIMED_PASSES = 256, 8, 3


@dataclass(frozen=True)
class CompressedTrial:
    """A compressed artefact against full precision on the same rows: verdict and speed."""

    name: str
    result: GateResult
    seconds: float  # of one core, for one text

    @property
    def passed(self) -> bool:
        """Return whether the artefact may serve."""
        return self.result.verdict is Verdict.PASS


def try_compressed(
    full: Runtime, other: Runtime, rows: Sequence[FileRow], policy: Policy, cross: AnswerRule | None = None
) -> CompressedTrial:
    """Judge a compressed artefact against its full-precision model, both calibrated, on reference rows.

    `cross` is as for an `Evaluator`.
    """
    before = evaluate(full, rows, split="reference", cross=cross)
    after = evaluate(other, rows, split="reference", cross=cross)
    name = other.manifest.artifact
    judged = judge_compressed(before, after, policy, student=name == STUDENT)
    slow, fast = _seconds((full, other), [row.text for row in rows[:TIMED_TEXTS]])
    serves = "serves" if judged.verdict is Verdict.PASS else f"does not serve ({', '.join(judged.stopped_by())})"
    sentences = "; ".join(result.sentence for result in judged.results)
    result = judged.results[0].model_copy(
        update={
            "gate": "compression",
            "verdict": judged.verdict,
            "blocking": False,  # an artefact that fails is dropped; full precision serves
            "sentence": f"{name} {serves}: {slow / fast:.2f} x the speed of full precision; {sentences}",
        }
    )
    return CompressedTrial(name, result, fast)


def _seconds(runtimes: Sequence[Runtime], texts: Sequence[str]) -> list[float]:
    """Return each runtime's thread seconds for one text: the best of alternating passes, to reduce the effect of other load."""
    best = [float("inf")] * len(runtimes)
    for _ in range(TIMED_PASSES):
        for n, runtime in enumerate(runtimes):
            started = time.thread_time()
            runtime.probabilities(texts, batch=TIMED_BATCH)
            best[n] = min(best[n], (time.thread_time() - started) / len(texts))
    return best


def judge_compressed(
    full: OutputEvidence, compressed: OutputEvidence, policy: Policy, *, student: bool = False
) -> GateReport:
    """Return the report on a compressed artefact (int8, or a distilled student) against its full-precision model.

    Both are scored on the same rows in the same order. The report's look is 0, since the champion plays no part.
    """
    rule = policy.compressed
    results = [
        _agreement(full, compressed, rule, rule.min_student_agreement if student else rule.min_agreement),
        main_metric_holds(
            "accuracy", full, compressed, rule.accuracy_margin, rule.blocking, "the full-precision model's"
        ),
        _nll_holds(full, compressed, rule),
    ]
    if isinstance(full, RightOrWrong) and isinstance(compressed, RightOrWrong):
        results += _minority_holds(full, compressed, policy)
    return gate_report(results, policy, look=0)


def _minority_holds(full: RightOrWrong, compressed: RightOrWrong, policy: Policy) -> list[GateResult]:
    """Return results on macro F1 and on slices: accuracy hardly moves if one rare label loses many of its rows."""
    rule, whose = policy.compressed, "the full-precision model's"
    macro = main_metric_holds(
        "macro_f1", full, compressed, rule.accuracy_margin, rule.blocking, whose, metric="macro_f1"
    )
    slices = policy.slices.model_copy(update={"blocking": rule.blocking})
    return [macro, slices_hold(slice_changes(full, compressed, slices), slices)]


def _agreement(full: OutputEvidence, compressed: OutputEvidence, policy: CompressedPolicy, least: float) -> GateResult:
    same, n, what = full.agreement(compressed)
    return gate_result(
        "agreement",
        same / n >= least,
        f"{same} of {n} {what} are the full-precision model's ({same / n:.2%})",
        blocking=policy.blocking,
        observed=same / n,
        threshold=least,
        n=n,
        interval=paired_tests.share_interval(same, n),
    )


def _nll_holds(full: Evidence, compressed: Evidence, policy: CompressedPolicy) -> GateResult:
    difference = compressed.losses["nll"] - full.losses["nll"]
    observed, n = float(difference.mean()), len(difference)
    low, high = paired_tests.mean_interval(difference, 0.9)  # each side with 95 %
    needed = None
    verdict = Verdict.PASS if high < policy.nll_margin else Verdict.FAIL
    if verdict is Verdict.FAIL and low < policy.nll_margin and observed < policy.nll_margin:
        verdict = Verdict.INSUFFICIENT
        room = policy.nll_margin - difference
        needed = paired_tests.rows_needed_for_mean(float(room.mean()), paired_tests.mean_interval(room), n, 0.05)
    sentence = f"NLL {observed:+.4f} against the full-precision model's, " + (
        f"at most {high:+.4f} with 95 % confidence" if n > 1 else "and one row bounds it nowhere"
    )
    return gate_result(
        "nll",
        verdict,
        sentence + (f"; about {needed} rows would settle it" if needed else ""),
        blocking=policy.blocking,
        observed=observed,
        threshold=policy.nll_margin,
        n=n,
        needed=needed,
        interval=paired_tests.mean_interval(difference),
    )
