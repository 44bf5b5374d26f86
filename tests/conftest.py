"""Fixtures that several test modules share: a project folder, a registry, a tiny base model, a broker process."""

import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from schemas.configuration.serving import ServingSettings
from schemas.configuration.training import TrainingSettings
from schemas.setting_groups import AccessSettings, DatasetSettings, ModelSettings
from schemas.settings import Settings
from tests.support import apache_kafka, browsers
from tests.support.disks import mountable
from tests.support.fakes import TOPICS, free_port, tiny_base_model, tiny_causal_model, toy_rows, wait_until, write_rows
from tests.support.shared import made_once

if TYPE_CHECKING:
    from serving.registry.registry import Registry
    from tests.support.kafka_security import SecureKafka

LACKING = "lacking"  # a property of tests that CI may leave out
KAFKAS = frozenset({"kafka", "java"})  # markers of tests that CI runs wherever it has found Kafka
# Tests start many processes: without bytecode, each would compile Feast and torch again.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Several processes of tests share the cores, and their models are tiny: threads of one matrix product would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny BERT."""
    return made_once(tmp_path_factory, "tiny-base", tiny_base_model)


@pytest.fixture(scope="session")
def version(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """A small real model version of three labels; copy it before you change it."""
    from tests.support.versions import tiny_version

    return made_once(tmp_path_factory, "version", lambda folder: tiny_version(folder, tiny_base, "v", list(TOPICS)))


@pytest.fixture(scope="session")
def wider_version(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """Another, of four labels."""
    from tests.support.versions import tiny_version

    labels = [*TOPICS, "weather"]
    return made_once(tmp_path_factory, "wider", lambda folder: tiny_version(folder, tiny_base, "w", labels, seed=1))


@pytest.fixture(scope="session")
def tiny_decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Llama."""
    return made_once(tmp_path_factory, "tiny-decoder", tiny_causal_model)


@pytest.fixture(scope="session")
def text_version(tmp_path_factory: pytest.TempPathFactory, tiny_decoder: Path) -> Path:
    """A small real model version that writes; copy it before you change it."""
    from tests.support.versions import tiny_text_version

    return made_once(tmp_path_factory, "text-version", lambda folder: tiny_text_version(folder, tiny_decoder, "t"))


@pytest.fixture(scope="session")
def first_round(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """A project whose first round was promoted; `first_rounds.copied` opens a copy."""
    from tests.support import first_rounds

    return made_once(tmp_path_factory, "first-round", lambda folder: first_rounds.make(folder, tiny_base))


@pytest.fixture(scope="session")
def console_project(tmp_path_factory: pytest.TempPathFactory, first_round: Path) -> Path:
    """A project with a champion, feedback and a candidate that awaits approval; `consoles.copied` opens a copy."""
    from tests.support import consoles

    return made_once(tmp_path_factory, "console", lambda folder: consoles.make(folder, first_round))


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
        training=TrainingSettings(epochs=2, threads=1, tfidf=False),
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
def embedded_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real broker process that keeps its topics in memory."""
    from serving.messaging.connection import Broker
    from serving.messaging.publisher import embedded_broker_command, ensure_topics

    port = free_port()
    with (tmp_path_factory.mktemp("broker") / "log").open("wb") as log:
        process = subprocess.Popen(embedded_broker_command(port), stdout=log, stderr=subprocess.STDOUT)
    address = f"127.0.0.1:{port}"

    def answers() -> bool:
        try:
            ensure_topics(Broker(address), ["warm-up"], partitions=1, replication_factor=1, timeout_s=5)
        except ConnectionError:
            return False
        return True

    wait_until(answers)
    yield address
    process.kill()
    process.wait(10)


@pytest.fixture(scope="session")
def secured_kafka(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[SecureKafka]":
    """Apache Kafka with a listener for each kind of security, and access control."""
    from tests.support.kafka_security import secure_kafka

    with secure_kafka(tmp_path_factory.mktemp("secured-kafka")) as node:
        yield node


BROKERS = ["embedded", *(["apache"] if os.environ.get("RATCHET_TEST_KAFKA") else [])]


@pytest.fixture(scope="session", params=BROKERS)
def broker(request: pytest.FixtureRequest) -> str:
    """The address of a broker: the embedded one, and Apache Kafka too where RATCHET_TEST_KAFKA names one."""
    if request.param == "apache":
        return os.environ["RATCHET_TEST_KAFKA"]
    address: str = request.getfixturevalue("embedded_broker")
    return address


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests whose programs are missing. CI may leave them out, but none of Kafka's where it has found Kafka."""
    missing = {
        "kafka": not apache_kafka.installed(),
        "java": not shutil.which("java"),
        "root": not mountable(Path(tempfile.mkdtemp()) / "disk"),
        "systemd": not shutil.which("systemd-analyze"),
        "browser": not browsers.installed(),
    }
    for item in items:
        for marker in (name for name, absent in missing.items() if absent and item.get_closest_marker(name)):
            item.add_marker(pytest.mark.skip(reason=f"{marker} is missing"))
            if marker not in KAFKAS or not os.environ.get("RATCHET_TEST_KAFKA_NODES"):
                item.user_properties.append((LACKING, marker))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in one line what was left out because a service was missing."""
    skipped = terminalreporter.stats.get("skipped", [])
    if skipped:
        terminalreporter.write_line(f"left out because a service is missing: {len(skipped)} tests (.ci/run runs them)")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI a test that was left out is a failure, unless the machine lacks Kafka, Java or the rights of root."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    left_out = [report for report in skipped if LACKING not in dict(report.user_properties)]
    if left_out and os.environ.get("RATCHET_TEST_NOTHING_LEFT_OUT") and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
