"""The JSON Schemas and the AsyncAPI document, generated from the models.

`python -m schemas.export` writes schemas/json/; a test compares the folder with `documents()`.
"""

import json
from pathlib import Path

from pydantic import BaseModel

from schemas.events import FeedbackReceived, ModelPromoted, PredictionMade
from schemas.manifests import DatasetManifest, ModelManifest
from schemas.records import RoundRecord
from schemas.reports import EvaluationReport, GateReport, GateResult
from schemas.settings import Settings

FOLDER = Path(__file__).parent / "json"
EVENTS: dict[str, type[BaseModel]] = {
    "predictions": PredictionMade,
    "feedback": FeedbackReceived,
    "promotions": ModelPromoted,
}
MODELS: tuple[type[BaseModel], ...] = (
    *EVENTS.values(),
    DatasetManifest,
    ModelManifest,
    EvaluationReport,
    GateResult,
    GateReport,
    RoundRecord,
    Settings,
)


def documents() -> dict[str, str]:
    """Return {file name: content} of every public model's JSON Schema and of the AsyncAPI 3.0 document."""
    shapes = {f"{model.__name__}.json": model.model_json_schema(mode="validation") for model in MODELS}
    return {name: _text(content) for name, content in {**shapes, "asyncapi.json": _asyncapi()}.items()}


def _asyncapi() -> dict[str, object]:
    channels = {
        topic: {
            "address": "{model}." + topic,
            "parameters": {"model": {"description": "model.name of the project"}},
            "messages": {model.__name__: {"$ref": f"#/components/messages/{model.__name__}"}},
        }
        for topic, model in EVENTS.items()
    }
    channels["dead_letters"] = {
        "address": "{model}.feedback.dlq",
        "description": "messages that could not be read or stored: original bytes; headers with topic, partition, offset, reason",
        "parameters": {"model": {"description": "model.name of the project"}},
        "messages": {},
    }
    messages = {
        model.__name__: {
            "contentType": "application/cloudevents+json",
            "payload": {
                "schemaFormat": "application/schema+json;version=draft-2020-12",
                "schema": {"$ref": f"{model.__name__}.json"},
            },
        }
        for model in EVENTS.values()
    }
    info = {
        "title": "Ratchet",
        "version": "1",
        "description": "Predictions, feedback and promotions as CloudEvents 1.0.",
    }
    return {"asyncapi": "3.0.0", "info": info, "channels": channels, "components": {"messages": messages}}


def _text(content: object) -> str:
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def main() -> None:
    """Write every document to schemas/json/."""
    FOLDER.mkdir(exist_ok=True)
    for name, content in documents().items():
        (FOLDER / name).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
