"""What a model's outputs mean, by task: logits become honest numbers, and these become what is said of a text.

`outputs_of` turns a manifest into `Outputs`. The runtime applies them to every batch, http/responses.py writes what
they say into the answer and its event, gates look at the same. It deliberately knows no texts, no ids and no HTTP.

What an event says is the same for all tasks: `label`, the canonical text of the answer (schemas/targets.py), its
`confidence`, and `probabilities` where there are labels.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isfinite
from typing import Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from schemas.manifests import Calibration, IntervalCalibration, ModelManifest
from schemas.targets import canonical
from serving.inference import calibration

Floats = NDArray[np.float64]
# Fields of the answer, and fields of the event's data.
Said = tuple[dict[str, object], dict[str, object]]

INTERVAL_COVERAGE = 0.9  # of a number's interval where a caller asks for no other


class UnknownTask(ValueError):
    """A model version of a task that this code cannot serve."""


class Outputs(Protocol):
    """Of one model version."""

    def apply(self, logits: NDArray[np.floating]) -> Floats:
        """What the model's raw outputs [n, k] come to: calibrated probabilities, or numbers, [n, k]."""

    def sets(self, outputs: Floats, coverage: float) -> NDArray[np.bool_]:
        """Which labels are in each row's prediction set [n, k]; without labels there are no columns."""

    def said(self, outputs: Floats, coverage: float | None) -> Iterator[Said]:
        """What answer and event say of each row; `coverage` is what the caller asked for."""


class OneLabel:
    """Classification. The probabilities of every label are most of answer and event: they are written once, as float32, which
    is all that a float32 model knows, and go into both as they are.
    """

    def __init__(self, labels: Sequence[str], fitted: Calibration) -> None:
        self._labels, self._fitted, self._template = labels, fitted, _template(labels)

    def apply(self, logits: NDArray[np.floating]) -> Floats:
        """Probabilities that sum to 1."""
        return calibration.apply(self._fitted, logits)

    def sets(self, outputs: Floats, coverage: float) -> NDArray[np.bool_]:
        """Sets that hold the one true label."""
        return calibration.prediction_sets(self._fitted.conformal, outputs, coverage)

    def said(self, outputs: Floats, coverage: float | None) -> Iterator[Said]:
        """The likeliest label; with a coverage also the set, likeliest first."""
        for n, probabilities in enumerate(outputs.astype(np.float32)):
            numbers = _numbers(probabilities)
            best = int(probabilities.argmax())
            event: dict[str, object] = {
                "label": self._labels[best],
                "confidence": orjson.Fragment(numbers[best]),
                "probabilities": orjson.Fragment(self._template % tuple(numbers)),
            }
            if coverage is None:
                yield event, event
            else:
                [inside] = self.sets(outputs[n : n + 1], coverage)
                yield {**event, "set": _likeliest_first(self._labels, outputs[n], inside)}, event


class ManyLabels:
    """Multilabel: every label by itself, said where it is likelier than not."""

    def __init__(self, labels: Sequence[str], fitted: Calibration) -> None:
        self._labels, self._fitted, self._template = labels, fitted, _template(labels)

    def apply(self, logits: NDArray[np.floating]) -> Floats:
        """A probability for each label."""
        return calibration.apply_to_each(self._fitted, logits)

    def sets(self, outputs: Floats, coverage: float) -> NDArray[np.bool_]:
        """Sets that hold all true labels."""
        return calibration.outer_sets(self._fitted.conformal, outputs, coverage)

    def said(self, outputs: Floats, coverage: float | None) -> Iterator[Said]:
        """The labels, likeliest first. Confidence is that all of them are right and none is missing, were they independent."""
        for n, probabilities in enumerate(outputs.astype(np.float32)):
            shown = orjson.Fragment(self._template % tuple(_numbers(probabilities)))
            labels = _likeliest_first(self._labels, probabilities, probabilities > 0.5)
            answer: dict[str, object] = {"labels": labels, "probabilities": shown}
            if coverage is not None:
                [inside] = self.sets(outputs[n : n + 1], coverage)
                answer["set"] = _likeliest_first(self._labels, outputs[n], inside)
            confidence = float(np.maximum(probabilities, 1 - probabilities).prod())
            yield (
                answer,
                {
                    "label": canonical("multilabel", labels),
                    "confidence": confidence,
                    "probabilities": shown,
                },
            )


class OneNumber:
    """Regression: a number in the unit of its targets, with the interval that holds the truth."""

    def __init__(self, _labels: Sequence[str], fitted: Calibration) -> None:
        self._intervals = fitted.intervals or IntervalCalibration()

    def apply(self, logits: NDArray[np.floating]) -> Floats:
        """The numbers [n, 1] as they are: what was fitted is their intervals."""
        return logits.astype(np.float64)

    def sets(self, outputs: Floats, coverage: float) -> NDArray[np.bool_]:  # noqa: ARG002 - as the protocol has it
        """None."""
        return np.zeros((len(outputs), 0), dtype=bool)

    def said(self, outputs: Floats, coverage: float | None) -> Iterator[Said]:
        """The number and its interval; an end is null where the fitted rows are too few to bound it.

        The event's confidence is what the interval promises.
        """
        wanted = coverage or INTERVAL_COVERAGE
        ends = calibration.intervals(self._intervals, outputs[:, 0], None, wanted)
        for number, low, high in zip(outputs[:, 0].tolist(), *(end.tolist() for end in ends), strict=True):
            value = _six_digits(number)
            answer = {"value": value, "interval": [_six_digits(end) if isfinite(end) else None for end in (low, high)]}
            yield answer, {"label": canonical("regression", value), "confidence": wanted, "probabilities": {}}


BY_TASK: Mapping[str, Callable[[Sequence[str], Calibration], Outputs]] = {
    "classification": OneLabel,
    "multilabel": ManyLabels,
    "regression": OneNumber,
}


def outputs_of(manifest: ModelManifest) -> Outputs:
    """Of a model version. Raises UnknownTask."""
    if manifest.task not in BY_TASK:
        raise UnknownTask(f"{manifest.model_version}: its task {manifest.task!r} cannot be served")
    return BY_TASK[manifest.task](manifest.labels, manifest.calibration)


def _template(labels: Sequence[str]) -> bytes:
    """{label: probability} in JSON, with a `%b` for each probability."""
    keys = (orjson.dumps(label).replace(b"%", b"%%") for label in labels)
    return b"{" + b",".join(key + b":%b" for key in keys) + b"}"


def _numbers(probabilities: NDArray[np.float32]) -> list[bytes]:
    return orjson.dumps(probabilities, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].split(b",")


def _likeliest_first(
    labels: Sequence[str], probabilities: NDArray[np.floating], inside: NDArray[np.bool_]
) -> list[str]:
    return [labels[n] for n in np.argsort(-probabilities, kind="stable") if inside[n]]


def _six_digits(number: float) -> float:
    """All that a float32 model knows, so that a caller who sends it back confirms it."""
    return float(f"{number:.6g}")
