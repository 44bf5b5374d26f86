"""The HTTP contract: shapes of requests and responses. openapi.py publishes them.

Turns a request's bytes into a validated model, or raises the list of invalid fields. api.py calls it. Limits that an operator
sets are checked by request_checks.py.
"""

from typing import Annotated, TypeVar

import orjson
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, StringConstraints, ValidationError

from schemas.events import MAX_ID_CHARS, MAX_LABELS, MAX_USER_CHARS, FeedbackKind, GivenValue
from schemas.targets import Task
from serving.process.start import release

Shape = TypeVar("Shape", bound=BaseModel)

# Limits of a parsed body, checked before validation: pydantic collects an error for each invalid value.
MAX_KEYS = 32
MAX_ERRORS, MAX_NAME_CHARS = 20, 64
# JSON may write a character as `\\uXXXX`, six bytes. The other fields of a feedback fit into FEEDBACK_BYTES.
BYTES_PER_CHAR, FEEDBACK_BYTES = 6, 16_384

ABOUT = (
    "Predictions of a text model that learns from feedback. Send texts to `predict` and say with `feedback` what was wrong; "
    "`docs` explains both."
)

Name = Annotated[str, StringConstraints(min_length=1, max_length=MAX_USER_CHARS)]
Short = Annotated[str, StringConstraints(min_length=1, max_length=MAX_ID_CHARS)]


class Item(BaseModel):
    """One text to predict."""

    model_config = ConfigDict(extra="forbid", strict=True)
    text: Annotated[str, StringConstraints(min_length=1)]
    metadata: Annotated[dict[Name, Annotated[str, StringConstraints(max_length=256)]], Field(max_length=32)] = Field(
        default_factory=dict, json_schema_extra={"default": {}}
    )  # a plain default would be copied deeply for every text


class Options(BaseModel):
    """Options of a prediction request."""

    model_config = ConfigDict(extra="forbid", strict=True)
    coverage: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="probability that the prediction set holds the true label; adds `set`, likeliest first. For regression: "
        "the probability that the interval holds the true value, 0.9 if absent",
    )
    max_new_tokens: int | None = Field(None, ge=1, description="generation: most tokens of a generated text")
    stream: bool = Field(
        False,
        description="generation, one item: respond with an event stream of `piece` ({text}) events, then one `answer`",
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


class PredictionResponse(BaseModel):
    """Fields of every item in a response of POST /predict."""

    prediction_id: str
    model_version: str
    feedback_token: str


class LabelPrediction(PredictionResponse):
    """One item of POST /predict's response: classification."""

    label: str
    confidence: float
    probabilities: dict[str, float]
    set: list[str] | None = None


class LabelsPrediction(PredictionResponse):
    """One item of POST /predict's response: multilabel."""

    labels: list[str] = Field(description="labels with a probability above their threshold, likeliest first")
    probabilities: dict[str, float]
    set: list[str] | None = Field(None, description="holds all true labels with probability `options.coverage`")


class NumberPrediction(PredictionResponse):
    """One item of POST /predict's response: regression."""

    value: float
    interval: tuple[float | None, float | None] = Field(
        description="an end is null if too few calibration rows bound it"
    )


class TextPrediction(PredictionResponse):
    """One item of POST /predict's response: generation."""

    text: str
    confidence: float = Field(description="calibrated probability that people accept the text")


PREDICTIONS: dict[Task, type[PredictionResponse]] = {
    "classification": LabelPrediction,
    "multilabel": LabelsPrediction,
    "regression": NumberPrediction,
    "generation": TextPrediction,
}


class LiveVersion(BaseModel):
    """The model version that the answering worker serves."""

    name: str = Field(description="the project's `model.name`")
    task: Task
    labels: list[str] = Field(description="labels that this version predicts; empty in regression and generation")
    model_version: str
    generation: int = Field(description="grows by one with every promotion and rollback")
    promoted_at: AwareDatetime
    calibration: dict[str, JsonValue] = Field(description="method, parameters and measured calibration errors")
    worker: str = Field(description="the worker's process id, also in every response's `X-Ratchet-Worker`")


class Accepted(BaseModel):
    """Feedback that is stored durably."""

    feedback_id: str = Field(description="the request's feedback_id, or a new UUIDv7")


class InvalidField(BaseModel):
    """One invalid field of a refused request."""

    field: str = Field(description="path of the field, such as `items.0.text`, or the name of a header")
    message: str = Field(description="the rule that it breaks")


class Refusal(BaseModel):
    """Body of every response with a status of 400 or more."""

    error: str = Field(description="what is wrong, in one line")
    detail: list[InvalidField]


class About(BaseModel):
    """What answers at this address, and where to go on."""

    name: str
    about: str
    model: str
    version: str = Field(description="Ratchet's release")
    links: dict[str, str] = Field(description="addresses relative to this one")


class NotJson(ValueError):
    """The body is not valid JSON."""


class NotValid(ValueError):
    """The body breaks the contract; `fields` are pairs of a field's path and the rule it breaks."""

    def __init__(self, fields: list[tuple[str, str]]) -> None:
        super().__init__("the request is not valid")
        self.fields = fields


def feedback_bytes(max_text_chars: int, max_body_bytes: int) -> int:
    """Return the largest body of POST /feedback in bytes: enough for the longest text as JSON."""
    return min(max_body_bytes, FEEDBACK_BYTES + BYTES_PER_CHAR * max_text_chars)


def read(body: bytes, shape: type[Shape], max_items: int) -> Shape:
    """Return the body as a model of type `shape`. Raises NotJson or NotValid; the work is bounded for any body."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise NotJson(str(error)) from error
    _bounded(value, "", max_items)
    try:
        return shape.model_validate(value)
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False, include_context=False)[:MAX_ERRORS]
        fields = [(".".join(_name(part) for part in e["loc"]) or "body", e["msg"]) for e in wrong]
        raise NotValid(fields) from error


def _bounded(parsed: object, path: str, max_items: int) -> None:
    """Raise NotValid for objects or lists larger than any request needs, and for lists in lists."""
    if isinstance(parsed, dict):
        if len(parsed) > MAX_KEYS:
            raise NotValid([(path or "body", f"at most {MAX_KEYS} keys, got {len(parsed)}")])
        for key, value in parsed.items():
            if isinstance(value, dict | list):
                _bounded(value, f"{path}.{_name(key)}" if path else _name(key), max_items)
    elif isinstance(parsed, list):
        limit = max_items if path == "items" else MAX_LABELS
        if len(parsed) > limit:
            raise NotValid([(path or "body", f"at most {limit} values, got {len(parsed)}")])
        for n, value in enumerate(parsed):
            if isinstance(value, list):
                raise NotValid([(f"{path}.{n}".lstrip("."), "a list may not contain a list")])
            if isinstance(value, dict):
                _bounded(value, f"{path}.{n}".lstrip("."), max_items)


def _name(part: object) -> str:
    """Return a part of a field's path, shortened: a caller's keys may be long."""
    text = str(part)
    return text if len(text) <= MAX_NAME_CHARS else f"{text[:MAX_NAME_CHARS]}..."


def about(model_name: str) -> dict[str, object]:
    """Return the body of GET /: name, model, release and links. Links are relative, so they work behind a proxy's prefix."""
    links = {"docs": "docs", "contract": "openapi.json", "widget": "feedback.js"}
    links |= {"predict": "predict", "feedback": "feedback", "model": "model", "ready": "readyz", "metrics": "metrics"}
    return {"name": "Ratchet inference API", "about": ABOUT, "model": model_name, "version": release(), "links": links}
