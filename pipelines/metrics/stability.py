"""Stability: how far one set of counts has moved from another."""

from collections.abc import Mapping

import numpy as np


def psi(one: Mapping[str, int], other: Mapping[str, int]) -> float:
    """Return the population stability index of two label counts (Siddiqi 2006), half a row added to every label."""
    labels = sorted({*one, *other})
    a, b = (np.array([counts.get(label, 0) + 0.5 for label in labels]) for counts in (one, other))
    p, q = a / a.sum(), b / b.sum()
    return float(((p - q) * np.log(p / q)).sum())
