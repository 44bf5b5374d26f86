"""The HTTP contract: requests in, validated, answered or refused.

Turns HTTP requests into calls of the batcher and the outbox. service.py mounts the app in BentoML; tests may run it bare.
It deliberately knows no BentoML, no Kafka and no registry.

Every refusal is `{"error": ..., "detail": [{"field", "message"}]}` with the right status; nothing that a caller sends
becomes a 500.
"""

import asyncio
import logging
import os
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray
from prometheus_client import Counter, Gauge, Histogram
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from schemas.events import FeedbackData, FeedbackKind, FeedbackReceived, PredictionData, PredictionMade, new_id
from schemas.settings import Settings
from serving import access, calibration
from serving.anonymise import anonymise
from serving.batching import Answer, DeadlinePassed, MicroBatcher, NotReady, QueueFull
from serving.live import LiveModel
from serving.outbox import Outbox

log = logging.getLogger("ratchet.api")

Shape = TypeVar("Shape", bound=BaseModel)

Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Short = Annotated[str, StringConstraints(min_length=1, max_length=128)]


class Item(BaseModel):
    """One text to predict."""

    model_config = ConfigDict(extra="forbid", strict=True)
    text: Annotated[str, StringConstraints(min_length=1)]
    metadata: Annotated[dict[Name, Annotated[str, StringConstraints(max_length=256)]], Field(max_length=32)] = {}


class Options(BaseModel):
    """What else to answer."""

    model_config = ConfigDict(extra="forbid", strict=True)
    coverage: float | None = Field(
        None, gt=0, lt=1, description="adds `set`: labels, likeliest first, that hold the truth with this probability"
    )


class PredictRequest(BaseModel):
    """Body of POST /predict."""

    model_config = ConfigDict(extra="forbid", strict=True)
    items: list[Item] = Field(min_length=1)
    user: Name | None = None
    options: Options = Options()


class FeedbackRequest(BaseModel):
    """Body of POST /feedback."""

    model_config = ConfigDict(extra="forbid", strict=True)
    prediction_id: str
    kind: FeedbackKind
    value: str | float | int | list[str]
    user: Name | None = None
    feedback_id: Short | None = None


class Prediction(BaseModel):
    """One answer of POST /predict."""

    prediction_id: str
    label: str
    confidence: float
    probabilities: dict[str, float]
    model_version: str
    feedback_token: str
    set: list[str] | None = None


