"""Schemas of the OpenAPI document: the shapes of contract.py, narrowed to a project's task and limits.

openapi.py publishes them. Each kind of feedback has a schema of its own, so that generated clients check its value.
"""

import copy
from typing import Any

from schemas.configuration.serving import ServingSettings
from schemas.events import MAX_ID_CHARS, MAX_LABELS, FeedbackKind
from schemas.targets import Task
from serving.http import contract

JSON = dict[str, Any]

# A character other than white space, as Python's str.strip sees it; \S leaves out some.
VISIBLE = r"[^\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"

CORRECTIONS: dict[Task, tuple[JSON, object]] = {
    "classification": ({"type": "string", "minLength": 1, "description": "a label in use"}, "lost_card"),
    "multilabel": (
        {
            "type": "array",
            "items": {"type": "string", "minLength": 1},
            "maxItems": MAX_LABELS,
            "description": "labels in use",
        },
        ["card_arrival", "lost_card"],
    ),
    "regression": ({"type": "number"}, 4.0),
    "generation": ({"type": "string", "pattern": VISIBLE}, "Cards arrive within a week."),
}


def schemas_of(task: Task, serving: ServingSettings) -> JSON:
    """Return the document's schemas by name."""
    schemas: JSON = {}
    shapes = (
        contract.PredictRequest,
        contract.PREDICTIONS[task],
        contract.Accepted,
        contract.LiveVersion,
        contract.About,
    )
    for shape in (*shapes, contract.Refusal):
        schema = shape.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(schema.pop("$defs", {}))
        schemas[shape.__name__] = schema
    schemas["PredictRequest"]["properties"]["items"]["maxItems"] = serving.max_items
    schemas["Item"]["properties"]["text"] |= {"maxLength": serving.max_text_chars, "pattern": VISIBLE}
    options = schemas["Options"]["properties"]
    for name in ("coverage",) if task == "generation" else ("max_new_tokens", "stream"):
        del options[name]
    schemas.update(_feedback_schemas(task, serving))
    return schemas


def _feedback_schemas(task: Task, serving: ServingSettings) -> JSON:
    """Return the schema of each kind of feedback, and `FeedbackRequest`, which is one of them."""
    text = {"type": "string", "minLength": 1, "maxLength": serving.max_text_chars}
    values: dict[FeedbackKind, JSON] = {
        "correction": CORRECTIONS[task][0] | ({"maxLength": serving.max_text_chars} if task == "generation" else {}),
        "rating": {"type": "string", "enum": ["up", "down"], "description": "about the answer that was shown"},
        "score": {"type": "number", "minimum": 0, "maximum": 1},
        "comment": text,
        "retract": {
            "type": "string",
            "minLength": 1,
            "maxLength": MAX_ID_CHARS,
            "description": "the feedback_id withdrawn",
        },
    }
    whole = contract.FeedbackRequest.model_json_schema()
    whole["properties"]["prediction_id"] = {"type": "string", "format": "uuid"}
    schemas: JSON = {}
    for kind, value in values.items():
        schema = copy.deepcopy(whole)
        schema |= {"title": f"{kind.capitalize()}Feedback", "description": f"Feedback of the kind `{kind}`."}
        schema["properties"] |= {"kind": {"type": "string", "const": kind}, "value": value}
        schemas[schema["title"]] = schema
    refs = {kind: f"#/components/schemas/{kind.capitalize()}Feedback" for kind in values}
    schemas["FeedbackRequest"] = {
        "oneOf": [{"$ref": ref} for ref in refs.values()],
        "discriminator": {"propertyName": "kind", "mapping": refs},
    }
    return schemas
