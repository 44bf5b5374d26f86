"""Feast's offline store over the event log: DuckDB on one consistent snapshot of a Delta table.

Feast loads it by the class path in feature_store.yaml. It reads the newest snapshot of a Delta source; Feast does the
point-in-time join. DuckDB's Delta extension is not used, because it is downloaded at run time.
"""

from datetime import datetime
from typing import Any, Literal

import ibis
from deltalake import DeltaTable
from feast.infra.offline_stores.duckdb import DuckDBOfflineStore, DuckDBOfflineStoreConfig
from feast.infra.offline_stores.ibis import get_historical_features_ibis, pull_all_from_table_or_query_ibis

from pipelines.feature_store.event_log import snapshot


class EventLogOfflineStoreConfig(DuckDBOfflineStoreConfig):  # type: ignore[misc]  # feast has no types
    """Configuration of DuckDB's offline store, under another type."""

    type: Literal["pipelines.feature_store.offline_store.EventLogOfflineStore"] = (
        "pipelines.feature_store.offline_store.EventLogOfflineStore"
    )


def _read(source: Any, _repo_path: str) -> Any:
    return ibis.memtable(snapshot(DeltaTable(source.path)))


def _refuse(*_: Any, **__: Any) -> None:
    raise NotImplementedError("Feast cannot write to the event log: only the feedback consumer does")


class EventLogOfflineStore(DuckDBOfflineStore):  # type: ignore[misc]  # feast has no types
    """Reads the event log for Feast; refuses writes."""

    @staticmethod
    def get_historical_features(
        config: Any,
        feature_views: list[Any],
        feature_refs: list[str],
        entity_df: Any,
        registry: Any,
        project: str,
        full_feature_names: bool = False,
        **_: Any,
    ) -> Any:
        """Return the point-in-time join of `entity_df` with the views."""
        return get_historical_features_ibis(
            config=config,
            feature_views=feature_views,
            feature_refs=feature_refs,
            entity_df=entity_df,
            registry=registry,
            project=project,
            full_feature_names=full_feature_names,
            data_source_reader=_read,
            data_source_writer=_refuse,
        )

    @staticmethod
    def pull_all_from_table_or_query(
        config: Any,
        data_source: Any,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> Any:
        """Return all rows of a source between two times."""
        return pull_all_from_table_or_query_ibis(
            config=config,
            data_source=data_source,
            join_key_columns=join_key_columns,
            feature_name_columns=feature_name_columns,
            timestamp_field=timestamp_field,
            created_timestamp_column=created_timestamp_column,
            start_date=start_date,
            end_date=end_date,
            data_source_reader=_read,
            data_source_writer=_refuse,
        )
