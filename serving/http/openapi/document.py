"""The OpenAPI document: operations, examples and errors around the shapes of contract.py.

Turns a project's task and limits into the OpenAPI 3.1 document that every worker serves; api.py calls it once. Whatever the
document allows, the service accepts, except labels: they are checked against the taxonomy, which changes while serving runs.
"""

from collections.abc import Mapping

from schemas.configuration.serving import ServingSettings
from schemas.events import FeedbackKind
from schemas.targets import Task
from serving.http import contract
from serving.http.openapi.schemas import CORRECTIONS, JSON, schemas_of
from serving.process.start import release

DESCRIPTION = """\
Ratchet serves a text model and learns from feedback on its predictions.

1. `POST /predict` answers each text with a calibrated prediction, a `prediction_id` and a `feedback_token`.
2. `POST /feedback` says what was right or wrong about one prediction. A server sends its API key; a web page may send the
   prediction's token instead.

Every refusal is `{"error", "detail": [{"field", "message"}]}`. Repeat what got 429 or 503 after `Retry-After` seconds. Feedback
with a `feedback_id` of your own is stored once, however often it is sent."""
PREDICTION_ID = "01932c07-5b8a-7d4e-9c55-3f0a8e6f1b2d"
FEEDBACK_ID = "01932c09-11f2-7a60-8e0b-6b1f0c9d4e7a"
TOKEN = "1763164800.9f2c4b7a1d0e8f6355aa77c1e2b3d4f5"
VERSION = "v-20261114-093012-4f1c"
TOPICS = {"card_arrival": 0.93, "lost_card": 0.05, "exchange_rate": 0.02}

# status -> component, description, example of `error` and of `detail`
ERRORS: dict[str, tuple[str, str, str, list[tuple[str, str]]]] = {
    "400": (
        "NotJson",
        "the body is not JSON, or not gzip",
        "the body is not JSON",
        [("body", "unexpected end of data")],
    ),
    "401": (
        "NotAuthenticated",
        "the API key is missing or wrong, or the feedback token has expired",
        "the API key is missing or wrong",
        [("Authorization", "expected Bearer <RATCHET_API_KEY>")],
    ),
    "403": (
        "Forbidden",
        "the key's role does not permit this, or the feedback token is forged or belongs to another prediction",
        "the feedback token belongs to another prediction",
        [("X-Feedback-Token", "the feedback token belongs to another prediction")],
    ),
    "404": (
        "UnknownPrediction",
        "this project made no such prediction",
        "unknown prediction",
        [("prediction_id", "no prediction of this project has this id")],
    ),
    "413": ("TooLarge", "the body is too large", "the body is too large", [("body", "at most 4000000 bytes")]),
    "415": (
        "UnknownCoding",
        "the body has a content coding other than gzip",
        "unsupported coding",
        [("Content-Encoding", "`Content-Encoding` must be gzip or absent, got br")],
    ),
    "422": (
        "NotValid",
        "a field breaks a rule, or a label is not in use",
        "the request is not valid",
        [("items.0.text", "String should have at least 1 character")],
    ),
    "429": (
        "TooMany",
        "too many requests with this key, try again after `Retry-After` seconds; or too many uses of this feedback token",
        "this feedback token has been used too often",
        [("X-Feedback-Token", "at most 20 uses")],
    ),
    "500": ("InternalError", "an error of the service; its log names it", "internal error", []),
    "503": (
        "Unavailable",
        "overloaded, starting, unable to store, or unable to look up a new key: try again later",
        "700 texts are waiting",
        [],
    ),
}
RESPONSE_HEADERS: dict[str, dict[str, str]] = {
    "401": {"WWW-Authenticate": "Authentication"},
    "429": {"Retry-After": "RetryAfter"},
    "503": {"Retry-After": "RetryAfter"},
}
OF_PREDICT = ("400", "401", "403", "413", "415", "422", "429", "500", "503")
OF_MODEL = ("401", "403", "429", "500", "503")
OF_FEEDBACK = ("400", "401", "403", "404", "413", "415", "422", "429", "500", "503")

PREDICTED: dict[Task, JSON] = {
    "classification": {"label": "card_arrival", "confidence": 0.93, "probabilities": TOPICS},
    "multilabel": {"labels": ["card_arrival", "lost_card"], "probabilities": TOPICS | {"lost_card": 0.61}},
    "regression": {"value": 3.5, "interval": [2.25, 4.75]},
    "generation": {"text": "Cards arrive within five days.", "confidence": 0.71},
}


