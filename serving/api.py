"""The HTTP contract: requests in, validated, answered or refused.

Turns HTTP requests into calls of the batcher and the outbox. An `Api` is an ASGI app: service.py puts it in front of
BentoML, whose middleware costs more than our own work; tests run it bare. It deliberately knows no BentoML, no Kafka and no
registry.

Every refusal is `{"error": ..., "detail": [{"field", "message"}]}` with the right status; nothing that a caller sends
becomes a 500.
"""

import asyncio
import logging
import os
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import aclosing

import orjson

from schemas.events import FeedbackData, FeedbackReceived, new_id
from schemas.settings import Settings
from serving.http import access, contract, request_checks
from serving.http.asgi import EventStream, Message, Receive, Refused, Request, Send, event
from serving.http.cors import Cors
from serving.http.feedback_values import BadFeedback, FeedbackChecker, prediction_uuid
from serving.http.label_refresh import LabelRefresh, RegistryAway, checked_feedback
from serving.http.metrics import Metrics
from serving.http.responses import Answer, Answers, Event
from serving.http.routes import Route, Router
from serving.inference.admission import QueueFull
from serving.inference.batching import DeadlinePassed, MicroBatcher, NotReady
from serving.inference.generation_queue import GenerationQueue, TextAnswer
from serving.live import LiveModel
from serving.messaging.outbox import Outbox
from serving.privacy.anonymise import anonymise

log = logging.getLogger("ratchet.api")

# Predictions go to the outbox together: a write and a publish cost about as much for forty events as for one.
LINGER_SECONDS = 0.1
WATCH_SECONDS = 0.05  # from when on a caller who waits is watched: who is answered sooner need not be


