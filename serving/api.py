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
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import aclosing

import orjson

from schemas.events import FeedbackData, FeedbackReceived, new_id
from schemas.settings import Settings
from serving import access, contract
from serving.admission import QueueFull
from serving.anonymise import anonymise
from serving.answers import Answer, Answers, Event
from serving.asgi import ClientGone, EventStream, Message, Receive, Refused, Request, Send, event
from serving.batching import DeadlinePassed, MicroBatcher, NotReady
from serving.feedback import Feedback
from serving.generation_queue import GenerationQueue, TextAnswer
from serving.label_refresh import LabelRefresh
from serving.live import LiveModel
from serving.metrics import Metrics
from serving.outbox import Outbox

log = logging.getLogger("ratchet.api")

# Predictions go to the outbox together: a write and a publish cost about as much for forty events as for one.
LINGER_SECONDS = 0.1
WATCH_SECONDS = 0.05  # from when on a caller who waits is watched: who is answered sooner need not be

PATHS = ("/predict", "/feedback", "/model", "/openapi.json")


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
        self._feedback = Feedback(
            settings.model.task,
            max_chars=settings.serving.max_text_chars,
            labels=lambda: live.labels,
            refresh=LabelRefresh(live.refresh_labels),
        )
        self._source = f"ratchet/{settings.model.name}/serving"
        self._answers = Answers(
            settings.model.name,
            self._source,
            keys.secret,
            audit_rate=settings.dataset.audit_rate,
            token_seconds=settings.access.token_seconds,
        )
        self._worker = str(os.getpid())
        self._headers = [(b"x-ratchet-worker", self._worker.encode())]
        methods = (("POST", self.predict), ("POST", self.feedback), ("GET", self.model), ("GET", self.openapi))
        self._routes = dict(zip(PATHS, methods, strict=True))

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request; on its own, without BentoML, also ASGI's life cycle."""
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        headers: dict[str, str] = {}
        try:
            if scope["type"] != "http" or scope["path"] not in self._routes:
                raise Refused(404, "Not Found")
            method, route = self._routes[scope["path"]]
            if scope["method"] != method:
                raise Refused(405, "Method Not Allowed", Allow=method)
            answer = await route(Request(method, dict(scope["headers"]), receive))
            if isinstance(answer, EventStream):
                await answer.send(send, self._headers)
                return
            status, body = answer
        except Refused as refused:
            status, body, headers = refused.status, refused.body, refused.headers
        except ClientGone:
            return
        except Exception:
            log.exception("%s failed", scope["path"])
            status, body = 500, orjson.dumps({"error": "internal error", "detail": []})
        found = [*self._headers, (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        found += [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": found})
        await send({"type": "http.response.body", "body": body})

    # --- routes -----------------------------------------------------------------------------------------------------

    async def predict(self, request: Request) -> tuple[int, bytes] | EventStream:
        """Answer texts with what the champion says of them, or writes."""
        started = time.perf_counter()
        self._authorise(request)
        self._check_load()
        asked = await self._parse(request, contract.PredictRequest)
        texts = [anonymise(item.text) for item in self._checked_items(asked)]
        options, timeout_s = asked.options or contract.Options(), self._settings.serving.timeout_s
        most = self._checked_most(asked, options)
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
        asked = await self._parse(request, contract.FeedbackRequest)
        try:
            prediction_id = str(uuid.UUID(asked.prediction_id))
        except ValueError as error:
            raise Refused(422, "not a prediction id", ("prediction_id", "expected a UUID")) from error
        if token is not None:
            self._open(prediction_id, token.decode("latin-1"))
        data = FeedbackData(
            feedback_id=asked.feedback_id or new_id(),
            prediction_id=prediction_id,
            model_name=self._settings.model.name,
            kind=asked.kind,
            value=await self._feedback.checked(asked),
            user=self._pseudonym(asked.user),
        )
        event = FeedbackReceived(source=self._source, subject=prediction_id, data=data)
        self.flush()  # what is said of a prediction comes after it
        safe = asyncio.wrap_future(self._outbox.put_feedback(event))
        try:
            await asyncio.wait_for(asyncio.shield(safe), self._settings.kafka.publish_timeout_s * 2 + 2)
        except (ConnectionError, TimeoutError) as error:
            raise Refused(503, f"the feedback could not be made safe: {error}", Retry_After="2") from error
        self._metrics.feedback.labels(self._metrics.model, asked.kind).inc()
        return 202, orjson.dumps({"feedback_id": data.feedback_id})

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
        return 200, orjson.dumps(contract.openapi_document(self._settings.model.task))

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

    def _open(self, prediction_id: str, token: str) -> None:
        try:
            access.check_token(self._keys.secret, prediction_id, token)
        except access.TokenRefused as error:
            status = 401 if "expired" in str(error) else 403
            raise Refused(status, str(error), ("X-Feedback-Token", str(error))) from error
        if not self._tokens.use(token):
            raise Refused(429, "this feedback token has been used too often", ("X-Feedback-Token", "used up"))

    def _pseudonym(self, user: str | None) -> str | None:
        return None if user is None else access.pseudonym(self._keys.secret, user)

    async def _parse(self, request: Request, shape: type[contract.Shape]) -> contract.Shape:
        body = await request.body(self._settings.serving.max_body_bytes)
        try:
            return contract.read(body, shape)
        except contract.NotJson as error:
            raise Refused(400, "the body is not JSON", ("body", str(error))) from error
        except contract.NotValid as error:
            raise Refused(422, "the request is not valid", *error.fields) from error

    def _check_load(self) -> None:
        try:
            self._batcher.check(self._settings.serving.timeout_s)
        except QueueFull as error:
            raise Refused(503, str(error), Retry_After=str(error.retry_after_s)) from error

    def _checked_items(self, asked: contract.PredictRequest) -> list[contract.Item]:
        serving = self._settings.serving
        if len(asked.items) > serving.max_items:
            raise Refused(422, "too many items", ("items", f"{len(asked.items)}, at most {serving.max_items}"))
        for n, item in enumerate(asked.items):
            if len(item.text) > serving.max_text_chars:
                raise Refused(
                    422,
                    "a text is too long",
                    (f"items.{n}.text", f"{len(item.text)}, at most {serving.max_text_chars}"),
                )
            if not item.text.strip():
                raise Refused(422, "a text is empty", (f"items.{n}.text", "only white space"))
        return asked.items

    def _checked_most(self, asked: contract.PredictRequest, options: contract.Options) -> int | None:
        """Tokens of an answer at most if the live version writes, else None."""
        live = self._live.current()
        manifest = live[0].manifest if live else None
        if manifest is None or manifest.task != "generation":
            if options.stream or options.max_new_tokens:
                field = "stream" if options.stream else "max_new_tokens"
                raise Refused(422, "this model writes no text", (f"options.{field}", "of models that write"))
            return None
        if options.coverage is not None:
            raise Refused(422, "a text has no set", ("options.coverage", "of models with labels or numbers"))
        if options.stream and len(asked.items) > 1:
            raise Refused(422, "too many items", ("items", "a stream is of one"))
        most = options.max_new_tokens or manifest.max_new_tokens
        if most > manifest.max_new_tokens:
            raise Refused(422, "too many tokens", ("options.max_new_tokens", f"at most {manifest.max_new_tokens}"))
        return most
