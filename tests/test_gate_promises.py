"""What the gates promise, by small simulations through the real functions; `make bench-evidence` is the large one."""

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest

from pipelines.calibration import maps, refit_null
from pipelines.dataset.examples import UNCHALLENGED, Example
from pipelines.dataset.files import FileRow
from pipelines.evaluation.evidence.classification import LabelEvidence
from pipelines.evaluation.evidence.regression import NumberEvidence, score_number
from pipelines.gates import absolute, before_looking, compressed, power
from pipelines.gates.policy import Policy, load_policy
from pipelines.metrics import paired_tests, probabilistic
from schemas.events import utc_now
from schemas.reports import Verdict
from serving.inference import calibration as applied
from tests.bench import evidence, evidence_worlds
from tests.support.manifests import manifest

POLICY = Policy()


def at_least(hits: int, runs: int, share: float) -> bool:
    """Return whether a true share this large is not excluded at 99.9 %."""
    return paired_tests.share_interval(hits, runs, 0.998)[1] >= share


def at_most(hits: int, runs: int, share: float) -> bool:
    return paired_tests.share_interval(hits, runs, 0.998)[0] <= share


@pytest.mark.parametrize(("n", "look", "share"), [(300, 1, 0.55), (500, 1, 0.8), (1000, 1, 0.95), (500, 20, 0.4)])
def test_three_points_are_found_without_a_label(n: int, look: int, share: float) -> None:
    hits = evidence.share_promoted(evidence_worlds.world(0.03).draw, n, look, 40)
    assert at_least(hits, 40, share), hits


def test_equal_candidates_are_hardly_ever_promoted_however_often_one_looks() -> None:
    equal = evidence_worlds.world(0.0, labels=4)
    kinds: tuple[Literal["fresh", "reused"], ...] = ("fresh", "reused")
    for kind in kinds:
        hits = evidence.false_promotions(equal, 200, 60, kind, 40)
        assert at_most(hits[60], 40, 0.05), (kind, hits)


def test_a_point_worse_is_not_promoted() -> None:
    drawn = [evidence_worlds.world(-0.01).draw, lambda n, draw: evidence_worlds.two_opinions(-0.01, n, draw)]
    assert all(evidence.share_promoted(each, 300, 1, 400) <= 8 for each in drawn)


def test_a_better_brier_score_does_not_excuse_lost_accuracy() -> None:
    """The champion is over-confident, so the candidate's Brier score is better for sure; it has lost three points."""
    hits = evidence.share_promoted(evidence.deceptive_world(-0.03), 500, 1, 100)
    assert hits <= 1


@pytest.mark.parametrize("n", [100, 500])
def test_good_candidates_pass_the_calibration_gate_with_maps_fitted_on_its_rows(n: int) -> None:
    draw, good, runs = np.random.default_rng(0), evidence_worlds.world(0.0, labels=4), 40
    hits = 0
    for _ in range(runs):
        truth, before, after = good.draw(n, draw)
        rows = evidence_worlds.rows_of(truth)
        champion, candidate = (evidence_worlds.cross_fitted(1.7 * each, truth, rows) for each in (before, after))
        hits += absolute.calibration(champion, candidate, POLICY.calibration).verdict is not Verdict.PASS
    assert at_most(hits, runs, 0.03), hits


