"""The feature store on real Delta tables, Feast and SQLite: what counts as feedback, as of when."""

import json
import random
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path

import pytest

from pipelines.feature_store.definitions import ENTITIES, TIMES, definitions
from pipelines.feature_store.event_log import SCHEMAS
from pipelines.feature_store.store import UNCHALLENGED, FeatureStore, FeedbackRow, default_feature_store_yaml
from schemas.events import PredictionData, PredictionMade
from schemas.setting_groups import FeatureStoreSettings, ModelSettings
from schemas.settings import Settings
from tests.support.fakes import REPOSITORY
from tests.support.stored_rows import START, append, prediction_row, said


def project(root: Path) -> Settings:
    (root / "feature_store.yaml").write_text(default_feature_store_yaml("my-model"), encoding="utf-8")
    return Settings(root=root)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(project(tmp_path))


def effective(store: FeatureStore, cut: dict[str, int] | None = None) -> dict[str, object]:
    return {row.feedback_id: row.value for row in store.labelled_feedback(cut)}


def test_feast_knows_exactly_the_columns_of_the_event_log() -> None:
    views = {thing.name: thing for thing in definitions("somewhere") if thing.name in ENTITIES}
    assert views.keys() == SCHEMAS.keys()
    for name, view in views.items():
        assert {ENTITIES[name], *TIMES, *(field.name for field in view.features)} == set(SCHEMAS[name].names)
        assert view.source.path == f"somewhere/{name}"


def test_an_empty_log_reads_as_nothing_everywhere(store: FeatureStore) -> None:
    assert store.stored_events() == {"predictions": 0, "feedback": 0}
    assert store.labelled_feedback() == store.labelled_feedback({}) == []
    assert store.count_labelled_since({}) == 0
    assert store.current_cut() == {}
    assert store.look_up([]) == store.look_up(["nobody"]) == {}
    assert store.effective_feedback().num_rows == 0


def test_feedback_comes_with_the_prediction_it_is_about(store: FeatureStore) -> None:
    append(store, "predictions", [prediction_row(n) for n in range(3)])
    append(store, "feedback", [said("f", 1, "b", 0, user="u1"), said("r", 2, "up", 1, kind="rating")])
    corrected, rated = store.labelled_feedback()
    assert corrected == FeedbackRow(
        feedback_id="f",
        prediction_id="p1",
        kind="correction",
        value="b",
        user="u1",
        time=START + timedelta(seconds=10),
        text="text 1",
        predicted_label="a",
        model_version="v1",
        metadata={"channel": "ios"},
    )
    assert (rated.kind, rated.value, rated.user) == ("rating", "up", None)
    assert store.stored_events() == {"predictions": 3, "feedback": 2}
    assert store.current_cut() == {"F/0": 1}


def test_what_nobody_answered_by_the_claim_is_offered_to_a_round(store: FeatureStore) -> None:
    until = START + timedelta(days=1)
    assert store.unchallenged("v1", until, 10) == []
    append(store, "predictions", [prediction_row(n) for n in range(4)])
    append(store, "feedback", [said("f", 1, "b", 0, user="u1")])
    offered = store.unchallenged("v1", until, 10)
    assert [(row.prediction_id, row.text, row.predicted_label) for row in offered] == [
        (f"p{n}", f"text {n}", "a") for n in (0, 2, 3)
    ]
    assert {(row.kind, row.value, row.user) for row in offered} == {(UNCHALLENGED, None, None)}
    assert offered[0].time.tzinfo is not None
    assert [row.prediction_id for row in store.unchallenged("v1", until, 1)] == ["p3"]
    assert store.unchallenged("v2", until, 10) == []
    assert store.unchallenged("v1", START - timedelta(days=1), 10) == []


def test_feedback_whose_prediction_comes_later_joins_later(store: FeatureStore) -> None:
    append(store, "feedback", [said("f", 1, "b", 0)])
    assert effective(store) == {}
    assert store.stored_events() == {"predictions": 0, "feedback": 1}
    append(store, "predictions", [prediction_row(1)])
    assert effective(store) == {"f": "b"}


def test_a_clock_that_is_behind_does_not_part_feedback_from_the_prediction_that_it_names(store: FeatureStore) -> None:
    append(store, "predictions", [prediction_row(1), prediction_row(2)])
    append(store, "feedback", [said("f", 1, "b", 0, seconds=-60), said("hours before", 2, "b", 1, seconds=-7200)])
    assert effective(store) == {"f": "b", "hours before": "b"}


