"""Where the event log may lie, and its rows' files in a folder.

Turns rows into a Parquet file that is on disk, and a location into a refusal. event_log.py and `ratchet init` call it. It
deliberately knows no Delta library.
"""

import re
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from serving.atomic_write import sync

# What Delta's library decodes or divides wherever it stands in a path, whatever we quote: seen with deltalake 1.6.
_UNUSABLE = re.compile(r"[\x00-\x1f\x7f\\]|%[0-9A-Fa-f]{2}")


class UnusableFolder(ValueError):
    """The folder's name holds characters that Delta's library cannot open."""


def check_folder(location: str) -> None:
    """Raise UnusableFolder if the event log cannot lie at a location."""
    folder = location if "://" in location else str(Path(location).resolve())  # as Delta follows links
    if "://" not in location and (found := _UNUSABLE.search(folder)):
        raise UnusableFolder(
            f"feature_store.event_log: {folder!r} holds {found[0]!r}, which Delta Lake cannot have in a path: rename"
            " the folder, or set feature_store.event_log to another one"
        )


def write_rows(folder: Path, rows: pa.Table) -> tuple[str, int]:
    """Write rows into a file of their own; return its name and bytes once it is on disk.

    Raises:
        OSError: the disk refuses; nothing is left of the file.

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