def openapi_document(task: Task, serving: ServingSettings) -> JSON:
    """Return the OpenAPI 3.1 document of a project with this task and these limits."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Ratchet inference API",
            "version": release(),
            "description": DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        # relative to this document, so it works behind a proxy's prefix
        "servers": [{"url": ".", "description": "the service that serves this document"}],
        "tags": [
            {"name": "inference", "description": "predictions, and feedback on them"},
            {"name": "operation", "description": "what runs here, and whether it does"},
        ],
        "security": [],
        "paths": {
            "/predict": {"post": _predict(task)},
            "/feedback": {"post": _feedback(task)},
            "/model": {"get": _model(task)},
            **_public(),
        },
        "components": {
            "schemas": schemas_of(task, serving),
            "responses": {entry[0]: _refused(status, entry) for status, entry in ERRORS.items()}
            | {"Refused": _any_refusal()},
            "headers": {
                "Worker": {"description": "process id of the worker that answered", "schema": {"type": "string"}},
                "RetryAfter": {"description": "seconds to wait", "schema": {"type": "integer", "minimum": 0}},
                "Authentication": {"description": "the scheme, RFC 9110", "schema": {"type": "string"}},
            },
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "RATCHET_API_KEY of keys.env"},
                "token": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "X-Feedback-Token",
                    "description": "the prediction's `feedback_token`: permits feedback on that prediction until it expires",
                },
            },
        },
    }


# --- operations -----------------------------------------------------------------------------------------------------------


def _predict(task: Task) -> JSON:
    example: JSON = {"items": [{"text": "where is my card?", "metadata": {"channel": "ios"}}], "user": "customer-17"}
    answer = {"prediction_id": PREDICTION_ID, "model_version": VERSION, **PREDICTED[task], "feedback_token": TOKEN}
    one = {"$ref": f"#/components/schemas/{contract.PREDICTIONS[task].__name__}"}
    content: JSON = {"application/json": {"schema": {"type": "array", "items": one}, "example": [answer]}}
    if task == "generation":
        events = "events `piece` ({text}), then one `answer` or `error`"
        content["text/event-stream"] = {"schema": {"type": "string", "description": events}}
    return {
        "operationId": "predict",
        "summary": "Predict texts",
        "description": "One live version answers the whole request, in the items' order.",
        "tags": ["inference"],
        "security": [{"key": []}],
        "requestBody": _body("PredictRequest", {"one text": example}),
        "responses": {"200": _answer("a prediction for each item", content), **_errors(OF_PREDICT)},
    }


def _feedback(task: Task) -> JSON:
    values: dict[FeedbackKind, object] = {
        "correction": CORRECTIONS[task][1],
        "rating": "down",
        "score": 0.8,
        "comment": "the card came yesterday",
        "retract": FEEDBACK_ID,
    }
    examples: dict[str, JSON] = {
        kind: {"prediction_id": PREDICTION_ID, "kind": kind, "value": value, "user": "agent-4"}
        for kind, value in values.items()
    }
    examples["correction"]["feedback_id"] = FEEDBACK_ID
    accepted: JSON = {"schema": {"$ref": "#/components/schemas/Accepted"}, "example": {"feedback_id": FEEDBACK_ID}}
    return {
        "operationId": "sendFeedback",
        "summary": "Send feedback on a prediction",
        "description": "202 means that the feedback is stored durably. A later correction by the same user replaces the earlier "
        "one. Feedback with a `feedback_id` that was sent before is stored once.",
        "tags": ["inference"],
        "security": [{"key": []}, {"token": []}],
        "requestBody": _body("FeedbackRequest", examples),
        "responses": {"202": _answer("stored", {"application/json": accepted}), **_errors(OF_FEEDBACK)},
    }


def _model(task: Task) -> JSON:
    example = {
        "name": "bank",
        "task": task,
        "labels": sorted(TOPICS) if task in ("classification", "multilabel") else [],
        "model_version": VERSION,
        "generation": 3,
        "promoted_at": "2026-11-14T09:41:20+00:00",
        "calibration": {"method": "temperature"},
        "worker": "4711",
    }
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/LiveVersion"}, "example": example}}
    return {
        "operationId": "getModel",
        "summary": "Describe the live model version",
        "tags": ["operation"],
        "security": [{"key": []}],
        "responses": {
            "200": _answer("the version of the worker that answers", content),
            **_errors(OF_MODEL),
        },
    }


def _public() -> JSON:
    """Return the paths that need no key."""

    def get(name: str, summary: str, description: str, kind: str, schema: JSON, **more: JSON) -> JSON:
        responses = {"200": {"description": description, "content": {kind: {"schema": schema}}}, **more}
        refused = {"4XX": {"$ref": "#/components/responses/Refused"}}
        return {
            "get": {
                "operationId": name,
                "summary": summary,
                "tags": ["operation"],
                "responses": {**responses, **refused},
            }
        }

    text: JSON = {"type": "string"}
    waiting = {"description": "not ready", "content": {"text/plain": {"schema": text}}}
    about = {"$ref": "#/components/schemas/About"}
    return {
        "/": get("getAbout", "Say what this is", "name, release and links", "application/json", about),
        "/feedback.js": get(
            "getWidget", "Return the feedback widget", "a script for web pages", "text/javascript", text
        ),
        "/livez": get("isAlive", "Say whether the worker runs", "it runs", "text/plain", text),
        "/readyz": get(
            "isReady", "Say whether a model is loaded", "it answers", "text/plain", text, **{"503": waiting}
        ),
        "/metrics": get("getMetrics", "Return the metrics", "Prometheus text format", "text/plain", text),
    }


def _body(schema: str, examples: Mapping[str, object]) -> JSON:
    content = {
        "schema": {"$ref": f"#/components/schemas/{schema}"},
        "examples": {name: {"value": value} for name, value in examples.items()},
    }
    return {"required": True, "content": {"application/json": content}}


def _answer(description: str, content: JSON) -> JSON:
    headers = {"X-Ratchet-Worker": {"$ref": "#/components/headers/Worker"}}
    return {"description": description, "headers": headers, "content": content}


def _errors(statuses: tuple[str, ...]) -> JSON:
    return {status: {"$ref": f"#/components/responses/{ERRORS[status][0]}"} for status in statuses}


def _refused(status: str, entry: tuple[str, str, str, list[tuple[str, str]]]) -> JSON:
    _, description, error, fields = entry
    example = {"error": error, "detail": [{"field": field, "message": message} for field, message in fields]}
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Refusal"}, "example": example}}
    named = RESPONSE_HEADERS.get(status, {})
    headers = {name: {"$ref": f"#/components/headers/{header}"} for name, header in named.items()}
    return {"description": description, **({"headers": headers} if headers else {}), "content": content}


def _any_refusal() -> JSON:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Refusal"}}}
    return {"description": "the request is not valid HTTP/1.1, or its headers are too large", "content": content}
