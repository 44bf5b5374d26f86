"""Responses and prediction events: one inference result, written once for the caller and once for the event log.

Turns an `InferenceResult` into the body of POST /predict and a `PredictionMade` event for each text. api.py calls it on every
request. It knows no HTTP, queue or broker; the fields of a prediction come from outputs.py. Events are written as bytes, without
pydantic; a test holds them equal to what schemas/events.py writes.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import orjson

from schemas.events import new_id, utc_now
from schemas.manifests import ModelManifest
from serving.http import access
from serving.http.prediction_ids import new_prediction_id
from serving.inference.outputs import Prediction
from serving.process import tracing

Event = tuple[str, bytes]


class InferenceResult(Protocol):
    """The result of one request, from batching.py or generation_queue.py, by one model version."""

    @property
    def manifest(self) -> ModelManifest:
        """Return the manifest of the version that produced it."""

    @property
    def generation(self) -> int:
        """Return the live generation that produced it."""

    def predictions(self, coverage: float | None) -> Iterable[Prediction]:
        """Return the prediction of each text; `coverage` is the request's, None if it has none."""


class ResponseBuilder:
    """Builder of the responses and events of one model.

    Args:
        model_name: the project's model.
        source: the events' `source`.
        secret: the project's secret, for feedback tokens and the audit sample.
        audit_rate: share of predictions marked for labelling.
        token_seconds: lifetime of a feedback token.
        observe: called with each prediction's response and confidence.

    """

    def __init__(
        self,
        model_name: str,
        source: str,
        secret: str,
        *,
        audit_rate: float,
        token_seconds: int,
        observe: Callable[[Mapping[str, Any], float], None] = lambda *_: None,
    ) -> None:
        self._model_name = model_name
        self._source = source
        self._secret = secret
        self._audit_rate = audit_rate
        self._token_seconds = token_seconds
        self._observe = observe

    def build(
        self,
        result: InferenceResult,
        texts: Sequence[str],
        metadata: Sequence[Mapping[str, str]],
        *,
        user: str | None,
        coverage: float | None,
    ) -> tuple[bytes, list[Event]]:
        """Return the response's body, and the prediction id and event of each text.

        Args:
            result: the predictions of all texts.
            texts: anonymised, in the result's order.
            metadata: of each text, anonymised.
            user: a pseudonym, None if the request names no user.
            coverage: requested for the prediction set or the interval, None if not requested.

        """
        body, events = [], []
        expires, traceparent = int(time.time()) + self._token_seconds, tracing.traceparent()
        version, task = result.manifest.model_version, result.manifest.task
        for text, item, (response, event) in zip(texts, metadata, result.predictions(coverage), strict=True):
            prediction_id = new_prediction_id(self._secret)
            token = access.issue_token(self._secret, prediction_id, expires)
            body.append({"prediction_id": prediction_id, "model_version": version, **response, "feedback_token": token})
            data = {
                "prediction_id": prediction_id,
                "model_version": version,
                **event,
                "model_name": self._model_name,
                "generation": result.generation,
                "task": task,
                "text": text,
                "user": user,
                "metadata": item,
                "audit": access.keyed_share(self._secret, "audit", prediction_id) < self._audit_rate,
            }
            events.append((prediction_id, self._event(prediction_id, data, traceparent)))
            self._observe(response, _number(event["confidence"]))
        return orjson.dumps(body), events

    def _event(self, prediction_id: str, data: dict[str, object], traceparent: str | None) -> bytes:
        event = {
            "specversion": "1.0",
            **({} if traceparent is None else {"traceparent": traceparent}),
            "id": new_id(),
            "source": self._source,
            "subject": prediction_id,
            "time": utc_now(),
            "datacontenttype": "application/json",
            "type": "ratchet.prediction.made.v1",
            "data": data,
        }
        return orjson.dumps(event, option=orjson.OPT_UTC_Z)


def _number(value: Any) -> float:
    """Return a number that may be serialised already."""
    return float(orjson.dumps(value))
