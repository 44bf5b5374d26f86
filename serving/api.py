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
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from prometheus_client import Counter, Gauge, Histogram

from schemas import targets
from schemas.events import FeedbackData, FeedbackReceived, new_id
from schemas.settings import Settings
from serving import access, contract
from serving.anonymise import anonymise
from serving.answers import Answers, Event
from serving.batching import DeadlinePassed, MicroBatcher, NotReady, QueueFull
from serving.live import LiveModel
from serving.outbox import Outbox

log = logging.getLogger("ratchet.api")

# Predictions go to the outbox together: a write and a publish cost about as much for forty events as for one.
LINGER_SECONDS = 0.1

PATHS = ("/predict", "/feedback", "/model", "/openapi.json")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Refused(Exception):
    """A request that gets a 4xx or a 503."""

    def __init__(self, status: int, error: str, *detail: tuple[str, str], **headers: str) -> None:
        super().__init__(error)
        self.status = status
        self.body = orjson.dumps({"error": error, "detail": [{"field": f, "message": m} for f, m in detail]})
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class ClientGone(ConnectionError):
    """The caller hung up before its request was whole."""


@dataclass(frozen=True)
class Request:
    """One HTTP request; its body is read when it is asked for."""

    method: str
    headers: dict[bytes, bytes]
    receive: Receive = field(repr=False)

    async def body(self, limit: int) -> bytes:
        """All of it. Raises Refused past `limit` bytes, or ClientGone."""
        chunks, size = [], 0
        while True:
            message = await self.receive()
            if message["type"] != "http.request":
                raise ClientGone("the caller hung up")
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > limit:
                raise Refused(413, "the body is too large", ("body", f"more than {limit} bytes"))
            if not message.get("more_body"):
                return b"".join(chunks)


class Metrics:
    """Prometheus metrics of one worker; made in the worker, never at import."""

    def __init__(self, model: str) -> None:
        self.predictions = Counter("ratchet_predictions", "items answered", ["model"]).labels(model)
        self.feedback = Counter("ratchet_feedback", "feedback accepted", ["model", "kind"])
        self.seconds = Histogram("ratchet_predict_seconds", "seconds of a predict request", ["model"]).labels(model)
        mode = {"multiprocess_mode": "max"}
        self.generation = Gauge("ratchet_generation", "live generation", ["model"], **mode).labels(model)  # type: ignore[arg-type]  # a Literal
        self.waiting = Gauge("ratchet_outbox_waiting", "events on disk", ["model"], multiprocess_mode="livesum").labels(
            model
        )
        self.dropped = Gauge(
            "ratchet_outbox_dropped", "predictions dropped", ["model"], multiprocess_mode="livesum"
        ).labels(model)
        self.model = model

    def outbox(self, waiting: int, dropped: int) -> None:
        """What the outbox last counted."""
        self.waiting.set(waiting)
        self.dropped.set(dropped)


@dataclass
class TokenUses:
    """How often each feedback token was used in this worker; the least recent are forgotten."""

    limit: int
    seen: "OrderedDict[str, int]"

    def use(self, token: str) -> bool:
        """Count one use; False past the limit."""
        uses = self.seen.pop(token, 0) + 1
        self.seen[token] = uses
        if len(self.seen) > 100_000:
            self.seen.popitem(last=False)
        return uses <= self.limit


class Api:
    """The routes, over the parts that the service built, as an ASGI app."""

    def __init__(
        self,
        settings: Settings,
        keys: access.Keys,
        live: LiveModel,
        batcher: MicroBatcher,
        outbox: Outbox,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._keys = keys
        self._live = live
        self._batcher = batcher
        self._outbox = outbox
        self._metrics = metrics
        self._lingering: list[Event] = []
        self._tokens = TokenUses(settings.access.token_uses, OrderedDict())
        self._source = f"ratchet/{settings.model.name}/serving"
        self._answers = Answers(
            settings.model.name,
            self._source,
            keys.secret,
            audit_rate=settings.dataset.audit_rate,
            token_seconds=settings.access.token_seconds,
        )
        self._worker = str(os.getpid())
        self._headers = [(b"content-type", b"application/json"), (b"x-ratchet-worker", self._worker.encode())]
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
            status, body = await route(Request(method, dict(scope["headers"]), receive))
        except Refused as refused:
            status, body, headers = refused.status, refused.body, refused.headers
        except ClientGone:
            return
        except Exception:
            log.exception("%s failed", scope["path"])
            status, body = 500, orjson.dumps({"error": "internal error", "detail": []})
        found = [*self._headers, (b"content-length", str(len(body)).encode())]
        found += [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": found})
        await send({"type": "http.response.body", "body": body})

    # --- routes -----------------------------------------------------------------------------------------------------

    async def predict(self, request: Request) -> tuple[int, bytes]:
        """Answer texts with what the champion says of them."""
        started = time.perf_counter()
        self._authorise(request)
        asked = await self._parse(request, contract.PredictRequest)
        self._check_items(asked)
        texts = [anonymise(item.text) for item in asked.items]
        try:
            answer = await self._batcher.submit(texts, self._settings.serving.timeout_s)
        except (QueueFull, DeadlinePassed, NotReady) as error:
            raise Refused(503, str(error), Retry_After="1") from error
        body, events = self._answers.write(
            answer,
            texts,
            [{anonymise(k): anonymise(v) for k, v in item.metadata.items()} for item in asked.items],
            user=self._pseudonym(asked.user),
            coverage=asked.options.coverage if asked.options else None,
        )
        self._post(events)
        self._metrics.seconds.observe(time.perf_counter() - started)
        return 200, body

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
        value = self._checked_value(asked)
        data = FeedbackData(
            feedback_id=asked.feedback_id or new_id(),
            prediction_id=prediction_id,
            model_name=self._settings.model.name,
            kind=asked.kind,
            value=value,
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
        for prediction_id, event in lingering:
            self._outbox.put_prediction_bytes(prediction_id, event)

    # --- parts of the above -----------------------------------------------------------------------------------------

    def _post(self, events: list[Event]) -> None:
        if not self._lingering:
            asyncio.get_running_loop().call_later(LINGER_SECONDS, self.flush)
        self._lingering += events

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

    def _check_items(self, asked: contract.PredictRequest) -> None:
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

    def _checked_value(self, asked: contract.FeedbackRequest) -> str | float | list[str]:
        value = asked.value
        if asked.kind == "correction":
            return self._checked_target(value)
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
        if asked.kind == "comment":
            if len(value) > self._settings.serving.max_text_chars:
                raise Refused(
                    422, "the comment is too long", ("value", f"at most {self._settings.serving.max_text_chars}")
                )
            return anonymise(value)
        return value

    def _checked_target(self, value: str | float | list[str]) -> str | float | list[str]:
        """A correction in its canonical form: labels in order and once each, numbers as numbers."""
        task = self._settings.model.task
        try:
            target = targets.canonical(task, value)
        except targets.BadTarget as error:
            raise Refused(422, "not a valid value", ("value", _short(str(error)))) from error
        named = set(targets.labels_of(task, target))
        if unknown := named - set(self._live.labels) and named - set(self._live.refresh_labels()):
            shown = ", ".join(_short(repr(label)) for label in sorted(unknown)[:5])
            hint = f"not in the taxonomy: {shown}; add it with `ratchet labels add`, or use one of its labels"
            raise Refused(422, "unknown label", ("value", hint))
        return targets.value_of(task, target)


def _short(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:48]} ... {text[-48:]}"
