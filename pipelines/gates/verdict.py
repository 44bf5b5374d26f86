"""The gates: may this candidate serve?

Turns the evidence on champion, candidate and probe, under a policy, into a `GateReport`. Pure functions; training_round.py
calls `judge` and acts on the verdict; compressed artefacts are judged by gates/compressed.py. They deliberately read no feedback:
only fair evidence judges. Each gate is one function of gates/against_champion.py or gates/absolute.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from pipelines.evaluation.evidence.evidence import Evidence
from pipelines.evaluation.evidence.labels import RightOrWrong
from pipelines.gates import absolute as floor
from pipelines.gates import against_champion as compare
from pipelines.gates.policy import Policy, changes
from schemas.reports import GateReport, GateResult, Robustness, Verdict


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
    return gate_report(results, policy, look=facts.look, previous=previous, bootstrap=champion is None)


def gate_report(
    results: Sequence[GateResult],
    policy: Policy,
    *,
    look: int,
    previous: Mapping[str, Mapping[str, Any]] | None = None,
    bootstrap: bool = False,
) -> GateReport:
    """Sum up results: FAIL before INSUFFICIENT before PASS, over those that block."""
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
