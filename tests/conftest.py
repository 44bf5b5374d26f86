"""Fixtures that several test modules share: a project folder, a registry, a tiny base model, a broker process."""

import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from schemas.serving_settings import ServingSettings
from schemas.setting_groups import AccessSettings, DatasetSettings, ModelSettings
from schemas.settings import Settings
from schemas.training_settings import TrainingSettings
from tests.support.fakes import TOPICS, free_port, tiny_base_model, tiny_causal_model, toy_rows, wait_until, write_rows

if TYPE_CHECKING:
    from serving.registry.registry import Registry


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny BERT."""
    return tiny_base_model(tmp_path_factory.mktemp("tiny-base"))


@pytest.fixture(scope="session")
def version(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """A small real model version of three labels; copy it before you change it."""
    from tests.support.versions import tiny_version

    return tiny_version(tmp_path_factory.mktemp("version") / "v", tiny_base, "v", list(TOPICS))


@pytest.fixture(scope="session")
def wider_version(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """Another, of four labels."""
    from tests.support.versions import tiny_version

    return tiny_version(tmp_path_factory.mktemp("wider") / "w", tiny_base, "w", [*TOPICS, "weather"], seed=1)


@pytest.fixture(scope="session")
def tiny_decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Llama."""
    return tiny_causal_model(tmp_path_factory.mktemp("tiny-decoder"))


@pytest.fixture(scope="session")
def text_version(tmp_path_factory: pytest.TempPathFactory, tiny_decoder: Path) -> Path:
    """A small real model version that writes; copy it before you change it."""
    from tests.support.versions import tiny_text_version

    return tiny_text_version(tmp_path_factory.mktemp("text-version") / "t", tiny_decoder, "t")


@pytest.fixture
def model_name() -> str:
    """A model name that no other test uses, so that topics don't meet."""
    return f"m-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def settings(tmp_path: Path, tiny_base: Path, model_name: str) -> Settings:
    """A project's settings on a tiny model: data/seed.csv and data/reference.csv written, keys made."""
    from serving.http.access import write_keys

    write_rows(tmp_path / "data/seed.csv", toy_rows(30, seed=1))
    write_rows(tmp_path / "data/reference.csv", toy_rows(240, seed=2))
    write_keys(tmp_path / "keys.env")
    return Settings(
        root=tmp_path,
        model=ModelSettings(name=model_name, base_model=str(tiny_base), max_length=32),
        dataset=DatasetSettings(reference="data/reference.csv"),
        training=TrainingSettings(epochs=2, threads=1),
        access=AccessSettings(),
    )


@pytest.fixture
def full_precision(settings: Settings) -> Settings:
    """The project without quantisation: half the time of a round, for tests of what comes before and after it."""
    return settings.model_copy(update={"serving": ServingSettings(artifact="fp32")})


@pytest.fixture
def registry(settings: Settings) -> "Iterator[Registry]":
    """A migrated registry on SQLite whose taxonomy is the toy topics."""
    from serving.registry.registry import Registry

    opened = Registry(settings.registry_url, settings.model.name)
    opened.migrate()
    opened.set_labels(TOPICS)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real broker process that keeps its topics in memory."""
    from serving.messaging.publisher import embedded_broker_command, ensure_topics

    port = free_port()
    with (tmp_path_factory.mktemp("broker") / "log").open("wb") as log:
        process = subprocess.Popen(embedded_broker_command(port), stdout=log, stderr=subprocess.STDOUT)
    address = f"127.0.0.1:{port}"

    def answers() -> bool:
        try:
            ensure_topics(address, ["warm-up"], partitions=1, replication_factor=1, timeout_s=5)
        except ConnectionError:
            return False
        return True

    wait_until(answers, timeout_s=15)
    yield address
    process.kill()
    process.wait(10)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in one line what was left out because a service was missing."""
    skipped = terminalreporter.stats.get("skipped", [])
    if skipped:
        terminalreporter.write_line(f"left out because a service is missing: {len(skipped)} tests (.ci/run runs them)")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI a test that was left out is a failure."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    left_out = bool(reporter and reporter.stats.get("skipped"))
    if left_out and os.environ.get("RATCHET_TEST_NOTHING_LEFT_OUT") and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
