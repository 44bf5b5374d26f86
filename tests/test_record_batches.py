"""Record batches that no well-meaning producer writes: the reader gets past each, and loses no record beside it."""

import gzip
import random
import struct
from collections.abc import Callable
from typing import Any

import lz4.frame
import pytest
import snappy
import zstandard
from crc32c import crc32c

from serving.messaging.decompression import CannotDecompress, decompress, missing_codecs
from serving.messaging.record_batches import MAX_RECORD_BYTES, Damaged, Records, Unreadable
from tests.support.raw_batches import batch, record, varint

COMPRESS: dict[int, Callable[[bytes], bytes]] = {
    1: gzip.compress,
    2: snappy.compress,
    3: lz4.frame.compress,
    4: zstandard.ZstdCompressor().compress,
}


def read(data: bytes, at: int = 0, *, retry: bool = False) -> list[tuple[int, Any, Any]]:
    """Offset, value and headers of each record; the value of an unreadable one is its reason."""
    records, out = Records(data, at, lambda _: retry), []
    while (one := records.next_batch()) is not None:
        if one.is_control_batch:
            continue  # kafka-python does not ask for its records
        out += [(r.offset, r.value.reason if isinstance(r.value, Unreadable) else r.value, r.headers) for r in one]
    return out


def values(data: bytes, at: int = 0) -> list[tuple[int, Any]]:
    return [(offset, value) for offset, value, _ in read(data, at)]


@pytest.mark.parametrize("codec", COMPRESS)
def test_each_codec_is_read(codec: int) -> None:
    records = record(b"first") + record(b"second", at=1)
    assert values(batch(COMPRESS[codec](records), 2, codec=codec)) == [(0, b"first"), (1, b"second")]
    assert missing_codecs() == []


def test_snappy_of_java_is_read_in_blocks_and_a_block_that_points_backwards_does_not_hang() -> None:
    header = b"\x82SNAPPY\x00" + (1).to_bytes(4) * 2
    blocks = [snappy.compress(part) for part in (b"one ", b"two")]
    assert decompress(2, header + b"".join(len(b).to_bytes(4) + b for b in blocks), 100) == b"one two"
    with pytest.raises(CannotDecompress, match="end early"):
        decompress(2, header + b"\xff\xff\xff\xfc" + b"xxxx", 100)


@pytest.mark.parametrize("codec", COMPRESS)
def test_a_batch_that_expands_beyond_the_limit_is_passed_over(codec: int) -> None:
    bomb = COMPRESS[codec](bytes(80 << 20))
    (at, reason), last = values(batch(bomb, 3, codec=codec) + batch(record(b"good"), 1, base=3))
    assert at == 2 and "when decompressed" in reason and last == (3, b"good")


def test_a_claim_of_gigabytes_allocates_nothing() -> None:
    claim = bytes([0xFF, 0xFF, 0xFF, 0xFF, 0x0F])
    with pytest.raises(CannotDecompress, match="the limit leaves 100"):
        decompress(2, claim + b"\0", 100)


@pytest.mark.parametrize("codec", [*COMPRESS, 5, 7])
def test_a_batch_that_cannot_be_decompressed_is_one_message(codec: int) -> None:
    found = values(batch(b"no codec wrote this", 4, codec=codec) + batch(record(b"good"), 1, base=4))
    assert [offset for offset, _ in found] == [3, 4] and found[1][1] == b"good"


@pytest.mark.parametrize(
    "bad",
    [
        varint(3) + b"abc",  # fields beyond its end
        record(b"x", at=1000),  # an offset of other records: the position would jump past them
        record(b"x", at=0),  # the offset of the record before it
        varint(5) + b"\0\0\2\xff\xff",  # a key without end
    ],
    ids=["cut", "offset ahead", "offset again", "endless key"],
)
def test_only_the_bad_record_is_passed_over(bad: bytes) -> None:
    found = values(batch(record(b"first") + bad + record(b"last", at=2), 3))
    assert [offset for offset, _ in found] == [0, 1, 2]
    assert (found[0][1], found[2][1]) == (b"first", b"last") and isinstance(found[1][1], str)


