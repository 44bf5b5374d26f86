"""The few requests of Kafka's protocol that tell why a connection fails, on a socket with time-outs.

Turns a connected socket into answers of one broker: it logs in and reads the addresses of the cluster's nodes. probe.py uses
it, because kafka-python reports neither the step that failed nor what the broker answered. Formats: the Kafka protocol guide
(https://kafka.apache.org/protocol), in versions that every broker since 1.0 speaks.
"""

import socket
import struct
from typing import Any

from kafka.net.sasl import get_sasl_mechanism

METADATA, SASL_HANDSHAKE, API_VERSIONS, SASL_AUTHENTICATE = 3, 17, 18, 36
LONGEST = 10_000_000  # bytes of an answer; TLS and HTTP read as longer ones
_ILLEGAL_SASL_STATE = 34


class NotKafka(ConnectionError):
    """The answer is none of Kafka's protocol."""


class Closed(ConnectionError):
    """The broker closed the connection instead of answering."""


class NoSasl(ConnectionError):
    """This listener has no SASL."""


class OtherMechanisms(ConnectionError):
    """This listener does not accept the SASL mechanism; the message lists those that it accepts."""


class LoginRefused(ConnectionError):
    """The broker refused user, password or token; the message is the broker's, or empty."""


class Wire:
    """One connection to one broker."""

    def __init__(self, connection: socket.socket, client_id: str) -> None:
        self._socket = connection
        self._client_id = _text(client_id)

    def greet(self) -> None:
        """Ask which requests the broker knows, as every client does first. Raises NotKafka or Closed."""
        self._ask(API_VERSIONS, 0, b"")

    def log_in(self, mechanism: str, options: dict[str, Any], host: str) -> None:
        """Authenticate with SASL. Raises NoSasl, OtherMechanisms, LoginRefused, NotKafka or Closed."""
        try:
            answer = _Answer(self._ask(SASL_HANDSHAKE, 1, _text(mechanism)))
        except Closed as error:
            raise NoSasl("the broker closed the connection") from error
        code = answer.number("h")
        if code == _ILLEGAL_SASL_STATE:
            raise NoSasl("illegal SASL state")
        accepted = [answer.text() for _ in range(answer.number("i"))]
        if code or mechanism not in accepted:
            raise OtherMechanisms(", ".join(accepted))
        made = get_sasl_mechanism(mechanism)(host=host, **options)
        while not made.is_done():
            data = made.auth_bytes()
            try:
                answer = _Answer(self._ask(SASL_AUTHENTICATE, 0, struct.pack(">i", len(data)) + data))
            except Closed as error:
                raise LoginRefused("") from error
            code, reason = answer.number("h"), answer.text()
            if code:
                raise LoginRefused(reason)
            try:
                made.receive(answer.data())
            except (ValueError, KeyError) as error:
                raise LoginRefused(f"the broker's proof of the password is wrong: {error}") from error

    def nodes(self) -> list[str]:
        """Return the addresses that the cluster advertises. Raises NotKafka or Closed."""
        answer = _Answer(self._ask(METADATA, 1, struct.pack(">i", 0)))
        addresses = []
        for _ in range(answer.number("i")):
            answer.number("i")
            host, port = answer.text(), answer.number("i")
            answer.text()
            addresses.append(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        return addresses

    def _ask(self, key: int, version: int, body: bytes) -> bytes:
        request = struct.pack(">hhi", key, version, 0) + self._client_id + body
        try:
            self._socket.sendall(struct.pack(">i", len(request)) + request)
            length = struct.unpack(">i", self._read(4))[0]
            if not 4 <= length <= LONGEST:
                raise NotKafka(f"an answer of {length} bytes")
            return self._read(length)[4:]
        except (BrokenPipeError, ConnectionResetError) as error:
            raise Closed("the broker closed the connection") from error

    def _read(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            part = self._socket.recv(min(65536, length - len(data)))
            if not part:
                raise Closed("the broker closed the connection")
            data += part
        return data


class _Answer:
    """An answer, read from its beginning."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def number(self, kind: str) -> int:
        """Return the next integer of a `struct` format."""
        size = struct.calcsize(kind)
        try:
            (value,) = struct.unpack_from(f">{kind}", self._data, self._at)
        except struct.error as error:
            raise NotKafka("an answer that is cut off") from error
        self._at += size
        return int(value)

    def text(self) -> str:
        """Return the next text; an empty one for null."""
        return self._bytes(self.number("h")).decode("utf-8", "replace")

    def data(self) -> bytes:
        """Return the next bytes."""
        return self._bytes(self.number("i"))

    def _bytes(self, length: int) -> bytes:
        start, self._at = self._at, self._at + max(0, length)
        return self._data[start : self._at]


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack(">h", len(data)) + data
