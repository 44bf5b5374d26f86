"""The rights of docs/kafka.md: each process and command works with its row of the table, and names each right that it lacks.

`RIGHTS` is that table, for what must work; a test compares it with the page.
"""

import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipelines.feature_store.store import FeatureStore
from schemas.events import utc_now
from schemas.records import Champion
from schemas.settings import Settings
from services.cli import doctor
from services.cli.main import cli
from services.feedback_consumer import Consumer, Stalled
from services.rounds.announce import announce
from services.up import Supervisor, UpError
from serving.messaging.connection import Broker, BrokerUnavailable
from serving.messaging.outbox import Outbox
from serving.messaging.outbox_sender import Keep
from serving.messaging.project_topics import make_topics
from serving.messaging.publisher import Outgoing, Publisher, Topics
from serving.registry.registry import Registry
from tests.support.events import feedback, named, prediction
from tests.support.fakes import REPOSITORY
from tests.support.kafka_security import SecureKafka

Act = Callable[[Settings, pytest.LogCaptureFixture], str]
PATIENCE_S = 120.0

DLQ, PROMOTIONS, PREDICTIONS, FEEDBACK = "feedback.dlq", "promotions", "predictions", "feedback"


def registry_of(settings: Settings) -> Registry:
    registry = Registry(settings.registry_url, settings.model.name)
    registry.migrate()
    registry.set_labels(["a", "b"])
    return registry


def awaited(works: Callable[[], bool], line: Callable[[], str]) -> str:
    """Return the line that says what is missing, or nothing once it works."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if works():
            return ""
        if said := line():
            return said
        time.sleep(0.2)
    raise TimeoutError("neither works nor says why")


def serving(settings: Settings, caplog: pytest.LogCaptureFixture) -> str:
    """A worker's outbox publishes a prediction and feedback on it."""
    topics = Topics.of(settings.stream_name)
    box = Outbox(
        settings.path("state/outbox"), broker=Broker.of(settings), topics=topics, keep=Keep.UNTIL_CONFIRMED,
        stored_positions=dict, max_bytes=1_000_000, timeout_s=5,
    )  # fmt: skip
    box.start()
    box.put_prediction(named(prediction(1), settings.model.name))
    box.put_feedback(named(feedback(1), settings.model.name)).result(timeout=60)
    try:
        return awaited(lambda: box.published == 2, lambda: lacks(caplog))
    finally:
        box.close(1)


def lacks(caplog: pytest.LogCaptureFixture) -> str:
    return next((message for message in caplog.messages if " lacks the right " in message), "")


def consumer(settings: Settings, _caplog: pytest.LogCaptureFixture) -> str:
    """The consumer stores a good event and makes a dead letter of a bad one."""
    with closing(registry_of(settings)) as registry:
        features = FeatureStore(settings)
        member = Consumer(settings, registry, features)
        said: list[str] = []

        def stored() -> bool:
            try:
                member.step(0.2)
            except Stalled:
                member.reset()
            except BrokerUnavailable as error:
                said.extend([str(error)] * (" lacks the right " in str(error)))
                return False
            return features.stored_events()["feedback"] == 1 and member.drained()

        try:
            return awaited(stored, lambda: said[0] if said else "")
        finally:
            member.reset()


def promotion(settings: Settings, caplog: pytest.LogCaptureFixture) -> str:
    """What rounds, `ratchet round approve` and `ratchet model rollback` do last."""
    champion = Champion(
        model_name=settings.model.name, model_version="v1", generation=1, round_id=None, actor="me", digest="0",
        promoted_at=utc_now(),
    )  # fmt: skip
    with closing(registry_of(settings)) as registry:
        announce(settings, registry, champion)
    return next((message for message in caplog.messages if "was not announced" in message), "")


def replay(settings: Settings, _caplog: pytest.LogCaptureFixture) -> str:
    """A dead letter of each kind: one that is good now for each topic, and one that is still bad."""
    registry_of(settings).close()
    done = CliRunner().invoke(cli, ["feedback", "replay", "--dlq", "-c", str(settings.path("ratchet.toml"))])
    return "" if done.exit_code == 0 else str(done.exception or done.output)


def up(settings: Settings, _caplog: pytest.LogCaptureFixture) -> str:
    """`up` makes the topics and goes on to the first champion, for which this project has no data."""

    def seen(line: str) -> None:
        if line.startswith("broker"):
            supervisor.stop.set()

    supervisor = Supervisor(settings, settings.path("ratchet.toml"), seen)
    try:
        supervisor.run()
    except UpError as error:
        return str(error)
    return ""


def check(settings: Settings, _caplog: pytest.LogCaptureFixture) -> str:
    """`ratchet doctor`."""
    registry_of(settings).close()
    found = doctor.check_broker(settings)
    return "" if found.verdict == "ok" else found.sentence


