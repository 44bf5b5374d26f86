"""Record batches byte by byte, as no well-meaning producer writes them, and the request that sends them to a broker.

The layout is that of Kafka's message format 2 (https://kafka.apache.org/documentation/#recordbatch).
"""

import socket
import struct
import time
from collections.abc import Sequence

from crc32c import crc32c

Header = tuple[bytes, bytes | None]


def varint(number: int) -> bytes:
    """A zigzag varint."""
    left, out = (number << 1) ^ (number >> 63), bytearray()
    while left > 0x7F:
        out.append(left & 0x7F | 0x80)
        left >>= 7
    return bytes([*out, left])


def nullable(data: bytes | None) -> bytes:
    return varint(-1) if data is None else varint(len(data)) + data


def record(value: bytes | None, *, key: bytes | None = b"k", at: int = 0, headers: Sequence[Header] = ()) -> bytes:
    """A record at offset delta `at`."""
    fields = b"\0" + varint(0) + varint(at) + nullable(key) + nullable(value) + varint(len(headers))
    fields += b"".join(varint(len(name)) + name + nullable(content) for name, content in headers)
    return varint(len(fields)) + fields


def batch(
    records: bytes,
    count: int,
    *,
    codec: int = 0,
    base: int = 0,
    timestamp_ms: int | None = None,
    deltas: int | None = None,
) -> bytes:
    """A batch around `records`, which are compressed already if `codec` says so; its checksum is right."""
    now = int(time.time() * 1000) if timestamp_ms is None else timestamp_ms
    last = count - 1 if deltas is None else deltas
    body = struct.pack(">hiqqqhii", codec, last, now, now, -1, -1, -1, count) + records
    after_length = struct.pack(">ibI", 0, 2, crc32c(body)) + body
    return struct.pack(">qi", base, len(after_length)) + after_length


def send(address: str, topic: str, partition: int, data: bytes) -> tuple[int, int]:
    """Send one batch in a produce request of version 7; return the broker's error code and the batch's offset."""
    host, _, port = address.rpartition(":")
    name = struct.pack(">h", len(topic)) + topic.encode()
    body = struct.pack(">hhi", -1, -1, 10_000) + struct.pack(">i", 1) + name
    body += struct.pack(">iii", 1, partition, len(data)) + data
    request = struct.pack(">hhih", 0, 7, 7, 3) + b"raw" + body
    with socket.create_connection((host, int(port)), timeout=60) as connection, connection.makefile("rb") as answer:
        connection.sendall(struct.pack(">i", len(request)) + request)
        size = struct.unpack(">i", answer.read(4))[0]
        response = answer.read(size)
    at = 4 + 4 + 2 + len(topic) + 4 + 4  # correlation id, topics, name, partitions, partition
    error, offset = struct.unpack_from(">hq", response, at)
    return int(error), int(offset)