def test_values_keep_their_kind(store: FeatureStore) -> None:
    values: list[object] = ["b", 3.5, ["a", "b"], "", "1", "null", 'quo"te', "ünïcode 🎉"]
    append(store, "predictions", [prediction_row(n) for n in range(len(values))])
    append(store, "feedback", [said(f"f{n}", n, value, n) for n, value in enumerate(values)])
    assert list(effective(store).values()) == values


def test_one_effective_row_per_feedback_id_and_the_first_one_counts(store: FeatureStore) -> None:
    append(store, "predictions", [prediction_row(1), prediction_row(1, offset=9)])
    append(store, "feedback", [said("f", 1, "first", 0, user="u"), said("f", 1, "again", 1, user="u", seconds=50)])
    append(store, "feedback", [said("f", 1, "and again", 2, user="u", stored=60, seconds=1)])
    assert effective(store) == {"f": "first"}
    assert store.stored_events() == {"predictions": 1, "feedback": 1}


def test_a_later_correction_by_the_same_person_replaces_the_earlier_by_event_time(store: FeatureStore) -> None:
    append(store, "predictions", [prediction_row(1), prediction_row(2)])
    append(
        store,
        "feedback",
        [
            said("late", 1, "last", 0, user="u", seconds=30),
            said("early", 1, "first", 1, user="u", seconds=20),
            said("other person", 1, "theirs", 2, user="w", seconds=40),
            said("other prediction", 2, "elsewhere", 3, user="u", seconds=50),
            said("anonymous", 1, "x", 4),
            said("anonymous too", 1, "y", 5),
            said("rating", 1, "down", 6, kind="rating", user="u", seconds=60),
        ],
    )
    assert effective(store) == {
        "late": "last",
        "other person": "theirs",
        "other prediction": "elsewhere",
        "anonymous too": "y",
        "rating": "down",
    }


def test_everybody_without_a_name_has_one_vote_on_a_prediction_however_often_it_is_cast(store: FeatureStore) -> None:
    append(store, "predictions", [prediction_row(1), prediction_row(2)])
    named = [said(f"f{user}", 1, "A", n, user=user) for n, user in enumerate("uvw")]
    browser = [said(f"b{n}", 1, "C" if n < 9 else "B", 3 + n, seconds=20 + n) for n in range(10)]
    comments = [said(f"c{n}", 2, f"remark {n}", 13 + n, kind="comment") for n in range(3)]
    append(store, "feedback", named + browser + comments)
    votes = [row.value for row in store.labelled_feedback() if row.kind == "correction"]
    assert sorted(votes) == ["A", "A", "A", "B"]
    assert sum(row.kind == "comment" for row in store.labelled_feedback()) == 3


def test_a_feedback_id_is_its_authors_on_one_prediction_and_swallows_nobody_elses(store: FeatureStore) -> None:
    append(store, "predictions", [prediction_row(1), prediction_row(2)])
    rows = [
        said("1", 1, "a", 0, user="u"),
        said("1", 2, "b", 1, user="v"),
        said("1", 2, "c", 2, user="u"),
        said("1", 2, "again", 3, user="u", seconds=50),
        said("r", 1, "1", 4, user="v", kind="retract"),  # the id of another's feedback, about another prediction
    ]
    append(store, "feedback", rows)
    found = [(row.prediction_id, row.user, row.value, row.text) for row in store.labelled_feedback()]
    assert sorted(found) == [("p1", "u", "a", "text 1"), ("p2", "u", "c", "text 2"), ("p2", "v", "b", "text 2")]
    assert store.stored_events()["feedback"] == 4
    assert store.export().num_rows == 3


def test_only_its_author_withdraws_a_feedback_and_what_it_had_replaced_counts_again(store: FeatureStore) -> None:
    append(store, "predictions", [prediction_row(n) for n in range(4)])
    append(
        store,
        "feedback",
        [
            said("retract", 1, "withdrawn", 0, kind="retract", user="u"),  # may come before what it withdraws
            said("withdrawn", 1, "b", 1, user="u", seconds=20),
            said("earlier", 1, "c", 2, user="u", seconds=15),
            said("kept", 2, "d", 3, user="u"),
            said("by another", 2, "kept", 4, kind="retract", user="w"),
            said("elsewhere", 1, "kept", 5, kind="retract", user="u"),
            said("nothing", 3, "nobody's", 6, kind="retract"),
            said("odd", 3, 4.0, 7, kind="retract"),
            said("nameless", 3, "e", 8),
            said("nameless retract", 3, "nameless", 9, kind="retract"),
        ],
    )
    assert effective(store) == {"earlier": "c", "kept": "d"}


