"""What the consumer notices, as other processes read it: counts, lasting troubles, and a consumer that is stuck or silent."""

import logging
from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client import CollectorRegistry

from schemas.consumer_reports import QUIET_SECONDS
from schemas.settings import Settings
from services.cli.doctor import check_codecs, check_ingestion
from services.ingestion.metrics import ConsumerMetrics
from services.ingestion.progress import STUCK_SECONDS, Progress
from services.ingestion.troubles import EXPIRED, TOPIC, Troubles, counted, lasting
from serving.http.metrics import Metrics
from serving.registry.glance import glance
from serving.registry.registry import Registry, RegistryUnavailable


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def progress(registry: Registry, clock: Clock) -> Progress:
    metrics = ConsumerMetrics("m")
    return Progress(Troubles(registry, metrics), metrics, lambda: {"m.feedback/0": 7}, clock)


def now_wrong(registry: Registry, settings: Settings, *, later_s: float = 0, up: bool = True) -> list[str]:
    notes = glance(settings.registry_url, registry.model_name).ingestion
    return lasting(notes, datetime.now(UTC) + timedelta(seconds=later_s), up=up)


def test_counts_add_up_and_say_the_way_out(registry: Registry, settings: Settings) -> None:
    troubles = Troubles(registry, ConsumerMetrics("m"))
    troubles.count(EXPIRED, "m.feedback/0", 3, offset=4, detail="offsets 2 to 4")
    troubles.count(EXPIRED, "m.feedback/0", 2, offset=9, detail="offsets 8 to 9")
    [said] = counted(glance(settings.registry_url, registry.model_name).ingestion)
    assert said.startswith(
        "5 messages of m.feedback/0 were deleted by retention before they were stored (the last: offsets 8 to 9)"
    )
    assert "raise retention.ms" in said
    assert now_wrong(registry, settings) == []


def test_stuck_is_said_within_half_a_minute_and_ends_with_the_next_success(
    registry: Registry, settings: Settings, progress: Progress, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    progress.moved()
    for _ in range(13):  # 26 s
        clock.now += 2
        progress.failed("OSError: no space left")
    [said] = now_wrong(registry, settings)
    assert "nothing has been stored for" in said and "next is m.feedback/0 offset 7: OSError: no space left" in said
    assert caplog.messages[0].startswith("stuck for 18 s: nothing is stored: next is m.feedback/0 offset 7")
    progress.moved()
    assert now_wrong(registry, settings) == []


def test_a_wait_that_ends_in_time_is_no_trouble(
    registry: Registry, settings: Settings, progress: Progress, clock: Clock
) -> None:
    for _ in range(30):
        clock.now += STUCK_SECONDS - 1
        progress.waits("messages wait, none arrives")
        progress.moved()
    assert now_wrong(registry, settings) == []


def test_a_consumer_that_hangs_is_named(registry: Registry, settings: Settings, progress: Progress) -> None:
    progress.moved()
    assert now_wrong(registry, settings, later_s=QUIET_SECONDS - 5) == []
    [said] = now_wrong(registry, settings, later_s=QUIET_SECONDS + 5)
    assert said.startswith("the consumer has not reported for 2") and "next was m.feedback/0 offset 7" in said
    assert now_wrong(registry, settings, later_s=QUIET_SECONDS + 5, up=False) == []
    progress.ended()
    assert now_wrong(registry, settings, later_s=QUIET_SECONDS + 5) == []


def test_troubles_of_topics_go_when_they_are_mended(registry: Registry, settings: Settings) -> None:
    troubles = Troubles(registry, ConsumerMetrics("m"))
    troubles.show(TOPIC, {"m.feedback": "is compacted"})
    assert now_wrong(registry, settings) == ["m.feedback is compacted"]
    troubles.show(TOPIC, {})
    assert now_wrong(registry, settings) == []


def test_a_registry_that_cannot_be_written_stops_nothing(registry: Registry, clock: Clock) -> None:
    class Away(Troubles):
        def show(self, *_: object, **__: object) -> None:
            raise RegistryUnavailable("locked")

    metrics = ConsumerMetrics("m")
    progress = Progress(Away(registry, metrics), metrics, lambda: {"m.feedback/0": 7}, clock)
    progress.waits("x")
    progress.moved()


def test_doctor_and_metrics_show_the_notes(registry: Registry, settings: Settings) -> None:
    assert check_codecs(settings).verdict == "ok" and check_ingestion(settings).verdict == "ok"
    registry.count_ingestion("unreadable", "m.feedback/1", 4, offset=8, detail="zstd: bad")
    assert (
        check_ingestion(settings).verdict == "warn"
        and "4 records of m.feedback/1" in check_ingestion(settings).sentence
    )
    registry.show_ingestion("stuck", {"host/1": "nothing has been stored for 20 s"}, prefix="host/1")
    assert check_ingestion(settings).verdict == "FAIL"
    shown = CollectorRegistry()
    Metrics("shown", shown).notes(registry.ingestion())
    labels = {"model": "shown", "kind": "unreadable", "subject": "m.feedback/1"}
    assert shown.get_sample_value("ratchet_ingestion_events", labels) == 4
    assert shown.get_sample_value("ratchet_ingestion_stuck", {"model": "shown"}) == 1


def test_metrics_name_the_place_and_count_consumers_that_are_silent(registry: Registry, progress: Progress) -> None:
    shown = CollectorRegistry()
    metrics = Metrics("shown", shown)
    progress.moved()
    [report] = registry.ingestion()
    metrics.notes([report])
    place = {"model": "shown", "partition": "m.feedback/0"}
    assert shown.get_sample_value("ratchet_ingestion_next_offset", place) == 7
    assert shown.get_sample_value("ratchet_ingestion_stuck", {"model": "shown"}) == 0
    old = report.model_copy(update={"noted_at": report.noted_at - timedelta(seconds=QUIET_SECONDS + 1)})
    metrics.notes([old, old.model_copy(update={"kind": "stuck"})])
    assert shown.get_sample_value("ratchet_ingestion_stuck", {"model": "shown"}) == 1, "the note of a killed one is old"


def test_the_project_s_id_is_drawn_once(registry: Registry, settings: Settings) -> None:
    assert registry.project_id() == registry.project_id()
    again = Registry(settings.registry_url, settings.model.name)
    assert again.project_id() == registry.project_id()
    again.close()