# name in the table: what it does, and its rights (operation, kind, name after `NAME.`)
Rights = list[tuple[str, str, str]]
EVERYTHING: Rights = [
    *[("READ", "TOPIC", name) for name in (PREDICTIONS, FEEDBACK, DLQ)],
    *[("WRITE", "TOPIC", name) for name in (PREDICTIONS, FEEDBACK, DLQ, PROMOTIONS)],
    *[("READ", "GROUP", name) for name in ("consumer", "owner", f"{DLQ}.replay")],
]
RIGHTS: dict[str, tuple[Act, Rights]] = {
    "serving": (serving, [("WRITE", "TOPIC", PREDICTIONS), ("WRITE", "TOPIC", FEEDBACK)]),
    "feedback consumer": (
        consumer,
        [
            ("READ", "TOPIC", PREDICTIONS),
            ("READ", "TOPIC", FEEDBACK),
            ("WRITE", "TOPIC", DLQ),
            ("DESCRIBE", "TOPIC", PROMOTIONS),
            ("READ", "GROUP", "consumer"),
        ],
    ),
    "rounds, `ratchet round approve`, `ratchet model rollback`": (promotion, [("WRITE", "TOPIC", PROMOTIONS)]),
    "`ratchet feedback replay`": (
        replay,
        [
            ("READ", "TOPIC", DLQ),
            ("WRITE", "TOPIC", DLQ),
            ("WRITE", "TOPIC", PREDICTIONS),
            ("WRITE", "TOPIC", FEEDBACK),
            ("READ", "GROUP", f"{DLQ}.replay"),
        ],
    ),
    "`ratchet up`": (up, [("DESCRIBE", "TOPIC", n) for n in (PREDICTIONS, FEEDBACK, DLQ, PROMOTIONS)]),
    "`ratchet doctor`": (check, EVERYTHING),
}
CASES = [(who, None) for who in RIGHTS] + [(who, right) for who, (_, rights) in RIGHTS.items() for right in rights]


@pytest.fixture
def project(tmp_path: Path, secured_kafka: SecureKafka, model_name: str) -> Settings:
    """A project of the user `weak`, with topics that hold events and dead letters."""
    secrets = {"RATCHET_KAFKA_PASSWORD": "weak-secret"}
    settings = secured_kafka.project(tmp_path, model_name, "SASL", {"sasl_username": "weak", "partitions": 1}, secrets)
    broker, topics = Broker(secured_kafka.address("PLAINTEXT")), Topics.of(settings.stream_name)
    make_topics(settings, broker)
    values = {topics.predictions: named(prediction(2), model_name), topics.feedback: named(feedback(2), model_name)}
    good = [Outgoing(topic, b"k", event.model_dump_json().encode()) for topic, event in values.items()]
    letters = [
        Outgoing(
            topics.dead_letters,
            b"k",
            one.value,
            (("ratchet-topic", one.topic.encode()), ("ratchet-position", b"%d" % n)),
        )
        for n, one in enumerate([*good, Outgoing(topics.feedback, b"k", b"bad")])
    ]
    with closing(Publisher(broker, timeout_s=20)) as publisher:
        publisher.publish_many([good[1], Outgoing(topics.feedback, b"k", b"bad"), *letters])
    return settings


@pytest.mark.kafka
@pytest.mark.parametrize(("who", "lacking"), CASES, ids=str)
def test_each_right_is_enough_and_named_if_it_is_missing(
    who: str,
    lacking: tuple[str, str, str] | None,
    project: Settings,
    secured_kafka: SecureKafka,
    caplog: pytest.LogCaptureFixture,
) -> None:
    act, rights = RIGHTS[who]
    caplog.set_level(logging.INFO)
    with secured_kafka.allowed(
        [(o, k, f"{project.stream_name}.{name}") for o, k, name in rights if (o, k, name) != lacking]
    ):
        said = act(project, caplog)
    if lacking is None:
        assert said == ""
        return
    operation, kind, name = lacking
    assert re.search(
        rf"User:weak lacks the right ({operation.title()}|Describe) on .*{kind.lower()} {project.stream_name}\."
        rf"{re.escape(name)}\b",
        said,
    ), said
    assert "kafka-acls.sh --bootstrap-server" in said and "\n" not in said


def test_the_page_lists_these_rights() -> None:
    page = (REPOSITORY / "docs/kafka.md").read_text(encoding="utf-8")
    rows = {who.strip(): line for line in page.splitlines() if line.startswith("| ") for who in [line.split("|")[1]]}
    for who, (_, rights) in RIGHTS.items():
        row = rows[who]
        for operation, kind, name in rights:
            assert f"{operation.title()}" in row, (who, operation)
            assert f"`NAME.{name}`" in row or "the four topics" in row, (who, kind, name)


@contextmanager
def counting() -> Iterator[tuple[int, list[object]]]:
    """A port that takes connections, and those that it took."""
    taken: list[object] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    taken.append(server.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield server.getsockname()[1], taken
        server.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    "command",
    [
        ["status"],
        ["feedback", "export", "--out", "feedback.csv"],
        ["feedback", "erase", "--user", "u", "--reason", "asked"],
        ["prune"],
        ["round", "list"],
        ["model", "list"],
        ["labels", "list"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_these_commands_need_no_broker(command: list[str], settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.feature_store.store import default_feature_store_yaml

    registry_of(settings).close()
    (settings.root / "feature_store.yaml").write_text(default_feature_store_yaml(settings.model.name), encoding="utf-8")
    monkeypatch.chdir(settings.root)
    with counting() as (port, taken):
        config = f'[model]\nname = "{settings.model.name}"\n[kafka]\nbootstrap_servers = "127.0.0.1:{port}"\n'
        (settings.root / "ratchet.toml").write_text(config, encoding="utf-8")
        done = CliRunner().invoke(cli, command)
        assert done.exit_code == 0, done.output or done.exception
    assert not taken
