"""The same promises on other stores: the event log on S3, and Feast's online store on SQLite and on Redis."""

import os
import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from pipelines.feature_store.event_log import SCHEMAS, ConcurrentCommitError, EventLog
from pipelines.feature_store.store import FeatureStore, default_feature_store_yaml
from schemas.setting_groups import FeatureStoreSettings
from schemas.settings import Settings
from tests.support.events import feedback, pid, prediction
from tests.support.object_store import s3_server
from tests.support.stored_rows import NOW, rows

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as address:
        yield address


def test_on_s3_stored_offsets_are_never_stored_again(s3: str) -> None:
    log = EventLog(f"{s3}/{uuid.uuid4().hex}")
    assert log.append("feedback", pa.concat_tables([rows(0, 10), rows(0, 5, partition=1)])) == 15
    assert log.append("feedback", rows(8, 12), {"t/0": 15}) == 2
    assert log.compact("feedback")
    reopened = EventLog(log.uri("feedback").rpartition("/")[0])
    assert reopened.positions("feedback") == {"t/0": 11, "t/1": 4}
    assert reopened.position("feedback", "t/0") == 15
    assert reopened.append("feedback", rows(10, 16)) == 0


def test_on_s3_writers_that_race_store_each_row_once(s3: str) -> None:
    address = f"{s3}/{uuid.uuid4().hex}"
    EventLog(address)
    counts, refusals, together = [], [], threading.Barrier(2)

    def write() -> None:
        log = EventLog(address)
        for batch in range(4):
            together.wait(60)
            try:
                counts.append(log.append("feedback", rows(batch * 5, batch * 5 + 5)))
            except ConcurrentCommitError as error:
                refusals.append(error)

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert (sum(counts), len(counts) + len(refusals)) == (20, 8)
    assert EventLog(address).positions("feedback") == {"t/0": 19}


def test_on_s3_feast_joins_feedback_with_its_prediction(s3: str, tmp_path: Path) -> None:
    (tmp_path / "feature_store.yaml").write_text(default_feature_store_yaml("my-model"), encoding="utf-8")
    address = f"{s3}/{uuid.uuid4().hex}"
    store = FeatureStore(Settings(root=tmp_path, feature_store=FeatureStoreSettings(event_log=address)))
    assert store.labelled_feedback() == []
    made = {name: [None] for name in SCHEMAS["predictions"].names} | {
        "prediction_id": ["p3"],
        "text": ["text 3"],
        "predicted_label": ["a"],
        "model_version": ["v1"],
        "event_timestamp": [NOW],
        "created_timestamp": [NOW],
        "topic_id": ["P"],
        "partition": [0],
        "offset": [0],
    }
    store.log.append("predictions", pa.table(made, schema=SCHEMAS["predictions"]))
    store.log.append("feedback", rows(0, 5))
    (joined,) = store.labelled_feedback(store.current_cut())
    assert (joined.prediction_id, joined.text, joined.value) == ("p3", "text 3", "a")
    assert store.stored_events() == {"predictions": 1, "feedback": 5}
    assert store.export().num_rows == 5


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def online(request: pytest.FixtureRequest, tmp_path: Path) -> FeatureStore:
    """A feature store whose online store is one or the other, by a change of YAML alone."""
    config = yaml.safe_load(default_feature_store_yaml(f"m-{uuid.uuid4().hex[:8]}"))
    if request.param == "redis":
        server = os.environ.get("RATCHET_TEST_REDIS")
        if not server:
            pytest.skip("RATCHET_TEST_REDIS is not set")
        config["online_store"] = {"type": "redis", "connection_string": server, "key_ttl_seconds": 600}
    (tmp_path / "feature_store.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return FeatureStore(Settings(root=tmp_path))


def test_online_an_old_event_never_overwrites_a_newer_value(online: FeatureStore) -> None:
    late = timedelta(milliseconds=500)
    online.write_online([prediction(1, version="v2", time=START + late), prediction(2, version="v2", time=START)])
    online.write_online([prediction(1, version="v1", time=START), prediction(2, version="v3", time=START + late)])
    known = online.look_up([pid(1), "nobody", pid(2)])
    assert {i: found["model_version"] for i, found in known.items()} == {pid(1): "v2", pid(2): "v3"}
    assert known[pid(1)] == {"model_version": "v2", "predicted_label": "a", "user": None}


def test_online_one_batch_with_both_keeps_the_newer(online: FeatureStore) -> None:
    newer, older = (
        prediction(1, version="new", time=START + timedelta(seconds=1)),
        prediction(1, version="old", time=START),
    )
    online.write_online([newer, older])
    assert online.look_up([pid(1)])[pid(1)]["model_version"] == "new"


def test_online_live_counts_are_kept_by_place(online: FeatureStore) -> None:
    online.write_live({"t/0": '{"v1": {"agreed": 1}}', "t/1": "{}"}, START)
    online.write_live({"t/0": '{"v1": {"agreed": 2}}'}, START + timedelta(seconds=1))
    online.write_live({"t/0": '{"v1": {"agreed": 0}}'}, START)
    assert online.live(["t/0", "t/1", "t/2"]) == {"t/0": '{"v1": {"agreed": 2}}', "t/1": "{}"}
    assert online.look_up([feedback(0).data.prediction_id]) == {}
