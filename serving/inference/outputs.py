"""Outputs by task: logits become calibrated probabilities or numbers, and these become predictions.

`outputs_of` turns a manifest into the `Outputs` of its task. The encoder runtime applies them to every batch, http/responses.py
writes their predictions into response and event, and the gates judge the same values. It knows no texts, no ids and no HTTP.

The event has the same fields for all tasks: `label`, the prediction in its canonical text form (schemas/targets.py),
`confidence`, and `probabilities` if the task has labels. The event log stores `label` as the column `predicted_label`; code
that reads the log uses that name. In the API's response, `label` is the field of a classification alone.
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
# Fields of the response, and fields of the event's data.
Prediction = tuple[dict[str, object], dict[str, object]]

INTERVAL_COVERAGE = 0.9  # of a number's interval, if the request gives none


class UnknownTask(ValueError):
    """The manifest names a task that this release cannot serve."""


class Outputs(Protocol):
    """The outputs of one model version."""

    def apply(self, logits: NDArray[np.floating]) -> Floats:
        """Return calibrated probabilities, or numbers, [n, k] from the model's logits [n, k]."""

    def sets(self, outputs: Floats, coverage: float) -> NDArray[np.bool_]:
        """Return which labels are in each row's prediction set [n, k]; k is 0 for a task without labels."""

    def predictions(self, outputs: Floats, coverage: float | None) -> Iterator[Prediction]:
        """Yield each row's prediction; `coverage` is the request's, None if it has none."""


class ClassificationOutputs:
    """Outputs of a classification.

    The probabilities are most bytes of response and event. They are serialised once, as float32, and shared by both.
    """

    def __init__(self, labels: Sequence[str], fitted: Calibration) -> None:
        self._labels, self._fitted, self._template = labels, fitted, _template(labels)

    def apply(self, logits: NDArray[np.floating]) -> Floats:
        """Return probabilities; each row sums to 1."""
        return calibration.apply(self._fitted, logits)

    def sets(self, outputs: Floats, coverage: float) -> NDArray[np.bool_]:
        """Return sets that hold the one true label."""
        return calibration.prediction_sets(self._fitted.conformal, outputs, coverage)

    def predictions(self, outputs: Floats, coverage: float | None) -> Iterator[Prediction]:
        """Yield the likeliest label; with a coverage also the set, likeliest first."""
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


class MultilabelOutputs:
    """Outputs of a multilabel task: each label with a probability above its fitted threshold is predicted."""

    def __init__(self, labels: Sequence[str], fitted: Calibration) -> None:
        self._labels, self._fitted, self._template = labels, fitted, _template(labels)

    def apply(self, logits: NDArray[np.floating]) -> Floats:
        """Return an independent probability for each label."""
        return calibration.apply_to_each(self._fitted, logits)

    def sets(self, outputs: Floats, coverage: float) -> NDArray[np.bool_]:
        """Return sets that hold all true labels."""
        return calibration.outer_sets(self._fitted.conformal, outputs, coverage)

    def predictions(self, outputs: Floats, coverage: float | None) -> Iterator[Prediction]:
        """Yield the predicted labels, likeliest first. Confidence: all are right and none is missing, taken as independent."""
        answered = calibration.answered(self._fitted, outputs)
        confidences = calibration.answer_confidence(outputs, answered).tolist()
        for n, probabilities in enumerate(outputs.astype(np.float32)):
            shown = orjson.Fragment(self._template % tuple(_numbers(probabilities)))
            labels = _likeliest_first(self._labels, outputs[n], answered[n])
            answer: dict[str, object] = {"labels": labels, "probabilities": shown}
            if coverage is not None:
                [inside] = self.sets(outputs[n : n + 1], coverage)
                answer["set"] = _likeliest_first(self._labels, outputs[n], inside)
            event = {"label": canonical("multilabel", labels), "confidence": confidences[n], "probabilities": shown}
            yield answer, event


class RegressionOutputs:
    """Outputs of a regression: a number in the unit of its targets, with a prediction interval."""

    def __init__(self, _labels: Sequence[str], fitted: Calibration) -> None:
        self._intervals = fitted.intervals or IntervalCalibration()

    def apply(self, logits: NDArray[np.floating]) -> Floats:
        """Return the numbers [n, 1] unchanged; only their intervals are calibrated."""
        return logits.astype(np.float64)

    def sets(self, outputs: Floats, coverage: float) -> NDArray[np.bool_]:  # noqa: ARG002 - as the protocol has it
        """Return no columns: a number has no labels."""
        return np.zeros((len(outputs), 0), dtype=bool)

    def predictions(self, outputs: Floats, coverage: float | None) -> Iterator[Prediction]:
        """Yield the number and its interval; an end is null if the calibration rows are too few to bound it.

        The event's confidence is the interval's coverage.
        """
        chosen = coverage or INTERVAL_COVERAGE
        ends = calibration.intervals(self._intervals, outputs[:, 0], None, chosen)
        for number, low, high in zip(outputs[:, 0].tolist(), *(end.tolist() for end in ends), strict=True):
            value = _six_digits(number)
            answer = {"value": value, "interval": [_six_digits(end) if isfinite(end) else None for end in (low, high)]}
            yield answer, {"label": canonical("regression", value), "confidence": chosen, "probabilities": {}}


BY_TASK: Mapping[str, Callable[[Sequence[str], Calibration], Outputs]] = {
    "classification": ClassificationOutputs,
    "multilabel": MultilabelOutputs,
    "regression": RegressionOutputs,
}


def outputs_of(manifest: ModelManifest) -> Outputs:
    """Return the outputs of a model version's task. Raises UnknownTask."""
    if manifest.task not in BY_TASK:
        raise UnknownTask(
            f"{manifest.model_version}: `task` is {manifest.task!r}, this release serves {', '.join(BY_TASK)}"
        )
    return BY_TASK[manifest.task](manifest.labels, manifest.calibration)


def _template(labels: Sequence[str]) -> bytes:
    """Return a JSON object of {label: probability} with `%b` in place of each probability."""
    keys = (orjson.dumps(label).replace(b"%", b"%%") for label in labels)
    return b"{" + b",".join(key + b":%b" for key in keys) + b"}"


def _numbers(probabilities: NDArray[np.float32]) -> list[bytes]:
    return orjson.dumps(probabilities, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].split(b",")


def _likeliest_first(
    labels: Sequence[str], probabilities: NDArray[np.floating], inside: NDArray[np.bool_]
) -> list[str]:
    return [labels[n] for n in np.argsort(-probabilities, kind="stable") if inside[n]]


def _six_digits(number: float) -> float:
    """Return six significant digits, float32's precision. A caller who sends the number back then confirms it exactly."""
    return float(f"{number:.6g}")
