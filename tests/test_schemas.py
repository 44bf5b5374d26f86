"""The shapes: events round-trip, settings refuse what is wrong by name, the JSON documents are the models'."""

import json
import re
import tomllib
import uuid
from datetime import UTC
from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

from schemas.asyncapi import EVENTS
from schemas.events import FeedbackData, FeedbackKind, FeedbackReceived, PredictionMade, new_id, parse_event
from schemas.export import FOLDER, documents
from schemas.settings import BASIC, Settings, SettingsError, load_settings, render_settings
from schemas.targets import Task

OLD_PREDICTION = b"""{"specversion": "1.0", "id": "01900000-0000-7000-8000-000000000000", "source": "ratchet/m/serving",
 "subject": "p1", "time": "2026-11-24T10:00:00+01:00", "type": "ratchet.prediction.made.v1", "from_the_future": 1,
 "data": {"prediction_id": "p1", "model_name": "m", "model_version": "v1", "generation": 1, "text": "hi",
          "label": "a", "confidence": 0.5, "also_from_the_future": {}}}"""


def test_ids_are_version_7_and_sort_by_time() -> None:
    ids = [new_id() for _ in range(50)]
    assert {uuid.UUID(i).version for i in ids} == {7}
    assert {uuid.UUID(i).variant for i in ids} == {uuid.RFC_4122}
    stamps = [uuid.UUID(i).int >> 80 for i in ids]
    assert stamps == sorted(stamps)
    assert len(set(ids)) == 50


def test_a_feedback_event_survives_the_wire() -> None:
    data = FeedbackData(feedback_id="f", prediction_id="p", model_name="m", kind="correction", value="sports")
    event = FeedbackReceived(source="ratchet/m/serving", subject="p", data=data)
    assert parse_event(event.model_dump_json().encode()) == event
    with pytest.raises(ValidationError):
        event.subject = "q"  # type: ignore[misc]  # the point: it is frozen


def test_unknown_fields_of_a_later_version_are_ignored() -> None:
    event = parse_event(OLD_PREDICTION)
    assert isinstance(event, PredictionMade)
    assert event.data.text == "hi"
    assert event.time.astimezone(UTC).hour == 9


@pytest.mark.parametrize("value", [b"", b"no json", b"[]", b'{"type": "ratchet.unheard.of.v1"}', b"\xff\xfe"])
def test_what_is_no_event_is_a_value_error(value: bytes) -> None:
    with pytest.raises(ValueError, match=r"validation error|Invalid JSON"):
        parse_event(value)


def test_an_event_without_a_time_zone_is_refused() -> None:
    with pytest.raises(ValidationError, match="time"):
        parse_event(OLD_PREDICTION.replace(b"+01:00", b""))


def test_every_setting_is_documented_and_the_rendered_file_is_the_defaults() -> None:
    for name, group in Settings.model_fields.items():
        if not group.exclude:
            for key, setting in group.annotation.model_fields.items():  # type: ignore[union-attr]  # every group is a model
                assert setting.description, f"{name}.{key} has no description"
    text = render_settings({"model": {"name": "my-model"}})
    shown = re.findall(r"^(?:# )?(\w+) = ", text, re.MULTILINE)
    assert sorted(shown) == sorted(name.partition(".")[2] for name in BASIC)
    assert tomllib.loads(text)["model"] == {"name": "my-model"}
    loaded = load_settings(text, {}, root=Path("/p"))
    assert loaded == load_settings("[model]\nname = 'my-model'", {}, root=Path("/p"))
    assert loaded.registry_url == "sqlite:////p/state/registry.db"


def test_every_setting_may_be_written_basic_or_not() -> None:
    """What a user's file sets is in the rendered file, each key under its own group."""
    defaults = Settings().model_dump(mode="json", exclude_none=True)
    assert tomllib.loads(render_settings(defaults)) == defaults
    assert load_settings(render_settings(defaults), {}, root=Path()) == load_settings("", {}, root=Path())


def test_the_environment_overrides_the_file() -> None:
    environ = {
        "RATCHET_SERVING__PORT": "4000",
        "RATCHET_DATASET__MAX_ROWS_PER_PERSON": "",
        "RATCHET_DATASET__QUARANTINE": "false",
        "RATCHET_KAFKA__BOOTSTRAP_SERVERS": "kafka:9092",
        "RATCHET_API_KEY": "not a setting",
    }
    settings = load_settings("[serving]\nport = 1", environ, root=Path())
    assert settings.serving.port == 4000
    assert settings.dataset.max_rows_per_person is None
    assert settings.dataset.quarantine is False
    assert not settings.embedded_broker


@pytest.mark.parametrize(
    ("text", "environ", "named"),
    [
        ("[serving]\nprot = 1", {}, "unknown setting serving.prot"),
        ("[servin]\nport = 1", {}, "unknown setting servin"),
        ("root = '/x'", {}, "unknown setting root"),
        ("[serving]\nport = 'x'", {}, "serving.port = 'x'"),
        ("", {"RATCHET_SERVING__PORT": "99999"}, "serving.port = 99999"),
        ("", {"RATCHET_MODEL__TASK": "poetry"}, "model.task = 'poetry'"),
        (
            "[console]\nwebhooks = ['https://team.example:hook/x']",
            {},
            "'https://team.example:hook/x': expected an address",
        ),
        ("[console]\nwebhooks = ['https://team.example:70000/x']", {}, "console.webhooks"),
        ("not toml", {}, "not TOML"),
    ],
)
def test_a_bad_setting_is_refused_by_name(text: str, environ: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        load_settings(text, environ, root=Path())


def test_an_empty_text_unsets_what_may_be_unset_and_nothing_else() -> None:
    empty = {"dataset": "max_rows_per_person", "console": "drift", "training": "refit_below", "model": "base_model"}
    text = "\n".join(f'[{group}]\n{key} = ""' for group, key in empty.items())
    settings = load_settings(text, {}, root=Path())
    assert [getattr(getattr(settings, group), key) for group, key in empty.items()] == [None] * len(empty)
    with pytest.raises(SettingsError, match=r"line 2: serving\.port = ''"):
        load_settings('[serving]\nport = ""', {}, root=Path())


def test_a_scalar_where_a_table_belongs_is_refused_by_name() -> None:
    with pytest.raises(SettingsError, match="serving"):
        load_settings("serving = 3", {"RATCHET_SERVING__PORT": "1"}, root=Path())


def test_the_json_documents_are_those_of_the_models() -> None:
    committed = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.json")}
    assert committed == documents(), "run `make schemas`"


def test_a_producer_finds_in_the_documents_what_every_event_must_carry() -> None:
    made = {name: json.loads(content) for name, content in documents().items()}
    for model in EVENTS.values():
        assert set(made[f"{model.__name__}.json"]["required"]) == {
            "specversion",
            "type",
            "id",
            "source",
            "subject",
            "data",
        }
    asyncapi = made["asyncapi.json"]
    refs = re.findall(r'"\$ref": "([^"]+)"', documents()["asyncapi.json"])
    assert refs
    for ref in refs:
        target = asyncapi
        for part in ref.removeprefix("#/").split("/"):
            target = made[part] if part.endswith(".json") else target[part]
    described = asyncapi["components"]["messages"]["FeedbackReceived"]["description"]
    for kind in get_args(FeedbackKind):
        assert kind in described
    for task in get_args(Task):
        assert f"correction, {task}" in described