class Api:
    """The routes, over the parts that the service built, as an ASGI app."""

    def __init__(
        self,
        settings: Settings,
        keys: access.Keys,
        live: LiveModel,
        batcher: MicroBatcher,
        writing: GenerationQueue,
        outbox: Outbox,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._keys = keys
        self._live = live
        self._batcher = batcher
        self._writing = writing
        self._outbox = outbox
        self._metrics = metrics
        self._lingering: list[Event] = []
        self._tokens = access.TokenUses(settings.access.token_uses, OrderedDict())
        self._feedback = FeedbackChecker(
            settings.model.name,
            settings.model.task,
            secret=lambda: keys.secret,
            max_chars=settings.serving.max_text_chars,
            labels=lambda: live.labels,
        )
        self._label_refresh = LabelRefresh(live.refresh_labels)
        self._source = f"ratchet/{settings.model.name}/serving"
        self._answers = Answers(
            settings.model.name,
            self._source,
            keys.secret,
            audit_rate=settings.dataset.audit_rate,
            token_seconds=settings.access.token_seconds,
        )
        self._worker = str(os.getpid())
        serving = settings.serving
        self._body_limits = {
            contract.PredictRequest: serving.max_body_bytes,
            contract.FeedbackRequest: contract.feedback_bytes(serving.max_text_chars, serving.max_body_bytes),
        }
        self._contract = orjson.dumps(contract.openapi_document(settings.model.task))
        self._about = orjson.dumps(contract.about(settings.model.name))
        routes: dict[str, tuple[str, Route]] = {
            "/": ("GET", self.about),
            "/predict": ("POST", self.predict),
            "/feedback": ("POST", self.feedback),
            "/model": ("GET", self.model),
            "/openapi.json": ("GET", self.openapi),
        }
        worker = [(b"x-ratchet-worker", self._worker.encode())]
        self._router = Router(routes, headers=worker, cors=Cors(serving.cors_origins))

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request; on its own, without BentoML, also ASGI's life cycle."""
        await self._router(scope, receive, send)

    # --- routes -----------------------------------------------------------------------------------------------------

    async def predict(self, request: Request) -> tuple[int, bytes] | EventStream:
        """Answer texts with what the champion says of them, or writes."""
        started = time.perf_counter()
        self._authorise(request)
        self._check_load()
        asked = await self._parse(request, contract.PredictRequest)
        texts = [anonymise(item.text) for item in request_checks.items(asked, self._settings.serving)]
        options, timeout_s = asked.options or contract.Options(), self._settings.serving.timeout_s
        most = request_checks.most_tokens(asked, options, self._live.current())
        try:
            if most is None:
                answer: Answer = await request.unless_gone(self._batcher.submit(texts, timeout_s), WATCH_SECONDS)
            elif options.stream:
                return await self._streamed(request, asked, texts[0], most, started)
            else:
                answer = await request.unless_gone(self._writing.write(texts, most, timeout_s))
        except QueueFull as error:
            raise Refused(503, str(error), Retry_After=str(error.retry_after_s)) from error
        except (DeadlinePassed, NotReady) as error:
            raise Refused(503, str(error), Retry_After="1") from error
        return 200, self._answered(answer, asked, texts, started)

    async def feedback(self, request: Request) -> tuple[int, bytes]:
        """Take one feedback; 202 once it is safe."""
        token = request.headers.get(b"x-feedback-token")
        if token is None:
            self._authorise(request)
        else:
            self._check_alone(token.decode("latin-1"))
        asked = await self._parse(request, contract.FeedbackRequest)
        try:
            prediction_id = prediction_uuid(asked.prediction_id)
            if token is not None:
                self._open(prediction_id, token.decode("latin-1"))
            given = FeedbackData(
                feedback_id=asked.feedback_id or new_id(),
                prediction_id=prediction_id,
                model_name=self._settings.model.name,
                kind=asked.kind,
                value=asked.value,
                user=self._pseudonym(asked.user),
            )
            data = await checked_feedback(self._feedback, self._label_refresh, given)
        except BadFeedback as bad:
            raise Refused(422, bad.error, (bad.field, bad.rule)) from bad
        except RegistryAway as away:
            unknown = "a label is not known here, and the taxonomy cannot be read now: try again"
            raise Refused(503, unknown, ("value", str(away)), Retry_After="2") from away
        event = FeedbackReceived(source=self._source, subject=prediction_id, data=data)
        self.flush()  # what is said of a prediction comes after it
        safe = asyncio.wrap_future(self._outbox.put_feedback(event))
        try:
            await asyncio.wait_for(asyncio.shield(safe), self._settings.kafka.publish_timeout_s * 2 + 2)
        except (ConnectionError, TimeoutError) as error:
            raise Refused(503, f"the feedback could not be made safe: {error}", Retry_After="2") from error
        self._metrics.feedback.labels(self._metrics.model, asked.kind).inc()
        return 202, orjson.dumps({"feedback_id": given.feedback_id})

    async def model(self, request: Request) -> tuple[int, bytes]:
        """Say what this worker serves."""
        self._authorise(request)
        current, champion = self._live.current(), self._live.champion()
        if current is None or champion is None:
            raise Refused(503, "no champion is loaded yet", Retry_After="2")
        manifest = current[0].manifest
        said = {
            "name": manifest.model_name,
            "task": manifest.task,
            "labels": manifest.labels,
            "model_version": manifest.model_version,
            "generation": champion.generation,
            "promoted_at": champion.promoted_at.isoformat(),
            "calibration": manifest.calibration.model_dump(exclude={"conformal": {"scores"}, "intervals": {"scores"}}),
            "worker": self._worker,
        }
        return 200, orjson.dumps(said)

    async def openapi(self, _request: Request) -> tuple[int, bytes]:
        """The OpenAPI 3.1 document of these routes."""
        return 200, self._contract

    async def about(self, _request: Request) -> tuple[int, bytes]:
        """Say what answers here, and where to go on."""
        return 200, self._about

    def flush(self) -> None:
        """Hand the predictions that linger to the outbox; also the last thing before it closes."""
        lingering, self._lingering = self._lingering, []
        self._metrics.predictions.inc(len(lingering))
        if champion := self._live.champion():
            self._metrics.generation.set(champion.generation)
        for prediction_id, made in lingering:
            self._outbox.put_prediction_bytes(prediction_id, made)

    # --- parts of the above -----------------------------------------------------------------------------------------

    def _post(self, events: list[Event]) -> None:
        if not self._lingering:
            asyncio.get_running_loop().call_later(LINGER_SECONDS, self.flush)
        self._lingering += events

    def _answered(self, answer: Answer, asked: contract.PredictRequest, texts: list[str], started: float) -> bytes:
        """The body; the events are on their way."""
        body, events = self._answers.write(
            answer,
            texts,
            [{anonymise(k): anonymise(v) for k, v in item.metadata.items()} for item in asked.items],
            user=self._pseudonym(asked.user),
            coverage=asked.options.coverage if asked.options else None,
        )
        self._post(events)
        if isinstance(answer, TextAnswer):
            self._metrics.tokens.inc(answer.tokens)
        self._metrics.seconds.observe(time.perf_counter() - started)
        return body

    async def _streamed(
        self, request: Request, asked: contract.PredictRequest, text: str, most: int, started: float
    ) -> EventStream:
        """Begun, so that what is refused is refused with its own status."""
        told = self._writing.stream(text, most, self._settings.serving.timeout_s)
        first = await request.unless_gone(anext(told))

        async def events() -> AsyncIterator[bytes]:
            found = first
            async with aclosing(told):
                try:
                    while not isinstance(found, TextAnswer):
                        if found.text:
                            yield event("piece", {"text": found.text})
                        found = await anext(told)
                    yield event("answer", self._answered(found, asked, [text], started)[1:-1])
                except Exception:
                    log.exception("a stream broke")
                    yield event("error", {"error": "internal error", "detail": []})

        return EventStream(request, events())

    def _authorise(self, request: Request) -> None:
        given = request.headers.get(b"authorization", b"")
        if self._settings.access.enabled and not access.bearer_matches(self._keys, given):
            raise Refused(
                401, "the API key is missing or wrong", ("Authorization", "expected Bearer <RATCHET_API_KEY>")
            )

    def _check_alone(self, token: str) -> None:
        """Refuse a token that can open nothing, before the body is read."""
        try:
            access.check_token_alone(token)
        except access.TokenRefused as error:
            raise _token_refused(error) from error

    def _open(self, prediction_id: str, token: str) -> None:
        try:
            access.check_token(self._keys.secret, prediction_id, token)
        except access.TokenRefused as error:
            raise _token_refused(error) from error
        if not self._tokens.use(token):
            raise Refused(429, "this feedback token has been used too often", ("X-Feedback-Token", "used up"))

    def _pseudonym(self, user: str | None) -> str | None:
        return None if user is None else access.pseudonym(self._keys.secret, user)

    async def _parse(self, request: Request, shape: type[contract.Shape]) -> contract.Shape:
        body = await request.body(self._body_limits[shape])
        try:
            return contract.read(body, shape, self._settings.serving.max_items)
        except contract.NotJson as error:
            raise Refused(400, "the body is not JSON", ("body", str(error))) from error
        except contract.NotValid as error:
            raise Refused(422, "the request is not valid", *error.fields) from error

    def _check_load(self) -> None:
        try:
            self._batcher.check(self._settings.serving.timeout_s)
        except QueueFull as error:
            raise Refused(503, str(error), Retry_After=str(error.retry_after_s)) from error


def _token_refused(error: access.TokenRefused) -> Refused:
    status = 401 if "expired" in str(error) else 403
    return Refused(status, str(error), ("X-Feedback-Token", str(error)))
