"""The OpenAPI document: complete, consistent with what a live server does, and enough to generate a typed client from."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import jsonschema_rs
import pytest

from schemas.configuration.serving import ServingSettings
from schemas.events import FeedbackKind
from schemas.targets import Task
from serving.http.contract import FeedbackRequest
from serving.http.openapi.document import openapi_document
from tests.support.openapi_cases import run_cases
from tests.support.raw_requests import outcomes
from tests.support.served import Served, make_project, served

TASKS: tuple[Task, ...] = get_args(Task)
PUBLIC = {"/", "/feedback.js", "/livez", "/readyz", "/metrics"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, version: Path) -> Iterator[Served]:
    with served(make_project(tmp_path_factory.mktemp("openapi") / "project", version, workers=1)) as running:
        yield running


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for operation in methods.values():
            yield path, operation


def resolved(document: dict[str, Any], value: Any) -> Any:
    """Return a part of the document with its references replaced, as a validator of one schema needs it."""
    if isinstance(value, list):
        return [resolved(document, one) for one in value]
    if not isinstance(value, dict):
        return value
    if "$ref" in value:
        part: Any = document
        for name in value["$ref"].removeprefix("#/").split("/"):
            part = part[name]
        return resolved(document, part)
    return {name: resolved(document, one) for name, one in value.items() if name != "discriminator"}


@pytest.mark.parametrize("task", TASKS)
def test_every_operation_is_named_explained_and_says_how_it_fails(task: Task) -> None:
    document = openapi_document(task, ServingSettings())
    assert document["info"]["license"]["identifier"] == "Apache-2.0"
    assert document["servers"]
    names = [operation["operationId"] for _, operation in operations(document)]
    assert len(set(names)) == len(names) == 8
    for path, operation in operations(document):
        assert operation["summary"]
        assert any(status.startswith("4") for status in operation["responses"])
        security = operation["security"] if "security" in operation else document["security"]
        schemes = {name for one in security for name in one}
        assert schemes <= set(document["components"]["securitySchemes"])
        assert bool(schemes) == (path not in PUBLIC)
    assert document["paths"]["/feedback"]["post"]["security"] == [{"key": []}, {"token": []}]


@pytest.mark.parametrize("task", TASKS)
def test_every_example_obeys_its_schema(task: Task) -> None:
    document = openapi_document(task, ServingSettings())
    checked = 0
    for _, operation in operations(document):
        whole = resolved(document, operation)
        bodies = [*whole["responses"].values(), *([whole["requestBody"]] if "requestBody" in whole else [])]
        for content in (kind for body in bodies for kind in body["content"].values()):
            examples = [one["value"] for one in content.get("examples", {}).values()]
            for example in [*examples, *([content["example"]] if "example" in content else [])]:
                jsonschema_rs.validate(content["schema"], example)
                checked += 1
    assert checked > 25
    feedback = resolved(document, document["paths"]["/feedback"])["post"]["requestBody"]["content"]["application/json"]
    assert set(feedback["examples"]) == set(get_args(FeedbackKind))
    for example in feedback["examples"].values():
        FeedbackRequest.model_validate(example["value"])


def test_a_kind_of_feedback_takes_its_own_values() -> None:
    document = openapi_document("classification", ServingSettings())
    request = jsonschema_rs.validator_for(resolved(document, document["components"]["schemas"]["FeedbackRequest"]))
    base = {"prediction_id": "01900000-0000-7000-8000-000000000000"}
    for kind, good, bad in (
        ("correction", "money", ["money"]),
        ("rating", "up", "sideways"),
        ("score", 0.5, 2),
        ("comment", "no", ""),
        ("retract", "f1", "x" * 129),
    ):
        assert request.is_valid({**base, "kind": kind, "value": good})
        assert not request.is_valid({**base, "kind": kind, "value": bad}), kind


def test_the_document_holds_on_a_live_server(server: Served, tmp_path: Path) -> None:
    cases = run_cases(server, examples=5, folder=tmp_path, timeout_s=120, phases="examples,coverage,fuzzing")
    assert cases.violations == 0, cases.report
    assert cases.sent > 150


def test_malformed_requests_neither_hang_nor_break_the_server(server: Served) -> None:
    found = outcomes(server.port, server.header, 300, seed=7)
    assert "hang" not in found
    assert not [status for status in found if status.startswith("5")], found
    assert found["400"] > 50
    assert {"200", "closed"} < set(found)
    assert "Traceback" not in server.log.read_text(encoding="utf-8")


def test_a_typed_client_can_be_generated_and_makes_a_call(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = tmp_path / "openapi.json"
    document.write_text(json.dumps(openapi_document("classification", ServingSettings())), encoding="utf-8")
    command = [sys.executable, "-m", "openapi_python_client", "generate", "--meta", "none", "--fail-on-warning"]
    command += ["--path", str(document), "--output-path", str(tmp_path / "generated")]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # the generator formats with ruff
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env={**os.environ, "PATH": path}, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    check = [sys.executable, "-m", "mypy", "--no-error-summary", "--cache-dir", str(tmp_path / "mypy")]
    check += ["--follow-imports", "silent", "generated/api", "generated/models"]  # not client.py, the generator's own
    checked = subprocess.run(check, cwd=tmp_path, capture_output=True, encoding="utf-8", check=False)
    assert checked.returncode == 0, checked.stdout

    monkeypatch.syspath_prepend(str(tmp_path))
    generated = importlib.import_module("generated")
    models = importlib.import_module("generated.models")
    predict = importlib.import_module("generated.api.inference.predict")
    send = importlib.import_module("generated.api.inference.send_feedback")
    with generated.AuthenticatedClient(base_url=server.url, token=server.keys.api_key) as client:
        [prediction] = predict.sync(client=client, body=models.PredictRequest(items=[models.Item(text="bank loan")]))
        body = models.CorrectionFeedback(
            prediction_id=prediction.prediction_id, kind="correction", value=prediction.label
        )
        assert send.sync(client=client, body=body).feedback_id
        unknown = models.CorrectionFeedback(prediction_id=prediction.prediction_id, kind="correction", value="nonsense")
        assert "not a label in use" in send.sync(client=client, body=unknown).error