def test_what_refitting_moves_is_what_a_real_refit_moves() -> None:
    """The linearised shift of confidences against maps that are truly fitted again on imagined labels."""
    draw = np.random.default_rng(1)
    truth, logits, _ = evidence_worlds.world(0.0, labels=4).draw(300, draw)
    fitted = maps.cross_fit(1.5 * logits, truth)
    assert fitted.calibration.kind == "temperature"
    best, rows = fitted.probabilities.argmax(axis=1), np.arange(300)
    cumulative = fitted.probabilities.cumsum(axis=1)
    imagined = (draw.random((30, 300, 1)) > cumulative).sum(axis=2).clip(0, 3)
    shifts = refit_null.label_shift(1.5 * logits, fitted)(imagined)
    moved = np.empty(shifts.shape)
    for labels, moves in zip(imagined, moved, strict=True):
        again = np.empty(300)
        for fold in range(maps.FOLDS):
            held = fitted.fold == fold
            temperature = maps.fit_temperature(1.5 * logits[~held], labels[~held])
            again[held] = applied.softmax(1.5 * logits[held] / temperature)[np.arange(held.sum()), best[held]]
        moves[:] = again - fitted.probabilities[rows, best]
    moved -= moved.mean(axis=0)  # each fold starts from a map of its own
    assert np.corrcoef(moved.ravel(), shifts.ravel())[0, 1] > 0.9
    assert shifts.std() == pytest.approx(moved.std(), rel=0.25)


def test_sets_judged_by_cross_fitting_hold_what_they_promise() -> None:
    draw = np.random.default_rng(3)
    truth, logits, _ = evidence_worlds.world(0.0).draw(600, draw)
    judged = evidence_worlds.cross_fitted(1.7 * logits, truth, evidence_worlds.rows_of(truth))
    assert 0.93 < judged.covered(0.95).mean() < 0.97


# --- what is held back, and what is said before ---


def models(gain: float, n: int) -> tuple[LabelEvidence, LabelEvidence]:
    truth, before, after = evidence_worlds.world(gain).draw(n, np.random.default_rng(4))
    rows = evidence_worlds.rows_of(truth)
    return evidence_worlds.known(before, truth, rows), evidence_worlds.known(after, truth, rows)


def test_a_candidate_that_is_not_better_on_its_own_rows_is_not_brought_to_the_reference() -> None:
    assert before_looking.not_better(*models(0.03, 400)) is None
    held = before_looking.not_better(*models(-0.03, 400))
    assert held is not None
    assert (held.gate, held.verdict, held.blocking) == ("validation", Verdict.INSUFFICIENT, True)
    assert "no alpha was spent" in held.sentence


def test_only_rows_that_trained_neither_model_hold_a_candidate_back() -> None:
    now = utc_now()
    rows = [Example(text=str(n), label="a", source="correction", order=now.isoformat()) for n in range(60)]
    made: Any = manifest("c", model_name="m").model_copy(update={"method": "lora"})
    kept_best: list[dict[str, Any]] = [{"phase": "search"}]
    longer_ago = now.replace(year=now.year - 1)
    assert len(before_looking.unseen_by_both(rows, made, kept_best, longer_ago)) == 60
    assert before_looking.unseen_by_both(rows, made, kept_best, now) == [], "older feedback trained the champion"
    assert before_looking.unseen_by_both(rows, made, [*kept_best, {"phase": "final"}], longer_ago) == []
    assert before_looking.unseen_by_both(rows[:49], made, kept_best, longer_ago) == []
    for method in ("probe", "tfidf"):
        baseline = made.model_copy(update={"method": method})
        assert before_looking.unseen_by_both(rows, baseline, kept_best, longer_ago) == []
    silent = [replace(row, source=UNCHALLENGED) for row in rows]
    assert before_looking.unseen_by_both(silent, made, kept_best, longer_ago) == [], (
        "the champion is right on its own answers"
    )


def test_data_that_stop_a_round_stop_it_before_the_look() -> None:
    assert before_looking.data_stops(300, 9, 0, 0, POLICY) is None
    for n, quarantined, leaked in ((50, 0, 0), (300, 9, 0), (300, 0, 1)):
        stopped = before_looking.data_stops(n, 9, quarantined, leaked, POLICY)
        assert stopped is not None
        assert stopped.verdict is not Verdict.PASS
    assert before_looking.data_stops(50, 9, 0, 0, load_policy("[data]\nblocking = false")) is None


