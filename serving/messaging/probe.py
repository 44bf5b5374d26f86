"""A look at a broker: connect once, step by step, and name the step that fails.

Turns addresses and security into the address to use, or into an error that says what to change. kafka-python tries again
until its timeout and then reports only that it was "unable to bootstrap". connection.py calls this before it makes a client.
"""

import contextlib
import logging
import socket
import ssl
import time
from collections.abc import Iterator

from serving.messaging import causes
from serving.messaging.security import PASSWORD, BadSecurity, Security
from serving.messaging.wire import Closed, LoginRefused, NoSasl, OtherMechanisms, Wire

log = logging.getLogger("ratchet.broker")

CONNECT_SECONDS = 1.0
NODES = 3  # advertised addresses to look at


class Unreachable(ConnectionError):
    """No broker answers now; it may later."""


class Refused(ConnectionError):
    """The broker answers, and no later attempt with the same settings will succeed."""


def accepts(where: str) -> bool:
    """Return whether an address accepts connections."""
    try:
        _connect(where).close()
    except ConnectionError:
        return False
    return True


def examine(servers: str, security: Security, client_id: str, *, timeout_s: float) -> str:
    """Connect, log in, read the cluster's nodes and connect to them; return the first address that does all this.

    Raises:
        Unreachable: no address answers, or the cluster advertises addresses that cannot be reached.
        Refused: TLS or SASL failed for a reason that waiting does not cure.

    """
    deadline, problems = time.monotonic() + timeout_s, []
    for where in (server.strip() for server in servers.split(",")):
        try:
            nodes = _nodes(where, security, client_id, deadline)
            _examine_nodes(where, nodes, security, client_id, deadline)
        except Unreachable as error:
            problems.append(str(error))
        else:
            return where
    raise Unreachable("; ".join(problems))


def _examine_nodes(where: str, nodes: list[str], security: Security, client_id: str, deadline: float) -> None:
    """Connect to the addresses that the cluster advertises; only warn while one of them answers."""
    lost = []
    for node in nodes[:NODES]:
        try:
            if node != where:
                _nodes(node, security, client_id, deadline)
        except Unreachable as error:
            lost.append(str(error))
    if not lost:
        return
    line = f"{where} answers, but not the address that its cluster advertises: {'; '.join(lost)}"
    if len(lost) == len(nodes[:NODES]):
        raise Unreachable(f"{line}: set advertised.listeners of the broker, or make that address reachable from here")
    log.warning("%s", line)


def _connect(where: str, timeout_s: float = CONNECT_SECONDS) -> socket.socket:
    """Return a connected socket. Raises Unreachable with the reason, or Refused for an address without a port."""
    try:
        return socket.create_connection(_host_port(where), timeout=min(timeout_s, CONNECT_SECONDS))
    except Refused:
        raise
    except OSError as error:
        raise Unreachable(f"{where}: {causes.of_network(error)}") from error


def _host_port(where: str) -> tuple[str, int]:
    host, _, port = where.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise Refused(
            f"kafka.bootstrap_servers: {where!r} has no port: write host:port, such as {where.strip(':')}:9092"
        )
    return host.strip("[]"), int(port)


def _nodes(where: str, security: Security, client_id: str, deadline: float) -> list[str]:
    """Return the addresses that the cluster advertises for its nodes. Raises Unreachable or Refused."""
    step = "TLS" if security.tls else "greeting"
    try:
        with _open(where, security, deadline) as connection:
            wire = Wire(connection, client_id)
            step = "greeting"
            wire.greet()
            if security.sasl:
                step = "login"
                wire.log_in(str(security.mechanism), security.options(), _host_port(where)[0])
            step = "metadata"
            return wire.nodes()
    except (Unreachable, Refused):
        raise
    except BadSecurity as error:
        raise Refused(str(error)) from error
    except OSError as error:
        if isinstance(error, LoginRefused):
            security.forget_token()
        raise _named(error, step, where, security) from error


@contextlib.contextmanager
def _open(where: str, security: Security, deadline: float) -> Iterator[socket.socket]:
    """Yield a connection, with TLS if the security has it; no wait on it outlasts the deadline by much."""
    context = security.context() if security.tls else None
    left = max(0.1, deadline - time.monotonic())
    with _connect(where, left) as connection:
        connection.settimeout(left)
        if context is None:
            yield connection
        else:
            with context.wrap_socket(connection, server_hostname=_host_port(where)[0].rstrip(".")) as encrypted:
                yield encrypted


def _named(error: OSError, step: str, where: str, security: Security) -> Unreachable | Refused:
    """Return the error with its cause: first what the answer says, then what the port speaks instead."""
    if cause := causes.of_tls(error, where, security) or _of_login(error, where, security):
        return Refused(cause)
    prefix, with_tls = "SASL_" if security.sasl else "", "SSL" if security.tls else "PLAINTEXT"
    if step == "metadata" and isinstance(error, Closed) and not security.sasl:
        return Refused(f'{where} wants a user: set kafka.security_protocol to "SASL_{with_tls}", and the user')
    if step == "TLS" and _speaks_kafka(where):
        return Refused(f'{where} speaks no TLS: set kafka.security_protocol to "{prefix}PLAINTEXT", not "{prefix}SSL"')
    if step == "greeting" and not security.tls and _speaks_tls(where):
        return Refused(f'{where} speaks TLS: set kafka.security_protocol to "{prefix}SSL", not "{prefix}PLAINTEXT"')
    if step == "login" and security.token_url and type(error) is ConnectionError:
        return Unreachable(f"{where} wants a token, and {error}")
    if isinstance(error, TimeoutError):
        return Unreachable(f"{where} accepts connections and answers nothing")
    return Unreachable(f"{where} answers, but not as a Kafka broker: {str(error) or type(error).__name__}")


def _of_login(error: OSError, where: str, security: Security) -> str | None:
    """Return why the login failed; None if it did not."""
    if isinstance(error, NoSasl):
        return f'{where} has no SASL: set kafka.security_protocol to "{"SSL" if security.tls else "PLAINTEXT"}"'
    if isinstance(error, OtherMechanisms):
        return f"{where} does not accept kafka.sasl_mechanism = {security.mechanism!r}: it accepts {error or 'none'}"
    if isinstance(error, LoginRefused):
        return causes.of_login(where, security, str(error))
    if isinstance(error, PermissionError):
        return f"{where} wants a token, and {error}: check kafka.oauth_token_url, kafka.sasl_username and {PASSWORD}"
    return None


def _speaks_kafka(where: str) -> bool:
    """Return whether a port answers Kafka's first request without TLS."""
    with contextlib.suppress(OSError), _connect(where) as connection:
        Wire(connection, "ratchet").greet()
        return True
    return False


def _speaks_tls(where: str) -> bool:
    """Return whether a port answers a TLS greeting."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with contextlib.suppress(OSError), _connect(where) as connection, context.wrap_socket(connection):
        return True
    return False
