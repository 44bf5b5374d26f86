"""Log segments of a stopped Apache Kafka: where its record batches lie, and damage to them.

Turns a segment's file into batches (a base offset of 8 bytes, a length of 4, then so many bytes: Kafka's message format 2). The
tests of a broker's failing disk call it.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_HEAD = struct.Struct(">qi")


@dataclass(frozen=True)
class Batch:
    """A batch: its first offset, where it begins in the file, and how many bytes follow its length."""

    base_offset: int
    position: int
    length: int


def batches(segment: Path) -> Iterator[Batch]:
    """Yield the batches of a whole segment in order."""
    data, position = segment.read_bytes(), 0
    while position + _HEAD.size <= len(data):
        base_offset, length = _HEAD.unpack_from(data, position)
        if length <= 0:  # preallocated
            return
        yield Batch(base_offset, position, length)
        position += _HEAD.size + length


def set_length(segment: Path, batch: Batch, length: int) -> None:
    """Overwrite the length of a batch in its header."""
    with segment.open("r+b") as file:
        file.seek(batch.position)
        file.write(_HEAD.pack(batch.base_offset, length))


def flip_bit(segment: Path, batch: Batch) -> None:
    """Flip a bit in the middle of a batch, which its checksum does not allow."""
    with segment.open("r+b") as file:
        file.seek(batch.position + _HEAD.size + batch.length // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
