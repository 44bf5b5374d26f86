"""The gates are pure: evidence and policy in, verdicts out."""

import numpy as np
import pytest

from pipelines.dataset.files import FileRow
from pipelines.evaluation import Evidence, score
from pipelines.gates import DEFAULT_POLICY, BadPolicy, Candidate, Policy, judge, load_policy, mcnemar
from schemas.artifacts import GateReport, Verdict

LABELS = ["a", "b"]


def evidence(right: list[bool], confidence: float = 0.9) -> Evidence:
    rows = [FileRow(f"text {n}", "a") for n in range(len(right))]
    sure = np.clip(np.random.default_rng(0).normal(confidence, 0.01, len(right)), 0.501, 0.9999)
    probabilities = np.array([[c, 1 - c] if r else [1 - c, c] for r, c in zip(right, sure, strict=True)])
    return score(probabilities, LABELS, rows, version="v", split="reference")


def share(n: int, wrong: int, shift: int = 0) -> list[bool]:
    return [not shift <= i < shift + wrong for i in range(n)]


def facts(**fields: object) -> Candidate:
    given: dict[str, object] = {
        "look": 1,
        "people": 10,
        "quarantined": 0,
        "majority_share": 0.5,
        "latency_ms": 5.0,
        "load_error": None,
    }
    return Candidate.model_validate(given | fields)


def verdict(champion: Evidence | None, candidate: Evidence, **fields: object) -> GateReport:
    return judge(champion, candidate, candidate, facts(**fields), Policy(), "sha")


def test_the_default_policy_is_the_defaults() -> None:
    policy, digest = load_policy(DEFAULT_POLICY)
    assert policy == Policy()
    assert len(digest) == 64


def test_an_unknown_key_in_the_policy_is_refused() -> None:
    with pytest.raises(BadPolicy, match="superiority"):
        load_policy("[superiority]\nalhpa = 0.1")


def test_mcnemar_is_the_exact_binomial_tail() -> None:
    champion = np.array([False] * 8 + [True] * 2)
    candidate = np.array([True] * 8 + [False] * 2)
    gained, lost, p = mcnemar(champion, candidate)
    assert (gained, lost) == (8, 2)
    assert p == pytest.approx(56 / 1024)  # (45 + 10 + 1) / 2^10


def test_a_clearly_better_candidate_passes() -> None:
    report = verdict(evidence(share(400, 60), 0.85), evidence(share(400, 24), 0.94))
    assert report.verdict is Verdict.PASS, report


def test_an_equal_candidate_does_not_pass() -> None:
    report = verdict(evidence(share(400, 40)), evidence(share(400, 40, shift=20)))
    assert "superiority" in report.stopped_by()


def test_a_slightly_better_candidate_is_told_how_many_rows_would_settle_it() -> None:
    report = verdict(evidence(share(400, 40)), evidence(share(400, 37)))
    superiority = next(r for r in report.results if r.gate == "superiority")
    assert superiority.verdict is Verdict.INSUFFICIENT
    assert "rows would settle it" in superiority.sentence


def test_later_looks_need_more_evidence() -> None:
    champion, candidate = evidence(share(400, 40)), evidence(share(400, 33))
    first = next(r for r in verdict(champion, candidate).results if r.gate == "superiority")
    fifth = next(r for r in verdict(champion, candidate, look=5).results if r.gate == "superiority")
    assert first.verdict is Verdict.PASS
    assert fifth.verdict is Verdict.INSUFFICIENT


def test_an_over_confident_candidate_is_stopped() -> None:
    report = verdict(evidence(share(400, 100), 0.75), evidence(share(400, 60), 0.999))
    assert "calibration" in report.stopped_by()


def test_an_artefact_that_does_not_load_is_stopped() -> None:
    report = verdict(evidence(share(400, 60)), evidence(share(400, 20)), latency_ms=None, load_error="no such file")
    assert "serving" in report.stopped_by()


def test_mostly_quarantined_feedback_is_stopped() -> None:
    report = verdict(evidence(share(400, 60), 0.85), evidence(share(400, 24), 0.94), quarantined=8)
    assert report.stopped_by() == ["data"]


def test_without_a_champion_floors_decide() -> None:
    assert verdict(None, evidence(share(400, 100), 0.75)).verdict is Verdict.PASS
    assert verdict(None, evidence(share(400, 200), 0.52)).stopped_by() == ["bootstrap"]
    assert verdict(None, evidence(share(20, 5), 0.75)).verdict is Verdict.PASS, (
        "few rows advise, where nothing serves yet"
    )
