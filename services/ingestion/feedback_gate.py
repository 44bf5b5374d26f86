"""The gate for events from Kafka: the rules of the HTTP routes, and the exclusions of erased events.

Turns an event into the one that is stored, or raises `BadMessage`. The consumer calls it for every message, the
replay of dead letters before it publishes one. serving/http/feedback_values.py holds the rules. Feedback with an unknown
label is a dead letter; once the label is added, `ratchet feedback replay --dlq` stores it.
"""

import contextlib
from functools import cached_property

from pipelines.feature_store.event_rows import BadMessage
from schemas.events import FeedbackData, FeedbackReceived, PredictionData, PredictionMade
from schemas.labels import LabelMap
from schemas.settings import Settings
from serving.http.access import read_keys
from serving.http.feedback_values import BadFeedback, FeedbackChecker, feedback_uuid, prediction_uuid
from serving.registry.exclusions import Excluded
from serving.registry.registry import Registry


class FeedbackGate:
    """Holds one project's rules and exclusions, as of the last `refresh`."""

    def __init__(self, settings: Settings, registry: Registry) -> None:
        self._settings, self._registry = settings, registry
        self._labels = LabelMap()
        self.excluded = Excluded()
        self._checker = FeedbackChecker(
            settings.model.name,
            settings.model.task,
            secret=lambda: self._secret,
            max_chars=settings.serving.max_text_chars,
            labels=lambda: self._labels,
        )

    def refresh(self) -> bool:
        """Read the taxonomy and exclusions again; return whether the exclusions changed. Raises RegistryUnavailable."""
        before = self.excluded
        self._labels, self.excluded = self._registry.label_map(), self._registry.excluded()
        return self.excluded != before

    def check(self, event: PredictionMade | FeedbackReceived) -> PredictionMade | FeedbackReceived:
        """Return the event as it is stored. Raises BadMessage, or KeysMissing without the project's secret."""
        data: PredictionData | FeedbackData
        try:
            if isinstance(event, PredictionMade):
                data = self._checker.checked_prediction(event.data, source=event.source)
            else:
                data = self._checker.checked(event.data, source=event.source)
        except BadFeedback as error:
            raise BadMessage(str(error)) from error
        if data is event.data and event.subject == data.prediction_id:
            return event
        return event.model_copy(update={"data": data, "subject": data.prediction_id})

    def is_erased(self, event: PredictionMade | FeedbackReceived) -> bool:
        """Return whether an event's user, prediction or feedback was erased, also if its ids are not pseudonyms yet."""
        changed: dict[str, object] = {"user": self._checker.stored_user(event.data.user, event.source)}
        with contextlib.suppress(BadFeedback):
            changed["prediction_id"] = prediction_uuid(event.data.prediction_id)
        if isinstance(event, FeedbackReceived):
            changed["feedback_id"] = feedback_uuid(lambda: self._secret, event.data.feedback_id)
        stored = event.model_copy(update={"data": event.data.model_copy(update=changed)})
        return self.excluded.covers(stored)

    @cached_property
    def _secret(self) -> str:
        """The project's secret, read at first use: feedback from our own serving needs none."""
        return read_keys(self._settings.path(self._settings.access.keys)).secret
