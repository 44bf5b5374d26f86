"""Validation of feedback: the same rules for HTTP and for Kafka.

Turns `FeedbackData` as received into the `FeedbackData` that is stored, or raises `BadFeedback` naming field and rule. api.py
answers 422 with it, the feedback consumer writes a dead letter. Whether the prediction exists is checked later, by the event log.

Free text of a sender never reaches the log: texts are anonymised, users become pseudonyms, and a feedback_id that is no UUID is
replaced by a keyed hash. All three are idempotent.
"""

import re
import uuid
from collections.abc import Callable

from schemas import targets
from schemas.events import MAX_ID_CHARS, MAX_LABELS, FeedbackData, FeedbackValue, GivenValue, PredictionData
from schemas.labels import LabelMap
from schemas.targets import Task
from serving.http import access
from serving.privacy.anonymise import anonymise

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_PSEUDONYM = re.compile(r"[0-9a-f]{32}")


class BadFeedback(ValueError):
    """Feedback that breaks a rule; has a short `error`, the `field`, and the `rule`."""

    def __init__(self, error: str, field: str, rule: str) -> None:
        super().__init__(f"data.{field}: {rule}")
        self.error, self.field, self.rule = error, field, rule


class LabelNotInUse(BadFeedback):
    """A correction names a label that the taxonomy lacks or has retired."""


class FeedbackChecker:
    """Checker with the rules of one project.

    Args:
        model_name: the project's model.
        task: the model's task.
        secret: returns the project's secret.
        max_chars: longest comment, or correction of a generated text.
        labels: returns the taxonomy's labels as last read.

    """

    def __init__(
        self,
        model_name: str,
        task: Task,
        *,
        secret: Callable[[], str],
        max_chars: int,
        labels: Callable[[], LabelMap],
    ) -> None:
        self._model_name, self._task, self._max_chars = model_name, task, max_chars
        self._secret, self._labels = secret, labels

    def checked(self, data: FeedbackData, *, source: str | None = None) -> FeedbackData:
        """Return the feedback in the form that is stored; `source` is its event's, see `stored_user`. Raises BadFeedback."""
        self.check_model(data.model_name)
        changed: dict[str, object] = {
            "prediction_id": prediction_uuid(data.prediction_id),
            "feedback_id": feedback_uuid(self._secret, data.feedback_id),
            "value": self._value(data),
            "user": self.stored_user(data.user, source),
        }
        return data.model_copy(update=changed)

    def checked_prediction(self, data: PredictionData, *, source: str) -> PredictionData:
        """Return a prediction in the form that is stored: ids, user, text and metadata. Raises BadFeedback."""
        self.check_model(data.model_name)
        changed: dict[str, object] = {
            "prediction_id": prediction_uuid(data.prediction_id),
            "user": self.stored_user(data.user, source),
            "text": anonymise(data.text),
            "metadata": {anonymise(name): anonymise(value) for name, value in data.metadata.items()},
        }
        if all(getattr(data, name) == value for name, value in changed.items()):
            return data  # as our own serving publishes it; a copy costs more than the checks
        return data.model_copy(update=changed)

    def check_model(self, model_name: str) -> None:
        """Raise BadFeedback for another model's event."""
        if model_name != self._model_name:
            raise BadFeedback("another model's event", "model_name", f"expected {self._model_name}")

    def stored_user(self, user: str | None, source: str | None) -> str | None:
        """Return the pseudonym of a user as given, so that one person is one user over HTTP and Kafka.

        Only events whose source is our serving carry pseudonyms already. Anybody else's user of 32 hex digits is a name: an
        MD5 sum, or a UUID without hyphens.
        """
        if user is None or (source == serving_source(self._model_name) and is_pseudonym(user)):
            return user
        return access.pseudonym(self._secret(), user)

    def _value(self, data: FeedbackData) -> FeedbackValue:
        """Return the checked value: free text anonymised, a retraction's feedback id in its stored form."""
        value = data.value
        if data.kind == "correction":
            return self._target(value)
        if data.kind == "score":
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise BadFeedback("not a score", "value", "expected a number between 0 and 1")
            return float(value)
        if not isinstance(value, str) or not value:
            raise BadFeedback("not a valid value", "value", f"a {data.kind} takes a text")
        if data.kind == "rating" and value not in ("up", "down"):
            raise BadFeedback("not a rating", "value", 'expected "up" or "down"')
        if data.kind == "retract":
            if len(value) > MAX_ID_CHARS:
                raise BadFeedback("not a feedback id", "value", f"at most {MAX_ID_CHARS} characters")
            return feedback_uuid(self._secret, value)
        return self._text(value) if data.kind == "comment" else value

    def _target(self, value: GivenValue) -> FeedbackValue:
        """Return a correction in canonical form: current label names, sorted, without duplicates; texts anonymised."""
        if isinstance(value, list) and len(value) > MAX_LABELS:
            raise BadFeedback("not a valid value", "value", f"at most {MAX_LABELS} labels")
        try:
            target = targets.canonical(self._task, value)
        except targets.BadTarget as error:
            raise BadFeedback("not a valid value", "value", _short(str(error))) from error
        if self._task == "generation":
            return self._text(target)
        try:
            target = self._labels().checked(self._task, target)
        except targets.BadTarget as error:
            raise LabelNotInUse("not a label in use", "value", str(error)) from error
        return targets.value_of(self._task, target)

    def _text(self, value: str) -> str:
        if len(value) > self._max_chars:
            raise BadFeedback("the text is too long", "value", f"at most {self._max_chars} characters")
        return anonymise(value)


def serving_source(model_name: str) -> str:
    """Return the `source` of the events that a model's serving publishes; nobody else may use it."""
    return f"ratchet/{model_name}/serving"


def prediction_uuid(given: str) -> str:
    """Return a prediction's id as a lower-case UUID. Raises BadFeedback."""
    if _UUID.fullmatch(given):
        return given
    try:
        return str(uuid.UUID(given))
    except ValueError as error:
        raise BadFeedback("not a prediction id", "prediction_id", "expected a UUID") from error


def is_pseudonym(user: str) -> bool:
    """Return whether a user is already a pseudonym of access.pseudonym."""
    return _PSEUDONYM.fullmatch(user) is not None


def feedback_uuid(secret: Callable[[], str], given: str) -> str:
    """Return the stored id of a feedback: a UUID unchanged, anything else as a UUIDv8 from its keyed hash.

    Source of the layout: RFC 9562, section 5.8.
    """
    lower = given.lower()
    if _UUID.fullmatch(lower):
        return lower
    number = int.from_bytes(access.keyed_hash(secret(), "feedback_id", given)[:16])
    number = number & ~(0xF << 76) & ~(0b11 << 62) | 0x8 << 76 | 0b10 << 62
    return str(uuid.UUID(int=number))


def _short(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:48]} ... {text[-48:]}"
