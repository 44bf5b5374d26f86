"""The blocking client: one method for each thing that an app tells Ratchet.

async_client.py has the same methods for asyncio.
"""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal

import httpx

from ratchet_client import wire
from ratchet_client.predictions import Feedback, Item, Prediction
from ratchet_client.retries import Attempts, Retries, Trouble

log = logging.getLogger("ratchet_client")


class Client:
    """A client of one Ratchet service. Threads may share it; `close` it, or use it in a `with` block.

    Args:
        url: the service's address; RATCHET_URL, else http://127.0.0.1:3000, if None.
        api_key: the project's key; RATCHET_API_KEY if None. Without one, feedback uses the prediction's token.
        timeout_s: longest wait for a connection, and for each part of a response.
        retries: how often a call is repeated.
        transport: replaces httpx's own, for a proxy or a private CA.

    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        retries: Retries = Retries(),  # noqa: B008  # immutable
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._target, self._retries = wire.Target.of(url, api_key), retries
        self._http = httpx.Client(
            base_url=self._target.url, headers=self._target.headers, timeout=timeout_s, transport=transport
        )

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def predict(
        self,
        text: str,
        *,
        metadata: Mapping[str, str] | None = None,
        user: str | None = None,
        coverage: float | None = None,
        max_new_tokens: int | None = None,
    ) -> Prediction:
        """Return the live model's prediction for one text.

        Args:
            text: what to predict.
            metadata: names the text's slices, such as `{"channel": "ios"}`.
            user: the person; stored as a pseudonym.
            coverage: probability that the prediction's `set` or `interval` holds the truth.
            max_new_tokens: generation: most tokens of the text.

        Raises:
            RequestRefused: the service refuses the request; NotAuthorised if it is the key.
            Unavailable: the service did not answer in time.

        """
        call = wire.predict_call([Item(text, metadata or {})], user, coverage, max_new_tokens)
        return wire.predictions(self._send(call))[0]

    def predict_many(
        self,
        items: Iterable[str | Item],
        *,
        user: str | None = None,
        coverage: float | None = None,
        max_new_tokens: int | None = None,
        batch: int = 64,
    ) -> list[Prediction]:
        """Return the predictions of any number of items in order, `batch` items a request. Raises as `predict` does."""
        results: list[Prediction] = []
        for part in wire.parts(items, batch):
            results += wire.predictions(self._send(wire.predict_call(part, user, coverage, max_new_tokens)))
        return results

    def correct(
        self,
        prediction: Prediction | str,
        value: str | float | Sequence[str],
        *,
        user: str | None = None,
        feedback_id: str | None = None,
    ) -> Feedback:
        """Send the right answer: a label, labels, a number or a text, by the model's task. Return the receipt.

        Args:
            prediction: the prediction, or its id.
            value: the right answer; equal to the predicted one, it confirms it.
            user: the person who says so; a later correction by the same user replaces the earlier one.
            feedback_id: the idempotency key, a new UUIDv7 if None. The same id is stored once.

        Raises:
            RequestRefused: the service refuses the value; NotAuthorised if it is the key or the token.
            Unavailable: the service did not answer in time.

        """
        return self.send(prediction, "correction", value, user=user, feedback_id=feedback_id)

    def rate(
        self,
        prediction: Prediction | str,
        rating: Literal["up", "down"],
        *,
        user: str | None = None,
        feedback_id: str | None = None,
    ) -> Feedback:
        """Send whether the answer shown was good. Arguments and errors are those of `correct`."""
        return self.send(prediction, "rating", rating, user=user, feedback_id=feedback_id)

    def score(
        self, prediction: Prediction | str, score: float, *, user: str | None = None, feedback_id: str | None = None
    ) -> Feedback:
        """Send a number from 0 to 1 for the answer shown. Arguments and errors are those of `correct`."""
        return self.send(prediction, "score", score, user=user, feedback_id=feedback_id)

    def comment(
        self, prediction: Prediction | str, text: str, *, user: str | None = None, feedback_id: str | None = None
    ) -> Feedback:
        """Send a remark in words. Arguments and errors are those of `correct`."""
        return self.send(prediction, "comment", text, user=user, feedback_id=feedback_id)

    def retract(self, feedback: Feedback, *, feedback_id: str | None = None) -> Feedback:
        """Withdraw feedback that this client sent, for the same user. Other arguments and errors are those of `correct`."""
        return self.send(feedback, "retract", feedback.feedback_id, user=feedback.user, feedback_id=feedback_id)

    def model(self) -> dict[str, Any]:
        """Return the live version: name, task, labels, model_version, generation, calibration. Raises as `predict` does."""
        return dict(self._send(wire.Call("GET", "model")))

    def send(
        self,
        on: Prediction | Feedback | str,
        kind: wire.Kind,
        value: wire.Value,
        *,
        user: str | None = None,
        feedback_id: str | None = None,
    ) -> Feedback:
        """Send feedback of any kind and return the receipt; `correct`, `rate`, `score` and `comment` call it.

        Args:
            on: the prediction, its id, or earlier feedback on it.
            kind: correction, rating, score, comment or retract.
            value: of the kind's type.
            user: the person.
            feedback_id: the idempotency key, a new UUIDv7 if None.

        Raises:
            RequestRefused: the service refuses it; NotAuthorised if it is the key or the token.
            Unavailable: the service did not answer in time.

        """
        call, receipt = self._target.feedback(on, kind, value, user, feedback_id)
        self._send(call)
        return receipt

    def _send(self, call: wire.Call) -> Any:
        attempts = Attempts(self._retries)
        while True:
            try:
                response = self._http.request(call.method, call.path, json=call.body, headers=call.headers)
                answer = wire.answer_of(call, response)
            except httpx.TransportError as error:
                answer = wire.failed(call, error)
            if not isinstance(answer, Trouble):
                return answer
            wait = attempts.pause(answer)
            log.info("%s; trying again in %.1f s", answer.reason, wait)
            time.sleep(wait)
