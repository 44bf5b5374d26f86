"""Erasure: delete a user's events, one prediction or one feedback from every store of events.

Turns ids into exclusions of the registry and then into deletions from outboxes, event log, online store and the rows files of
rounds. `ratchet feedback erase` calls it. Exclusions come first, so that the consumer drops such events if they arrive later,
from a topic or from dead letters. Trained versions stay as they are; the next round trains without the rows.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.dataset.project_dataset import ROWS
from pipelines.feature_store.event_rows import BadMessage, read_event
from pipelines.feature_store.store import FeatureStore
from schemas.events import utc_now
from schemas.settings import Settings
from services.ingestion.feedback_gate import FeedbackGate
from serving.atomic_write import atomic_write
from serving.inference.normalise import tidy
from serving.messaging.outbox_store import erase as erase_outboxes
from serving.registry.registry import Registry

AT_ONCE = 500  # ids in one SQL predicate
PASSES, PAUSE_S = 5, 1.0  # through the log, at most; in the pause a consumer stores what it had checked before

Selects = Callable[[pa.Table], Any]  # predictions -> a mask of them


@dataclass(kw_only=True)
class Erased:
    """The numbers of deleted predictions, feedback, outbox events and rows of rounds."""

    predictions: int = 0
    feedback: int = 0
    outbox: int = 0
    round_rows: int = 0

    def as_dict(self) -> dict[str, int]:
        """Return the numbers for --json."""
        return asdict(self)


class Erasure:
    """Erases from the stores of one project; `actor` and `reason` go to the audit log."""

    def __init__(
        self, settings: Settings, registry: Registry, features: FeatureStore, *, actor: str, reason: str
    ) -> None:
        self._settings, self._registry, self._features = settings, registry, features
        self._actor, self._reason = actor, reason

    def user(self, names: Sequence[str]) -> Erased:
        """Erase a user's predictions and feedback, and others' feedback on these predictions; `names` are pseudonyms."""
        self._exclude("user", names, {"users": list(names)})
        return self._erase(
            lambda rows: pc.is_in(rows["user"], pa.array(names)),
            [f'"user" IN ({_quoted(names)})'],
            lambda row: row.get("person") in names,
        )

    def prediction(self, prediction_id: str) -> Erased:
        """Erase one prediction and all feedback on it."""
        self._exclude("prediction", [prediction_id], {"prediction": prediction_id})
        return self._erase(
            lambda rows: pc.equal(rows["prediction_id"], prediction_id),
            [f"prediction_id = '{prediction_id}'"],
            lambda _: False,
        )

    def feedback(self, prediction_id: str, feedback_id: str) -> Erased:
        """Erase one feedback."""
        self._exclude(
            "feedback", [f"{prediction_id}/{feedback_id}"], {"prediction": prediction_id, "feedback": feedback_id}
        )
        same = f"prediction_id = '{prediction_id}' AND feedback_id = '{feedback_id}'"
        return self._erase(None, [same], lambda _: False)

    def _exclude(self, kind: Any, subjects: Sequence[str], detail: dict[str, object]) -> None:
        detail = {**detail, "reason": self._reason}
        self._registry.exclude(kind, subjects, actor=self._actor, action="feedback erase", detail=detail)

    def _erase(
        self, selects: Selects | None, feedback: list[str], by_person: Callable[[dict[str, Any]], bool]
    ) -> Erased:
        """Delete the predictions of a selection, feedback that SQL predicates select, and rows of rounds about either.

        The log is read again until nothing is left: a consumer that read the exclusions before this one may still store a batch.
        """
        done, texts = Erased(outbox=self._outboxes()), set[str]()
        for number in range(PASSES):
            time.sleep(PAUSE_S if number else 0.0)
            rows = self._features.log_rows("predictions")
            rows = rows.slice(0, 0) if selects is None else rows.filter(selects(rows))
            ids = rows["prediction_id"].to_pylist()
            texts |= {tidy(text) for text in rows["text"].to_pylist()}
            about = [f"prediction_id IN ({_quoted(ids[n : n + AT_ONCE])})" for n in range(0, len(ids), AT_ONCE)]
            erased = sum(self._features.log.erase("predictions", predicate) for predicate in about)
            unsaid = sum(self._features.log.erase("feedback", predicate) for predicate in [*feedback, *about])
            self._features.forget_online(ids, utc_now())
            done.predictions, done.feedback = done.predictions + erased, done.feedback + unsaid
            if number and not erased and not unsaid:  # the first pass may have come before that batch
                break
        self._registry.queue_items.erase(texts)
        for file in sorted(self._settings.path("state/rounds").glob(f"*/{ROWS}")):
            done.round_rows += _without(file, lambda row: by_person(row) or row["text"] in texts)
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


def _without(file: Path, erased: Callable[[dict[str, Any]], bool]) -> int:
    lines = file.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if not erased(orjson.loads(line))]
    if len(kept) < len(lines):
        atomic_write(file, b"".join(kept))
    return len(lines) - len(kept)


def _quoted(values: Sequence[str]) -> str:
    return ", ".join("'" + value.replace("'", "''") + "'" for value in values)
