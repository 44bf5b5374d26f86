"""Apply a fitted calibration: logits in, probabilities out.

The runtime calls it on every batch; pipelines/calibration.py fits what it applies. It deliberately cannot fit.
"""

import numpy as np
from numpy.typing import NDArray

from schemas.artifacts import Calibration


def apply(calibration: Calibration, logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """softmax(logits / temperature): [n, k] -> [n, k], rows sum to 1 (temperature scaling, Guo et al. 2017)."""
    scaled = logits.astype(np.float64) / calibration.temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    exponentials = np.exp(scaled)
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))
