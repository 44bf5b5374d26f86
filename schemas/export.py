"""The JSON Schemas and the AsyncAPI document, generated from the models.

`python -m schemas.export` writes schemas/json/; a test compares the folder with `documents()`.
"""

import json
from pathlib import Path

from pydantic import BaseModel

from schemas.asyncapi import EVENTS, asyncapi_document
from schemas.manifests import DatasetManifest, ModelManifest
from schemas.records import RoundRecord
from schemas.reports import EvaluationReport, GateReport, GateResult
from schemas.settings import Settings

FOLDER = Path(__file__).parent / "json"
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
    return {name: _text(content) for name, content in {**shapes, "asyncapi.json": asyncapi_document()}.items()}


def _text(content: object) -> str:
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def main() -> None:
    """Write every document to schemas/json/."""
    FOLDER.mkdir(exist_ok=True)
    for name, content in documents().items():
        (FOLDER / name).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
