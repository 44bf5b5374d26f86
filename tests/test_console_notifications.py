"""Webhooks: each event once for each receiver, signed, tried again, and nothing from before the console's first start."""

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import httpx
import pyarrow as pa
import pytest

from pipelines.feature_store.event_log import SCHEMAS, EventLog
from schemas.configuration.console import ConsoleSettings
from schemas.settings import Settings
from services.console.notifications import SECRET, Notifier, sign
from services.console.pages import overview
from services.console.project import Kept, Project
from serving.http.access import read_keys
from serving.registry.registry import Registry
from serving.registry.review.deliveries import DELAYS_S
from tests.support.registries import Clock, add_versions, begin

TEAM, SLACK = "https://team.example/hook", "https://hooks.slack.com/services/T/B/x"


class Receiver:
    """Two receivers that answer as they are told to, and keep what they were sent."""

    def __init__(self) -> None:
        self.status: int | httpx.HTTPError = 200
        self.broken: dict[str, Exception] = {}  # what a post to an address raises
        self.posts: list[tuple[str, bytes, dict[str, str]]] = []

    def __call__(self, url: str, body: bytes, headers: dict[str, str]) -> int:
        self.posts.append((url, body, headers))
        if url in self.broken:
            raise self.broken[url]
        if isinstance(self.status, httpx.HTTPError):
            raise self.status
        return self.status


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def project(settings: Settings, clock: Clock) -> Iterator[Project]:
    console = ConsoleSettings(webhooks=(TEAM, SLACK))
    keys = settings.path("keys.env")
    keys.write_text(keys.read_text(encoding="utf-8") + f"{SECRET}=s3cret\n", encoding="utf-8")
    registry = Registry(settings.registry_url, settings.model.name, clock=clock, monotonic=clock.monotonic)
    registry.migrate()
    changed = settings.model_copy(update={"console": console})
    yield Project(changed, Path("ratchet.toml"), registry, read_keys(keys))
    registry.close()


def test_events_are_signed_sent_once_and_only_from_the_start_on(project: Project, clock: Clock) -> None:
    registry, receiver = project.registry, Receiver()
    add_versions(registry, "old", "new")
    registry.promote("old", expected=None, token=None, actor="test")
    notifier = Notifier(project, receiver, clock=lambda: 1_700_000_000.0)
    assert notifier.is_on
    assert notifier.notice() == 0  # the past stays silent
    clock.advance(60)
    record = begin(registry)
    registry.reject(record.round_id, actor="rita", reason="no")
    clock.advance(1)
    assert (notifier.notice(), notifier.notice()) == (2, 0)
    assert (notifier.send(), notifier.send()) == (2, 0)
    sent = {url: (body, headers) for url, body, headers in receiver.posts}
    body, headers = sent[TEAM]
    told = json.loads(body)
    assert (told["event"], told["round"], told["model"]) == ("rejected", record.round_id, project.settings.model.name)
    assert headers["x-ratchet-signature"] == f"t=1700000000,v1={sign('s3cret', '1700000000', body)}"
    assert list(json.loads(sent[SLACK][0])) == ["text"]


def test_a_receiver_that_fails_is_tried_again_and_then_given_up(project: Project, clock: Clock) -> None:
    registry, receiver = project.registry, Receiver()
    notifier = Notifier(project, receiver)
    notifier.notice()
    clock.advance(1)
    add_versions(registry, "a", "b")
    registry.promote("a", expected=None, token=None, actor="gates")
    registry.promote("b", expected="a", token=None, actor="gates")
    registry.roll_back(to="a", expected="b", actor="rita", reason="complaints")
    notifier.notice()
    receiver.status = httpx.ConnectError("refused")
    notifier.send()
    first = len(receiver.posts)
    notifier.send()
    assert len(receiver.posts) == first  # not before its time
    receiver.status = 500
    for delay in DELAYS_S:
        clock.advance(delay + 1)
        notifier.send()
    assert registry.deliveries.counts() == {"failed": first}
    assert len(receiver.posts) == first * (1 + len(DELAYS_S))


