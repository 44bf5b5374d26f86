"""Made-up secrets of people, and a search for them in every byte that a project left behind.

The loop's test writes them into texts and comments. Parquet files are decompressed, SQLite databases read row by row,
archives opened; whatever else there is is searched as it lies.
"""

import gzip
import random
import sqlite3
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow.parquet as pq


def secrets_of_people(n: int) -> list[str]:
    """`n` different addresses, numbers and cards, none of which could be anything else."""
    draw = random.Random(7)
    kinds = [
        lambda: f"zq{draw.randrange(10**8):08}@example.org",
        lambda: f"+44 20 7946 {draw.randrange(10**4):04}",
        lambda: f"198.51.{draw.randrange(100, 256)}.{draw.randrange(100, 256)}",
        lambda: _with_check_digit(f"4{draw.randrange(10**14):014}"),
    ]
    found: dict[str, None] = {}
    while len(found) < n:
        found[kinds[len(found) % len(kinds)]()] = None
    return list(found)


def found_in(folder: Path, secrets: Iterable[str], *, without: Iterable[Path] = ()) -> list[str]:
    """'file: secret' for everything found below `folder`; `without` are the files that people gave us."""
    wanted = [(secret, secret.encode()) for secret in secrets]
    given = {path.resolve() for path in without}
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.resolve() not in given:
            for content in _contents(path):
                found += [f"{path.relative_to(folder)}: {secret}" for secret, sought in wanted if sought in content]
    return found


def _contents(path: Path) -> Iterator[bytes]:
    raw = path.read_bytes()
    yield raw
    if raw[:4] == b"PAR1":
        yield repr(pq.read_table(path).to_pylist()).encode()
    elif raw[:16] == b"SQLite format 3\0":
        with sqlite3.connect(path) as connection:
            yield "\n".join(connection.iterdump()).encode("utf-8", "replace")
        connection.close()
    elif raw[:2] == b"\x1f\x8b":
        yield gzip.decompress(raw)
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            yield from (archive.read(name) for name in archive.namelist())


def _with_check_digit(digits: str) -> str:
    doubled = [int(d) * (2 if n % 2 == 0 else 1) for n, d in enumerate(reversed(digits))]
    return f"{digits}{-sum(d - 9 * (d > 9) for d in doubled) % 10}"
