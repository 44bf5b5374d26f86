"""Check that Delta Lake can open a location; write the log's Parquet files in a folder, and read a snapshot of them.

event_log.py and `ratchet init` call it.
"""

import re
import uuid
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.dataset as pds
import pyarrow.fs as pfs
import pyarrow.parquet as pq
from deltalake import DeltaTable

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


def snapshot(table: DeltaTable) -> pds.Dataset:
    """Return the rows of a table's snapshot as a dataset. A folder's files are named literally, not by URL or pattern."""
    uri = str(table.table_uri)
    if not uri.startswith("file://"):
        return table.to_pyarrow_dataset()
    root = Path(unquote(uri.removeprefix("file://")))
    files = [str(root / unquote(path)) for path in table._table.get_add_file_sizes()]
    schema = pa.schema(table.schema().to_arrow())
    return pds.dataset(files, schema=schema, format="parquet", filesystem=pfs.LocalFileSystem())
