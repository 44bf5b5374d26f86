"""Every security of Apache Kafka, from every process and command that connects to it; and what each says if it cannot."""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pipelines.feature_store.store import FeatureStore
from schemas.events import utc_now
from schemas.records import Champion
from schemas.settings import Settings
from services.checks.preflight import problems
from services.cli import doctor
from services.cli.main import cli
from services.feedback_consumer import Consumer, run
from services.projects import open_project
from services.rounds.announce import announce
from services.up import Supervisor, UpError
from serving.messaging.connection import Broker, BrokerRefused, BrokerUnavailable
from serving.messaging.consumer import Subscription
from serving.messaging.outbox import Outbox
from serving.messaging.outbox_sender import Keep
from serving.messaging.publisher import Outgoing, Publisher, Topics, ensure_topics, topic_ids
from serving.registry.registry import Registry
from tests.support.events import feedback, named, prediction
from tests.support.fakes import free_port
from tests.support.kafka_security import PASSWORDS, SecureKafka, token
from tests.support.kafka_tools import failure_at_once, read_all

pytestmark = pytest.mark.kafka

SECRETS = {"RATCHET_KAFKA_PASSWORD": "app-secret"}
# name: (listener, further settings, secrets)
SECURITIES: dict[str, tuple[str, dict[str, Any], dict[str, str]]] = {
    "none": ("PLAINTEXT", {"compression": "gzip", "topic_prefix": "team."}, {}),
    "SASL PLAIN": ("SASL", {}, SECRETS),
    "SCRAM-SHA-256": ("SASL", {"sasl_mechanism": "SCRAM-SHA-256"}, SECRETS),
    "SCRAM-SHA-512, TLS": ("SASL_TLS", {"sasl_mechanism": "SCRAM-SHA-512"}, SECRETS),
    "OAUTHBEARER": ("SASL", {"sasl_mechanism": "OAUTHBEARER"}, {"RATCHET_KAFKA_TOKEN": token("app")}),
    "TLS, private CA": ("TLS", {}, {}),
    "mutual TLS": ("MUTUAL", {}, {}),
    "mutual TLS, encrypted key": (
        "MUTUAL",
        {"ssl_certificate_file": "app-locked.pem", "ssl_key_file": "app-locked.key"},
        {"RATCHET_KAFKA_KEY_PASSWORD": "key-secret"},
    ),
}


Make = Callable[[str, dict[str, Any], dict[str, str]], Settings]


@pytest.fixture
def project(tmp_path: Path, kafka: SecureKafka, model_name: str) -> Make:
    return lambda listener, changes, secrets: kafka.project(tmp_path, model_name, listener, changes, secrets)


@pytest.fixture
def kafka(secured_kafka: SecureKafka) -> SecureKafka:
    return secured_kafka


def _registry(settings: Settings) -> Registry:
    registry = Registry(settings.registry_url, settings.model.name)
    registry.migrate()
    registry.set_labels(["a", "b"])
    return registry


def _broker_check(settings: Settings) -> doctor.Check:
    return doctor.check_broker(settings)


def _replay(settings: Settings) -> Any:
    return CliRunner().invoke(cli, ["feedback", "replay", "--dlq", "-c", str(settings.path("ratchet.toml"))])


