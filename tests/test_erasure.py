"""Erasure on a real log, outbox, online store and registry: bytes are gone, positions stay, nobody else's rows are touched."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner

from pipelines.feature_store.event_log import SCHEMAS, ConcurrentCommitError, EventLog
from pipelines.feature_store.event_rows import row_of
from pipelines.feature_store.store import FeatureStore, default_feature_store_yaml
from schemas.events import FeedbackReceived, PredictionMade, utc_now
from schemas.settings import Settings
from services.cli.main import cli
from services.erasure import Erased, Erasure
from serving.http.access import pseudonym, read_keys, write_keys
from serving.http.feedback_values import feedback_uuid
from serving.messaging.outbox_store import make_table, open_disk, waiting, write
from serving.messaging.publisher import Topics
from serving.registry.registry import Registry
from tests.support.events import feedback, fid, outgoing, pid, prediction

EARLIER = utc_now() - timedelta(hours=1)


class Shop:
    """A project in which bob and eve have said something."""

    def __init__(self, root: Path) -> None:
        (root / "ratchet.toml").write_text('[model]\nname = "shop"\n', encoding="utf-8")
        (root / "feature_store.yaml").write_text(default_feature_store_yaml("shop"), encoding="utf-8")
        write_keys(root / "keys.env")
        self.root, self.settings = root, Settings(root=root)
        self.secret = read_keys(root / "keys.env").secret
        self.bob, self.eve = (pseudonym(self.secret, name) for name in ("bob", "eve"))
        self.registry = Registry(self.settings.registry_url, "shop")
        self.registry.migrate()
        self.features = FeatureStore(self.settings)

    def store(self, events: Sequence[PredictionMade | FeedbackReceived], first: int = 0) -> None:
        name = "predictions" if isinstance(events[0], PredictionMade) else "feedback"
        rows = [row_of(event, EARLIER, name, 0, first + n) for n, event in enumerate(events)]
        self.features.log.append(name, pa.Table.from_pylist(rows, schema=SCHEMAS[name]))

    def run(self, *arguments: str, code: int = 0) -> str:
        done = CliRunner().invoke(cli, ["feedback", "erase", *arguments, "-c", str(self.root / "ratchet.toml")])
        assert done.exit_code == code, done.output
        return done.output

    def holds(self, words: str) -> list[str]:
        """Files of the event log in which these bytes are."""
        files = [path for path in (self.root / "state/events").rglob("*") if path.is_file()]
        return [path.name for path in files if words.encode() in path.read_bytes()]


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    made = Shop(tmp_path)
    yield made
    made.registry.close()


def of(user: str, event: PredictionMade) -> PredictionMade:
    return event.model_copy(update={"data": event.data.model_copy(update={"user": user})})


def test_a_user_is_erased_everywhere_and_nobody_else_is(shop: Shop) -> None:
    made = [of(shop.bob if n == 1 else shop.eve, prediction(n, text=f"words {n}", time=EARLIER)) for n in range(3)]
    for n, event in enumerate(made):
        shop.store([event], first=n)
    shop.features.write_online(made)
    given = [feedback(n, user=shop.bob if n == 0 else shop.eve, time=EARLIER) for n in range(3)]
    shop.store(given)
    folder = shop.settings.path(shop.settings.serving.outbox)
    folder.mkdir(parents=True)
    with contextlib.closing(open_disk(folder / "outbox-0.db", "FULL")) as disk:
        make_table(disk)
        topics = Topics.of("shop")
        write(disk, [*(outgoing(topics, e) for e in made), *(outgoing(topics, e) for e in given)])
    rounds = shop.settings.path("state/rounds/r1")
    rounds.mkdir(parents=True)
    lines = [{"text": f"words {n}", "person": event.data.user} for n, event in enumerate(given)]
    (rounds / "rows.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")

    done = json.loads(shop.run("--user", "bob", "--json", "--reason", "asked for it"))
    # of three: the prediction of bob, his feedback on another, and what eve said of his
    assert done == {"predictions": 1, "feedback": 2, "outbox": 2, "round_rows": 2}
    assert [row["prediction_id"] for row in shop.features.log_rows("feedback").to_pylist()] == [pid(2)]
    assert sorted(row["prediction_id"] for row in shop.features.log_rows("predictions").to_pylist()) == [pid(0), pid(2)]
    assert shop.features.look_up([pid(0), pid(1), pid(2)]).keys() == {pid(0), pid(2)}
    assert waiting(folder) == 4
    assert shop.features.log.position("feedback", "feedback/0") == 2
    assert shop.features.log.position("predictions", "predictions/0") == 2
    assert [name for name in shop.holds("words 1") if name.endswith("parquet")] == []
    assert len((rounds / "rows.jsonl").read_text(encoding="utf-8").splitlines()) == 1
    [row] = shop.registry.audit_rows()
    assert (row.action, row.detail) == ("feedback erase", {"users": [shop.bob], "reason": "asked for it"})
    assert shop.registry.excluded().covers(given[0])
    assert not shop.registry.excluded().covers(given[1])
    assert not shop.registry.excluded().covers(feedback(5, user=shop.bob, time=utc_now() + timedelta(minutes=1)))


def test_one_prediction_or_one_feedback_is_erased(shop: Shop) -> None:
    shop.store([prediction(n, time=EARLIER) for n in range(3)])
    hashed = feedback_uuid(lambda: shop.secret, "mine")
    shop.store([feedback(n, feedback_id=hashed if n < 2 else fid(n), user=shop.eve, time=EARLIER) for n in range(3)])
    assert "2 predictions have such feedback: add --prediction ID" in shop.run("--feedback", "mine", code=1)
    assert "0 predictions" in shop.run("--feedback", "nobody's", code=1)
    shop.run("--feedback", "mine", "--prediction", pid(0))
    assert [row.prediction_id for row in shop.features.labelled_feedback()] == [pid(1), pid(2)] or (
        sorted(row.prediction_id for row in shop.features.labelled_feedback()) == [pid(1), pid(2)]
    )
    shop.run("--prediction", pid(2))
    assert [row.prediction_id for row in shop.features.labelled_feedback()] == [pid(1)]
    assert shop.features.stored_events() == {"predictions": 2, "feedback": 1}
    assert shop.registry.excluded().covers(feedback(7, prediction_id=pid(2)))
    assert shop.registry.verify_audit() == []


class LateStore(FeatureStore):
    """A store in which `late` is called after the first look into the log, as a consumer stores a batch just then."""

    def __init__(self, settings: Settings, late: Callable[[], None]) -> None:
        super().__init__(settings)
        self.late = [late]

    def log_rows(self, name: str) -> pa.Table:
        rows = super().log_rows(name)
        while self.late:
            self.late.pop()()
        return rows


ERASED: dict[str, Callable[[Erasure, Shop], Erased]] = {
    "user": lambda erasure, shop: erasure.user([shop.bob]),
    "prediction": lambda erasure, _: erasure.prediction(pid(1)),
}


@pytest.mark.parametrize(("what", "answered"), [("user", True), ("prediction", False)])
def test_what_a_consumer_stores_during_an_erasure_is_erased_too(shop: Shop, what: str, answered: bool) -> None:
    """The consumer had read the exclusions before this one was recorded; nothing of bob's was in the log yet."""
    late, other = of(shop.bob, prediction(1, time=EARLIER)), of(shop.eve, prediction(2, time=EARLIER))
    shop.store([other])
    excluded: list[bool] = []

    def stored_late() -> None:
        excluded.append(shop.registry.excluded().covers(late))
        shop.store([late], first=1)
        shop.store([feedback(n, user=shop.eve, time=EARLIER) for n in ((1, 2) if answered else (2,))])

    features = LateStore(shop.settings, stored_late)
    done = ERASED[what](Erasure(shop.settings, shop.registry, features, actor="me", reason="asked for it"), shop)
    assert excluded == [True]
    assert (done.predictions, done.feedback) == (1, int(answered))
    for table in ("predictions", "feedback"):
        assert [row["prediction_id"] for row in shop.features.log_rows(table).to_pylist()] == [pid(2)]