class Refused(Exception):
    """A request that gets a 4xx or a 503."""

    def __init__(self, status: int, error: str, *detail: tuple[str, str], retry_after: int | None = None) -> None:
        super().__init__(error)
        self.status = status
        self.body = {"error": error, "detail": [{"field": f, "message": m} for f, m in detail]}
        self.headers = {"Retry-After": str(retry_after)} if retry_after else {}


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
    """The routes, over the parts that the service built."""

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
        self._tokens = TokenUses(settings.access.token_uses, OrderedDict())
        self._source = f"ratchet/{settings.model.name}/serving"
        self._worker = str(os.getpid())

    def app(self) -> Starlette:
        """The ASGI app."""
        routes = [
            Route("/predict", self._answer(self.predict), methods=["POST"]),
            Route("/feedback", self._answer(self.feedback), methods=["POST"]),
            Route("/model", self._answer(self.model), methods=["GET"]),
            Route("/openapi.json", self._answer(self.openapi), methods=["GET"]),
        ]
        return Starlette(routes=routes, exception_handlers={HTTPException: self._http_error})

    # --- routes -----------------------------------------------------------------------------------------------------

    async def predict(self, request: Request) -> tuple[int, object]:
        """Answer texts with the champion's labels and calibrated probabilities."""
        started = time.perf_counter()
        self._authorise(request)
        asked = await self._parse(request, PredictRequest)
        self._check_items(asked)
        texts = [anonymise(item.text) for item in asked.items]
        try:
            answer = await self._batcher.submit(texts, self._settings.serving.timeout_s)
        except (QueueFull, DeadlinePassed, NotReady) as error:
            raise Refused(503, str(error), retry_after=1) from error
        body = [self._made(asked, n, texts[n], answer, answer.probabilities[n]) for n in range(len(texts))]
        self._metrics.predictions.inc(len(texts))
        self._metrics.seconds.observe(time.perf_counter() - started)
        self._metrics.generation.set(answer.generation)
        return 200, body

    async def feedback(self, request: Request) -> tuple[int, object]:
        """Take one feedback; 202 once it is safe."""
        token = request.headers.get("x-feedback-token")
        if token is None:
            self._authorise(request)
        asked = await self._parse(request, FeedbackRequest)
        try:
            prediction_id = str(uuid.UUID(asked.prediction_id))
        except ValueError as error:
            raise Refused(422, "not a prediction id", ("prediction_id", "expected a UUID")) from error
        if token is not None:
            self._open(prediction_id, token)
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
        safe = asyncio.wrap_future(self._outbox.put_feedback(event))
        try:
            await asyncio.wait_for(asyncio.shield(safe), self._settings.kafka.publish_timeout_s * 2 + 2)
        except (ConnectionError, TimeoutError) as error:
            raise Refused(503, f"the feedback could not be made safe: {error}", retry_after=2) from error
        self._metrics.feedback.labels(self._metrics.model, asked.kind).inc()
        self._metrics.waiting.set(self._outbox.waiting)
        self._metrics.dropped.set(self._outbox.dropped)
        return 202, {"feedback_id": data.feedback_id}

    async def model(self, request: Request) -> tuple[int, object]:
        """Say what this worker serves."""
        self._authorise(request)
        current, champion = self._live.current(), self._live.champion()
        if current is None or champion is None:
            raise Refused(503, "no champion is loaded yet", retry_after=2)
        manifest = current[0].manifest
        return 200, {
            "name": manifest.model_name,
            "task": manifest.task,
            "labels": manifest.labels,
            "model_version": manifest.model_version,
            "generation": champion.generation,
            "promoted_at": champion.promoted_at.isoformat(),
            "calibration": manifest.calibration.model_dump(exclude={"conformal": {"scores"}}),
            "worker": self._worker,
        }

    async def openapi(self, _request: Request) -> tuple[int, object]:
        """The OpenAPI 3.1 document of these routes."""
        return 200, openapi_document()

    # --- parts of the above -----------------------------------------------------------------------------------------

    def _made(
        self, asked: PredictRequest, n: int, text: str, answer: Answer, probabilities: NDArray[np.float64]
    ) -> dict[str, object]:
        labels, best = answer.runtime.labels, int(probabilities.argmax())
        prediction_id, secret = new_id(), self._keys.secret
        by_label = {label: float(p) for label, p in zip(labels, probabilities, strict=True)}
        data = PredictionData(
            prediction_id=prediction_id,
            model_name=self._settings.model.name,
            model_version=answer.runtime.version,
            generation=answer.generation,
            text=text,
            label=labels[best],
            confidence=min(1.0, float(probabilities[best])),
            probabilities=by_label,
            user=self._pseudonym(asked.user),
            metadata={anonymise(k): anonymise(v) for k, v in asked.items[n].metadata.items()},
            audit=access.keyed_share(secret, "audit", prediction_id) < self._settings.dataset.audit_rate,
        )
        self._outbox.put_prediction(PredictionMade(source=self._source, subject=prediction_id, data=data))
        made: dict[str, object] = {
            "prediction_id": prediction_id,
            "label": data.label,
            "confidence": data.confidence,
            "probabilities": by_label,
            "model_version": data.model_version,
            "feedback_token": access.issue_token(
                secret, prediction_id, int(time.time()) + self._settings.access.token_seconds
            ),
        }
        if asked.options.coverage is not None:
            fitted = answer.runtime.manifest.calibration.conformal
            [inside] = calibration.prediction_sets(fitted, probabilities[None], asked.options.coverage)
            made["set"] = [labels[n] for n in np.argsort(-probabilities, kind="stable") if inside[n]]
        return made

    def _authorise(self, request: Request) -> None:
        if self._settings.access.enabled and not access.bearer_matches(
            self._keys, request.headers.get("authorization")
        ):
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

    async def _parse(self, request: Request, shape: type[Shape]) -> Shape:
        limit = self._settings.serving.max_body_bytes
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise Refused(413, "the body is too large", ("body", f"more than {limit} bytes"))
        try:
            return shape.model_validate(orjson.loads(body))
        except orjson.JSONDecodeError as error:
            raise Refused(400, "the body is not JSON", ("body", str(error))) from error
        except ValidationError as error:
            found = [(".".join(map(str, e["loc"])) or "body", e["msg"]) for e in error.errors(include_url=False)[:20]]
            raise Refused(422, "the request is not valid", *found) from error

    def _check_items(self, asked: PredictRequest) -> None:
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

    def _checked_value(self, asked: FeedbackRequest) -> str | float | list[str]:
        value = asked.value
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
        if asked.kind == "correction" and value not in self._live.labels and value not in self._live.refresh_labels():
            shown = value if len(value) <= 64 else value[:61] + "..."
            hint = f"{shown!r} is not in the taxonomy: add it with `ratchet labels add`, or use one of its labels"
            raise Refused(422, "unknown label", ("value", hint))
        return value

    # --- answers ----------------------------------------------------------------------------------------------------

    def _answer(self, route: Callable[[Request], Any]) -> Callable[[Request], Any]:
        async def answered(request: Request) -> Response:
            try:
                status, body = await route(request)
                headers = {}
            except Refused as refused:
                status, body, headers = refused.status, refused.body, refused.headers
            except Exception:
                log.exception("%s failed", request.url.path)
                status, body, headers = 500, {"error": "internal error", "detail": []}, {}
            return self._response(status, body, headers)

        return answered

    def _response(self, status: int, body: object, headers: dict[str, str]) -> Response:
        content = orjson.dumps(body)
        return Response(content, status, {"X-Ratchet-Worker": self._worker, **headers}, "application/json")

    async def _http_error(self, _request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return self._response(error.status_code, {"error": error.detail, "detail": []}, dict(error.headers or {}))


def openapi_document() -> dict[str, object]:
    """OpenAPI 3.1 of the routes."""
    bodies: dict[Literal["/predict", "/feedback"], tuple[type[BaseModel], str, object]] = {
        "/predict": (PredictRequest, "200", {"type": "array", "items": {"$ref": "#/components/schemas/Prediction"}}),
        "/feedback": (FeedbackRequest, "202", {"type": "object", "properties": {"feedback_id": {"type": "string"}}}),
    }
    schemas: dict[str, object] = {}
    for shape in (PredictRequest, FeedbackRequest, Prediction):
        schema = shape.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(schema.pop("$defs", {}))
        schemas[shape.__name__] = schema
    paths: dict[str, object] = {
        path: {
            "post": {
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{shape.__name__}"}}},
                },
                "responses": {
                    status: {"description": "done", "content": {"application/json": {"schema": answer}}},
                    "4XX": {"description": 'refused: {"error", "detail": [{"field", "message"}]}'},
                    "503": {"description": "try again after Retry-After seconds"},
                },
                "security": [{"key": []}],
            }
        }
        for path, (shape, status, answer) in bodies.items()
    }
    paths["/model"] = {
        "get": {"responses": {"200": {"description": "what this worker serves"}}, "security": [{"key": []}]}
    }
    security = {"key": {"type": "http", "scheme": "bearer"}}
    info = {"title": "Ratchet inference API", "version": "1"}
    return {
        "openapi": "3.1.0",
        "info": info,
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": security},
    }
