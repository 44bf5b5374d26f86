"""The asyncio client: the methods of client.py as coroutines.

Arguments, results and errors are those of `Client`, whose docstrings explain them.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal

import httpx

from ratchet_client import wire
from ratchet_client.predictions import Feedback, Item, Prediction
from ratchet_client.retries import Attempts, Retries, Trouble

log = logging.getLogger("ratchet_client")


class AsyncClient:
    """A client of one Ratchet service for asyncio. Tasks may share it; `close` it, or use it in an `async with` block.

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
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._target, self._retries = wire.Target.of(url, api_key), retries
        self._http = httpx.AsyncClient(
            base_url=self._target.url, headers=self._target.headers, timeout=timeout_s, transport=transport
        )

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def predict(
        self,
        text: str,
        *,
        metadata: Mapping[str, str] | None = None,
        user: str | None = None,
        coverage: float | None = None,
        max_new_tokens: int | None = None,
    ) -> Prediction:
        """Return the live model's prediction for one text. See `Client.predict`."""
        call = wire.predict_call([Item(text, metadata or {})], user, coverage, max_new_tokens)
        return wire.predictions(await self._send(call))[0]

    async def predict_many(
        self,
        items: Iterable[str | Item],
        *,
        user: str | None = None,
        coverage: float | None = None,
        max_new_tokens: int | None = None,
        batch: int = 64,
    ) -> list[Prediction]:
        """Return the predictions of any number of items in order. See `Client.predict_many`."""
        results: list[Prediction] = []
        for part in wire.parts(items, batch):
            results += wire.predictions(await self._send(wire.predict_call(part, user, coverage, max_new_tokens)))
        return results

    async def correct(
        self,
        prediction: Prediction | str,
        value: str | float | Sequence[str],
        *,
        user: str | None = None,
        feedback_id: str | None = None,
    ) -> Feedback:
        """Send the right answer and return the receipt. See `Client.correct`."""
        return await self.send(prediction, "correction", value, user=user, feedback_id=feedback_id)

    async def rate(
        self,
        prediction: Prediction | str,
        rating: Literal["up", "down"],
        *,
        user: str | None = None,
        feedback_id: str | None = None,
    ) -> Feedback:
        """Send whether the answer shown was good. See `Client.correct`."""
        return await self.send(prediction, "rating", rating, user=user, feedback_id=feedback_id)

    async def score(
        self, prediction: Prediction | str, score: float, *, user: str | None = None, feedback_id: str | None = None
    ) -> Feedback:
        """Send a number from 0 to 1 for the answer shown. See `Client.correct`."""
        return await self.send(prediction, "score", score, user=user, feedback_id=feedback_id)

    async def comment(
        self, prediction: Prediction | str, text: str, *, user: str | None = None, feedback_id: str | None = None
    ) -> Feedback:
        """Send a remark in words. See `Client.correct`."""
        return await self.send(prediction, "comment", text, user=user, feedback_id=feedback_id)

    async def retract(self, feedback: Feedback, *, feedback_id: str | None = None) -> Feedback:
        """Withdraw feedback that this client sent, for the same user. See `Client.correct`."""
        return await self.send(feedback, "retract", feedback.feedback_id, user=feedback.user, feedback_id=feedback_id)

    async def model(self) -> dict[str, Any]:
        """Return the live version: name, task, labels, model_version, generation, calibration. See `Client.model`."""
        return dict(await self._send(wire.Call("GET", "model")))

    async def send(
        self,
        on: Prediction | Feedback | str,
        kind: wire.Kind,
        value: wire.Value,
        *,
        user: str | None = None,
        feedback_id: str | None = None,
    ) -> Feedback:
        """Send feedback of any kind. See `Client.send`."""
        call, receipt = self._target.feedback(on, kind, value, user, feedback_id)
        await self._send(call)
        return receipt

    async def _send(self, call: wire.Call) -> Any:
        attempts = Attempts(self._retries)
        while True:
            try:
                response = await self._http.request(call.method, call.path, json=call.body, headers=call.headers)
                answer = wire.answer_of(call, response)
            except httpx.TransportError as error:
                answer = wire.failed(call, error)
            if not isinstance(answer, Trouble):
                return answer
            wait = attempts.pause(answer)
            log.info("%s; trying again in %.1f s", answer.reason, wait)
            await asyncio.sleep(wait)
