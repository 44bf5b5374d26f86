"""The shapes of the HTTP contract, and the OpenAPI document that publishes them.

Turns a request's bytes into a validated value, or into the fields that are wrong. api.py asks. It deliberately knows no
settings: limits that an operator sets are api.py's.
"""

from typing import Annotated, Literal, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from schemas.events import FeedbackKind, GivenValue
from schemas.targets import Task

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
    items: list[Item] = Field(min_length=1)
    user: Name | None = None
    options: Options | None = None  # a default that is a model would be copied for every request


class FeedbackRequest(BaseModel):
    """Body of POST /feedback."""

    model_config = ConfigDict(extra="forbid", strict=True)
    prediction_id: str
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


def read(body: bytes, shape: type[Shape]) -> Shape:
    """A request of that shape. Raises NotJson or NotValid."""
    try:
        return shape.model_validate(orjson.loads(body))
    except orjson.JSONDecodeError as error:
        raise NotJson(str(error)) from error
    except ValidationError as error:
        found = error.errors(include_url=False)[:20]
        raise NotValid([(".".join(map(str, e["loc"])) or "body", e["msg"]) for e in found]) from error


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
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": security},
    }
