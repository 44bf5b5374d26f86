"""From nothing to a promoted round on a server's engines: Kafka with a password, Postgres, Redis, S3; one process each."""

import contextlib
from pathlib import Path

import pytest

from pipelines.feature_store.store import FeatureStore
from schemas.records import FINAL_STATES, RoundState
from schemas.settings import load_settings
from serving.registry.registry import Registry
from tests.support.fakes import wait_until
from tests.support.running_up import Traffic
from tests.support.server_path import ONE_SHOT, PARTS, Server, engines, make_project


@pytest.mark.long
@pytest.mark.kafka
@pytest.mark.postgres
@pytest.mark.redis
def test_a_server_runs_from_nothing_to_a_promoted_round(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_project(tmp_path / "shop", tiny_base)
    with contextlib.ExitStack() as stack:
        variables = stack.enter_context(engines(tmp_path))
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        server = Server(config, variables, tmp_path / "logs")
        stack.callback(server.stop)
        for name in (*ONE_SHOT, "migrate", "bootstrap"):  # both may be repeated
            server.run(name)
        for name in PARTS:
            server.start(name)
        settings = load_settings(config.read_bytes(), variables, root=config.parent)
        registry = stack.enter_context(contextlib.closing(Registry(settings.registry_url, settings.model.name)))
        traffic = Traffic(server, callers=1, pause_s=0.02)
        with traffic.running():
            wait_until(lambda: len(traffic.accepted) >= 150, timeout_s=120)
        wait_until(lambda: len(registry.rounds()) > 1 and registry.rounds()[0].state in FINAL_STATES, timeout_s=900)
        record = registry.rounds()[0]
        assert record.state is RoundState.PROMOTED, record.detail
        wait_until(lambda: server.model()["model_version"] == record.candidate_version)
        assert set(traffic.statuses) == {"predict 200", "feedback 202"}
        assert {row.feedback_id for row in FeatureStore(settings).labelled_feedback()} == traffic.accepted
        assert all(code in (0, -15) for code in server.stop().values())
