"""Read and write Feast's feature views over the event log, through Feast's bulk paths.

Feast's public API validates and converts DataFrames, which would cost more than all other work on a micro-batch. store.py is
the only caller.
"""

import os
import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import yaml

from pipelines.feature_store.event_log import EPOCH
from pipelines.feature_store.feast_import import import_feast
from schemas.settings import Settings
from serving.file_lock import locked

# Class paths in the feature_store.yaml of projects that were made before these modules moved.
MOVED = {
    "pipelines.offline_store.EventLogOfflineStore": "pipelines.feature_store.offline_store.EventLogOfflineStore",
    "pipelines.online_store.EventTimeOnlineStore": "pipelines.feature_store.online_store.EventTimeOnlineStore",
}
# Feast reads through ibis, whose default connection belongs to the process and refuses concurrent calls.
_OFFLINE = threading.Lock()


def default_feature_store_yaml(project: str) -> str:
    """Return Feast's configuration as `ratchet init` writes it; paths are relative to its folder."""
    return f"""# Feast's own configuration. In production: online_store type redis with a connection_string, registry on Postgres.
project: "{project.replace("-", "_")}"
provider: local
registry:
  registry_type: sql
  path: sqlite:///state/feast_registry.db
  cache_mode: thread
  cache_ttl_seconds: 600
offline_store:
  type: pipelines.feature_store.offline_store.EventLogOfflineStore
online_store:
  type: pipelines.feature_store.online_store.EventTimeOnlineStore
  path: state/online.db
entity_key_serialization_version: 3
"""


def read_config(settings: Settings) -> dict[str, Any]:
    """Return feature_store.yaml with variables of the environment, current class paths and absolute paths. Raises OSError."""
    text = settings.path(settings.feature_store.config).read_text(encoding="utf-8-sig")
    config: dict[str, Any] = yaml.safe_load(os.path.expandvars(text))  # as Feast's own commands read the file
    for store in ("offline_store", "online_store"):
        if isinstance(config.get(store), dict):
            config[store]["type"] = MOVED.get(config[store].get("type"), config[store].get("type"))
    settings.path("state").mkdir(parents=True, exist_ok=True)
    config["registry"]["path"] = settings.database_url(config["registry"]["path"])
    if isinstance(config["online_store"], dict) and "path" in config["online_store"]:
        config["online_store"]["path"] = str(settings.path(config["online_store"]["path"]))
    return config


class FeastViews:
    """Feast's views "predictions", "feedback" and "live_feedback" of one project. Not thread-safe."""

    def __init__(self, config: Mapping[str, Any], settings: Settings) -> None:
        """Open Feast and apply the definitions."""
        import_feast()
        from feast import FeatureStore, RepoConfig

        from pipelines.feature_store.definitions import ENTITIES, definitions

        self._feast = FeatureStore(config=RepoConfig(repo_path=settings.root.absolute(), **config))
        self._keys = ENTITIES
        self._views: dict[str, Any] = {}
        # Several processes open the store at once, and Feast's apply is no transaction.
        with locked(settings.path("state/feast.lock")):
            self._apply(definitions(settings.location(settings.feature_store.event_log)))

    def write(self, view: str, rows: Sequence[tuple[str, Mapping[str, str | None], datetime]]) -> None:
        """Write rows of key, features and event time online."""
        name = self._key_name(view)
        batch = [
            (_entity_key(name, key), {feature: _value(text) for feature, text in features.items()}, time, None)
            for key, features, time in rows
        ]
        self._provider().online_write_batch(self._feast.config, self._view(view), batch, None)

    def read(
        self, view: str, keys: Sequence[str], features: Sequence[str]
    ) -> list[tuple[str, datetime, dict[str, Any]]]:
        """Return key, event time and features of the known keys; a key is known if its first feature is not null."""
        if not keys:
            return []
        entities = [_entity_key(self._key_name(view), key) for key in keys]
        rows = self._provider().online_read(self._feast.config, self._view(view), entities, list(features))
        return [
            (key, time, {name: values[name].string_val if values[name].HasField("val") else None for name in features})
            for key, (time, values) in zip(keys, rows, strict=True)
            if values and values[features[0]].HasField("val")  # Redis returns empty values for unknown keys
        ]

    def forget(self, view: str, before: datetime) -> int:
        """Delete old rows of the SQLite online store, for a second at most; return their number, 0 for other stores."""
        forget = getattr(self._provider().online_store, "forget", None)
        return int(forget(self._feast.config, self._view(view), before)) if forget else 0

    def stored(self, view: str, features: Sequence[str] | None = None) -> pa.Table:
        """Return the key and features (None: all) of every row of the event log's table."""
        source = self._view(view)
        if features is None:
            features = [field.name for field in source.features]
        with _OFFLINE:
            job = self._provider().offline_store.pull_all_from_table_or_query(
                config=self._feast.config,
                data_source=source.batch_source,
                join_key_columns=[self._keys[view]],
                feature_name_columns=list(features),
                timestamp_field="event_timestamp",
                created_timestamp_column="created_timestamp",
                start_date=EPOCH,
                end_date=datetime(9999, 1, 1, tzinfo=UTC),
            )
            return job.to_arrow()

    def as_of(self, view: str, keys: Any, features: Sequence[str]) -> pa.Table:
        """Return the point-in-time join of features to `keys`, a DataFrame with the view's key and event_timestamp."""
        names = [f"{view}:{name}" for name in features]
        with _OFFLINE:
            return self._feast.get_historical_features(entity_df=keys, features=names).to_arrow()

    def _apply(self, wanted: Sequence[Any]) -> None:
        """Apply definitions that are new or changed to Feast's registry."""
        views = {each.name: each for each in wanted if hasattr(each, "batch_source")}
        known = {view.name: view for view in self._feast.list_feature_views()}
        if known.keys() != views.keys() or any(
            known[n].source != v.source or known[n].schema != v.schema for n, v in views.items()
        ):
            self._feast.apply(list(wanted))
            self._feast.refresh_registry()

    def _provider(self) -> Any:
        return self._feast._get_provider()

    def _key_name(self, view: str) -> str:
        return str(self._view(view).entity_columns[0].name)

    def _view(self, name: str) -> Any:
        if name not in self._views:
            self._views[name] = self._feast.get_feature_view(name)
        return self._views[name]


def _entity_key(name: str, value: str) -> Any:
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey

    return EntityKey(join_keys=[name], entity_values=[_value(value)])


def _value(value: str | None) -> Any:
    from feast.protos.feast.types.Value_pb2 import Value

    return Value() if value is None else Value(string_val=value)
