"""Causes of failed connections and refused requests, as one line each with the way out.

Turns errors of TLS, logins and access control into sentences. probe.py and connection.py call it; it connects to nothing.
"""

import socket
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kafka import errors

from serving.messaging.security import PASSWORD, TOKEN, Security

_EXPIRED, _HOST, _ADDRESS = 10, 62, 64  # X509_V_ERR_* of OpenSSL
_OF_PRODUCER = errors.ClusterAuthorizationFailedError.__name__
_ALERTS = ("CERTIFICATE", "UNKNOWN_CA", "HANDSHAKE_FAILURE", "DECRYPT_ERROR")


@dataclass(frozen=True)
class Right:
    """What a request needs: an operation on topics or on a consumer group, in the words of Kafka's ACLs."""

    operation: str
    topics: tuple[str, ...] = ()
    group: str | None = None


def of_tls(error: OSError, where: str, security: Security) -> str | None:
    """Return why the TLS connection to `where` failed; None if the error is none of certificates."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _of_certificate(error, where, security)
    if isinstance(error, ssl.SSLError) and any(alert in (error.reason or "").upper() for alert in _ALERTS):
        return _of_client_certificate(where, security)
    return None


def _of_certificate(error: ssl.SSLCertVerificationError, where: str, security: Security) -> str:
    if error.verify_code == _EXPIRED:
        return f"the certificate of {where} has expired: renew it on the broker"
    if error.verify_code in (_HOST, _ADDRESS):
        return (
            f"the certificate of {where} is for another host: connect by a name that it holds, or set "
            "kafka.ssl_check_hostname = false"
        )
    signer = f"the CAs of {security.ca_file}" if security.ca_file else "a CA of this system"
    way_out = "name its CA in kafka.ssl_ca_file" + (", or put that file right" if security.ca_file else "")
    return f"the certificate of {where} is not signed by {signer} ({error.verify_message}): {way_out}"


def _of_client_certificate(where: str, security: Security) -> str:
    if security.certificate_file is None:
        return f"{where} wants a client certificate: set kafka.ssl_certificate_file and kafka.ssl_key_file"
    if expired := _expired(security.certificate_file):
        return f"the client certificate {security.certificate_file} expired on {expired}: renew it"
    return (
        f"{where} refuses the client certificate {security.certificate_file}: the broker's truststore needs the CA that "
        "signed it"
    )


def _expired(certificate: Path) -> str | None:
    """Return the date on which a PEM certificate expired; None if it did not, or cannot be read."""
    decode = getattr(getattr(ssl, "_ssl", None), "_test_decode_cert", None)  # the standard library's only reader of PEM
    try:
        until = str(decode(str(certificate))["notAfter"]) if decode else ""
        return until if until and ssl.cert_time_to_seconds(until) < time.time() else None
    except (OSError, ValueError, KeyError):
        return None


def of_login(where: str, security: Security, message: str) -> str:
    """Return why a broker refused the login; `message` is its own, which may be empty."""
    detail = f" ({message.strip()})" if message.strip() else ""
    if security.mechanism == "OAUTHBEARER":
        source = f"the token of {security.token_url}" if security.token_url else TOKEN
        return f"{where} refuses {source}{detail}: check issuer, audience and expiry"
    return f"{where} refuses user {security.username!r}{detail}: check kafka.sasl_username and {PASSWORD}"


def of_rights(error: BaseException, broker: str, security: Security, right: Right) -> str | None:
    """Return which right is missing and the command that gives it; None if the error is none of access control."""
    if isinstance(error, errors.TopicAuthorizationFailedError):
        named = [str(t) for arg in error.args for t in (sorted(arg) if isinstance(arg, set | list | tuple) else [arg])]
        topics = [name for name in named if name and " " not in name] or list(right.topics)
        return missing_right(broker, security, right.operation, [("topic", name) for name in topics])
    if isinstance(error, errors.GroupAuthorizationFailedError):
        return missing_right(broker, security, "Read", [("group", right.group or "")])
    if _OF_PRODUCER in str(error):  # kafka-python wraps it; the right to write to any topic is enough since Kafka 2.8
        return missing_right(broker, security, right.operation, [("topic", name) for name in right.topics])
    return None


def missing_right(broker: str, security: Security, operation: str, resources: Sequence[tuple[str, str]]) -> str:
    """Return one line: who lacks which operation on what, and the command that allows it."""
    who = principal(security)
    shown = ", ".join(f"{kind} {name}" for kind, name in resources)
    options = " ".join(f"--{kind} {name}" for kind, name in resources)
    return (
        f"{who} lacks the right {operation} on {shown}: kafka-acls.sh --bootstrap-server {broker} --add "
        f"--allow-principal '{who}' --operation {operation} {options}"
    )


def principal(security: Security) -> str:
    """Return how the broker's access control names this client."""
    if security.username:
        return f"User:{security.username}"
    if security.certificate_file:
        return f"User:<subject of {security.certificate_file.name}>"
    return "User:<subject of the token>" if security.sasl else "User:ANONYMOUS"


def of_network(error: OSError) -> str:
    """Return why an address cannot be reached."""
    if isinstance(error, socket.gaierror):
        return f"no such host ({error.strerror})"
    if isinstance(error, TimeoutError):
        return "it does not answer"
    return (error.strerror or str(error) or type(error).__name__).lower()
