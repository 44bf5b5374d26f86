"""Check that Delta Lake can open a location, and write the log's Parquet files in a folder.

event_log.py and `ratchet init` call it.
"""

import re
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from serving.atomic_write import sync

# Characters that deltalake 1.6 decodes or splits at anywhere in a path, however they are quoted.
_UNUSABLE = re.compile(r"[\x00-\x1f\x7f\\]|%[0-9A-Fa-f]{2}")


class UnusableFolder(ValueError):
    """The folder's path has characters that Delta's library cannot open."""


def check_folder(location: str) -> None:
    """Raise UnusableFolder if Delta's library cannot open a location."""
    folder = location if "://" in location else str(Path(location).resolve())  # Delta resolves links
    if "://" not in location and (match := _UNUSABLE.search(folder)):
        raise UnusableFolder(
            f"feature_store.event_log: {folder!r} has {match[0]!r}, which Delta Lake cannot open in a path: rename"
            " the folder, or set feature_store.event_log to another one"
        )


def write_rows(folder: Path, rows: pa.Table) -> tuple[str, int]:
    """Write rows to a new Parquet file; return its name and size in bytes after it is synced.

    Raises:
        OSError: writing failed; the file is removed.

    """
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd", write_page_checksum=True)
    path, content = folder / f"part-{uuid.uuid4()}.zstd.parquet", sink.getvalue()
    try:
        path.write_bytes(content)
        sync(path)
        sync(folder)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return path.name, content.size
