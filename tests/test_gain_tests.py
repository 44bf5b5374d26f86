"""The joint test of accuracy and a loss: against enumeration, and honest where nothing improved."""

from itertools import product

import numpy as np
import pytest

from pipelines.metrics import gain_tests, paired_tests
from pipelines.metrics.paired_tests import AccuracyChange, MeanGain


@pytest.mark.parametrize("seed", range(5))
def test_the_saddlepoint_agrees_with_all_signs(seed: int) -> None:
    draw = np.random.default_rng(seed)
    rows = gain_tests.ENUMERATED + 1
    gains = draw.normal(0.4, 1, rows) * draw.choice([0.2, 1, 3], rows)
    signs = np.array(list(product([-1.0, 1.0], repeat=len(gains))))
    exact = float((signs @ np.abs(gains) >= gains.sum() - 1e-12).mean())
    assert gain_tests.sign_flip_p(gains) == pytest.approx(exact, rel=0.15, abs=0.003)


def test_a_few_rows_that_differ_are_tried_with_all_signs() -> None:
    """Five gains and a trace of a loss: a normal says .013, and the round that asks for .015 would promote."""
    for loss in (1e-9, 1e-3, 0.1):
        assert gain_tests.sign_flip_p(np.array([1.0] * 5 + [-loss])) == 0.5**5
    many = np.array([1.0] * 5 + [1e-9, -1e-9] * 20)
    assert gain_tests.sign_flip_p(many) >= 0.5**6, "no overflow, and not by a normal either"


def test_the_far_tail_is_not_a_normals() -> None:
    """Twelve gains of equal size and no loss: a normal says 3e-4 or less, enumeration 2^-12."""
    assert gain_tests.sign_flip_p(np.ones(12)) == pytest.approx(0.5**12)
    assert gain_tests.sign_flip_p(np.zeros(9)) == 1
    assert gain_tests.sign_flip_p(-np.ones(12)) == pytest.approx(1 - 0.5**12)


def test_two_looks_at_once_cost_between_nothing_and_double() -> None:
    assert gain_tests.either_p(0.01, 0.5, 0.0) == pytest.approx(0.0199, abs=1e-4)
    assert gain_tests.either_p(0.01, 0.5, 0.999) == pytest.approx(0.01, rel=0.1)
    assert 0.01 < gain_tests.either_p(0.5, 0.01, 0.6) < 0.0199
    assert gain_tests.either_p(1.0, 1.0, 0.3) == 1
    assert gain_tests.either_p(1e-4, 0.3, -0.5) == gain_tests.either_p(1e-4, 0.3, 0.0)


@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_equal_models_are_called_better_as_often_as_alpha_says(alpha: float) -> None:
    draw, hits, runs = np.random.default_rng(2), 0, 1000
    for _ in range(runs):
        moved = draw.choice([-1.0, 0.0, 1.0], 200, p=[0.04, 0.92, 0.04])
        loss = MeanGain(moved * draw.uniform(0.2, 1.5, 200) + draw.normal(0, 0.1, 200), "{}")
        accuracy = AccuracyChange(int((moved > 0).sum()), int((moved < 0).sum()), 200)
        hits += gain_tests.either_gain(accuracy, moved, loss, "loss").p_better <= alpha
    assert paired_tests.share_interval(hits, runs)[0] <= alpha
    assert hits > 0


def test_macro_f1_can_pass_at_a_late_look() -> None:
    """2,000 draws alone never gave a p-value below .0005."""
    draw = np.random.default_rng(0)
    gains = draw.normal(0.5, 1, 400)
    change = paired_tests.ResampledGain(lambda counts: counts @ gains / counts.sum(axis=1), 400, "{}")
    assert change.p_better < 1e-8
    assert change.p_worse == pytest.approx(1, abs=1e-3)
    assert paired_tests.ResampledGain(lambda counts: counts.sum(axis=1) * 0, 400, "{}").p_better == 1


def test_what_would_settle_it_is_never_fewer_rows_than_there_are() -> None:
    for gained, lost in ((20, 6), (9, 8), (1, 0)):
        needed = AccuracyChange(gained, lost, 383).rows_needed(0.0, 1e-4)
        assert needed is not None
        assert needed > 383
