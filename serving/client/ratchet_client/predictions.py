"""What callers send and get back: items, predictions and receipts of feedback."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class WrongTask(AttributeError):
    """The prediction has no such field, because the model has another task."""


@dataclass(frozen=True)
class Item:
    """One text to predict, with metadata that names its slices, such as `{"channel": "ios"}`."""

    text: str
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Prediction:
    """One prediction. Which properties it has depends on the model's task; the others raise WrongTask.

    Attributes:
        prediction_id: names the prediction in feedback.
        model_version: the version that answered.
        feedback_token: permits feedback on this prediction alone; a browser may have it.
        fields: everything that the service sent.

    """

    prediction_id: str
    model_version: str
    feedback_token: str = field(repr=False)
    fields: Mapping[str, Any] = field(repr=False)

    @property
    def label(self) -> str:
        """Return the predicted label (classification)."""
        return str(self._field("label"))

    @property
    def labels(self) -> list[str]:
        """Return the predicted labels, likeliest first (multilabel)."""
        return list(self._field("labels"))

    @property
    def value(self) -> float:
        """Return the predicted number (regression)."""
        return float(self._field("value"))

    @property
    def interval(self) -> tuple[float | None, float | None]:
        """Return the interval around the number (regression); an end that is not bounded is None."""
        low, high = self._field("interval")
        return low, high

    @property
    def text(self) -> str:
        """Return the generated text (generation)."""
        return str(self._field("text"))

    @property
    def confidence(self) -> float:
        """Return the calibrated probability that the answer is right (classification, generation)."""
        return float(self._field("confidence"))

    @property
    def probabilities(self) -> dict[str, float]:
        """Return the calibrated probability of each label (classification, multilabel)."""
        return dict(self._field("probabilities"))

    @property
    def set(self) -> list[str]:
        """Return the prediction set that `coverage` requested, likeliest first (classification, multilabel)."""
        return list(self._field("set"))

    def _field(self, name: str) -> Any:
        try:
            return self.fields[name]
        except KeyError:
            has = ", ".join(sorted(self.fields))
            raise WrongTask(f"this prediction has no {name!r}, it has {has}: see the task in GET /model") from None


@dataclass(frozen=True)
class Feedback:
    """The receipt of accepted feedback: it is stored durably. `retract` takes it."""

    feedback_id: str
    prediction_id: str
    user: str | None = None
    feedback_token: str | None = field(default=None, repr=False)