@pytest.mark.parametrize("wrong", [[], ["--user", "u", "--prediction", pid(1)], ["--prediction", "p1"]])
def test_wrong_usage_erases_nothing(shop: Shop, wrong: list[str]) -> None:
    shop.run(*wrong, code=2)
    assert shop.registry.audit_rows() == []


def test_a_consumer_that_stores_meanwhile_loses_nothing(shop: Shop) -> None:
    location = str(shop.settings.path("state/events"))
    shop.store([feedback(0, user=shop.bob, time=EARLIER)])

    def consume() -> None:
        log = EventLog(location)
        for n in range(1, 9):
            row = row_of(feedback(n, user=shop.eve, time=EARLIER), EARLIER, "feedback", 0, n)
            while True:
                try:
                    log.append("feedback", pa.Table.from_pylist([row], schema=SCHEMAS["feedback"]))
                    break
                except (ConcurrentCommitError, OSError):
                    continue

    consumer = threading.Thread(target=consume)
    consumer.start()
    deleted = sum(EventLog(location).erase("feedback", f"\"user\" = '{shop.bob}'") for _ in range(3))
    consumer.join(60)
    assert deleted == 1
    assert sorted(row["offset"] for row in shop.features.log_rows("feedback").to_pylist()) == list(range(1, 9))
