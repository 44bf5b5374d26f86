"""Bounded decompression of Kafka's four codecs: gzip, snappy, lz4 and zstd.

Turns the compressed bytes of a record batch into the records' bytes. record_batches.py calls it, `ratchet doctor` checks that
the libraries load. A few kilobytes can expand to gigabytes, so nothing is expanded beyond a limit. It does not know what the
bytes mean.
"""

import io
import zlib
from collections.abc import Callable
from importlib import import_module
from typing import Any

GZIP, SNAPPY, LZ4, ZSTD = 1, 2, 3, 4
CODECS = {GZIP: "gzip", SNAPPY: "snappy", LZ4: "lz4", ZSTD: "zstd"}  # by the codec bits of a batch's attributes
_LIBRARIES = {GZIP: "gzip", SNAPPY: "snappy", LZ4: "lz4.frame", ZSTD: "zstandard"}
_XERIAL = b"\x82SNAPPY\x00"  # begins snappy-java's stream of blocks; its two version numbers follow, eight bytes
_XERIAL_HEADER = 16


class CannotDecompress(ValueError):
    """Damaged data, data that expand beyond the limit, an unknown codec or a library that is missing."""


def decompress(codec: int, data: bytes, limit: int) -> bytes:
    """Return the bytes of `data`, at most `limit` of them. Raises CannotDecompress."""
    decode = _DECODERS.get(codec)
    if decode is None:
        raise CannotDecompress(f"unknown codec {codec}")
    try:
        expanded = decode(data, limit)
    except CannotDecompress as error:
        raise CannotDecompress(f"{CODECS[codec]}: {error}") from error
    except Exception as error:  # each library has errors of its own
        raise CannotDecompress(f"{CODECS[codec]}: {type(error).__name__}: {error}") from error
    if len(expanded) > limit:
        raise CannotDecompress(f"{CODECS[codec]}: more than {limit} bytes when decompressed")
    return expanded


def missing_codecs() -> list[str]:
    """Return the names of the codecs that do not decompress what they have compressed, with the reason."""
    missing = []
    for codec, library in _LIBRARIES.items():
        try:
            sample = bytes(import_module(library).compress(b"ratchet"))
            works = decompress(codec, sample, 100) == b"ratchet"
            reason = "returns other bytes than it was given"
        except Exception as error:
            works, reason = False, str(error)
        if not works:
            missing.append(f"{CODECS[codec]} ({reason})")
    return missing


def _gzip(data: bytes, limit: int) -> bytes:
    return _members(lambda: zlib.decompressobj(wbits=31), data, limit)


def _members(decoder: Callable[[], Any], data: bytes, limit: int) -> bytes:
    """Return the bytes of members after one another, each with a decoder of its own."""
    parts, size = [], 0
    while data and size <= limit:
        member = decoder()
        parts.append(member.decompress(data, limit + 1 - size))
        size += len(parts[-1])
        if not member.eof and size <= limit:
            raise CannotDecompress("the data end early")
        data = member.unused_data or b""
    return b"".join(parts)


def _snappy(data: bytes, limit: int) -> bytes:
    import snappy

    if not data.startswith(_XERIAL):
        return _snappy_block(snappy.decompress, data, limit)
    parts, size, at = [], 0, _XERIAL_HEADER
    while at < len(data) and size <= limit:
        end = at + 4 + int.from_bytes(data[at : at + 4])
        if end > len(data):
            raise CannotDecompress("the data end early")
        parts.append(_snappy_block(snappy.decompress, data[at + 4 : end], limit - size))
        size += len(parts[-1])
        at = end
    return b"".join(parts)


def _snappy_block(decode: Callable[[bytes], bytes], data: bytes, limit: int) -> bytes:
    """Return a block's bytes. Snappy allocates what the block's first varint claims, so look at that first."""
    claimed = shift = 0
    for byte in data[:5]:
        claimed |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    if claimed > limit:
        raise CannotDecompress(f"{claimed} more bytes when decompressed; the limit leaves {limit}")
    return decode(data)


def _lz4(data: bytes, limit: int) -> bytes:
    import lz4.frame

    return _members(lz4.frame.LZ4FrameDecompressor, data, limit)


def _zstd(data: bytes, limit: int) -> bytes:
    import zstandard

    with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data), read_across_frames=True) as reader:
        return bytes(reader.read(limit + 1))


_DECODERS: dict[int, Callable[[bytes, int], bytes]] = {GZIP: _gzip, SNAPPY: _snappy, LZ4: _lz4, ZSTD: _zstd}
