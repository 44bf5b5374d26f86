"""Outputs into bytes: what the caller gets, and the event that says so.

Turns one `Answer` of a queue into the answers of its texts and their `PredictionMade` events. api.py calls it on every
request. It deliberately knows no HTTP, no queue, no broker, and no task: what is said of a text is outputs.py's. An event here
is bytes that schemas/events.py reads (a test holds the two equal).
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import orjson

from schemas.events import new_id, utc_now
from schemas.manifests import ModelManifest
from serving.http import access
from serving.inference.outputs import Said

Event = tuple[str, bytes]


class Answer(Protocol):
    """What a queue gave: outputs or texts, of one version."""

    @property
    def manifest(self) -> ModelManifest:
        """Of the version that gave it."""

    @property
    def generation(self) -> int:
        """As that version was live."""

    def said(self, coverage: float | None) -> Iterable[Said]:
        """What answer and event say of each text; `coverage` is what the caller asked for."""


class Answers:
    """Writes answers and events of one model.

    Args:
        model_name: the project's model.
        source: of the events.
        secret: of tokens and of the audit sample.
        audit_rate: share of predictions marked for labelling.
        token_seconds: life of a feedback token.

    """

    def __init__(self, model_name: str, source: str, secret: str, *, audit_rate: float, token_seconds: int) -> None:
        self._model_name = model_name
        self._source = source
        self._secret = secret
        self._audit_rate = audit_rate
        self._token_seconds = token_seconds

    def write(
        self,
        answer: Answer,
        texts: Sequence[str],
        metadata: Sequence[Mapping[str, str]],
        *,
        user: str | None,
        coverage: float | None,
    ) -> tuple[bytes, list[Event]]:
        """The body of the answer, and (prediction id, event) of each text.

        Args:
            answer: of batching.py or generation_queue.py.
            texts: anonymised, in its order.
            metadata: anonymised, of each text.
            user: already a pseudonym.
            coverage: of the set of labels, or the interval, that is asked for.

        """
        body, events = [], []
        expires = int(time.time()) + self._token_seconds
        version, task = answer.manifest.model_version, answer.manifest.task
        for text, described, (shown, kept) in zip(texts, metadata, answer.said(coverage), strict=True):
            prediction_id = new_id()
            token = access.issue_token(self._secret, prediction_id, expires)
            body.append({"prediction_id": prediction_id, "model_version": version, **shown, "feedback_token": token})
            data = {
                "prediction_id": prediction_id,
                "model_version": version,
                **kept,
                "model_name": self._model_name,
                "generation": answer.generation,
                "task": task,
                "text": text,
                "user": user,
                "metadata": described,
                "audit": access.keyed_share(self._secret, "audit", prediction_id) < self._audit_rate,
            }
            events.append((prediction_id, self._event(prediction_id, data)))
        return orjson.dumps(body), events

    def _event(self, prediction_id: str, data: dict[str, object]) -> bytes:
        event = {
            "specversion": "1.0",
            "id": new_id(),
            "source": self._source,
            "subject": prediction_id,
            "time": utc_now(),
            "datacontenttype": "application/json",
            "type": "ratchet.prediction.made.v1",
            "data": data,
        }
        return orjson.dumps(event, option=orjson.OPT_UTC_Z)
