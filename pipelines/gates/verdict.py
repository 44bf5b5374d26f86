"""The verdict: may this candidate serve?

Turns the evidence on champion, candidate and probe, under a policy, into a `GateReport`. training_round.py calls `judge` and
acts on the verdict. Each gate is one function of against_champion.py or absolute.py; compressed.py judges compressed
artefacts. Pure functions, which read no feedback: only the reference set is evidence.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from pipelines.evaluation.evidence.evidence import Evidence
from pipelines.evaluation.evidence.labels import RightOrWrong
from pipelines.gates import absolute, against_champion, power
from pipelines.gates.policy import Policy
from pipelines.gates.policy_changes import changes
from schemas.reports import GateReport, GateResult, Robustness, Verdict


class Facts(BaseModel):
    """Facts that the gates read beside the evidence."""

    model_config = ConfigDict(frozen=True)
    look: int
    alpha: float  # level of this look
    next_alpha: float | None = None  # level of the next one, if it brings no new rows
    fresh: int = 0  # reference rows on which this champion was never judged
    people: int
    quarantined: int
    leaked: int = 0  # reference rows that are also training rows
    drift: float | None = None  # population stability index of labels, where computed
    absent: frozenset[str] = frozenset()  # labels without recent feedback
    vanished: frozenset[str] = frozenset()  # labels in use that the champion learned and no row now trains or judges
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
    """Run every gate and return the report.

    Args:
        champion: evidence of the live version; None: the bootstrap gate replaces the comparisons.
        candidate: evidence on the same rows in the same order, as that of the probe.
        probe: evidence of the baseline.
        facts: about the data, the artefact and this look.
        policy: the thresholds.
        previous: values of the previous round's policy; the report lists the changes.

    """
    results = _about_data(candidate, facts, policy, bootstrap=champion is None)
    if champion is None:
        results.append(absolute.bootstrap(candidate, policy.bootstrap, policy.data.min_judge_rows))
    else:
        slices = against_champion.slice_changes(champion, candidate, policy.slices)
        results += [
            against_champion.superiority(
                champion, candidate, facts.look, facts.alpha, policy.superiority, facts.next_alpha
            ),
            against_champion.non_inferiority(
                champion, candidate, policy.non_inferiority, policy.harm_level(facts.alpha)
            ),
            against_champion.slices_hold(slices, policy.slices),
        ]
        if isinstance(champion, RightOrWrong) and isinstance(candidate, RightOrWrong):
            results += [
                against_champion.flips(champion, candidate, policy.flips),
                against_champion.forgetting(
                    champion, candidate, facts.absent, facts.vanished, policy.forgetting, policy.slices
                ),
            ]
    results += _about_candidate(champion, candidate, probe, facts, policy, bootstrap=champion is None)
    report = gate_report(results, policy, look=facts.look, previous=previous, bootstrap=champion is None)
    if champion is None:
        return report
    p = next(result.p for result in results if result.gate == "superiority")
    spent = {
        "alpha": facts.alpha,
        "p": p,
        "fresh_rows": facts.fresh,
        "advice": _advice(report, facts, policy, candidate),
        "reference_p": _reference_p(champion, candidate, policy),
    }
    return report.model_copy(update=spent)


def judge_alone(
    stopped: GateResult,
    candidate: Evidence,
    probe: Evidence,
    facts: Facts,
    policy: Policy,
    previous: Mapping[str, Mapping[str, Any]] | None = None,
) -> GateReport:
    """Return the report on a candidate that is not compared with the champion on the reference set.

    `stopped` is the gate that keeps it away. Labels may promote such a candidate, so every gate that needs no comparison has to
    hold as well.
    """
    results = [stopped, *_about_candidate(None, candidate, probe, facts, policy, bootstrap=False)]
    return gate_report(results, policy, look=0, previous=previous)


def _about_candidate(
    champion: Evidence | None,
    candidate: Evidence,
    probe: Evidence,
    facts: Facts,
    policy: Policy,
    *,
    bootstrap: bool,
) -> list[GateResult]:
    """Return the gates about the candidate itself; `bootstrap`: it would be the first champion."""
    results = []
    if facts.must_pass_rows:
        results.append(absolute.must_pass(facts.must_pass_wrong, facts.must_pass_rows, policy.flips))
    before, after = facts.robustness.get("champion"), facts.robustness.get("candidate", {})
    return [
        *results,
        absolute.calibration(champion, candidate, policy.calibration, bootstrap=bootstrap),
        absolute.robustness(before, after, policy.robustness, bootstrap=bootstrap),
        absolute.baseline(probe, candidate, policy.baseline, bootstrap=bootstrap),
        absolute.serving(facts.latency_ms, facts.memory_mb, facts.size_mb, facts.load_error, policy.serving),
    ]


def _about_data(candidate: Evidence, facts: Facts, policy: Policy, *, bootstrap: bool) -> list[GateResult]:
    n = candidate.report.n
    results = [absolute.data(n, facts.people, facts.quarantined, facts.leaked, policy.data, bootstrap=bootstrap)]
    if facts.drift is not None:
        results.append(absolute.drift(facts.drift, policy.data))
    return results


def _advice(report: GateReport, facts: Facts, policy: Policy, candidate: Evidence) -> list[str]:
    """Return what the reference set can show at the next look, if this one was short of evidence."""
    if report.verdict is not Verdict.INSUFFICIENT or not isinstance(candidate, RightOrWrong):
        return []
    return [
        power.reference_line(candidate.report.n, policy, facts.alpha if facts.next_alpha is None else facts.next_alpha)
    ]


def _reference_p(champion: Evidence | None, candidate: Evidence, policy: Policy) -> float | None:
    """Return the p-value of the accuracies, which labels on disagreements test as well; None where there is none to use."""
    if not isinstance(champion, RightOrWrong) or candidate.report.n < policy.data.min_judge_rows:
        return None
    return candidate.compared_with(champion, "accuracy").p_better


def gate_report(
    results: Sequence[GateResult],
    policy: Policy,
    *,
    look: int,
    previous: Mapping[str, Mapping[str, Any]] | None = None,
    bootstrap: bool = False,
) -> GateReport:
    """Return the report of all results. The verdict is the worst blocking one: FAIL, then INSUFFICIENT, then PASS."""
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
