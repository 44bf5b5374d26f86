"""What people may say of a prediction: a value checked by its kind, a correction by the task and the taxonomy too.

Turns a valid request into the value that goes into the event, or into the reason why it cannot. api.py asks. It deliberately does
not know whether the prediction exists: the consumer finds out.
"""

from collections.abc import Callable, Collection
from typing import Protocol

from schemas import targets
from schemas.targets import Task
from serving.anonymise import anonymise
from serving.asgi import Refused
from serving.contract import FeedbackRequest

Value = str | float | list[str]


class Labels(Protocol):
    """Where the taxonomy is read again."""

    async def labels(self) -> Collection[str]:
        """Return the labels. Raises ConnectionError."""


class Feedback:
    """The rules of one project.

    Args:
        task: of its model.
        max_chars: of a comment, or of a text that corrects one.
        labels: the taxonomy as last read.
        refresh: the taxonomy, read again.

    """

    def __init__(
        self,
        task: Task,
        *,
        max_chars: int,
        labels: Callable[[], Collection[str]],
        refresh: Labels,
    ) -> None:
        self._task, self._max_chars = task, max_chars
        self._labels, self._refresh = labels, refresh

    async def checked(self, asked: FeedbackRequest) -> Value:
        """The value, anonymised where it is free text. Raises Refused."""
        value = asked.value
        if asked.kind == "correction":
            return await self._target(value)
        if asked.kind == "score":
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise Refused(422, "not a score", ("value", "expected a number between 0 and 1"))
            return float(value)
        if not isinstance(value, str) or not value:
            raise Refused(422, "not a valid value", ("value", f"a {asked.kind} takes a text"))
        if asked.kind == "rating" and value not in ("up", "down"):
            raise Refused(422, "not a rating", ("value", 'expected "up" or "down"'))
        if asked.kind == "retract" and len(value) > 128:
            raise Refused(422, "not a feedback id", ("value", "at most 128 characters"))
        return self._text(value) if asked.kind == "comment" else value

    async def _target(self, value: Value) -> Value:
        """A correction in its canonical form: labels in order and once each, numbers as numbers, texts anonymised."""
        try:
            target = targets.canonical(self._task, value)
        except targets.BadTarget as error:
            raise Refused(422, "not a valid value", ("value", _short(str(error)))) from error
        if self._task == "generation":
            return self._text(target)
        named = set(targets.labels_of(self._task, target))
        if unknown := named - set(self._labels()) and named - set(await self._read_again()):
            shown = ", ".join(_short(repr(label)) for label in sorted(unknown)[:5])
            hint = f"not in the taxonomy: {shown}; add it with `ratchet labels add`, or use one of its labels"
            raise Refused(422, "unknown label", ("value", hint))
        return targets.value_of(self._task, target)

    async def _read_again(self) -> Collection[str]:
        try:
            return await self._refresh.labels()
        except ConnectionError as error:
            said = "a label is not known here, and the taxonomy cannot be read now: try again"
            raise Refused(503, said, ("value", str(error)), Retry_After="2") from error

    def _text(self, value: str) -> str:
        if len(value) > self._max_chars:
            raise Refused(422, "the text is too long", ("value", f"at most {self._max_chars} characters"))
        return anonymise(value)


def _short(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:48]} ... {text[-48:]}"