def test_a_cut_gives_the_same_rows_for_ever(store: FeatureStore) -> None:
    append(store, "predictions", [prediction_row(n) for n in range(5)])
    append(store, "feedback", [said("f0", 0, "a", 0, user="u"), said("f1", 1, "a", 1)])
    cut = store.current_cut()
    before = store.labelled_feedback(cut)
    append(
        store,
        "feedback",
        [
            said("f0b", 0, "changed", 2, user="u", seconds=20),
            said("f1r", 1, "f1", 3, kind="retract"),
            said("new topic", 2, "b", 0, topic_id="G"),
        ],
    )
    assert store.labelled_feedback(cut) == before
    assert effective(store) == {"f0b": "changed", "new topic": "b"}
    assert effective(store, {}) == {}
    assert effective(store, {"G/0": 0}) == {"new topic": "b"}
    assert effective(store, store.current_cut()) == effective(store)


def test_counting_leaves_out_what_was_counted_before_even_when_it_is_published_again(store: FeatureStore) -> None:
    append(store, "predictions", [prediction_row(n) for n in range(3)])
    append(store, "feedback", [said("f0", 0, "a", 0), said("f1", 1, "up", 1, kind="rating")])
    assert store.count_labelled_since({}) == 2
    cut = store.current_cut()
    assert store.count_labelled_since(cut) == store.count_labelled_since(cut) == 0
    again = [
        said("f0", 0, "a", 0, topic_id="G", stored=50),
        said("f1", 1, "up", 1, kind="rating", topic_id="G", stored=50),
    ]
    others = [
        said("c", 2, "a comment", 2, kind="comment", topic_id="G"),
        said("f2", 2, "b", 3, topic_id="G", stored=50),
    ]
    append(store, "feedback", again + others)
    assert store.count_labelled_since(cut) == 1
    assert store.count_labelled_since({}) == 3


def test_what_cannot_train_does_not_count(tmp_path: Path) -> None:
    store = FeatureStore(project(tmp_path).model_copy(update={"model": ModelSettings(task="regression")}))
    rows = [
        said("number", 1, 3.5, 0),
        said("orphan", 2, 3.5, 1),
        said("down", 1, "down", 2, kind="rating", user="u"),
        said("up", 1, "up", 3, kind="rating", user="v"),
        said("score", 1, 0.5, 4, kind="score"),
    ]
    append(store, "feedback", rows)
    assert store.count_labelled_since({}) == 0
    append(store, "predictions", [prediction_row(1)])
    assert store.count_labelled_since({}) == 2
    append(store, "predictions", [prediction_row(2)])
    assert store.count_labelled_since({}) == 3


def test_the_rules_agree_with_a_plain_reading_of_them(store: FeatureStore) -> None:
    draw = random.Random(7)
    rows: list[dict[str, object]] = []
    for offset in range(300):
        kind = draw.choice(["correction", "correction", "rating", "retract"])
        value = f"f{draw.randrange(120)}" if kind == "retract" else draw.choice("abc")
        user = draw.choice(["u", "v", None])
        rows.append(
            said(
                f"f{draw.randrange(120)}",
                draw.randrange(8),
                value,
                offset,
                kind=kind,
                user=user,
                seconds=draw.random() * 100,
                stored=offset,
            )
        )
    append(store, "predictions", [prediction_row(n) for n in range(8)])
    append(store, "feedback", rows)
    assert rows_of(store) == plain_reading(rows)
    assert rows_of(store, {"F/0": 150}) == plain_reading(rows[:151])


Row = tuple[object, ...]


def rows_of(store: FeatureStore, cut: dict[str, int] | None = None) -> list[Row]:
    found = store.labelled_feedback(cut)
    return sorted((row.prediction_id, row.feedback_id, row.user or "", row.value) for row in found)


