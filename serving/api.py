"""The routes of the inference API: validate a request, answer it or refuse it.

Turns HTTP requests into calls of the micro-batcher, the generation queue and the outbox. `Api` is an ASGI app. service.py
runs it in front of BentoML, whose middleware would cost more than the routes do; tests run it alone. It knows no BentoML,
Kafka or registry.

Every refusal is `{"error": ..., "detail": [{"field", "message"}]}` with a matching status. No request content causes a 500.
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

import orjson

from schemas.events import FeedbackData, FeedbackReceived, new_id
from schemas.records import Role
from schemas.settings import Settings
from serving.http import access, contract, request_checks
from serving.http.asgi import EventStream, Message, Receive, Refused, Request, Send, event
from serving.http.cors import Cors
from serving.http.feedback_values import BadFeedback, FeedbackChecker, prediction_uuid, serving_source
from serving.http.guard import Guard
from serving.http.label_refresh import LabelRefresh, RegistryAway, checked_feedback
from serving.http.metrics import Metrics
from serving.http.openapi.document import openapi_document
from serving.http.responses import Event, InferenceResult, ResponseBuilder
from serving.http.routes import FRONT_ROUTES, Route, Router, constant
from serving.inference.admission import QueueFull
from serving.inference.batching import DeadlinePassed, MicroBatcher, NotReady
from serving.inference.generation_queue import GenerationQueue, GenerationResult
from serving.live import LiveModel
from serving.messaging.outbox import Outbox
from serving.privacy.anonymise import anonymise
from serving.process import tracing

log = logging.getLogger("ratchet.api")

# Predictions wait this long to reach the outbox together: forty events cost about as much as one.
LINGER_SECONDS = 0.1
WATCH_SECONDS = 0.05  # a request that takes longer is watched for its caller's hang-up
TURN_SECONDS = 0.005  # of one request's work on the event loop, before others get their turn


class Api:
    """The routes as an ASGI app over the worker's model, queues and outbox."""

    def __init__(
        self,
        settings: Settings,
        keys: access.Keys,
        live: LiveModel,
        batcher: MicroBatcher,
        generation: GenerationQueue,
        outbox: Outbox,
        metrics: Metrics,
        guard: Guard,
    ) -> None:
        self._settings = settings
        self._guard = guard
        self._keys = keys
        self._live = live
        self._batcher = batcher
        self._generation = generation
        self._outbox = outbox
        self._metrics = metrics
        self._lingering: list[Event] = []
        self._feedback = FeedbackChecker(
            settings.model.name,
            settings.model.task,
            secret=lambda: keys.secret,
            max_chars=settings.serving.max_text_chars,
            labels=lambda: live.labels,
        )
        self._label_refresh = LabelRefresh(live.refresh_labels)
        self._source = serving_source(settings.model.name)
        self._responses = ResponseBuilder(
            settings.model.name,
            self._source,
            keys.secret,
            audit_rate=settings.dataset.audit_rate,
            token_seconds=settings.access.token_seconds,
            observe=metrics.predicted,
        )
        self._worker = str(os.getpid())
        serving = settings.serving
        self._body_limits = {
            contract.PredictRequest: serving.max_body_bytes,
            contract.FeedbackRequest: contract.feedback_bytes(serving.max_text_chars, serving.max_body_bytes),
        }
        routes: dict[str, tuple[str, Route]] = {
            "/": ("GET", constant(contract.about(settings.model.name))),
            "/predict": ("POST", self.predict),
            "/feedback": ("POST", self.feedback),
            "/model": ("GET", self.model),
            "/openapi.json": ("GET", constant(openapi_document(settings.model.task, settings.serving))),
            **FRONT_ROUTES,
        }
        worker = [(b"x-ratchet-worker", self._worker.encode())]
        self._router = Router(
            routes,
            headers=worker,
            cors=Cors(serving.cors_origins),
            max_body_bytes=serving.max_body_bytes,
            observe=metrics.answered,
        )

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request, or ASGI's lifespan messages when the app runs without BentoML."""
        await self._router(scope, receive, send)

    # --- routes -----------------------------------------------------------------------------------------------------

    async def predict(self, request: Request) -> tuple[int, bytes] | EventStream:
        """Answer POST /predict with the live version's predictions."""
        started = time.perf_counter()
        person = await self._guard.admit(request, Role.PREDICT)
        self._check_load()
        body = await self._parse(request, contract.PredictRequest)
        items = request_checks.items(body, self._settings.serving)
        await self._guard.count_texts(person, len(items))
        texts = await _anonymised(items)
        options, timeout_s = body.options or contract.Options(), self._settings.serving.timeout_s
        max_new_tokens = request_checks.max_new_tokens(body, options, self._live.current())
        try:
            if max_new_tokens is None:
                result: InferenceResult = await request.unless_gone(
                    self._batcher.submit(texts, timeout_s), WATCH_SECONDS
                )
            elif options.stream:
                return await self._stream(request, body, texts[0], max_new_tokens, started)
            else:
                result = await request.unless_gone(self._generation.generate(texts, max_new_tokens, timeout_s))
        except QueueFull as error:
            raise Refused(503, str(error), Retry_After=str(error.retry_after_s)) from error
        except (DeadlinePassed, NotReady) as error:
            raise Refused(503, str(error), Retry_After="1") from error
        return 200, self._respond(result, body, texts, started)

    async def feedback(self, request: Request) -> tuple[int, bytes]:
        """Answer POST /feedback with 202 once the feedback is durable."""
        token = request.headers.get(b"x-feedback-token")
        if token is None:
            await self._guard.admit(request, Role.FEEDBACK)
        else:
            self._guard.check_token_alone(token.decode("latin-1"))
        body = await self._parse(request, contract.FeedbackRequest)
        try:
            prediction_id = prediction_uuid(body.prediction_id)
            if token is not None:
                await self._guard.check_token(prediction_id, token.decode("latin-1"))
            else:
                self._guard.check_known(prediction_id)
            given = FeedbackData(
                feedback_id=body.feedback_id or new_id(),
                prediction_id=prediction_id,
                model_name=self._settings.model.name,
                kind=body.kind,
                value=body.value,
                user=body.user,
            )
            data = await checked_feedback(self._feedback, self._label_refresh, given)
        except BadFeedback as bad:
            raise Refused(422, bad.error, (bad.field, bad.rule)) from bad
        except RegistryAway as away:
            unknown = "the label is unknown to this worker, and the taxonomy cannot be read now: try again"
            raise Refused(503, unknown, ("value", str(away)), Retry_After="2") from away
        event = FeedbackReceived(
            source=self._source, subject=prediction_id, data=data, traceparent=tracing.traceparent()
        )
        self.flush()  # a prediction's event precedes its feedback
        durable = asyncio.wrap_future(self._outbox.put_feedback(event))
        try:
            await asyncio.wait_for(asyncio.shield(durable), self._settings.kafka.publish_timeout_s * 2 + 2)
        except (ConnectionError, TimeoutError) as error:
            raise Refused(503, f"the feedback could not be stored: {error}", Retry_After="2") from error
        self._metrics.feedback.labels(self._metrics.model, body.kind).inc()
        return 202, orjson.dumps({"feedback_id": given.feedback_id})

    async def model(self, request: Request) -> tuple[int, bytes]:
        """Answer GET /model with the live version of this worker."""
        await self._guard.admit(request)
        current, champion = self._live.current(), self._live.champion()
        if current is None or champion is None:
            raise Refused(503, "no champion is loaded yet", Retry_After="2")
        manifest = current[0].manifest
        description = {
            "name": manifest.model_name,
            "task": manifest.task,
            "labels": manifest.labels,
            "model_version": manifest.model_version,
            "generation": champion.generation,
            "promoted_at": champion.promoted_at.isoformat(),
            "calibration": manifest.calibration.model_dump(exclude={"conformal": {"scores"}, "intervals": {"scores"}}),
            "worker": self._worker,
        }
        return 200, orjson.dumps(description)

    def flush(self) -> None:
        """Pass waiting prediction events to the outbox. Called once more before the outbox closes."""
        lingering, self._lingering = self._lingering, []
        self._metrics.predictions.inc(len(lingering))
        for prediction_id, made in lingering:
            self._outbox.put_prediction_bytes(prediction_id, made)

    # --- steps of the routes ----------------------------------------------------------------------------------------

    def _post(self, events: list[Event]) -> None:
        if not self._lingering:
            asyncio.get_running_loop().call_later(LINGER_SECONDS, self.flush)
        self._lingering += events

    def _respond(
        self, result: InferenceResult, request: contract.PredictRequest, texts: list[str], started: float
    ) -> bytes:
        """Return the response's body, after its events are queued for the outbox."""
        body, events = self._responses.build(
            result,
            texts,
            [{anonymise(k): anonymise(v) for k, v in item.metadata.items()} for item in request.items],
            user=self._pseudonym(request.user),
            coverage=request.options.coverage if request.options else None,
        )
        self._post(events)
        if isinstance(result, GenerationResult):
            self._metrics.tokens.inc(result.tokens)
        self._metrics.seconds.observe(time.perf_counter() - started)
        return body

    async def _stream(
        self, request: Request, body: contract.PredictRequest, text: str, max_new_tokens: int, started: float
    ) -> EventStream:
        """Return the event stream once the first piece is there, so that a refusal still has its own status."""
        results = self._generation.stream(text, max_new_tokens, self._settings.serving.timeout_s)
        first = await request.unless_gone(anext(results))

        async def events() -> AsyncIterator[bytes]:
            result = first
            async with aclosing(results):
                try:
                    while not isinstance(result, GenerationResult):
                        if result.text:
                            yield event("piece", {"text": result.text})
                        result = await anext(results)
                    yield event("answer", self._respond(result, body, [text], started)[1:-1])
                except Exception:
                    log.exception("an event stream failed")
                    yield event("error", {"error": "internal error", "detail": []})

        return EventStream(request, events())

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


async def _anonymised(items: Sequence[contract.Item]) -> list[str]:
    """Return the items' texts anonymised. Long ones take seconds together, so other requests get their turns."""
    texts, began = [], time.perf_counter()
    for item in items:
        if time.perf_counter() - began > TURN_SECONDS:
            await asyncio.sleep(0)
            began = time.perf_counter()
        texts.append(anonymise(item.text))
    return texts
