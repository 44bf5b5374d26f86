"""Apache Kafka with every kind of security on one node: a listener each, and users with and without rights.

The tests of connections use it. User `app` may do everything, `weak` only log in, passwords are `app-secret` and `weak-secret`;
clients without a user may do everything, and so may the certificate `CN=app`.
"""

import base64
import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kafka import KafkaAdminClient
from kafka.admin import (
    ACL,
    ACLFilter,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ResourcePattern,
    ResourcePatternFilter,
    ResourceType,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from pipelines.feature_store.store import default_feature_store_yaml
from schemas.settings import Settings
from services.projects import open_project
from serving.http.access import write_keys
from serving.messaging.connection import Broker
from serving.messaging.publisher import topic_ids
from tests.support.apache_kafka import HOME
from tests.support.certificates import Authority
from tests.support.fakes import free_port, wait_until

# name: (protocol, certificate of the broker, whether clients need one)
LISTENERS = {
    "PLAINTEXT": ("PLAINTEXT", "", False),
    "SASL": ("SASL_PLAINTEXT", "", False),
    "REAUTH": ("SASL_PLAINTEXT", "", False),  # ends a connection whose client does not log in again in time
    "TLS": ("SSL", "broker", False),
    "MUTUAL": ("SSL", "broker", True),
    "SASL_TLS": ("SASL_SSL", "broker", False),
    "EXPIRED": ("SSL", "expired", False),
    "ELSEWHERE": ("SSL", "elsewhere", False),
    "AWAY": ("PLAINTEXT", "", False),  # advertises a port where nobody listens
}
PASSWORDS = {"app": "app-secret", "weak": "weak-secret"}
_PLAIN = "org.apache.kafka.common.security.plain.PlainLoginModule required " + " ".join(
    f'user_{name}="{password}"' for name, password in PASSWORDS.items()
)
_SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
_TOKENS = (
    'org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="app";'
)


ANYTHING = ResourcePatternFilter(ResourceType.ANY, None, ACLResourcePatternType.ANY)
REAUTH_MS = 4000
NODE_SECONDS = 600.0  # to start: 6 s of two cores, much more where other tests take them
QUICK_START = {"JAVA_TOOL_OPTIONS": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"}


@dataclass
class SecureKafka:
    """A running node: the address of each listener, and the folder of the certificates."""

    folder: Path
    ports: dict[str, int]
    away: int
    authority: Authority

    def address(self, listener: str) -> str:
        return f"127.0.0.1:{self.ports[listener]}"

    def settings(self, listener: str) -> dict[str, Any]:
        """The settings under [kafka] with which user or certificate `app` connects to a listener."""
        protocol, certificate, mutual = LISTENERS[listener]
        made: dict[str, Any] = {"bootstrap_servers": self.address(listener), "security_protocol": protocol}
        if protocol.startswith("SASL"):
            made |= {"sasl_mechanism": "PLAIN", "sasl_username": "app"}
        if certificate:
            made["ssl_ca_file"] = str(self.authority.file)
        if mutual:
            made |= {name: str(self.folder / f"app.{end}") for name, end in _PAIR.items()}
        return made

    def project(
        self, folder: Path, model_name: str, listener: str, changes: dict[str, Any], secrets: dict[str, str]
    ) -> Settings:
        """Make a project whose files of certificates lie in its folder, and whose secrets are in keys.env; None unsets."""
        values = {name: v for name, v in (self.settings(listener) | changes).items() if v is not None}
        for file in self.folder.glob("*.[pk]e[my]"):
            (folder / file.name).write_bytes(file.read_bytes())
        lines = [f'[model]\nname = "{model_name}"', "[serving]", f"port = {free_port()}", "[kafka]"]
        lines += [f"{name} = {json.dumps(value)}" for name, value in values.items()]
        (folder / "ratchet.toml").write_text("\n".join(lines), encoding="utf-8")
        (folder / "feature_store.yaml").write_text(default_feature_store_yaml(model_name), encoding="utf-8")
        write_keys(folder / "keys.env")
        with (folder / "keys.env").open("a", encoding="utf-8") as keys:
            keys.write("".join(f"{name}='{value}'\n" for name, value in secrets.items()))
        return open_project(folder)

    def allow(self, operation: str, kind: str, *names: str) -> None:
        """Give `weak` an operation on topics or groups, and wait until the node knows it."""
        admin = KafkaAdminClient(bootstrap_servers=self.address("PLAINTEXT"))
        allowed, kinds = ACLPermissionType.ALLOW, ResourceType[kind]
        try:
            for name in names:
                resource = ResourcePattern(kinds, name)
                admin.create_acls([ACL("User:weak", "*", ACLOperation[operation], allowed, resource)])
        finally:
            admin.close()
        time.sleep(0.5)

    @contextlib.contextmanager
    def allowed(self, rights: Sequence[tuple[str, str, str]]) -> Iterator[None]:
        """Give `weak` operations on topics or groups (operation, kind, name) within the block."""
        for operation, kind, name in rights:
            self.allow(operation, kind, name)
        try:
            yield
        finally:
            admin = KafkaAdminClient(bootstrap_servers=self.address("PLAINTEXT"))
            anything = ACLFilter("User:weak", None, ACLOperation.ANY, ACLPermissionType.ANY, ANYTHING)
            try:
                admin.delete_acls([anything])
            finally:
                admin.close()


_PAIR = {"ssl_certificate_file": "pem", "ssl_key_file": "key"}


def token(subject: str, seconds: float = 3600) -> str:
    """An unsigned token, as the broker of the tests accepts it."""
    now = time.time()
    parts = ({"alg": "none"}, {"sub": subject, "iat": now - 10, "exp": now + seconds})
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts) + "."


@contextlib.contextmanager
def secure_kafka(folder: Path) -> Iterator[SecureKafka]:
    """Run the node until the block ends."""
    authority = _certificates(folder)
    ports = {name: free_port() for name in [*LISTENERS, "CONTROLLER"]}
    node = SecureKafka(folder, ports, free_port(), authority)
    with (folder / "kafka.log").open("wb") as log:
        command: list[str | Path] = [HOME / "start", folder / "kafka", str(ports["PLAINTEXT"]), *_settings(node)]
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | QUICK_START)
    try:

        def answers() -> bool:
            if process.poll() is not None:
                raise RuntimeError(f"Apache Kafka ended: {(folder / 'kafka.log').read_text(encoding='utf-8')[-2000:]}")
            with contextlib.suppress(ConnectionError):
                return topic_ids(Broker(node.address("PLAINTEXT")), ["any"], timeout_s=5) == {}
            return False

        wait_until(answers, timeout_s=NODE_SECONDS, every_s=0.3)
        _make_users(node.address("PLAINTEXT"))
        yield node
    finally:
        process.terminate()
        process.wait(30)