def test_a_record_of_a_length_that_cannot_be_ends_its_batch() -> None:
    found = values(batch(record(b"first") + varint(-7) + record(b"last", at=2), 3) + batch(record(b"next"), 1, base=3))
    assert [offset for offset, _ in found] == [0, 2, 3] and "length" in found[1][1]


def test_a_record_that_expands_is_cut() -> None:
    data = batch(gzip.compress(record(bytes(MAX_RECORD_BYTES + 1))), 1, codec=1)
    [one] = list(Records(data, 0, lambda _: False).next_batch())
    assert isinstance(one.value, Unreadable) and len(one.value) == MAX_RECORD_BYTES


def test_header_names_that_are_not_utf_8_and_null_headers_are_read() -> None:
    data = batch(record(b"event", key=None, headers=[(b"gr\xf6\xdfe", b"1"), (b"nothing", None)]), 1)
    assert read(data) == [(0, b"event", [("gr\\xf6\\xdfe", b"1"), ("nothing", None)])]


def test_a_wrong_checksum_is_fetched_again_before_the_batch_is_passed_over() -> None:
    data = bytearray(batch(record(b"one") + record(b"two", at=1), 2))
    data[-1] ^= 1
    with pytest.raises(Damaged, match="checksum"):
        read(bytes(data), retry=True)
    (at, reason), last = values(bytes(data) + batch(record(b"good"), 1, base=2))
    assert at == 1 and "checksum" in reason and last == (2, b"good")


def test_a_damaged_header_never_takes_the_reader_back() -> None:
    data = bytearray(batch(record(b"one"), 1, base=7))
    data[23:27] = (1 << 30).to_bytes(4)  # the last offset's delta
    assert [offset for offset, _ in values(bytes(data) + batch(record(b"good"), 1, base=9), at=8)] == [8, 9]
    data[16] = 9  # a format of the future
    assert [offset for offset, _ in values(bytes(data), at=8)] == [8]


@pytest.mark.parametrize("base", [-5, 0, 1000, 1 << 60])
@pytest.mark.parametrize("length", [-13, -12, -1, 0, 60, 1 << 30])
def test_what_stands_behind_a_good_batch_cannot_take_its_records_or_move_the_reader_away(
    base: int, length: int
) -> None:
    """A batch whose length is damaged, or whatever lies behind one: a checksum covers neither length nor offset."""
    good = batch(b"".join(record(b"%d" % n, at=n) for n in range(5)), 5, base=10)
    read_now = values(good + struct.pack(">qi", base, length) + bytes(60), at=10)
    assert read_now[:5] == [(10 + n, b"%d" % n) for n in range(5)]
    offsets = [offset for offset, _ in read_now]
    assert offsets == sorted(set(offsets)), "never back"
    assert len(offsets) <= 6 and (base == 1000 or offsets[-1] <= 15), "one placeholder, for the offset that comes next"


@pytest.mark.parametrize("codec", [0, *COMPRESS])
def test_damage_of_any_kind_neither_raises_nor_moves_back(codec: int) -> None:
    chance = random.Random(codec)
    records = b"".join(record(b"value %d" % n, at=n, headers=[(b"h", b"x")]) for n in range(5))
    whole = batch(COMPRESS[codec](records) if codec else records, 5, codec=codec)
    following = batch(record(b"next"), 1, base=5)
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(21, len(data))] = chance.randrange(256)
        if chance.random() < 0.8:  # a producer's damage has a right checksum, a disk's has not
            data[17:21] = crc32c(bytes(data[21:])).to_bytes(4)
        offsets = [offset for offset, _ in values(bytes(data) + following)]
        assert offsets == sorted(set(offsets)) and offsets[-1] >= 5
