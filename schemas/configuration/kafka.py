"""The settings of Kafka: the cluster, its security and what Ratchet publishes.

Security settings that cannot work together are refused with the way out. Passwords and tokens are no settings: they come
from keys.env or the environment (serving/messaging/security.py).
"""

import re
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from schemas.setting_groups import Group

SecurityProtocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
Mechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"]
_SERVER = re.compile(r"(?:[\w.-]+|\[[0-9a-fA-F:.]+\]):(\d{1,5})")


class KafkaSettings(Group):
    """The Kafka broker."""

    bootstrap_servers: str | None = Field(
        None,
        description="host:port,... of a Kafka cluster. Unset: `ratchet up` starts the embedded broker on a free local port",
    )
    partitions: int = Field(2, ge=1, description="partitions of each topic, when Ratchet creates it")
    replication_factor: int = Field(
        1, ge=1, description="replicas of each topic, when Ratchet creates it; use 3 on a cluster"
    )
    outbox: bool = Field(
        True,
        description="feedback is accepted once it is on this machine's disk, whether the cluster answers or not; false, for "
        "a container without a lasting disk: once all in-sync replicas have it. The embedded broker always needs the outbox",
    )
    publish_timeout_s: float = Field(
        3.0, gt=0, description="seconds to wait for the broker; without kafka.outbox, feedback is refused after them"
    )
    broker_memory_mb: int = Field(
        256,
        ge=1,
        description="resident megabytes at which `ratchet up` restarts the embedded broker once everything is stored;"
        " at one and a half times as many it waits no longer. Linux only",
    )
    topic_prefix: str = Field(
        "", pattern=r"^[A-Za-z0-9._-]{0,100}$", description="precedes the name of every topic and consumer group"
    )
    client_id: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9._-]{1,100}$",
        description="name of this client in the broker's logs and quotas. Unset: ratchet-<model.name>",
    )
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = Field(
        "none", description="codec of what Ratchet publishes; it reads every codec"
    )
    security_protocol: SecurityProtocol = Field(
        "PLAINTEXT", description="PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL, as the broker's listener (docs/kafka.md)"
    )
    sasl_mechanism: Mechanism | None = Field(
        None, description="PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER, with SASL_PLAINTEXT and SASL_SSL alone"
    )
    sasl_username: str | None = Field(
        None,
        min_length=1,
        description="user of SASL, or client id at `oauth_token_url`. Its password is RATCHET_KAFKA_PASSWORD in keys.env "
        "or the environment",
    )
    oauth_token_url: str | None = Field(
        None,
        pattern="^https?://",
        description="OAUTHBEARER: address that gives tokens to clients (OAuth 2.0 client credentials). Unset: the token is "
        "RATCHET_KAFKA_TOKEN in keys.env or the environment",
    )
    oauth_scope: str | None = Field(None, min_length=1, description="scope to request at `oauth_token_url`")
    ssl_ca_file: str | None = Field(
        None, description="PEM file of the CAs that sign the brokers' certificates. Unset: the system's CAs"
    )
    ssl_certificate_file: str | None = Field(None, description="PEM file of this client's certificate, for mutual TLS")
    ssl_key_file: str | None = Field(
        None,
        description="PEM file of the certificate's private key; its password is RATCHET_KAFKA_KEY_PASSWORD in keys.env or "
        "the environment",
    )
    ssl_check_hostname: bool = Field(True, description="refuse a broker whose certificate is for another host")

    @field_validator("bootstrap_servers")
    @classmethod
    def _are_addresses(cls, value: str | None) -> str | None:
        for server in (value or "localhost:9092").split(","):
            match = _SERVER.fullmatch(server.strip())
            if not match or not 0 < int(match[1]) < 65536:
                raise ValueError(f"{server.strip()!r}: expected host:port, several separated by commas")
        return value

    @field_validator("security_protocol")
    @classmethod
    def _needs_servers(cls, value: str, info: ValidationInfo) -> str:
        if value != "PLAINTEXT" and "bootstrap_servers" in info.data and not info.data["bootstrap_servers"]:
            raise ValueError("needs kafka.bootstrap_servers; the embedded broker is local and has no security")
        return value

    @field_validator("sasl_mechanism", "sasl_username", "oauth_token_url", "oauth_scope")
    @classmethod
    def _fits_sasl(cls, value: str | None, info: ValidationInfo) -> str | None:
        protocol, mechanism = info.data.get("security_protocol"), info.data.get("sasl_mechanism")
        if protocol is None or (info.field_name != "sasl_mechanism" and "sasl_mechanism" not in info.data):
            return value  # refused already
        if not protocol.startswith("SASL_"):
            if value is not None:
                raise ValueError(f'works with SASL alone: set kafka.security_protocol to "SASL_SSL", not "{protocol}"')
        elif info.field_name == "sasl_mechanism":
            if value is None:
                raise ValueError(
                    f'{protocol} needs a mechanism: "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512" or "OAUTHBEARER"'
                )
        elif info.field_name == "sasl_username":
            if value is None and mechanism != "OAUTHBEARER":
                raise ValueError(f"{mechanism} needs a user: set kafka.sasl_username")
        elif value is not None and mechanism != "OAUTHBEARER":
            raise ValueError(f'works with kafka.sasl_mechanism = "OAUTHBEARER" alone, not "{mechanism}"')
        elif info.field_name == "oauth_token_url" and value is not None and not info.data.get("sasl_username"):
            raise ValueError("needs kafka.sasl_username, the client id")
        elif info.field_name == "oauth_scope" and value is not None and not info.data.get("oauth_token_url"):
            raise ValueError("needs kafka.oauth_token_url")
        return value

    @field_validator("ssl_ca_file", "ssl_certificate_file", "ssl_key_file", "ssl_check_hostname")
    @classmethod
    def _fits_tls(cls, value: str | bool | None, info: ValidationInfo) -> str | bool | None:
        protocol = info.data.get("security_protocol", "SSL")
        if value not in (None, True) and not protocol.endswith("SSL"):
            wanted = "SASL_SSL" if protocol.startswith("SASL") else "SSL"
            raise ValueError(f'works with TLS alone: set kafka.security_protocol to "{wanted}", not "{protocol}"')
        if info.field_name == "ssl_key_file" and "ssl_certificate_file" in info.data:
            certificate = info.data["ssl_certificate_file"]
            if certificate and not value:
                raise ValueError("kafka.ssl_certificate_file needs the private key: set kafka.ssl_key_file")
            if value and not certificate:
                raise ValueError("needs its certificate: set kafka.ssl_certificate_file")
        return value