def test_a_delivery_that_failed_once_arrives(project: Project, clock: Clock) -> None:
    receiver = Receiver()
    notifier = Notifier(project, receiver)
    notifier.notice()
    clock.advance(1)
    begin(project.registry)
    project.registry.finish_round(project.registry.history.rounds_page()[0][1].round_id, "failed", detail="no disk")  # type: ignore[arg-type]
    notifier.notice()
    receiver.status = 503
    assert notifier.send() == 0
    clock.advance(DELAYS_S[0] + 1)
    receiver.status = 204
    assert notifier.send() == 2
    assert project.registry.deliveries.counts() == {"delivered": 2}


@pytest.mark.parametrize("error", [httpx.InvalidURL("no port"), UnicodeError("label too long"), OSError("no socket")])
@pytest.mark.parametrize("broken", [TEAM, SLACK])
def test_an_address_that_cannot_be_posted_to_holds_back_no_other(
    project: Project, clock: Clock, broken: str, error: Exception
) -> None:
    receiver = Receiver()
    receiver.broken[broken] = error
    notifier = Notifier(project, receiver)
    notifier.notice()
    clock.advance(1)
    record = begin(project.registry)
    project.registry.reject(record.round_id, actor="rita", reason="no")
    assert notifier.notice() == 2
    assert notifier.send() == 1
    assert {url for url, _, _ in receiver.posts} == {TEAM, SLACK}
    assert project.registry.deliveries.counts() == {"delivered": 1, "waiting": 1}
    receiver.broken = {}
    clock.advance(DELAYS_S[0] + 1)
    assert notifier.send() == 1
    assert project.registry.deliveries.counts() == {"delivered": 2}


def test_nothing_is_sent_unsigned(settings: Settings, clock: Clock) -> None:
    registry = Registry(settings.registry_url, settings.model.name, clock=clock)
    registry.migrate()
    changed = settings.model_copy(update={"console": ConsoleSettings(webhooks=(TEAM,))})
    notifier = Notifier(Project(changed, Path("x"), registry, read_keys(settings.path("keys.env"))), Receiver())
    assert not notifier.is_on
    registry.close()


def test_drift_is_sent_once_a_day_while_it_lasts(project: Project, clock: Clock) -> None:
    registry, receiver = project.registry, Receiver()
    add_versions(registry, "v")
    registry.promote("v", expected=None, token=None, actor="gates")
    project.settings = project.settings.model_copy(
        update={"console": project.settings.console.model_copy(update={"drift_window": 200})}
    )
    notifier = Notifier(project, receiver)
    notifier.notice()
    answers = ["card"] * 200 + ["loan"] * 150 + ["card"] * 50
    log = EventLog(project.settings.location(project.settings.feature_store.event_log))
    log.append("predictions", predictions(answers, "v", clock()))
    clock.advance(60)
    sent = []
    for hours in (0, 1, 24):
        clock.advance(3600 * hours)
        project.kept = Kept()  # a minute has passed
        sent.append(notifier.notice())
    assert sent == [2, 0, 2]
    notifier.send()
    body = json.loads(next(body for url, body, _ in receiver.posts if url == TEAM))
    assert (body["event"], body["version"], body["window"], body["threshold"]) == ("drift", "v", 200, 0.25)
    assert body["psi_answers"] > 1
    assert "population stability index" in body["text"]
    assert any("population stability index" in alarm for alarm in overview.look(project).alarms)
    off = project.settings.console.model_copy(update={"drift": None})
    project.settings = project.settings.model_copy(update={"console": off})
    clock.advance(24 * 3600)
    assert notifier.notice() == 0


def predictions(answers: list[str], version: str, now: datetime) -> pa.Table:
    """Predictions of a version, one a second up to now."""
    n = len(answers)
    times = [now - timedelta(seconds=n - k) for k in range(n)]
    columns = {
        "topic_id": ["t"] * n, "partition": [0] * n, "offset": list(range(n)), "event_timestamp": times,
        "created_timestamp": times, "prediction_id": [f"{k:032x}" for k in range(n)], "user": [None] * n,
        "model_version": [version] * n, "generation": [1] * n, "text": ["x"] * n, "predicted_label": answers,
        "confidence": [0.5] * n, "probabilities": ["{}"] * n, "metadata": ["{}"] * n, "audit": [False] * n,
    }  # fmt: skip
    return pa.Table.from_pydict(columns, schema=SCHEMAS["predictions"])
