"""The shapes of the HTTP contract, and the OpenAPI document that publishes them.

Turns a request's bytes into a validated value, or into the fields that are wrong. api.py asks. It deliberately knows no
settings: limits that an operator sets are api.py's.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from schemas.events import FeedbackKind, GivenValue
from schemas.targets import Task

Shape = TypeVar("Shape", bound=BaseModel)

# Bounds of a parsed body, checked before it is validated: pydantic collects an error for each value that is wrong.
MOST_KEYS, MOST_LABELS = 32, 1000
MOST_ERRORS, MOST_NAME_CHARS = 20, 64
# JSON may write a character as `\\uXXXX`, six bytes; what is beside the text of a feedback is small.
BYTES_PER_CHAR, FEEDBACK_BYTES = 6, 16_384

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
        None,
        gt=0,
        lt=1,
        description="adds `set`: labels, likeliest first, that hold the truth with this probability; of a number: what its "
        "interval holds the truth with, else 0.9",
    )
    max_new_tokens: int | None = Field(None, ge=1, description="of a model that writes: tokens of an answer, at most")
    stream: bool = Field(
        False,
        description="of a model that writes, one item: an event stream of `piece` ({text}), as they are written, then `answer`",
    )


class PredictRequest(BaseModel):
    """Body of POST /predict."""

    model_config = ConfigDict(extra="forbid", strict=True)
    items: list[Item] = Field(min_length=1, fail_fast=True)
    user: Name | None = None
    options: Options | None = None  # a default that is a model would be copied for every request


class FeedbackRequest(BaseModel):
    """Body of POST /feedback."""

    model_config = ConfigDict(extra="forbid", strict=True)
    prediction_id: Name
    kind: FeedbackKind
    value: GivenValue
    user: Name | None = None
    feedback_id: Short | None = None


class Answered(BaseModel):
    """What every answer of POST /predict has."""

    prediction_id: str
    model_version: str
    feedback_token: str


class LabelPrediction(Answered):
    """One answer of POST /predict: classification."""

    label: str
    confidence: float
    probabilities: dict[str, float]
    set: list[str] | None = None


class LabelsPrediction(Answered):
    """One answer of POST /predict: multilabel."""

    labels: list[str] = Field(description="those likelier than not, likeliest first")
    probabilities: dict[str, float]
    set: list[str] | None = Field(None, description="holds all true labels with the probability that was asked for")


class NumberPrediction(Answered):
    """One answer of POST /predict: regression."""

    value: float
    interval: tuple[float | None, float | None] = Field(description="null: too few rows were fitted to bound that end")


class TextPrediction(Answered):
    """One answer of POST /predict: generation."""

    text: str
    confidence: float = Field(description="calibrated probability that people accept the text")


PREDICTIONS: dict[Task, type[Answered]] = {
    "classification": LabelPrediction,
    "multilabel": LabelsPrediction,
    "regression": NumberPrediction,
    "generation": TextPrediction,
}


class NotJson(ValueError):
    """The bytes are not JSON."""


class NotValid(ValueError):
    """Not of the shape; `fields` are pairs of a field's path and what is wrong with it."""

    def __init__(self, fields: list[tuple[str, str]]) -> None:
        super().__init__("the request is not valid")
        self.fields = fields


def feedback_bytes(max_text_chars: int, max_body_bytes: int) -> int:
    """Return how many bytes a body of POST /feedback may have: enough for the longest text, as JSON."""
    return min(max_body_bytes, FEEDBACK_BYTES + BYTES_PER_CHAR * max_text_chars)


def read(body: bytes, shape: type[Shape], most_items: int) -> Shape:
    """Return a request of that shape. Raises NotJson or NotValid; the work is bounded whatever the body holds."""
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise NotJson(str(error)) from error
    _bounded(found, "", most_items)
    try:
        return shape.model_validate(found)
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False, include_context=False)[:MOST_ERRORS]
        fields = [(".".join(_name(part) for part in e["loc"]) or "body", e["msg"]) for e in wrong]
        raise NotValid(fields) from error


def _bounded(found: object, path: str, most_items: int) -> None:
    """Refuse objects of more keys, and lists of more values, than any request has; a list is never in a list."""
    if isinstance(found, dict):
        if len(found) > MOST_KEYS:
            raise NotValid([(path or "body", f"{len(found)} keys, at most {MOST_KEYS}")])
        for key, value in found.items():
            if isinstance(value, dict | list):
                _bounded(value, f"{path}.{_name(key)}" if path else _name(key), most_items)
    elif isinstance(found, list):
        most = most_items if path == "items" else MOST_LABELS
        if len(found) > most:
            raise NotValid([(path or "body", f"{len(found)}, at most {most}")])
        for n, value in enumerate(found):
            if isinstance(value, list):
                raise NotValid([(f"{path}.{n}".lstrip("."), "a list in a list")])
            if isinstance(value, dict):
                _bounded(value, f"{path}.{n}".lstrip("."), most_items)


def _name(part: object) -> str:
    """Return a part of a field's path, shortened: callers choose the names of their keys."""
    text = str(part)
    return text if len(text) <= MOST_NAME_CHARS else f"{text[:MOST_NAME_CHARS]}..."


def about(model_name: str) -> dict[str, object]:
    """Return what GET / says: what this is, and where to go on; links are relative, for whatever prefix a proxy adds."""
    links = {"docs": "docs", "contract": "openapi.json", "model": "model", "ready": "readyz", "metrics": "metrics"}
    return {"name": "Ratchet inference API", "model": model_name, "version": _release(), "links": links}


def _release() -> str:
    file = Path(__file__).parent.parent / "pyproject.toml"
    return str(tomllib.loads(file.read_text(encoding="utf-8"))["project"]["version"]) if file.exists() else "unknown"


def openapi_document(task: Task) -> dict[str, object]:
    """OpenAPI 3.1 of the routes, as a project of this task answers them."""
    prediction = PREDICTIONS[task]
    bodies: dict[Literal["/predict", "/feedback"], tuple[type[BaseModel], str, object]] = {
        "/predict": (
            PredictRequest,
            "200",
            {"type": "array", "items": {"$ref": f"#/components/schemas/{prediction.__name__}"}},
        ),
        "/feedback": (FeedbackRequest, "202", {"type": "object", "properties": {"feedback_id": {"type": "string"}}}),
    }
    streamed = {
        "/predict": {"text/event-stream": {"schema": {"type": "string"}}} if task == "generation" else {},
        "/feedback": {},
    }
    schemas: dict[str, object] = {}
    for shape in (PredictRequest, FeedbackRequest, prediction):
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
                    status: {
                        "description": "done",
                        "content": {"application/json": {"schema": answer}, **streamed[path]},
                    },
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
        "servers": [{"url": "."}],  # relative to this document, for whatever prefix a proxy adds
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": security},
    }
