"""Whole rounds of known truth, judged and settled by the real functions: a small version of bench/evidence_settling.py."""

import numpy as np
import pytest

from tests.support.settling_simulation import by_then, ever_promoted, simulate


def test_a_better_candidate_is_promoted_with_few_labels_at_early_and_late_looks() -> None:
    draw = np.random.default_rng(1)
    first = simulate(400, 500, 1, 0.03, draw)
    assert by_then(first, 120).mean() >= 0.95
    assert np.median(first.labels[first.settled & first.promoted]) <= 50
    assert by_then(simulate(400, 500, 20, 0.03, draw), 120).mean() >= 0.9
    alone = simulate(400, 500, 20, 0.03, draw, labels=False)
    assert alone.promoted.mean() < 0.5, "labels are not needed: the test proves nothing"


@pytest.mark.parametrize(("gain", "most"), [(0.0, 0.05), (-0.01, 0.01)])
def test_no_better_candidate_is_hardly_ever_promoted_however_many_rounds(gain: float, most: float) -> None:
    ever = ever_promoted(200, 8, 500, gain, np.random.default_rng(2))
    assert ever.mean() <= most + 0.02