@pytest.mark.parametrize("security", SECURITIES)
def test_every_process_and_command_connects(
    security: str, project: Make, kafka: SecureKafka, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    settings = project(*SECURITIES[security])
    broker, topics = Broker.of(settings), Topics.of(settings.stream_name)
    assert problems(settings, "kafka", "addresses") == []
    ensure_topics(broker, topics.names(), partitions=1, replication_factor=1, timeout_s=30)
    with closing(_registry(settings)) as registry:
        box = Outbox(
            settings.path("state/outbox"), broker=broker, topics=topics, keep=Keep.UNTIL_CONFIRMED,
            stored_positions=registry.positions, max_bytes=1_000_000, timeout_s=5,
        )  # fmt: skip
        box.start()
        box.put_prediction(named(prediction(1), settings.model.name))
        box.put_feedback(named(feedback(1), settings.model.name)).result(timeout=60)
        box.close(5)
        stop = threading.Event()
        stop.set()
        consumer = Consumer(settings, registry, FeatureStore(settings))
        run(consumer, stop, 0.2, drain_s=90.0)
        consumer.reset()
        assert FeatureStore(settings).stored_events() == {"predictions": 1, "feedback": 1}
        announce(settings, registry, _champion(settings))
    assert len(read_all(kafka.address("PLAINTEXT"), topics.promotions)) == 1
    check = _broker_check(settings)
    assert (check.verdict, check.part) == ("ok", "broker"), check.sentence
    replayed = _replay(settings)
    assert replayed.exit_code == 0, replayed.output
    assert not any(secret in caplog.text for secret in SECURITIES[security][2].values())


def _champion(settings: Settings) -> Champion:
    return Champion(
        model_name=settings.model.name, model_version="v1", generation=1, round_id=None, actor="me", digest="0",
        promoted_at=utc_now(),
    )  # fmt: skip


_WRONG_PASSWORD = {"RATCHET_KAFKA_PASSWORD": "geheim"}
# what is wrong: (listener, changed settings, secrets, what the line says)
WRONG: dict[str, tuple[str, dict[str, Any], dict[str, str], str]] = {
    "password": (
        "SASL",
        {},
        _WRONG_PASSWORD,
        "refuses user 'app' (Authentication failed: Invalid username or password): check",
    ),
    "password of SCRAM": (
        "SASL",
        {"sasl_mechanism": "SCRAM-SHA-256"},
        _WRONG_PASSWORD,
        "refuses user 'app' (Authentication",
    ),
    "user": ("SASL_TLS", {"sasl_username": "nobody"}, SECRETS, "refuses user 'nobody'"),
    "expired token": (
        "SASL",
        {"sasl_mechanism": "OAUTHBEARER"},
        {"RATCHET_KAFKA_TOKEN": token("app", -60)},
        "refuses RATCHET_KAFKA_TOKEN",
    ),
    "mechanism": (
        "SASL_TLS",
        {"sasl_mechanism": "OAUTHBEARER"},
        {"RATCHET_KAFKA_TOKEN": token("app")},
        "does not accept kafka.sasl_mechanism = 'OAUTHBEARER': it accepts PLAIN, SCRAM-SHA-512",
    ),
    "a login where none is": (
        "PLAINTEXT",
        {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN", "sasl_username": "app"},
        SECRETS,
        'has no SASL: set kafka.security_protocol to "PLAINTEXT"',
    ),
    "no login": (
        "SASL",
        {"security_protocol": "PLAINTEXT", "sasl_mechanism": None, "sasl_username": None},
        {},
        'wants a user: set kafka.security_protocol to "SASL_PLAINTEXT"',
    ),
    "TLS where none is": ("PLAINTEXT", {"security_protocol": "SSL"}, {}, "speaks no TLS: set kafka.security_protocol"),
    "no TLS": (
        "TLS",
        {"security_protocol": "PLAINTEXT", "ssl_ca_file": None},
        {},
        'speaks TLS: set kafka.security_protocol to "SSL"',
    ),
    "CA": ("TLS", {"ssl_ca_file": "another-ca.pem"}, {}, "is not signed by the CAs of"),
    "the system's CAs": ("TLS", {"ssl_ca_file": None}, {}, "is not signed by a CA of this system"),
    "host name": ("ELSEWHERE", {}, {}, "is for another host"),
    "expired certificate": ("EXPIRED", {}, {}, "has expired: renew it on the broker"),
    "no client certificate": (
        "MUTUAL",
        {"ssl_certificate_file": None, "ssl_key_file": None},
        {},
        "wants a client certificate: set kafka.ssl_certificate_file and kafka.ssl_key_file",
    ),
    "client certificate of another CA": (
        "MUTUAL",
        {"ssl_certificate_file": "app-stranger.pem", "ssl_key_file": "app-stranger.key"},
        {},
        "refuses the client certificate",
    ),
    "expired client certificate": (
        "MUTUAL",
        {"ssl_certificate_file": "app-expired.pem", "ssl_key_file": "app-expired.key"},
        {},
        "app-expired.pem expired on",
    ),
    "advertised address": ("AWAY", {}, {}, "answers, but not the address that its cluster advertises: 127.0.0.1:"),
    "right": (
        "SASL",
        {"sasl_username": "weak"},
        {"RATCHET_KAFKA_PASSWORD": "weak-secret"},
        "User:weak lacks the right Describe on topic",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_line_at_once_in_every_process_and_command(case: str, project: Make) -> None:
    listener, changes, secrets, expected = WRONG[case]
    settings = project(listener, changes, secrets)
    broker, topics = Broker.of(settings), Topics.of(settings.stream_name)
    publisher = Publisher(broker, timeout_s=3)
    _registry(settings).close()
    supervisor = Supervisor(settings, settings.path("ratchet.toml"), lambda _line: None)
    attempts: dict[str, Callable[[], object]] = {
        "topics": lambda: topic_ids(broker, topics.names(), timeout_s=3),
        "consumer": lambda: Subscription(broker, [topics.feedback], group="g", start_at=lambda *_: 0).poll(3),
        "doctor": lambda: _fail(_broker_check(settings).sentence),
        "replay": lambda: _fail(str(_replay(settings).exception)),
        "up": supervisor.run,
    }
    if case == "right":  # its topics do not exist yet
        del attempts["consumer"]
    else:
        attempts["publisher"] = lambda: publisher.publish_many([Outgoing(topics.feedback, b"k", b"v")])
    if case == "advertised address":
        del attempts["up"]  # it waits for 20 s: the address may come
    for name, attempt in attempts.items():
        line = failure_at_once(attempt, BrokerUnavailable, UpError, Said)
        assert expected in line, f"{name}: {line}"
        assert "\n" not in line, name
        assert not any(secret in line for secret in (*secrets.values(), *PASSWORDS.values())), name


class Said(Exception):
    """What a command printed."""


def _fail(line: str) -> None:
    raise Said(line.removeprefix("Error: "))


def test_a_missing_secret_or_file_is_found_before_anything_connects(project: Make) -> None:
    keys = project("SASL", {}, {}).path("keys.env")
    assert problems(open_project(keys.parent), "kafka") == [
        f"user 'app' needs RATCHET_KAFKA_PASSWORD: write it into {keys}, or set it in the environment"
    ]
    broken = {
        "ssl_ca_file: No such file": {"ssl_ca_file": "gone.pem"},
        "ratchet.toml holds no certificate in PEM": {"ssl_ca_file": "ratchet.toml"},
        "is not the key of": {"ssl_key_file": "app-expired.key"},
        "app-locked.key is encrypted: set RATCHET_KAFKA_KEY_PASSWORD": {
            "ssl_certificate_file": "app-locked.pem",
            "ssl_key_file": "app-locked.key",
        },
    }
    for expected, changes in broken.items():
        (line,) = problems(project("MUTUAL", changes, {}), "kafka")
        assert expected in line
        keys.unlink()
    locked = broken["app-locked.key is encrypted: set RATCHET_KAFKA_KEY_PASSWORD"]
    settings = project("MUTUAL", locked, {"RATCHET_KAFKA_KEY_PASSWORD": "no"})
    (line,) = problems(settings, "kafka")
    assert "RATCHET_KAFKA_KEY_PASSWORD does not decrypt" in line


def test_the_environment_goes_before_keys_env(project: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = project("SASL", {}, _WRONG_PASSWORD)
    monkeypatch.setenv("RATCHET_KAFKA_PASSWORD", "app-secret")
    assert topic_ids(Broker.of(settings), ["none"], timeout_s=3) == {}
    assert "secret" not in repr(Broker.of(settings))


def test_a_dead_first_address_and_more_replicas_than_nodes(project: Make, kafka: SecureKafka, model_name: str) -> None:
    servers = f"127.0.0.1:{free_port()}, {kafka.address('PLAINTEXT')}"
    broker = Broker.of(project("PLAINTEXT", {"bootstrap_servers": servers}, {}))
    for _ in range(3):
        assert topic_ids(broker, [model_name], timeout_s=3) == {}
    with pytest.raises(
        BrokerRefused, match=r"kafka\.replication_factor = 3 is more than it has nodes: .*only 1 broker"
    ):
        ensure_topics(broker, [model_name], partitions=1, replication_factor=3, timeout_s=3)


def test_each_missing_right_is_named(project: Make, kafka: SecureKafka, allow: Callable[..., None]) -> None:
    weak = project("SASL", {"sasl_username": "weak"}, {"RATCHET_KAFKA_PASSWORD": "weak-secret"})
    broker, topics = Broker.of(weak), Topics.of(weak.stream_name)
    allow("DESCRIBE", "TOPIC", *topics.names())
    with pytest.raises(
        BrokerRefused, match=r"lacks .*\.predictions.*: create them, or allow it: User:weak lacks the right Create"
    ):
        ensure_topics(broker, topics.names(), partitions=1, replication_factor=1, timeout_s=3)
    ensure_topics(Broker(kafka.address("PLAINTEXT")), topics.names(), partitions=1, replication_factor=1, timeout_s=30)
    publisher = Publisher(broker, timeout_s=3)
    message = Outgoing(topics.feedback, b"k", b"v")
    command = rf"kafka-acls\.sh --bootstrap-server {broker} --add --allow-principal 'User:weak' --operation"
    with pytest.raises(
        BrokerRefused, match=rf"Write on topic {topics.feedback}: {command} Write --topic {topics.feedback}"
    ):
        publisher.publish_many([message])
    allow("READ", "GROUP", topics.owner_group)
    allow("READ", "TOPIC", topics.feedback)
    with closing(_registry(weak)) as registry:
        consumer = Consumer(weak, registry, FeatureStore(weak))
        with pytest.raises(BrokerRefused, match=rf"Read on group {topics.consumer_group}: {command} Read"):
            _step_until(consumer)
        consumer.reset()
        allow("READ", "GROUP", topics.consumer_group)
        with pytest.raises(BrokerRefused, match=rf"Read on topic {weak.stream_name}\.\w+: {command} Read"):
            _step_until(consumer)
        consumer.reset()
        check = _broker_check(weak)
        assert check.verdict == "FAIL"
        assert f"Write on topic {topics.predictions}, topic {topics.feedback}" in check.sentence
        allow("READ", "TOPIC", topics.predictions, topics.feedback, topics.dead_letters)
        allow("WRITE", "TOPIC", *topics.names())
        allow("READ", "GROUP", topics.replay_group)
        assert _broker_check(weak).verdict == "ok"
        publisher.publish_many([message])
        publisher.close()
        assert _replay(weak).exit_code == 0


def _step_until(consumer: Consumer) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        consumer.step(0.2)


@pytest.fixture
def allow(kafka: SecureKafka) -> Callable[..., None]:
    return kafka.allow
