"""The gates: may this candidate serve?

Turns the evidence on champion, candidate and probe, under a policy, into a `GateReport`. Pure functions; training_round.py
calls `judge` and acts on the verdict, compressed artefacts go through `judge_compressed`. They deliberately read no feedback:
only fair evidence judges. Each gate is one function of gates_comparison.py or gates_floor.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from pipelines import gates_comparison as compare
from pipelines import gates_floor as floor
from pipelines import paired
from pipelines.evidence import Evidence, OutputEvidence
from pipelines.evidence_right import RightOrWrong
from pipelines.policy import CompressedPolicy, Policy, changes
from schemas.artifacts import GateReport, GateResult, Verdict
from schemas.reports import Robustness


class Facts(BaseModel):
    """What the gates look at beside the evidence."""

    model_config = ConfigDict(frozen=True)
    look: int
    alpha: float  # what this look may spend
    people: int
    quarantined: int
    leaked: int = 0  # judging rows that are among the training rows
    drift: float | None = None  # population stability index of labels, where computed
    absent: frozenset[str] = frozenset()  # labels without recent feedback
    vanished: frozenset[str] = frozenset()  # labels in use that the champion was taught, and no row trains or judges
    must_pass_rows: int = 0
    must_pass_wrong: list[str] = []
    robustness: dict[str, dict[str, Robustness]] = {}  # "candidate", "champion" -> kind of edit
    latency_ms: float | None
    memory_mb: float | None = None
    size_mb: float = 0.0
    load_error: str | None


def judge(
    champion: Evidence | None,
    candidate: Evidence,
    probe: Evidence,
    facts: Facts,
    policy: Policy,
    previous: Mapping[str, Mapping[str, Any]] | None = None,
) -> GateReport:
    """Run every gate. All evidence is on the same rows in the same order; without a champion, the bootstrap path.

    `previous` is the policy, as values, that the last judgement was made by; what differs goes into the report.
    """
    results = [
        floor.data(
            candidate.report.n, facts.people, facts.quarantined, facts.leaked, policy.data, bootstrap=champion is None
        )
    ]
    if facts.drift is not None:
        results.append(floor.drift(facts.drift, policy.data))
    if champion is None:
        results.append(floor.bootstrap(candidate, policy.bootstrap))
    else:
        slices = compare.slice_changes(champion, candidate, policy.slices)
        results += [
            compare.superiority(champion, candidate, facts.look, facts.alpha, policy.superiority),
            compare.non_inferiority(champion, candidate, policy.non_inferiority),
            compare.slices_hold(slices, policy.slices),
        ]
        if isinstance(champion, RightOrWrong) and isinstance(candidate, RightOrWrong):
            results += [
                compare.flips(champion, candidate, policy.flips),
                compare.forgetting(champion, candidate, facts.absent, facts.vanished, policy.forgetting, policy.slices),
            ]
    if facts.must_pass_rows:
        results.append(floor.must_pass(facts.must_pass_wrong, facts.must_pass_rows, policy.flips))
    results += [
        floor.calibration(champion, candidate, policy.calibration),
        floor.robustness(facts.robustness.get("champion"), facts.robustness.get("candidate", {}), policy.robustness),
        floor.baseline(probe, candidate, policy.baseline),
        floor.serving(facts.latency_ms, facts.memory_mb, facts.size_mb, facts.load_error, policy.serving),
    ]
    return _report(results, policy, look=facts.look, previous=previous, bootstrap=champion is None)


def judge_compressed(
    full: OutputEvidence, compressed: OutputEvidence, policy: Policy, *, student: bool = False
) -> GateReport:
    """May a compressed artefact (int8, or a distilled student) stand in for the full-precision model of the same round?

    Both are scored on the same rows in the same order. Nothing is compared with the champion, so no evidence is spent:
    the report's look is 0.
    """
    rule = policy.compressed
    results = [
        _agreement(full, compressed, rule, rule.min_student_agreement if student else rule.min_agreement),
        compare.accuracy_holds(
            "accuracy", full, compressed, rule.accuracy_margin, rule.blocking, "the full-precision model's"
        ),
        _nll_holds(full, compressed, rule),
    ]
    return _report(results, policy, look=0)


def _agreement(full: OutputEvidence, compressed: OutputEvidence, policy: CompressedPolicy, least: float) -> GateResult:
    same, n, what = full.agreement(compressed)
    return GateResult(
        gate="agreement",
        verdict=Verdict.PASS if same / n >= least else Verdict.FAIL,
        blocking=policy.blocking,
        observed=same / n,
        threshold=least,
        n=n,
        interval=paired.share_interval(same, n),
        sentence=f"{same} of {n} {what} are the full-precision model's ({same / n:.2%})",
    )


def _nll_holds(full: Evidence, compressed: Evidence, policy: CompressedPolicy) -> GateResult:
    difference = compressed.losses["nll"] - full.losses["nll"]
    observed, n = float(difference.mean()), len(difference)
    low, high = paired.mean_interval(difference, 0.9)  # each side with 95 %
    needed = None
    verdict = Verdict.PASS if high < policy.nll_margin else Verdict.FAIL
    if verdict is Verdict.FAIL and low < policy.nll_margin and observed < policy.nll_margin:
        verdict = Verdict.INSUFFICIENT
        room = policy.nll_margin - difference
        needed = paired.rows_wanted(float(room.mean()), paired.mean_interval(room), n, 0.05)
    said = f"NLL {observed:+.4f} against the full-precision model's, at most {high:+.4f} with 95 % confidence"
    return GateResult(
        gate="nll",
        verdict=verdict,
        blocking=policy.blocking,
        observed=observed,
        threshold=policy.nll_margin,
        n=n,
        needed=needed,
        interval=paired.mean_interval(difference),
        sentence=said + (f"; about {needed} rows would settle it" if needed else ""),
    )


def _report(
    results: Sequence[GateResult],
    policy: Policy,
    *,
    look: int,
    previous: Mapping[str, Mapping[str, Any]] | None = None,
    bootstrap: bool = False,
) -> GateReport:
    blocking = [result.verdict for result in results if result.blocking]
    verdict = next((v for v in (Verdict.FAIL, Verdict.INSUFFICIENT) if v in blocking), Verdict.PASS)
    return GateReport(
        verdict=verdict,
        results=list(results),
        policy_sha256=policy.sha256,
        policy=policy.values(),
        policy_changes=changes(previous, policy.values()) if previous else [],
        look=look,
        bootstrap=bootstrap,
    )