def test_what_the_reference_can_show_is_said_in_rows() -> None:
    alpha = POLICY.alpha_at(1)
    line = power.reference_line(57, POLICY, alpha)
    assert line.startswith("57 reference rows; a gain of 3 points would be found in ")
    more = int(line.split("; ")[2].split()[0])
    assert 100 < more < 400
    assert power.chance(57 + more, POLICY, alpha) >= power.WORTHWHILE
    assert "more rows" not in power.reference_line(2000, POLICY, alpha)


@pytest.mark.parametrize(("n", "look"), [(300, 1), (1000, 1), (500, 20)])
def test_the_forecast_does_not_promise_more_than_the_gates_find(n: int, look: int) -> None:
    hits = evidence.share_promoted(evidence_worlds.world(0.03).draw, n, look, 30)
    assert at_least(hits, 30, power.chance(n, POLICY, POLICY.alpha_at(look)))


def test_a_champion_with_one_error_is_out_of_reach_and_it_is_said() -> None:
    by_accuracy = load_policy('[superiority]\nmetric = "accuracy"')
    said = power.out_of_reach(1, 112, by_accuracy, by_accuracy.alpha_at(1))
    assert said is not None
    assert "wrong on 1 of 112 rows" in said
    assert "takes 7 mended" in said
    assert "784 rows like these" in said
    assert power.out_of_reach(8, 112, by_accuracy, by_accuracy.alpha_at(1)) is None
    assert power.out_of_reach(1, 112, POLICY, POLICY.alpha_at(1)) is None, "the Brier score may still improve"


# --- compression and numbers ---


def test_an_artefact_that_forgets_a_rare_label_does_not_serve() -> None:
    """13 % of the rows are 'b'. The smaller artefact loses a seventh of them, and gains as many of 'a'."""
    truth = np.array([1 if n < 130 else 0 for n in range(1000)])
    full = np.where(truth == 1, 0.9, 0.1)
    full[900:] = 0.6  # 100 rows of 'a' taken for 'b'
    small = full.copy()
    small[:18] = 0.4
    small[900:918] = 0.4
    rows = evidence_worlds.rows_of(truth)
    before, after = (evidence_worlds.known(np.log(np.column_stack([1 - p, p])), truth, rows) for p in (full, small))
    looser = load_policy("[compressed]\nmin_agreement = 0.9\nnll_margin = 1.0")
    report = compressed.judge_compressed(before, after, looser)
    assert {"slices", "macro_f1"} <= set(report.stopped_by()), report.results
    assert next(result for result in report.results if result.gate == "accuracy").verdict is Verdict.PASS
    assert compressed.judge_compressed(before, before, POLICY).verdict is Verdict.PASS


def test_the_better_of_two_regressors_does_not_meet_a_stricter_test_of_sameness() -> None:
    draw = np.random.default_rng(5)
    truth = draw.normal(0, 10, 400)
    rows = [FileRow("", str(number)) for number in truth.tolist()]

    def made(error: float) -> NumberEvidence:
        return score_number((truth + draw.normal(0, error, 400))[:, None], [], rows, version="v", split="s")

    worse, better = made(6), made(2)
    moved = np.full((400, 1), 1.5)
    assert worse.same_answer(worse.outputs, worse.outputs + moved).all()
    assert better.same_answer(better.outputs, better.outputs + moved).all()
    assert not better.same_answer(better.outputs, better.outputs + 2 * moved).any()


def test_cross_fitted_losses_are_those_of_the_map_on_rows_it_has_not_seen() -> None:
    world, gaps = evidence_worlds.world(0.0, labels=4), []
    fresh, new, _ = world.draw(20_000, np.random.default_rng(6))
    for seed in range(40):
        truth, logits, _ = world.draw(120, np.random.default_rng(100 + seed))
        fitted = maps.cross_fit(1.7 * logits, truth)
        true = probabilistic.row_nll(applied.apply(fitted.calibration, 1.7 * new), fresh).mean()
        gaps.append(probabilistic.row_nll(fitted.probabilities, truth).mean() - true)
    assert abs(np.mean(gaps)) < 3 * np.std(gaps) / np.sqrt(len(gaps)) + 0.005
