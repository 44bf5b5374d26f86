"""Calibrators on real data of their shapes: chosen on rows they did not see, applied by serving alone."""

from functools import cache
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.linear_model import LogisticRegression, Ridge

from pipelines.calibration import conformal, intervals, maps, sequence_confidence
from pipelines.metrics import probabilistic
from schemas.manifests import Calibration, Conformal, IntervalCalibration
from serving.inference import calibration as applied

Logits = tuple[Any, Any, Any, Any]


@cache
def digits(sharpness: float = 9.0) -> Logits:
    """Logits of an over-confident model on handwritten digits, with the truth: rows to fit on, and others to judge by."""
    images, truth = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(truth))
    images, truth = images[order] + np.random.default_rng(1).normal(0, 6, images.shape), truth[order]
    model = LogisticRegression(C=1e-4, max_iter=300).fit(images[:600], truth[:600])
    logits = sharpness * model.decision_function(images[600:])
    return logits[:600], truth[600:1200], logits[600:], truth[1200:]


@cache
def tumours(sharpness: float = 2.0) -> Logits:
    """The same for two labels: breast tumours."""
    cells, truth = load_breast_cancer(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(truth))
    cells, truth = (cells[order] - cells.mean(axis=0)) / cells.std(axis=0), truth[order]
    cells = cells + np.random.default_rng(1).normal(0, 2, cells.shape)
    model = LogisticRegression(C=1.0, max_iter=1000).fit(cells[:150], truth[:150])
    both = np.column_stack([np.zeros(len(cells)), sharpness * model.decision_function(cells) + 1.0])
    return both[150:360], truth[150:360], both[360:], truth[360:]


def nll(fitted: Calibration, logits: Any, truth: Any) -> float:
    return float(probabilistic.row_nll(applied.apply(fitted, logits), truth).mean())


def test_an_over_confident_model_is_cooled() -> None:
    own, truth, other, other_truth = digits()
    fitted = maps.fit(own, truth)
    assert fitted.kind in ("temperature", "vector")
    assert nll(fitted, other, other_truth) < nll(Calibration(), other, other_truth) - 0.05
    probabilities = applied.apply(fitted, other)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == other_truth
    assert probabilistic.ece(confidence, right) <= probabilistic.ece_null(confidence)
    assert set(fitted.held_out_nll) == {"none", "temperature", "vector"}
    assert fitted.nll_after is not None
    assert fitted.nll_before is not None
    assert fitted.nll_after < fitted.nll_before


def test_a_calibrated_model_is_left_alone_or_nearly_so() -> None:
    draw = np.random.default_rng(0)
    logits = draw.normal(0, 2, (2000, 4))
    truth = np.array([draw.choice(4, p=row) for row in applied.softmax(logits)])
    fitted = maps.fit(logits, truth)
    assert fitted.kind in ("none", "temperature")
    assert fitted.temperature == pytest.approx(1, abs=0.05)


def test_a_vector_map_is_chosen_where_labels_are_biased() -> None:
    draw = np.random.default_rng(0)
    logits = draw.normal(0, 2, (1500, 4))
    truth = np.array([draw.choice(4, p=row) for row in applied.softmax(logits)])
    biased = logits + np.array([2.0, -2.0, 0.0, 0.0])
    fitted = maps.fit(biased, truth)
    assert fitted.kind == "vector"
    assert np.array(fitted.shift) - fitted.shift[2] == pytest.approx(np.array([-2.0, 2.0, 0.0, 0.0]), abs=0.4)
    shifted = biased + draw.normal(0, 5, (1500, 1))
    assert applied.apply(fitted, shifted) == pytest.approx(applied.apply(fitted, biased)), (
        "a constant in a row is nothing"
    )


@pytest.mark.parametrize("kind", ["temperature", "platt", "isotonic"])
def test_maps_for_two_labels(kind: Any) -> None:
    own, truth, other, other_truth = tumours()
    fitted = maps.fit_kind(kind, own, truth)
    probabilities = applied.apply(fitted, other)
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(len(other)))
    assert (probabilities > 0).all()
    assert nll(fitted, other, other_truth) < nll(Calibration(), other, other_truth)
    assert Calibration.model_validate_json(fitted.model_dump_json()) == fitted


