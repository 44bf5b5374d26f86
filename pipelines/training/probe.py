"""The logistic probe: a regularised linear head on frozen embeddings.

Turns embeddings and labels into a head. A round starts from it, must beat it, and is compared with it; the quarantine
judges by it. It deliberately never touches the encoder.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Probe:
    """weight [k, width] and bias [k] in the order of `labels`."""

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    labels: list[str]

    def logits(self, embeddings: NDArray[np.float32]) -> NDArray[np.float64]:
        """[n, width] -> [n, k]."""
        return np.asarray(embeddings @ self.weight.T + self.bias)


def fit_probe(
    embeddings: NDArray[np.float32],
    labels: Sequence[str],
    order: Sequence[str],
    *,
    c: float,
    weights: Sequence[float] | None = None,
) -> Probe:
    """Multinomial logistic regression with inverse regularisation `c`.

    A label of `order` without rows gets a zero row and a bias below every other: improbable, not impossible.
    """
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    index = {label: n for n, label in enumerate(order)}
    present = sorted(set(labels), key=lambda label: index[label])
    width = embeddings.shape[1]
    weight, bias = np.zeros((len(order), width)), np.zeros(len(order))
    if len(present) > 1:
        # One thread: BLAS threads that fight torch's for the cores make this a hundred times slower.
        with threadpool_limits(1):
            model = LogisticRegression(C=c, max_iter=300).fit(embeddings, list(labels), sample_weight=weights)
        coefficients, intercepts = model.coef_, model.intercept_
        if len(model.classes_) == 2:
            coefficients, intercepts = (
                np.vstack([-coefficients, coefficients]) / 2,
                np.concatenate([-intercepts, intercepts]) / 2,
            )
        rows = [index[str(label)] for label in model.classes_]
        weight[rows], bias[rows] = coefficients, intercepts
    absent = [n for label, n in index.items() if label not in set(present)]
    bias[absent] = bias.min() - 4.0
    return Probe(weight, bias, list(order))