def _certificates(folder: Path) -> Authority:
    authority = Authority(folder, "ca")
    authority.issue("broker", "127.0.0.1", "localhost")
    authority.issue("expired", "127.0.0.1", days=-1)
    authority.issue("elsewhere", "kafka.example.org")
    authority.issue("app")
    authority.issue("app-locked", password="key-secret", common="app")
    authority.issue("app-expired", days=-1)
    stranger = Authority(folder, "another-ca")
    stranger.issue("app-stranger")
    for name in ("broker", "expired", "elsewhere"):
        chain = [(folder / f"{name}.key").read_bytes(), (folder / f"{name}.pem").read_bytes()]
        (folder / f"{name}.chain").write_bytes(b"".join(chain))
    return authority


def _settings(node: SecureKafka) -> list[str]:
    listeners = {name: f"127.0.0.1:{port}" for name, port in node.ports.items()}
    advertised = {name: where for name, where in listeners.items() if name != "CONTROLLER"}
    advertised["AWAY"] = f"127.0.0.1:{node.away}"
    protocols = {name: protocol for name, (protocol, _, _) in LISTENERS.items()} | {"CONTROLLER": "PLAINTEXT"}
    made = [
        "listeners=" + ",".join(f"{name}://{where}" for name, where in listeners.items()),
        "advertised.listeners=" + ",".join(f"{name}://{where}" for name, where in advertised.items()),
        "listener.security.protocol.map=" + ",".join(f"{name}:{protocol}" for name, protocol in protocols.items()),
        f"controller.quorum.voters=1@{listeners['CONTROLLER']}",
        "inter.broker.listener.name=PLAINTEXT",
        "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users=User:ANONYMOUS;User:app;User:CN=app",
        "sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER",
    ]
    for name, (protocol, certificate, mutual) in LISTENERS.items():
        its = f"listener.name.{name.lower()}"
        if protocol.startswith("SASL"):
            made += [
                f"{its}.plain.sasl.jaas.config={_PLAIN};",
                f"{its}.scram-sha-256.sasl.jaas.config={_SCRAM}",
                f"{its}.scram-sha-512.sasl.jaas.config={_SCRAM}",
            ]
            if name in ("SASL", "REAUTH"):
                made.append(f"{its}.oauthbearer.sasl.jaas.config={_TOKENS}")
            else:
                made.append(f"{its}.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512")
        if name == "REAUTH":
            made.append(f"{its}.oauthbearer.connections.max.reauth.ms={REAUTH_MS}")
        if certificate:
            made += [
                f"{its}.ssl.keystore.type=PEM",
                f"{its}.ssl.keystore.location={node.folder / f'{certificate}.chain'}",
                f"{its}.ssl.truststore.type=PEM",
                f"{its}.ssl.truststore.location={node.authority.file}",
                f"{its}.ssl.client.auth={'required' if mutual else 'none'}",
            ]
    return made


def _make_users(address: str) -> None:
    admin = KafkaAdminClient(bootstrap_servers=address)
    try:
        for mechanism in (ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512):
            admin.alter_user_scram_credentials(
                [UserScramCredentialUpsertion(name, mechanism, password) for name, password in PASSWORDS.items()]
            )
    finally:
        admin.close()
