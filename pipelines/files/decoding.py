"""Decode the bytes of a text file, or raise an error that says what they are.

Reads UTF-8, and UTF-16 or UTF-32 with a byte-order mark. Other encodings are refused, not guessed: a wrong guess would silently
change texts. reading.py calls it before it parses text formats.
"""

import codecs
import re

from pipelines.files.records import MOST_LISTED, BadFile, counted

_MARKS = (  # UTF-32 first: its mark begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_MAGIC = (
    (b"\x1f\x8b", "gzip-compressed data: decompress it first"),
    (b"BZh", "bzip2-compressed data: decompress it first"),
    (b"\xfd7zXZ", "xz-compressed data: decompress it first"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed data: decompress it first"),
    (b"PK\x03\x04", "a ZIP archive or a spreadsheet: unpack it, or name it .xlsx"),
    (b"\xd0\xcf\x11\xe0", "an Excel 97 workbook: save it as .xlsx or as CSV UTF-8"),
    (b"PAR1", "a Parquet file: name it .parquet"),
    (b"ARROW1", "an Arrow file: save it as .parquet"),
    (b"%PDF", "a PDF"),
    (b"version https://git-lfs", "a pointer of Git LFS: fetch the file with `git lfs pull`"),
)
_SHOWN = 4096  # first bytes, examined for binary data
_MARK = re.compile("^\ufeff", re.MULTILINE)  # at the start, and where files were concatenated
_MOST_CONTROLS = 0.02  # share of control characters in a text; clean.py removes a few


def decode(data: bytes) -> str:
    """Return the text of a file, without its byte-order mark. Raises BadFile."""
    refuse_magic(data)
    encoding = next((encoding for mark, encoding in _MARKS if data.startswith(mark)), "utf-8")
    head = data[:_SHOWN]
    if encoding == "utf-8" and (wide := _wide(head)):
        raise BadFile(f"looks like {wide} without a byte-order mark: save it as UTF-8")
    text = _decoded(data, encoding)
    if sum(ord(c) < 32 and c not in "\t\n\r\f" for c in text[:_SHOWN]) > len(text[:_SHOWN]) * _MOST_CONTROLS:
        raise BadFile("holds binary data, not text")
    return _MARK.sub("", text)


def refuse_magic(data: bytes, *, but: bytes = b"") -> None:
    """Raise BadFile if the first bytes are those of another format; `but` are those of the expected format."""
    for magic, meaning in _MAGIC:
        if data.startswith(magic) and magic != but:
            raise BadFile(f"holds {meaning}")


def _decoded(data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding in ("utf-8", "utf-8-sig"):
            raise BadFile(_not_utf8(data)) from error
        cut_off = "its last character is cut off" if error.end >= len(data) else f"byte {error.start} is invalid in it"
        raise BadFile(f"has the byte-order mark of {encoding.upper()}, but {cut_off}: save it as UTF-8") from error


def _wide(head: bytes) -> str | None:
    """Return "UTF-16" or "UTF-32" if the positions of NUL bytes indicate it."""
    even, odd = head[::2].count(0), head[1::2].count(0)
    if even + odd > len(head) * 0.6:
        return "UTF-32"
    return "UTF-16" if max(even, odd) > len(head) * 0.2 and min(even, odd) * 4 <= max(even, odd) else None


def _not_utf8(data: bytes) -> str:
    """Return a message with the lines that are not UTF-8, and the first character as Windows-1252."""
    bad: list[tuple[int, int]] = []  # line, its first bad byte
    # In UTF-8, 0x0A is never part of a longer character, so lines can be decoded one by one.
    for number, line in enumerate(data.split(b"\n"), start=1):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            bad.append((number, line[error.start]))
    controls = sum(byte < 32 and byte not in (9, 10, 12, 13) for byte in data[:_SHOWN])
    if controls > len(data[:_SHOWN]) * _MOST_CONTROLS:
        return f"line {bad[0][0]}: byte 0x{bad[0][1]:02X} is not UTF-8: this is binary data, not text"
    number, byte = bad[0]
    character = bytes([byte]).decode("cp1252", "replace")
    lines = ", ".join(str(number) for number, _ in bad[:MOST_LISTED]) + (", ..." if len(bad) > MOST_LISTED else "")
    return (
        f"line {number}: byte 0x{byte:02X} is not UTF-8 (in Windows-1252 it would be {character!r}); "
        f"{counted(len(bad))} of this kind (line{'s' * (len(bad) > 1)} {lines}): save the file as UTF-8 (Excel: 'CSV UTF-8')"
    )
