"""Ingestion that truly cannot go on is named by `up`, `status`, `doctor` and /metrics within 30 s, and goes on when it can."""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from serving.messaging.publisher import Topics
from tests.support import apache_kafka
from tests.support.disks import small_disk
from tests.support.fakes import wait_until
from tests.support.running_up import RunningUp, Traffic, stored_ids, tiny_project
from tests.support.segments import batches, set_length
from tests.support.witnesses import Statement, Witnesses

LIMIT_S = 30.0
PLACE = re.compile(r'm\.(feedback|predictions)/\d+("} | offset )\d+')


class Running:
    """One `up` with callers beside it, on Apache Kafka where it is installed and else on the embedded broker."""

    def __init__(self, up: RunningUp, kafka: apache_kafka.Cluster | None) -> None:
        self.up, self.kafka = up, kafka
        self.events = up.settings.path(up.settings.feature_store.event_log)

    def signal_broker(self, number: signal.Signals) -> None:
        if self.kafka is not None:
            self.kafka.signal(number)
        else:
            os.kill(self.up.pid("broker"), number)

    def signal_consumer(self, number: signal.Signals) -> None:
        os.kill(self.up.pid("consumer"), number)

    def remount(self, mode: str) -> None:
        """Make the event log's disk read-only (`ro`), as Linux does with a failing one, or writable (`rw`)."""
        command = ["mount", "-o", f"remount,{mode}", str(self.events)]
        wait_until(lambda: subprocess.run(command, check=False, capture_output=True).returncode == 0)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, version: Path) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("stuck")
    kafka = apache_kafka.Cluster(folder / "kafka", 1) if apache_kafka.installed() else None
    overrides: dict[str, dict[str, object]] = {"serving": {"workers": 1}, "kafka": {"partitions": 1}}
    if kafka is not None:
        kafka.start()
        overrides["kafka"]["bootstrap_servers"] = kafka.servers
    settings = tiny_project(folder / "project", folder, version, **overrides)
    up = RunningUp(settings)
    shutil.rmtree(settings.path(settings.feature_store.event_log), ignore_errors=True)
    try:
        with small_disk(settings.path(settings.feature_store.event_log), 200_000):
            up.start()
            up.ready()
            yield Running(up, kafka)
            up.stop()
    finally:
        if up.process is not None and up.process.poll() is None:
            up.process.kill()
        if kafka is not None:
            kafka.kill()


def seen(running: Running, harm: Callable[[], None], mend: Callable[[], None]) -> None:
    """Do harm under traffic; each witness names it and the next record within LIMIT_S; once mended, everything is stored."""
    traffic = Traffic(running.up, callers=1, pause_s=0.2)
    with traffic.running():
        wait_until(lambda: len(traffic.accepted) > 5)
        since = time.monotonic()
        harm()
        try:
            statements = Witnesses(running.up).question_all(since)
        finally:
            mend()
    named_within_the_limit(statements)
    all_stored(running, traffic)


def named_within_the_limit(statements: Mapping[str, Statement | None]) -> None:
    """Each witness named the fault and the next record within LIMIT_S."""
    for witness, statement in statements.items():
        print(f"{witness}: {statement}")
        assert statement is not None, f"{witness} said nothing"
        assert statement.silent_until <= LIMIT_S, f"{witness}: {statement}"
        assert PLACE.search(statement.line), f"{witness}: {statement}"


def all_stored(running: Running, traffic: Traffic) -> None:
    """What was accepted is stored once, and nobody says any longer that something is wrong."""
    wait_until(lambda: traffic.accepted <= stored_ids(running.up.settings)[1].keys(), timeout_s=120, every_s=1)
    _, rows, effective = stored_ids(running.up.settings)
    assert len(effective) == len(set(effective))
    assert set(rows.values()) == {1} or running.kafka is None, "the embedded broker may get events twice"
    wait_until(Witnesses(running.up).silent, every_s=1)


def test_a_frozen_consumer(running: Running) -> None:
    seen(
        running,
        lambda: running.signal_consumer(signal.SIGSTOP),
        lambda: running.signal_consumer(signal.SIGCONT),
    )


def test_a_frozen_broker(running: Running) -> None:
    seen(running, lambda: running.signal_broker(signal.SIGSTOP), lambda: running.signal_broker(signal.SIGCONT))


@pytest.mark.root
def test_an_event_log_that_cannot_be_written(running: Running) -> None:
    seen(running, lambda: running.remount("ro"), lambda: running.remount("rw"))


@pytest.mark.kafka
def test_an_offset_that_the_broker_does_not_return_without_an_error(running: Running) -> None:
    """A batch whose length on the broker's disk is too large: the broker takes it for the end of its log."""
    assert running.kafka is not None
    traffic, topic = Traffic(running.up, callers=1, pause_s=0.2), Topics.of("m").feedback
    running.signal_consumer(signal.SIGSTOP)
    stored = sum(stored_ids(running.up.settings)[1].values())
    with traffic.running():
        wait_until(lambda: len(traffic.accepted) > 10)
    wait_until(lambda: running.up.status().get("not_yet_stored") == 0, every_s=1)
    segment = next(running.kafka.folder.glob(f"**/{topic}-0/*.log"))
    running.kafka.stop(1)
    batch = next(batch for batch in batches(segment) if batch.base_offset > stored + 2)
    set_length(segment, batch, 2**30)
    running.kafka.start()
    since = time.monotonic()
    running.signal_consumer(signal.SIGCONT)
    witnesses = Witnesses(running.up)
    wait_until(witnesses.silent)
    named_within_the_limit(witnesses.question_all(since))
    running.kafka.stop(1)
    set_length(segment, batch, batch.length)
    running.kafka.start()
    all_stored(running, traffic)
