"""Positions: the last offset of each topic-partition that a table's rows cover.

A topic-partition is written '<topic_id>/<partition>'. event_log.py stores positions with each commit.
"""

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pds


def last_offsets(rows: pa.Table) -> dict[str, int]:
    """Return the last offset of each topic-partition among these rows."""
    if not rows.num_rows:
        return {}
    table = pa.table({"topic_partition": _topic_partitions(rows), "offset": rows["offset"]})
    grouped = table.group_by("topic_partition").aggregate([("offset", "max")])
    return dict(zip(grouped["topic_partition"].to_pylist(), grouped["offset_max"].to_pylist(), strict=True))


def last_stored_offsets(rows: pds.Dataset) -> dict[str, int]:
    """Return the last offset of each topic-partition in a dataset of any size."""
    import duckdb

    with duckdb.connect() as connection:
        connection.register("rows", rows)
        query = 'SELECT topic_id || \'/\' || "partition", max("offset") FROM rows GROUP BY 1'
        return {name: int(last) for name, last in connection.execute(query).fetchall()}


def column_at(
    rows: pds.Dataset, column: str, topic_ids: Sequence[str], partition: int, first: int, last: int
) -> dict[int, set[str]]:
    """Return `column` of the rows at the offsets `first` to `last` of a partition of any of these topics, by offset."""
    beyond = (pds.field("offset") >= first) & (pds.field("offset") <= last) & (pds.field("partition") == partition)
    at = rows.to_table(columns=["offset", column], filter=beyond & pds.field("topic_id").isin(list(topic_ids)))
    by_offset: dict[int, set[str]] = {}
    for offset, value in zip(at["offset"].to_pylist(), at[column].to_pylist(), strict=True):
        by_offset.setdefault(offset, set()).add(value)
    return by_offset


def rows_beyond(rows: pa.Table, stored: Mapping[str, int]) -> pa.Table:
    """Return the rows whose offset is greater than the stored one of their topic-partition."""
    if not rows.num_rows:
        return rows
    limits = pc.index_in(_topic_partitions(rows), value_set=pa.array(list(stored), pa.string()))
    stored_offsets = pa.array(list(stored.values()), pa.int64()).take(limits.combine_chunks())
    return rows.filter(pc.greater(rows["offset"], stored_offsets))


def _topic_partitions(rows: pa.Table) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(rows["topic_id"], pc.cast(rows["partition"], pa.string()), "/")
