"""Measures against values worked out by hand, published, or computed by other code."""

import tracemalloc
from typing import Any

import numpy as np
import pytest

from pipelines.metrics import paired_tests, probabilistic
from pipelines.metrics.paired_tests import AccuracyChange


def honest(n: int, k: int, seed: int, sharpness: float = 3.0) -> tuple[Any, Any]:
    """Probabilities [n, k] and a truth that is drawn from them: a perfectly calibrated model."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(0, sharpness, (n, k))
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    truth = (probabilities.cumsum(axis=1) < draw.random((n, 1))).sum(axis=1)
    return probabilities, np.minimum(truth, k - 1)


def test_nll_and_brier_by_hand() -> None:
    probabilities, truth = np.array([[0.7, 0.2, 0.1], [0.3, 0.3, 0.4]]), np.array([0, 1])
    assert probabilistic.row_nll(probabilities, truth) == pytest.approx([0.35667494, 1.2039728])
    assert probabilistic.row_brier(probabilities, truth) == pytest.approx([0.09 + 0.04 + 0.01, 0.09 + 0.49 + 0.16])


def test_ece_by_hand() -> None:
    """Two values of confidence, 15 rows each in bins of equal mass: the gaps are .1 and .2."""
    confidence = np.array([0.6] * 150 + [0.9] * 150)
    right = np.array([1.0] * 105 + [0.0] * 45 + [1.0] * 105 + [0.0] * 45)
    rows = np.random.default_rng(0).permutation(300)
    assert probabilistic.ece(confidence[rows], right[rows]) == pytest.approx(0.15, abs=0.03)
    [one, *_] = probabilistic.reliability(confidence, right.astype(bool))
    assert one.n == 20
    assert one.confidence == pytest.approx(0.6)
    assert sum(b.n for b in probabilistic.reliability(confidence, right.astype(bool))) == 300


def test_classwise_ece_is_the_mean_of_each_labels_ece() -> None:
    probabilities, truth = honest(400, 6, seed=1)
    by_label = [probabilistic.ece(probabilities[:, k], (truth == k).astype(float)) for k in range(6)]
    assert probabilistic.measure(probabilities, truth)["classwise_ece"].value == pytest.approx(np.mean(by_label))


@pytest.mark.parametrize(
    ("n", "power", "shift", "published"), [(200, 1, 0, 0.048240), (1000, 2, 0, 0.167661), (1000, 1, 0.1, 0.066743)]
)
def test_smooth_ece_is_that_of_its_authors(n: int, power: float, shift: float, published: float) -> None:
    """The same draws through relplot 1.0.3, the package of Błasiok & Nakkiran."""
    draw = np.random.default_rng(7)
    for size, exponent, off in ((200, 1, 0.0), (1000, 2, 0.0), (1000, 1, 0.1)):
        confidence = draw.random(size)
        right = (draw.random(size) < np.clip(confidence**exponent - off, 0, 1)).astype(float)
        if (size, exponent, off) == (n, power, shift):
            assert probabilistic.smooth_ece(confidence, right) == pytest.approx(published, rel=0.02)


def test_the_null_of_ece_shrinks_as_the_design_notes_say() -> None:
    """A calibrated model that is right nine times in ten still shows some ECE: less with more rows."""
    draw = np.random.default_rng(3)
    at = {n: probabilistic.ece_null(np.clip(draw.beta(9, 1, n), 0, 1), 0.95) for n in (200, 1000, 2000)}
    assert 0.05 < at[200] < 0.09
    assert 0.02 < at[1000] < 0.035
    assert at[2000] < at[1000] < at[200]


def test_a_bias_is_told_from_chance() -> None:
    draw = np.random.default_rng(0)
    confidence = draw.uniform(0.6, 1, 1000)
    gap, p = probabilistic.bias(confidence, draw.random(1000) < confidence)
    assert abs(gap) < 0.03
    assert p > 0.01
    gap, p = probabilistic.bias(confidence, draw.random(1000) < confidence - 0.06)
    assert gap == pytest.approx(0.06, abs=0.03)
    assert p < 0.001


def test_a_calibrated_model_lies_within_every_null() -> None:
    outside = 0
    for seed in range(6):
        found = probabilistic.measure(*honest(500, 5, seed))
        for name in ("nll", "brier", "ece", "classwise_ece", "smooth_ece"):
            measure = found[name]
            assert measure.null is not None
            assert measure.null_99 is not None
            assert measure.low <= measure.high
            outside += measure.value > measure.null_99
    assert outside <= 3  # of 30, expected 0.3


def test_an_over_confident_model_lies_outside() -> None:
    probabilities, truth = honest(1000, 5, seed=1, sharpness=1.0)
    sharp = probabilities**3 / (probabilities**3).sum(axis=1, keepdims=True)
    found = probabilistic.measure(sharp, truth)
    for name in ("nll", "brier", "ece", "classwise_ece", "smooth_ece"):
        assert found[name].value > (found[name].null_99 or 0), name
    assert found["accuracy"].low < found["accuracy"].value < found["accuracy"].high


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    expected = float(probabilistic.row_nll(*honest(200_000, 4, seed=99)).mean())
    found = [probabilistic.measure(*honest(300, 4, seed))["nll"] for seed in range(20)]
    assert sum(one.low <= expected <= one.high for one in found) >= 16


def test_measures_of_many_labels_are_those_of_one_draw_at_a_time_and_take_no_more_memory() -> None:
    for n, k, draws in ((150, 4, 1000), (400, 400, 100)):
        world = np.random.default_rng(2)
        probabilities = world.random((n, k))
        truth = world.random((n, k)) < probabilities
        tracemalloc.start()
        found = probabilistic.measure_each(probabilities, truth)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < 180e6, f"{most:,}: all draws at once take 275 MB"

        draw = np.random.default_rng(0)
        nulls = []
        for _ in range(draws):
            imagined = draw.random((n, k)) < probabilities
            brier = ((imagined - probabilities) ** 2).sum(axis=1).mean()
            nulls.append((brier, probabilistic.ece(probabilities.ravel(), imagined.ravel())))
        for name, null in zip(("brier", "ece"), np.array(nulls).T, strict=True):
            assert found[name].null == pytest.approx(null.mean()), name
            assert found[name].null_99 == pytest.approx(np.quantile(null, 0.99)), name
        counts = draw.multinomial(n, np.full(n, 1 / n), size=400 if k == 4 else 100)
        resampled = counts @ probabilistic.row_nll_each(probabilities, truth) / n
        assert [found["nll"].low, found["nll"].high] == pytest.approx(np.quantile(resampled, [0.025, 0.975]).tolist())


# --- two models on the same rows ------------------------------------------------------------------------------------


def test_mcnemar_is_the_exact_binomial_tail() -> None:
    champion = np.array([False] * 8 + [True] * 2)
    moved = paired_tests.accuracy_change(champion, ~champion)
    assert (moved.gained, moved.lost, moved.n) == (8, 2, 10)
    assert moved.p_better == pytest.approx(56 / 1024)  # (45 + 10 + 1) / 2^10
    assert AccuracyChange(0, 0, 10).p_better == 1


def test_the_interval_of_a_paired_difference_is_agrestis() -> None:
    """Approval of a prime minister, asked twice: 150 and 86 of 1,600 changed their minds; -0.04 with s.e. 0.0095."""
    low, high = AccuracyChange(86, 150, 1600).interval()
    assert low == pytest.approx(-0.04 - 1.96 * 0.0095, abs=5e-4)
    assert high == pytest.approx(-0.04 + 1.96 * 0.0095, abs=5e-4)


@pytest.mark.parametrize(("gained", "lost", "n"), [(3, 18, 300), (10, 10, 250), (0, 0, 40), (0, 5, 20)])
def test_the_probability_of_harm_is_that_of_sampling_the_posterior(gained: int, lost: int, n: int) -> None:
    drawn = np.random.default_rng(0).dirichlet([gained + 0.5, lost + 0.5, n - gained - lost + 0.5], size=200_000)
    sampled = float((drawn[:, 1] - drawn[:, 0] > 0.01).mean())
    assert AccuracyChange(gained, lost, n).harm_probability(0.01) == pytest.approx(sampled, abs=0.006)


def test_the_rows_that_would_settle_it_do() -> None:
    """One-sided McNemar power: at the n that is named, four in five candidates with this effect are shown."""
    needed = AccuracyChange(45, 30, 1000).rows_needed(0.0, 0.05)
    assert needed is not None
    draw = np.random.default_rng(1)
    shares = [0.045, 0.03, 0.925]
    drawn = draw.multinomial(needed, shares, size=400).tolist()
    shown = [AccuracyChange(gained, lost, needed).p_better <= 0.05 for gained, lost, _ in drawn]
    assert 0.7 < np.mean(shown) < 0.87
    assert AccuracyChange(3, 3, 100).rows_needed(0.0, 0.05) is None


def test_holm_by_hand() -> None:
    assert paired_tests.holm(np.array([0.01, 0.04, 0.03, 0.005]), 0.05).tolist() == [True, False, False, True]


def test_paired_losses_tell_a_worse_model() -> None:
    before = np.random.default_rng(0).normal(1, 0.3, 500)
    assert paired_tests.p_larger(before, before + 0.1 * np.random.default_rng(1).random(500)) < 1e-6
    assert paired_tests.p_larger(before, before) == 1
