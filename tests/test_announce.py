"""Announcements of a promotion: a step that cannot be taken is a line in the log, and the others are taken."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.settings import Settings, load_settings
from services.rounds.announce import announce
from serving.artifacts import ArtifactStore
from serving.messaging.security import PASSWORD
from serving.registry.registry import Registry
from serving.registry.safeguards.audit_heads import Head
from tests.support.registries import add_versions

SECURED = """
[model]
name = "shop"
[kafka]
bootstrap_servers = "127.0.0.1:1"
security_protocol = "SASL_SSL"
sasl_mechanism = "PLAIN"
sasl_username = "app"
[registry]
audit_head_file = "heads.jsonl"
"""


@pytest.fixture
def secured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A project whose Kafka wants a password that is written nowhere."""
    monkeypatch.delenv(PASSWORD, raising=False)
    return load_settings(SECURED, {}, root=tmp_path)


@pytest.fixture
def registry(secured: Settings) -> Iterator[Registry]:
    opened = Registry(secured.registry_url, secured.model.name)
    opened.migrate()
    add_versions(opened, "v1")
    yield opened
    opened.close()


def test_a_promotion_without_kafkas_password_is_marked_all_the_same(
    secured: Settings, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    champion = registry.promote("v1", expected=None, token=None, actor="gates")
    announce(secured, registry, champion)
    [line] = caplog.messages
    assert line.startswith("the promotion of v1 was not announced in Kafka, and serving follows the registry alone: ")
    assert PASSWORD in line
    assert ArtifactStore(secured.location(secured.artifacts.url)).read_note("registry-shop.json") is not None
    [head] = secured.path("heads.jsonl").read_bytes().splitlines()
    assert Head.model_validate_json(head).hash == registry.audit_head()[1]


def test_every_step_that_kafka_keeps_from_being_taken_says_so(
    secured: Settings, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    with_topic = secured.registry.model_copy(update={"audit_head_topic": "heads"})
    champion = registry.promote("v1", expected=None, token=None, actor="gates")
    announce(secured.model_copy(update={"registry": with_topic}), registry, champion)
    announced, head = caplog.messages
    assert "was not announced in Kafka" in announced
    assert head.startswith("v1 serves, but the audit log's head was not written: ")
    assert ArtifactStore(secured.location(secured.artifacts.url)).read_note("registry-shop.json") is not None