def test_two_labels_choose_among_their_maps() -> None:
    own, truth, other, other_truth = tumours()
    fitted = maps.fit(own, truth)
    assert set(fitted.held_out_nll) == {"none", "temperature", "platt", "isotonic"}
    assert nll(fitted, other, other_truth) <= nll(Calibration(), other, other_truth)


def test_platt_is_logistic_regression_on_softened_targets() -> None:
    """Against scikit-learn's own: a row counts for both labels, as much as its target says."""
    own, truth, *_ = tumours()
    difference, positive = (own[:, 1] - own[:, 0])[:, None], int(truth.sum())
    target = np.where(truth == 1, (positive + 1) / (positive + 2), 1 / (len(truth) - positive + 2))
    twice = np.vstack([difference, difference])
    model = LogisticRegression(C=1e9, max_iter=1000, tol=1e-10)
    model.fit(twice, np.repeat([1, 0], len(truth)), sample_weight=np.concatenate([target, 1 - target]))
    fitted = maps.fit_kind("platt", own, truth)
    assert fitted.scale[0] == pytest.approx(float(model.coef_[0, 0]), rel=1e-2)
    assert fitted.shift[0] == pytest.approx(float(model.intercept_[0]), abs=1e-2)


def test_few_rows_choose_no_map() -> None:
    own, truth, *_ = digits()
    few = maps.fit(own[:20], truth[:20])
    assert (few.kind, few.fitted_rows) == ("none", 20)
    assert few.conformal is not None
    assert len(few.conformal.scores) == 20
    assert maps.fit(own[:0], truth[:0]).conformal is None


def test_a_label_without_rows_is_no_trouble() -> None:
    own, truth, *_ = digits()
    kept = truth != 3
    fitted = maps.fit(own[kept], truth[kept])
    assert np.isfinite(applied.apply(fitted, own)).all()


# --- prediction sets ------------------------------------------------------------------------------------------------


def test_the_threshold_is_the_order_statistic_that_the_theorem_names() -> None:
    scores = [n / 10 for n in range(1, 10)]
    assert applied.threshold(scores, 0.5) == 0.5
    assert applied.threshold(scores, 0.9) == 0.9
    assert applied.threshold(scores, 0.91) == np.inf


def test_scores_by_hand() -> None:
    probabilities = np.array([[0.5, 0.2, 0.3]])
    assert applied.scores("lac", probabilities) == pytest.approx(np.array([[0.5, 0.8, 0.7]]))
    assert applied.scores("aps", probabilities) == pytest.approx(np.array([[0.0, 0.8, 0.5]]))


@pytest.mark.parametrize("method", ["lac", "aps"])
@pytest.mark.parametrize("coverage", [0.5, 0.9, 0.95])
def test_sets_hold_the_truth_as_often_as_they_say(method: Any, coverage: float) -> None:
    own, truth, other, other_truth = digits()
    fitted = maps.fit(own, truth, method)
    assert fitted.conformal is not None
    inside = applied.prediction_sets(fitted.conformal, applied.apply(fitted, other), coverage)
    assert inside.any(axis=1).all(), "never empty"
    held = inside[np.arange(len(other)), other_truth].mean()
    assert held >= coverage - 0.03
    assert conformal.p_covered(fitted.conformal.scores, round(held * len(other)), len(other), coverage) > 0.001


def test_too_few_scores_give_every_label_and_no_scores_promise_nothing() -> None:
    probabilities = np.array([[0.7, 0.2, 0.1]])
    assert applied.prediction_sets(Conformal(scores=[0.1] * 5), probabilities, 0.95).all()
    assert applied.prediction_sets(None, probabilities, 0.6).tolist() == [[True, False, False]]
    assert applied.prediction_sets(None, probabilities, 0.8).tolist() == [[True, True, False]]


def test_thinned_scores_keep_the_promise() -> None:
    draw = np.random.default_rng(0)
    probabilities = draw.dirichlet([1.0, 1.0], size=5000)
    truth = (draw.random(5000) > probabilities[:, 0]).astype(np.int64)
    thin = conformal.fit("lac", probabilities, truth)
    whole = np.sort(1 - probabilities[np.arange(5000), truth])
    assert len(thin.scores) == conformal.MAX_SCORES
    for coverage in (0.5, 0.9, 0.99):
        exact = applied.threshold(whole.tolist(), coverage)
        assert exact <= applied.threshold(thin.scores, coverage) <= exact + 0.01


