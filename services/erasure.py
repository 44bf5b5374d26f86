"""Erasure: what one person said, one prediction, or one feedback, taken out of everything that keeps events.

Turns names into exclusions of the registry, and then into deletions: outboxes, event log, online store and the rows that rounds
wrote down. `ratchet feedback erase` calls it. The exclusions come first: what is on its way meanwhile, or comes back from dead
letters or a topic that is read again, is left out by the consumer. It deliberately touches no model: a version that was trained
on the rows stays as it is, and the next round trains without them.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.dataset.clean import tidy
from pipelines.dataset.project_dataset import ROWS
from pipelines.feature_store.event_rows import BadMessage, read_event
from pipelines.feature_store.store import FeatureStore
from schemas.events import utc_now
from schemas.settings import Settings
from services.ingestion.feedback_gate import FeedbackGate
from serving.messaging.outbox_store import erase as erase_outboxes
from serving.registry.registry import Registry

AT_ONCE = 500  # ids in one predicate


@dataclass(kw_only=True)
class Erased:
    """How much was deleted, by where it lay."""

    predictions: int = 0
    feedback: int = 0
    outbox: int = 0
    round_rows: int = 0

    def as_dict(self) -> dict[str, int]:
        """For --json."""
        return asdict(self)


class Erasure:
    """One project's places that keep events."""

    def __init__(
        self, settings: Settings, registry: Registry, features: FeatureStore, *, actor: str, reason: str
    ) -> None:
        self._settings, self._registry, self._features = settings, registry, features
        self._actor, self._reason = actor, reason

    def user(self, names: Sequence[str]) -> Erased:
        """Erase what a user, by pseudonyms, wrote and said, and what others said of the predictions that go."""
        predictions = self._features.log_rows("predictions")
        gone = predictions.filter(pc.is_in(predictions["user"], pa.array(names)))
        self._exclude("user", names, {"users": list(names)})
        return self._erase(gone, [f'"user" IN ({_quoted(names)})'], lambda row: row.get("person") in names)

    def prediction(self, prediction_id: str) -> Erased:
        """Erase a prediction and what was said of it."""
        predictions = self._features.log_rows("predictions")
        gone = predictions.filter(pc.equal(predictions["prediction_id"], prediction_id))
        self._exclude("prediction", [prediction_id], {"prediction": prediction_id})
        return self._erase(gone, [f"prediction_id = '{prediction_id}'"], lambda _: False)

    def feedback(self, prediction_id: str, feedback_id: str) -> Erased:
        """Erase one feedback."""
        self._exclude(
            "feedback", [f"{prediction_id}/{feedback_id}"], {"prediction": prediction_id, "feedback": feedback_id}
        )
        same = f"prediction_id = '{prediction_id}' AND feedback_id = '{feedback_id}'"
        return self._erase(self._features.log_rows("predictions").slice(0, 0), [same], lambda _: False)

    def _exclude(self, kind: Any, subjects: Sequence[str], detail: dict[str, object]) -> None:
        detail = {**detail, "reason": self._reason}
        self._registry.exclude(kind, subjects, actor=self._actor, action="feedback erase", detail=detail)

    def _erase(self, gone: pa.Table, said: list[str], given: Callable[[dict[str, Any]], bool]) -> Erased:
        """`gone` are predictions to delete, `said` predicates of feedback, `given` the rows of rounds to delete by person."""
        ids = gone["prediction_id"].to_pylist()
        texts = {tidy(text) for text in gone["text"].to_pylist()}
        done = Erased(outbox=self._outboxes())
        about = [f"prediction_id IN ({_quoted(ids[n : n + AT_ONCE])})" for n in range(0, len(ids), AT_ONCE)]
        done.predictions = sum(self._features.log.erase("predictions", predicate) for predicate in about)
        done.feedback = sum(self._features.log.erase("feedback", predicate) for predicate in [*said, *about])
        self._features.forget_online(ids, utc_now())
        for file in sorted(self._settings.path("state/rounds").glob(f"*/{ROWS}")):
            done.round_rows += _without(file, lambda row: given(row) or row["text"] in texts)
        return done

    def _outboxes(self) -> int:
        gate = FeedbackGate(self._settings, self._registry)
        gate.refresh()

        def covers(value: bytes) -> bool:
            try:
                table = "predictions" if json.loads(value)["type"].startswith("ratchet.prediction") else "feedback"
                return gate.is_erased(read_event(value, table))
            except (ValueError, KeyError, BadMessage):
                return False

        return erase_outboxes(self._settings.path(self._settings.serving.outbox), covers)


def _without(file: Path, doomed: Callable[[dict[str, Any]], bool]) -> int:
    lines = file.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if not doomed(orjson.loads(line))]
    if len(kept) < len(lines):
        beside = file.with_suffix(".tmp")
        beside.write_bytes(b"".join(kept))
        beside.replace(file)
    return len(lines) - len(kept)


def _quoted(values: Sequence[str]) -> str:
    return ", ".join("'" + value.replace("'", "''") + "'" for value in values)
