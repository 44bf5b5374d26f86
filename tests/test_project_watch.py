"""What `ratchet up` says of a running project by itself: a disk that is nearly full. A frozen consumer is test_stuck.py's."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from schemas.settings import Settings
from services.supervisor.project_watch import ProjectWatch
from serving.registry.registry import Registry
from tests.support.fakes import wait_until


def test_a_full_disk_is_named_now_and_then_and_its_end_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, told, free = Settings(root=tmp_path), list[tuple[str, str]](), [1_000_000]
    registry = Registry(settings.registry_url, settings.model.name)
    registry.migrate()
    registry.close()
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free[0]))
    watch = ProjectWatch(settings, lambda part, line: told.append((part, line)), look_s=0.01)
    watch.start()
    try:
        wait_until(lambda: len(told) > 2)
        free[0] = 10**12
        wait_until(lambda: told[-1] == ("disk", "there is room again"))
    finally:
        watch.close()
    assert len(set(told[:-1])) == 1
    assert "has 1 MB left" in told[0][1]
    assert "free some, `ratchet prune` shows what it can" in told[0][1]
