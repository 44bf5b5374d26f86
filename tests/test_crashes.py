"""Invariants 1 and 2 under kill -9: a consumer killed at any named point loses nothing and stores nothing twice."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from serving.process.crash_points import CONSUMER_POINTS
from tests.support.crashes import killed_at


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
