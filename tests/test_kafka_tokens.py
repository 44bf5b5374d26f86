"""OAUTHBEARER with tokens of an identity provider: a real endpoint on loopback, and Apache Kafka that checks what it gives."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pipelines.feature_store.store import FeatureStore
from schemas.settings import Settings
from services.cli import doctor
from services.feedback_consumer import Consumer, run
from services.up import Supervisor, UpError
from serving.messaging.connection import Broker, BrokerRefused, BrokerUnavailable
from serving.messaging.project_topics import make_topics
from serving.messaging.publisher import Outgoing, Publisher, Topics, topic_ids
from serving.registry.registry import Registry
from tests.support.events import feedback, outgoing
from tests.support.fakes import free_port, wait_until
from tests.support.kafka_security import REAUTH_MS, SecureKafka
from tests.support.kafka_tools import failure_at_once
from tests.support.token_server import TokenServer, token_server

pytestmark = pytest.mark.kafka


@pytest.fixture
def tokens() -> Iterator[TokenServer]:
    with token_server() as server:
        yield server


@pytest.fixture
def project(tmp_path: Path, secured_kafka: SecureKafka, model_name: str) -> Callable[..., Settings]:
    def make(url: str, *, listener: str = "SASL", secret: str = TokenServer.secret, **changes: object) -> Settings:
        settings = {"sasl_mechanism": "OAUTHBEARER", "oauth_token_url": url, **changes}
        secrets = {"RATCHET_KAFKA_PASSWORD": secret}
        return secured_kafka.project(tmp_path, model_name, listener, settings, secrets)

    return make


def test_one_token_serves_every_client_of_a_process(project: Callable[..., Settings], tokens: TokenServer) -> None:
    settings = project(tokens.url, oauth_scope="kafka")
    broker, topics = Broker.of(settings), Topics.of(settings.stream_name)
    make_topics(settings, broker)
    with closing(Publisher(broker, timeout_s=30)) as publisher:
        publisher.publish_many([Outgoing(topics.feedback, b"k", b"v")])
    assert doctor.check_broker(settings).verdict == "ok"
    assert tokens.scopes == ["kafka"], "fetched once, with the scope"


# what is wrong: what the endpoint does, or settings; and what the line says
Wrong = tuple[Callable[[TokenServer], object], dict[str, object], str]
WRONG: dict[str, Wrong] = {
    "secret": (lambda _: None, {"secret": "geheim"}, r"gives client 'app' none: HTTP 401 \(invalid_client\): check"),
    "client": (
        lambda _: None,
        {"sasl_username": "eve"},
        r"gives client 'eve' none: HTTP 401 \(invalid_client\): check",
    ),
    "scope": (
        lambda _: None,
        {"oauth_scope": "forbidden"},
        r"gives client 'app' none: HTTP 400 \(invalid_scope\): check",
    ),
    "path": (
        lambda tokens: vars(tokens).update(status=404),
        {},
        r"gives client 'app' none: HTTP 404: check kafka\.oauth_token_url",
    ),
    "overloaded": (
        lambda tokens: vars(tokens).update(status=503),
        {},
        r"wants a token, and \S+ gives client 'app' none: HTTP 503$",
    ),
    "silent": (lambda tokens: vars(tokens).update(delay_s=30.0), {}, r"wants a token, and \S+ gives none: timed out$"),
    "expired": (
        lambda tokens: vars(tokens).update(lives_s=-60.0),
        {},
        r"refuses the token of \S+ \(.*\): check issuer, audience and expiry",
    ),
    "expired, and the endpoint denies it": (
        lambda tokens: vars(tokens).update(lives_s=-60.0, claims_s=3600.0),
        {},
        r"refuses the token of \S+ \(.*\): check issuer, audience and expiry",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_line_at_once(case: str, project: Callable[..., Settings], tokens: TokenServer) -> None:
    harm, changes, expected = WRONG[case]
    harm(tokens)
    one_line_at_once(project(tokens.url, **changes), expected)
    tokens.status, tokens.delay_s, tokens.lives_s, tokens.claims_s = None, 0.0, 3600.0, None
    if not changes:
        topic_ids(Broker.of(project(tokens.url)), ["none"], timeout_s=30)  # at once, once the endpoint is mended


def test_an_endpoint_that_is_down_is_one_line_at_once(project: Callable[..., Settings]) -> None:
    one_line_at_once(project(f"http://127.0.0.1:{free_port()}/token"), r"wants a token, and \S+ gives none: .*refused")


def one_line_at_once(settings: Settings, expected: str) -> None:
    """Every way to connect fails at once with the line; so does `up`, or it shows the line and tries again."""
    broker, topics = Broker.of(settings), Topics.of(settings.stream_name)
    shown: list[tuple[float, str]] = []  # by `up`, and when

    def up() -> None:
        def say(line: str) -> None:
            if not supervisor.stop.is_set():
                shown.append((time.monotonic(), line.removesuffix(": trying again for 20 s")))
            supervisor.stop.set()

        shown.clear()
        supervisor = Supervisor(settings, settings.path("ratchet.toml"), say)
        supervisor.run()
        raise BrokerUnavailable(shown[0][1])

    def ended() -> float:
        return shown[0][0] if shown else time.monotonic()

    attempts: dict[str, Callable[[], object]] = {
        "topics": lambda: topic_ids(broker, topics.names(), timeout_s=4),
        "publisher": lambda: Publisher(broker, timeout_s=4).publish_many([Outgoing(topics.feedback, b"k", b"v")]),
        "doctor": lambda: _raise(doctor.check_broker(settings).sentence),
        "up": up,
    }
    for name, attempt in attempts.items():
        line = failure_at_once(attempt, BrokerUnavailable, UpError, ended=ended)
        assert re.search(expected, line), f"{name}: {line}"
        assert "\n" not in line and TokenServer.secret not in line, name


def _raise(line: str) -> None:
    raise BrokerUnavailable(line)


def test_a_connection_outlives_its_token(
    project: Callable[..., Settings], tokens: TokenServer, secured_kafka: SecureKafka
) -> None:
    """The broker ends connections after REAUTH_MS; tokens live for less than that, and the endpoint is down for a while."""
    tokens.lives_s = REAUTH_MS / 1000 - 1
    settings = project(tokens.url, listener="REAUTH")
    broker, topics = Broker.of(settings), Topics.of(settings.stream_name)
    make_topics(settings, broker)
    with closing(Registry(settings.registry_url, settings.model.name)) as registry:
        registry.migrate()
        registry.set_labels(["a", "b"])
        features, stop = FeatureStore(settings), threading.Event()
        consumer = Consumer(settings, registry, features)
        thread = threading.Thread(target=run, args=(consumer, stop, 0.2))
        thread.start()
        publisher = Publisher(broker, timeout_s=10, patient=True)
        try:
            wait_until(lambda: consumer.ready)
            begun, sent = time.monotonic(), 0
            for seconds, status in ((5, 503), (8, None)):
                threading.Timer(seconds, setattr, (tokens, "status", status)).start()
            while time.monotonic() - begun < 5 * REAUTH_MS / 1000:
                event = feedback(sent, model_name=settings.model.name)
                delivery = publisher.send([outgoing(topics, event)])
                wait_until(lambda delivery=delivery: delivery.wait(10))  # type: ignore[misc]
                sent += 1
                time.sleep(0.3)
            wait_until(lambda: features.stored_events()["feedback"] == sent, every_s=0.5)
        finally:
            stop.set()
            thread.join(60)
            consumer.reset()
            publisher.close()
    assert sent > 10
    assert len(set(tokens.issued)) > 4, "new ones, for both clients"


def test_a_token_that_the_broker_refuses_is_not_used_again(
    project: Callable[..., Settings], tokens: TokenServer
) -> None:
    tokens.lives_s, tokens.claims_s = -60.0, 3600.0  # the issuer's clock is wrong
    broker = Broker.of(project(tokens.url))
    with pytest.raises(BrokerRefused, match="refuses the token"):
        topic_ids(broker, ["none"], timeout_s=30)
    tokens.lives_s = 3600.0
    assert topic_ids(broker, ["none"], timeout_s=30) == {}
