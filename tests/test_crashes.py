"""Invariants 1 and 2 under kill -9: a consumer killed at any named point loses nothing and stores nothing twice."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from services.feedback_consumer import NICE
from serving.process.crash_points import CONSUMER_POINTS
from serving.registry.registry import Registry
from tests.support.crashes import killed_at, project, start
from tests.support.fakes import wait_until


def test_a_consumer_killed_at_any_point_stores_every_event_once(tmp_path: Path, broker: str, model_name: str) -> None:
    """All points at once: what takes time is the group's waiting for its dead member."""
    assert len(CONSUMER_POINTS) >= 8
    with ThreadPoolExecutor(len(CONSUMER_POINTS)) as pool:
        runs = [
            pool.submit(killed_at, point, tmp_path / point, broker, f"{model_name}-{n}")
            for n, point in enumerate(CONSUMER_POINTS)
        ]
        for run in runs:
            run.result(timeout=120)


def test_a_consumer_leaves_serving_more_of_the_processor(tmp_path: Path, broker: str, model_name: str) -> None:
    settings = project(tmp_path, broker, model_name)
    Registry(settings.registry_url, model_name).migrate()
    nice = max(NICE, os.getpriority(os.PRIO_PROCESS, 0))
    assert NICE > 0
    consumer = start(settings)
    assert consumer.pid is not None
    try:
        wait_until(lambda: os.getpriority(os.PRIO_PROCESS, consumer.pid or 0) == nice)
    finally:
        os.kill(consumer.pid, signal.SIGTERM)
        consumer.join(60)
    assert consumer.exitcode == 0
