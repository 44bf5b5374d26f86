"""Probabilities into bytes: what the caller gets, and the event that says so.

Turns one batched `Answer` into the answers of its texts and their `PredictionMade` events. api.py calls it on every
request. It deliberately knows no HTTP, no queue and no broker.

The probabilities of every label are most of both: they are written once, as float32, which is all that a float32 model
knows, and go into both as they are. An event here is bytes that schemas/events.py reads (a test holds the two equal).
"""

import time
from collections.abc import Mapping, Sequence
from weakref import WeakKeyDictionary

import numpy as np
import orjson
from numpy.typing import NDArray

from schemas.events import new_id, utc_now
from serving import access, calibration
from serving.batching import Answer
from serving.runtime import Runtime

Event = tuple[str, bytes]


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
        self._templates: WeakKeyDictionary[Runtime, bytes] = WeakKeyDictionary()

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
            answer: of the batcher.
            texts: anonymised, in its order.
            metadata: anonymised, of each text.
            user: already a pseudonym.
            coverage: adds the set of labels that reach it.

        """
        body, events = [], []
        expires = int(time.time()) + self._token_seconds
        labels, version = answer.runtime.labels, answer.runtime.version
        template = self._template(answer.runtime)
        for n, probabilities in enumerate(answer.probabilities.astype(np.float32)):
            numbers = orjson.dumps(probabilities, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].split(b",")
            best = int(probabilities.argmax())
            prediction_id = new_id()
            said: dict[str, object] = {
                "prediction_id": prediction_id,
                "model_version": version,
                "label": labels[best],
                "confidence": orjson.Fragment(numbers[best]),
                "probabilities": orjson.Fragment(template % tuple(numbers)),
            }
            data = {
                **said,
                "model_name": self._model_name,
                "generation": answer.generation,
                "task": answer.runtime.manifest.task,
                "text": texts[n],
                "user": user,
                "metadata": metadata[n],
                "audit": access.keyed_share(self._secret, "audit", prediction_id) < self._audit_rate,
            }
            said["feedback_token"] = access.issue_token(self._secret, prediction_id, expires)
            if coverage is not None:
                said["set"] = prediction_set(answer.runtime, answer.probabilities[n], coverage)
            body.append(said)
            events.append((prediction_id, self._event(prediction_id, data)))
        return orjson.dumps(body), events

    def _template(self, runtime: Runtime) -> bytes:
        """{label: probability} in JSON, with a `%b` for each probability."""
        template = self._templates.get(runtime)
        if template is None:
            keys = (orjson.dumps(label).replace(b"%", b"%%") for label in runtime.labels)
            template = self._templates[runtime] = b"{" + b",".join(key + b":%b" for key in keys) + b"}"
        return template

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


def prediction_set(runtime: Runtime, probabilities: NDArray[np.float64], coverage: float) -> list[str]:
    """The labels, likeliest first, that hold the truth with this probability; never empty."""
    [inside] = calibration.prediction_sets(runtime.manifest.calibration.conformal, probabilities[None], coverage)
    return [runtime.labels[n] for n in np.argsort(-probabilities, kind="stable") if inside[n]]