def test_a_calibration_of_an_earlier_version_is_read() -> None:
    old = '{"kind":"temperature","temperature":1.3,"fitted_rows":99,"nll_before":0.4,"nll_after":0.3}'
    fitted = Calibration.model_validate_json(old)
    assert applied.apply(fitted, np.array([[1.3, 0.0]])) == pytest.approx(applied.softmax(np.array([[1.0, 0.0]])))
    with pytest.raises(ValueError, match="kind"):
        Calibration.model_validate_json('{"kind": "beta"}')


# --- numbers and texts ----------------------------------------------------------------------------------------------


def test_intervals_around_numbers() -> None:
    """Disease progression: a ridge regression that claims a third of its true spread."""
    features, truth = load_diabetes(return_X_y=True)
    model = Ridge(alpha=0.1).fit(features[:200], truth[:200])
    mean, spread = model.predict(features), np.full(len(truth), 20.0)
    fitted = intervals.fit(mean[200:330], spread[200:330], truth[200:330])
    assert fitted.factor == pytest.approx(2.8, abs=0.4)
    before, after = (
        intervals.row_nll(mean[330:], spread[330:] * factor, truth[330:]).mean() for factor in (1, fitted.factor)
    )
    assert after < before - 1
    low, high = applied.intervals(fitted, mean[330:], spread[330:], 0.9)
    assert 0.82 <= ((low <= truth[330:]) & (truth[330:] <= high)).mean() <= 0.98
    assert intervals.fit(mean[200:330], None, truth[200:330]).factor == pytest.approx(20 * fitted.factor, rel=0.01)


def test_intervals_widen_where_the_model_is_less_sure() -> None:
    draw = np.random.default_rng(0)
    spread = draw.uniform(0.5, 3, 4000)
    mean = draw.normal(5, 2, 4000)
    truth = mean + spread * draw.normal(0, 1, 4000)
    fitted = intervals.fit(mean[:2000], spread[:2000], truth[:2000])
    low, high = applied.intervals(fitted, mean[2000:], spread[2000:], 0.9)
    held = (low <= truth[2000:]) & (truth[2000:] <= high)
    wide = spread[2000:] > 1.75
    assert held[wide].mean() == pytest.approx(0.9, abs=0.03)
    assert held[~wide].mean() == pytest.approx(0.9, abs=0.03)
    assert np.isinf(applied.intervals(IntervalCalibration(scores=[1.0]), mean, None, 0.9)[1]).all()


@pytest.mark.parametrize("rows", [[], [0.0]])
def test_intervals_refuse_what_means_nothing(rows: list[float]) -> None:
    with pytest.raises(ValueError, match=r"no rows|above 0"):
        intervals.fit(np.array(rows), np.array(rows), np.array(rows))


def test_the_confidence_of_generated_texts_is_the_chance_that_they_are_accepted() -> None:
    """Texts of 1 to 60 tokens; long ones are as often accepted as short ones of the same mean log-probability."""
    draw = np.random.default_rng(0)
    quality = draw.normal(-0.7, 0.4, 3000).clip(-3, -0.02)
    texts = [(one + draw.normal(0, 0.1, draw.integers(1, 60))).clip(None, 0).tolist() for one in quality]
    accepted = draw.random(3000) < 1 / (1 + np.exp(-(3 * quality + 3)))
    fitted = sequence_confidence.fit(texts[:1500], accepted[:1500])
    assert fitted.scale == pytest.approx(3, abs=0.7)
    assert fitted.shift == pytest.approx(3, abs=0.6)
    after = sequence_confidence.measure(applied.sequence_confidence(fitted, texts[1500:]), accepted[1500:])
    before = sequence_confidence.measure(
        applied.sequence_confidence(sequence_confidence.fit([], np.array([], bool)), texts[1500:]), accepted[1500:]
    )
    assert after["nll"] < before["nll"]
    assert after["ece"] <= after["ece_null_99"]
    assert after["auroc"] == pytest.approx(before["auroc"], abs=1e-9), "a sigmoid reorders nothing"
    assert 0.6 < after["auroc"] < 0.9


def test_texts_that_are_all_accepted_fit_nothing() -> None:
    fitted = sequence_confidence.fit([[-0.1]] * 50, np.ones(50, bool))
    assert fitted.kind == "none"
    assert applied.sequence_confidence(fitted, [[-0.1, -0.3], []]) == pytest.approx([np.exp(-0.2), 1.0])
