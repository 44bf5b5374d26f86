"""The gates are pure: evidence, facts and policy in, verdicts out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from pipelines.dataset.build import Dataset
from pipelines.dataset.examples import Example
from pipelines.dataset.files import FileRow
from pipelines.evaluation.evidence.classification import LabelEvidence, score_label
from pipelines.gates.compressed import judge_compressed
from pipelines.gates.evidence_and_facts import vanished
from pipelines.gates.policy import BadPolicy, Policy, default_policy, load_policy
from pipelines.gates.policy_changes import changes
from pipelines.gates.verdict import Facts, judge
from schemas.manifests import Calibration, Conformal
from schemas.reports import GateReport, GateResult, Robustness, Verdict

LABELS = ["a", "b"]


def evidence(
    right: Sequence[bool], confidence: float = 0.9, slices: Sequence[str] = ("all",), labels: str = "a", **more: object
) -> LabelEvidence:
    """Rows of which these are right, all about as sure; they take turns in the slices."""
    own = [labels[n % len(labels)] for n in range(len(right))]
    rows = [FileRow(f"text {n}", label, {"channel": slices[n % len(slices)]}) for n, label in enumerate(own)]
    sure = np.clip(np.random.default_rng(0).normal(confidence, 0.01, len(right)), 0.501, 0.9999)
    said_a = np.where(np.array(right) == (np.array(own) == "a"), sure, 1 - sure)
    probabilities = np.column_stack([said_a, 1 - said_a])
    return score_label(probabilities, LABELS, rows, version="v", split="reference", **more)  # type: ignore[arg-type]


def share(n: int, wrong: int, shift: int = 0) -> list[bool]:
    return [not shift <= i < shift + wrong for i in range(n)]


def facts(**fields: object) -> Facts:
    given: dict[str, object] = {
        "look": 1,
        "alpha": 0.025,
        "people": 10,
        "quarantined": 0,
        "latency_ms": 5.0,
        "load_error": None,
    }
    return Facts.model_validate(given | fields)


def verdict(
    champion: LabelEvidence | None,
    candidate: LabelEvidence,
    policy: Policy | None = None,
    found: Facts | None = None,
    **fields: Any,
) -> GateReport:
    return judge(champion, candidate, candidate, found or facts(**fields), policy or Policy())


def gate(report: GateReport, name: str) -> GateResult:
    return next(result for result in report.results if result.gate == name)


BEFORE, AFTER = evidence(share(400, 60), 0.85), evidence(share(400, 24), 0.94)


# --- the policy -----------------------------------------------------------------------------------------------------


def test_the_default_policy_is_the_defaults() -> None:
    assert load_policy(default_policy("classification")) == Policy()
    assert load_policy("# nothing").sha256 == Policy().sha256, "comments and spelt-out defaults change nothing"


@pytest.mark.parametrize("text", ["[superiority]\nalhpa = 0.1", "[superiority]\nalpha = 2", "[superority]", "not toml"])
def test_a_bad_policy_is_refused(text: str) -> None:
    with pytest.raises(BadPolicy, match=r"policy\.toml"):
        load_policy(text)


def test_looks_spend_alpha_and_never_more() -> None:
    policy = Policy()
    kept = 1 - policy.settling.share
    assert policy.alpha_at(1) == pytest.approx(kept * 0.05 * 0.33)
    labels = sum(policy.settling_alpha_at(look) for look in range(1, 10_000))
    assert sum(policy.alpha_at(look) for look in range(1, 10_000)) + labels < 0.05
    assert 0.049 < sum(policy.alpha_at(look, look) for look in range(1, 10_000)) + labels <= 0.05, (
        "nor if every look has fresh rows"
    )
    assert policy.alpha_at(20, 2) > 5 * policy.alpha_at(20), (
        "rows never looked at carry an alpha that looks at others left"
    )
    assert policy.alpha_at(2) == policy.alpha_at(20) > 5 * policy.alpha_at(21)
    assert policy.harm_level(policy.alpha_at(1)) == pytest.approx(2 * policy.alpha_at(1))
    assert policy.harm_level(0.04) == 0.05, "a single look never accepts more"


def test_a_looser_policy_shows_in_the_report() -> None:
    looser = load_policy("[superiority]\nalpha = 0.5\n[calibration]\nblocking = false")
    report = judge(BEFORE, AFTER, AFTER, facts(), looser, previous=Policy().values())
    assert report.policy_changes == ["calibration.blocking: True -> False", "superiority.alpha: 0.05 -> 0.5"]
    assert report.policy["superiority"]["alpha"] == 0.5
    assert report.policy_sha256 != Policy().sha256
    assert judge(BEFORE, AFTER, AFTER, facts(), looser, previous=looser.values()).policy_changes == []
    assert changes({}, {"flips": {"max_share": 0.1}}) == [], "a value of a later release is its default"
    assert changes({}, {"flips": {"max_share": 0.2}}) == ["flips.max_share: 0.1 -> 0.2"]
    assert changes({"gone": {"x": 1}}, {"new": {"y": 2}}) == ["gone.x: 1 -> absent", "new.y: absent -> 2"]


# --- the whole ------------------------------------------------------------------------------------------------------


def test_a_clearly_better_candidate_passes() -> None:
    report = verdict(BEFORE, AFTER)
    assert report.verdict is Verdict.PASS, report
    assert {result.gate for result in report.results} >= {
        *("data", "superiority", "non_inferiority", "slices", "flips", "forgetting"),
        *("calibration", "robustness", "baseline", "serving"),
    }
    assert all(result.sentence for result in report.results)


def rare(found: int, false: int) -> LabelEvidence:
    """400 rows of which 4 are 'b'; the model finds some of these, and takes some of the others for 'b'."""
    rows = [FileRow(f"text {n}", "b" if n < 4 else "a", {}) for n in range(400)]
    said_b = [n < found or 4 <= n < 4 + false for n in range(400)]
    sure = np.random.default_rng(0).normal(0.98, 0.005, 400).clip(0.9, 0.999)
    probability = np.where(said_b, sure, 1 - sure)
    return score_label(np.column_stack([1 - probability, probability]), LABELS, rows, version="v", split="reference")


def test_a_first_champion_that_finds_rare_labels_is_not_measured_by_accuracy() -> None:
    found = gate(verdict(None, rare(3, 3)), "bootstrap")  # accuracy 0.990, as the constant prediction's
    assert found.verdict is Verdict.PASS
    assert found.sentence == "macro F1 0.797, always predicting the most frequent label 0.497"
    assert found.interval is not None and found.interval[0] < 0.797 < found.interval[1]
    for blind in (rare(0, 0), rare(0, 5), rare(4, 390)):
        assert gate(verdict(None, blind), "bootstrap").verdict is Verdict.FAIL


def test_a_gate_that_advises_stops_nothing() -> None:
    policy = load_policy("[superiority]\nblocking = false")
    report = verdict(BEFORE, BEFORE, policy)
    assert gate(report, "superiority").verdict is Verdict.INSUFFICIENT
    assert report.verdict is Verdict.PASS


def test_without_a_champion_floors_decide() -> None:
    assert verdict(None, evidence(share(400, 100), 0.75, labels="ab")).verdict is Verdict.PASS
    assert verdict(None, evidence(share(400, 200), 0.52, labels="ab")).stopped_by() == ["bootstrap"]
    assert verdict(None, evidence(share(20, 5), 0.75, labels="ab")).verdict is Verdict.PASS, (
        "few rows advise, where nothing serves yet"
    )
    brittle = {"candidate": {"typo": Robustness(edited=100, flipped=60)}}
    assert verdict(None, evidence(share(400, 100), 0.75, labels="ab"), robustness=brittle).verdict is Verdict.PASS


# --- superiority and non-inferiority --------------------------------------------------------------------------------


def test_an_equal_candidate_does_not_pass() -> None:
    report = verdict(evidence(share(400, 40)), evidence(share(400, 40, shift=20)))
    assert "superiority" in report.stopped_by()


def test_a_slightly_better_candidate_is_told_how_many_rows_would_settle_it() -> None:
    result = gate(verdict(evidence(share(400, 40)), evidence(share(400, 37))), "superiority")
    assert result.verdict is Verdict.INSUFFICIENT
    assert result.needed is not None
    assert 400 < result.needed < 1200
    assert f"about {result.needed} rows instead of 400 would settle it" in result.sentence


def test_later_looks_need_more_evidence() -> None:
    champion, candidate = evidence(share(400, 40)), evidence(share(400, 33))
    assert gate(verdict(champion, candidate), "superiority").verdict is Verdict.PASS
    fifth = verdict(champion, candidate, look=5, alpha=Policy().alpha_at(5))
    assert gate(fifth, "superiority").verdict is Verdict.INSUFFICIENT


@pytest.mark.parametrize("metric", ["accuracy", "nll", "brier", "macro_f1"])
def test_superiority_by_any_metric(metric: str) -> None:
    policy = load_policy(f'[superiority]\nmetric = "{metric}"')
    assert gate(verdict(BEFORE, AFTER, policy), "superiority").verdict is Verdict.PASS
    assert gate(verdict(AFTER, BEFORE, policy), "superiority").verdict is Verdict.FAIL
    same = gate(verdict(AFTER, AFTER, policy), "superiority")
    assert (same.verdict, same.needed) == (Verdict.INSUFFICIENT, None), "no gain is no proof of a loss"


def test_a_better_nll_does_not_pay_for_lost_accuracy() -> None:
    policy = load_policy('[superiority]\nmetric = "nll"')
    report = verdict(evidence(share(1000, 50), 0.6), evidence(share(1000, 80), 0.9), policy)
    assert gate(report, "superiority").verdict is Verdict.PASS
    assert "non_inferiority" in report.stopped_by()


def test_non_inferiority_wants_rows_before_it_believes_in_no_loss() -> None:
    few = gate(verdict(evidence(share(150, 10)), evidence(share(150, 10, shift=5))), "non_inferiority")
    assert few.verdict is Verdict.INSUFFICIENT
    assert few.needed is not None
    assert few.needed > 150
    same = evidence(share(400, 40))
    assert gate(verdict(same, same), "non_inferiority").verdict is Verdict.PASS


# --- slices, flips, forgetting --------------------------------------------------------------------------------------


def moved(champion: list[bool], *, gained: int = 0, lost: int = 0, of: int = 1, at: int = 0) -> list[bool]:
    """Some of the rows at, at + of, at + 2 of ... changed: so many wrong ones mended, so many right ones spoilt."""
    after = champion.copy()
    own = range(at, len(champion), of)
    for n in [n for n in own if not champion[n]][:gained]:
        after[n] = True
    for n in [n for n in own if champion[n]][:lost]:
        after[n] = False
    return after


def test_a_harmed_slice_stops_a_better_candidate() -> None:
    names = ["web", "ios", "mail", "chat"]
    before = [bool(n % 7) for n in range(1200)]
    after = before
    for at in (0, 2, 3):
        after = moved(after, gained=30, of=4, at=at)
    after = moved(after, lost=18, of=4, at=1)
    report = verdict(evidence(before, slices=names), evidence(after, slices=names))
    result = gate(report, "slices")
    assert result.verdict is Verdict.FAIL
    assert "channel=ios" in result.sentence
    assert result.observed == pytest.approx(-18 / 300)
    assert gate(report, "superiority").verdict is Verdict.PASS


def test_small_slices_advise_unless_the_loss_is_beyond_doubt() -> None:
    names = [f"shop {n}" for n in range(20)]
    before = share(1000, 0)
    for lost, expected in ((3, Verdict.PASS), (20, Verdict.FAIL)):
        after = moved(before, lost=lost, of=20)
        result = gate(verdict(evidence(before, slices=names), evidence(after, slices=names)), "slices")
        assert result.verdict is expected, (lost, result.sentence)
        assert result.n == 50


def test_too_many_negative_flips_stop_a_better_candidate() -> None:
    before = share(1000, 400)
    after = moved(before, gained=300, lost=150)
    report = verdict(evidence(before, 0.6), evidence(after, 0.75))
    assert gate(report, "superiority").verdict is Verdict.PASS
    assert "flips" in report.stopped_by()
    assert "150 of 1000" in gate(report, "flips").sentence


def test_every_must_pass_example_has_to_be_right() -> None:
    assert verdict(BEFORE, AFTER, must_pass_rows=3).verdict is Verdict.PASS
    report = verdict(BEFORE, AFTER, must_pass_rows=3, must_pass_wrong=["cancel my card"])
    assert report.stopped_by() == ["must_pass"]
    assert "cancel my card" in gate(report, "must_pass").sentence


def test_a_label_without_recent_feedback_has_to_keep_its_score() -> None:
    def two_labels(right: list[bool]) -> LabelEvidence:
        rows = [FileRow(f"text {n}", LABELS[n % 2]) for n in range(len(right))]
        other = [(n + (not r)) % 2 for n, r in enumerate(right)]
        return score_label(np.eye(2)[other] * 0.8 + 0.1, LABELS, rows, version="v", split="reference")

    before = [bool(n % 6 > 1) for n in range(600)]
    after = moved(moved(before, gained=90, of=2, at=0), lost=15, of=2, at=1)
    champion, candidate = two_labels(before), two_labels(after)
    assert gate(verdict(champion, candidate), "forgetting").verdict is Verdict.PASS
    assert gate(verdict(champion, candidate, absent={"a"}), "forgetting").verdict is Verdict.PASS
    assert gate(verdict(champion, candidate, absent={"b"}), "forgetting").verdict is Verdict.FAIL


def test_a_label_that_no_row_trains_or_judges_is_not_promoted_away() -> None:
    report = verdict(BEFORE, AFTER, vanished={"card lost"})
    assert report.stopped_by() == ["forgetting"]
    sentence = gate(report, "forgetting").sentence
    assert sentence == (
        "'card lost' is active in the taxonomy and no row trains or judges it: "
        "retire it with `ratchet labels retire card lost`, or add rows"
    )
    assert verdict(BEFORE, AFTER, absent={"card lost"}).verdict is Verdict.PASS
    unseen = gate(verdict(BEFORE, AFTER, absent={"card lost"}), "forgetting").sentence
    assert unseen == "no reference row has a label without recent feedback"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"c"}),
        ({"train": "c"}, set()),
        ({"validation": "c"}, set()),
        ({"reference": "c"}, set()),
        ({"rejections": "c"}, {"c"}),
    ],
)
def test_a_label_has_vanished_if_it_was_taught_and_no_row_names_it(given: dict[str, str], expected: set[str]) -> None:
    def example(label: str) -> Example:
        return Example(text=label, label=label, source="seed")

    sides: dict[str, Any] = {side: [example(label)] for side, label in given.items() if side != "reference"}
    rows = [FileRow("t", given["reference"])] if "reference" in given else []
    dataset = Dataset(
        train=[example("a"), example("b"), *sides.get("train", [])],
        validation=sides.get("validation", []),
        rejections=sides.get("rejections", []),
        calibration=[],
        reference=[FileRow("t", "a"), *rows],
        labels=["a", "b", "c", "new"],
        manifest=None,  # type: ignore[arg-type]  # is not looked at
    )
    taught = frozenset({"a", "b", "c", "retired"})
    assert vanished(dataset, "classification", taught) == expected


# --- calibration, robustness, data, serving -------------------------------------------------------------------------


def test_an_over_confident_candidate_is_stopped() -> None:
    report = verdict(evidence(share(400, 100), 0.75), evidence(share(400, 60), 0.999))
    assert "calibration" in report.stopped_by()


def test_sets_that_hold_less_than_they_promise_stop_a_candidate() -> None:
    narrow = Calibration(conformal=Conformal(scores=[0.05] * 200))
    honest = Calibration(conformal=Conformal(scores=[0.05] * 185 + [0.95] * 15))
    right, champion = share(400, 60), evidence(share(400, 100), 0.75)
    assert (
        "less often than promised"
        in gate(verdict(champion, evidence(right, 0.85, calibration=narrow)), "calibration").sentence
    )
    passed = gate(verdict(champion, evidence(right, 0.85, calibration=honest)), "calibration")
    assert passed.verdict is Verdict.PASS, passed.sentence


def test_answers_that_typos_change_stop_a_candidate_unless_the_champions_do_too() -> None:
    brittle = {"typo": Robustness(edited=500, flipped=100), "case": Robustness(edited=500, flipped=80)}
    steady = {kind: Robustness(edited=500, flipped=20) for kind in brittle}
    found = {"candidate": brittle, "champion": steady}
    advised = verdict(BEFORE, AFTER, robustness=found)
    assert (advised.verdict, gate(advised, "robustness").verdict) == (Verdict.PASS, Verdict.FAIL), "it only advises"
    stopped = verdict(BEFORE, AFTER, load_policy("[robustness]\nblocking = true"), robustness=found)
    assert stopped.stopped_by() == ["robustness"]
    assert "typo, 100 of 500" in gate(stopped, "robustness").sentence
    assert verdict(BEFORE, AFTER, robustness={"candidate": brittle, "champion": brittle}).verdict is Verdict.PASS
    assert verdict(BEFORE, AFTER, robustness={"candidate": steady, "champion": steady}).verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("found", "stopped_by"),
    [
        ({"latency_ms": None, "load_error": "no such file"}, "serving"),
        ({"latency_ms": 900.0}, "serving"),
        ({"memory_mb": 5000.0}, "serving"),
        ({"size_mb": 5000.0}, "serving"),
        ({"quarantined": 8}, "data"),
        ({"leaked": 1}, "data"),
    ],
)
def test_what_was_found_out_can_stop_a_candidate(found: dict[str, object], stopped_by: str) -> None:
    assert verdict(BEFORE, AFTER, found=facts(**found)).stopped_by() == [stopped_by]


def test_few_rows_are_insufficient_evidence() -> None:
    report = verdict(evidence(share(80, 60), 0.3), evidence(share(80, 4), 0.95))
    assert report.verdict is Verdict.INSUFFICIENT
    assert gate(report, "data").needed == 100


def test_drift_only_advises() -> None:
    report = verdict(BEFORE, AFTER, drift=0.7)
    assert gate(report, "drift").verdict is Verdict.FAIL
    assert report.verdict is Verdict.PASS


# --- compressed artefacts -------------------------------------------------------------------------------------------


def test_a_compressed_artefact_is_judged_against_the_full_one_and_spends_nothing() -> None:
    right = share(600, 60)
    full = evidence(right)
    report = judge_compressed(full, evidence(moved(right, gained=2, lost=3)), Policy())
    assert report.verdict is Verdict.PASS, report
    assert report.look == 0
    assert report.policy["compressed"]["min_agreement"] == 0.985
    assert judge_compressed(full, full, Policy()).verdict is Verdict.PASS


def test_a_compressed_artefact_that_answers_otherwise_is_stopped() -> None:
    right = share(600, 60)
    report = judge_compressed(evidence(right), evidence(moved(right, gained=20, lost=30)), Policy())
    assert {"agreement", "accuracy"} <= set(report.stopped_by())


def test_a_compressed_artefact_with_worse_probabilities_is_stopped() -> None:
    right = share(600, 60)
    assert judge_compressed(evidence(right), evidence(right, 0.999), Policy()).stopped_by() == ["nll"]


def test_too_few_rows_leave_a_compressed_artefact_undecided() -> None:
    right = share(135, 13)
    report = judge_compressed(evidence(right), evidence(moved(right, gained=1, lost=1)), Policy())
    assert report.verdict is Verdict.INSUFFICIENT
    assert gate(report, "accuracy").needed is not None
