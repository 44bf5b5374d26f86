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
from pipelines.gates import absolute, against_champion
from pipelines.gates.policy import Policy, changes
from schemas.reports import GateReport, GateResult, Robustness, Verdict


class Facts(BaseModel):
    """Facts that the gates read beside the evidence."""

    model_config = ConfigDict(frozen=True)
    look: int
    alpha: float  # level of this look
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
    results = [
        absolute.data(
            candidate.report.n, facts.people, facts.quarantined, facts.leaked, policy.data, bootstrap=champion is None
        )
    ]
    if facts.drift is not None:
        results.append(absolute.drift(facts.drift, policy.data))
    if champion is None:
        results.append(absolute.bootstrap(candidate, policy.bootstrap))
    else:
        slices = against_champion.slice_changes(champion, candidate, policy.slices)
        results += [
            against_champion.superiority(champion, candidate, facts.look, facts.alpha, policy.superiority),
            against_champion.non_inferiority(champion, candidate, policy.non_inferiority),
            against_champion.slices_hold(slices, policy.slices),
        ]
        if isinstance(champion, RightOrWrong) and isinstance(candidate, RightOrWrong):
            results += [
                against_champion.flips(champion, candidate, policy.flips),
                against_champion.forgetting(
                    champion, candidate, facts.absent, facts.vanished, policy.forgetting, policy.slices
                ),
            ]
    if facts.must_pass_rows:
        results.append(absolute.must_pass(facts.must_pass_wrong, facts.must_pass_rows, policy.flips))
    results += [
        absolute.calibration(champion, candidate, policy.calibration),
        absolute.robustness(facts.robustness.get("champion"), facts.robustness.get("candidate", {}), policy.robustness),
        absolute.baseline(probe, candidate, policy.baseline),
        absolute.serving(facts.latency_ms, facts.memory_mb, facts.size_mb, facts.load_error, policy.serving),
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