def plain_reading(rows: list[dict[str, object]]) -> list[Row]:
    first: dict[Row, dict[str, object]] = {}
    for row in rows:
        first.setdefault((row["prediction_id"], row["user"], row["feedback_id"]), row)
    withdrawn = {
        (json.loads(str(r["value"])), r["prediction_id"], r["user"]) for r in first.values() if r["kind"] == "retract"
    }
    last: dict[Row, dict[str, object]] = {}
    for row in first.values():
        if row["kind"] == "retract" or (row["feedback_id"], row["prediction_id"], row["user"]) in withdrawn:
            continue
        key = (row["prediction_id"], row["kind"], row["user"])
        if key not in last or str(row["event_timestamp"]) > str(last[key]["event_timestamp"]):
            last[key] = row
    return sorted(
        (r["prediction_id"], r["feedback_id"], r["user"] or "", json.loads(str(r["value"]))) for r in last.values()
    )


def made(identity: str, version: str, *, milliseconds: int = 0, user: str | None = None) -> PredictionMade:
    data = PredictionData(
        prediction_id=identity,
        model_name="m",
        model_version=version,
        generation=1,
        text="t",
        label="a",
        confidence=0.5,
        user=user,
    )
    return PredictionMade(source="s", subject=identity, time=START + timedelta(milliseconds=milliseconds), data=data)


def test_an_old_event_never_overwrites_a_newer_value_online(store: FeatureStore) -> None:
    store.write_online([made("p1", "v2", milliseconds=500, user="u"), made("p2", "v2")])
    store.write_online([made("p1", "v1", milliseconds=499), made("p2", "v3", milliseconds=1)])
    assert store.look_up(["p1", "nobody", "p2"]) == {
        "p1": {"model_version": "v2", "predicted_label": "a", "user": "u"},
        "p2": {"model_version": "v3", "predicted_label": "a", "user": None},
    }


def test_old_predictions_are_forgotten_online_and_stay_in_the_log(store: FeatureStore) -> None:
    store.write_online([made(f"old{n}", "v1") for n in range(30)])
    store.write_online([made("new", "v1", milliseconds=60_000)])
    assert store.forget_predictions(START) == 0
    assert store.forget_predictions(START + timedelta(seconds=30)) > 0
    assert store.look_up(["old0", "old29", "new"]).keys() == {"new"}


def test_a_reader_sees_online_what_another_process_wrote(tmp_path: Path) -> None:
    writer, reader = FeatureStore(project(tmp_path)), FeatureStore(project(tmp_path))
    assert reader.look_up(["p1"]) == {}
    writer.write_online([made("p1", "v1")])
    assert reader.look_up(["p1"])["p1"]["model_version"] == "v1"


def test_several_may_open_a_new_project_at_once(tmp_path: Path) -> None:
    settings = project(tmp_path)
    opened: list[FeatureStore] = []
    openers = [threading.Thread(target=lambda: opened.append(FeatureStore(settings))) for _ in range(4)]
    for opener in openers:
        opener.start()
    for opener in openers:
        opener.join(60)
    assert [store.stored_events() for store in opened] == [{"predictions": 0, "feedback": 0}] * 4


def test_a_log_that_moved_is_found_at_its_new_address(tmp_path: Path) -> None:
    append(FeatureStore(project(tmp_path)), "feedback", [said("f", 1, "b", 0)])
    moved = project(tmp_path).model_copy(update={"feature_store": FeatureStoreSettings(event_log="elsewhere")})
    (tmp_path / "state/events").rename(tmp_path / "elsewhere")
    assert FeatureStore(moved).stored_events() == {"predictions": 0, "feedback": 1}


def test_the_feature_store_opens_without_torch_and_feast_still_finds_it(tmp_path: Path) -> None:
    project(tmp_path)
    code = """
import sys
from pathlib import Path
import typeguard
from pipelines.feature_store.store import FeatureStore
from schemas.settings import Settings

store = FeatureStore(Settings(root=Path(sys.argv[1])))
assert store.labelled_feedback() == [] and store.look_up(["nobody"]) == {}
assert "feast" in sys.modules and "torch" not in sys.modules
assert typeguard.typechecked.__module__.startswith("typeguard")
from feast.infra.offline_stores.offline_store import get_torch
assert get_torch() is sys.modules["torch"]
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=REPOSITORY, capture_output=True, check=False, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
