"""Inputs of a round: its record, settings, policy, stores and base model, opened once and passed to every step.

Turns a claimed round into a `RoundInputs`. training_round.py opens it; its steps read it. It makes no decision.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from pipelines.dataset.build import Dataset
from pipelines.dataset.project_dataset import collect_and_build
from pipelines.dataset.sources.queue_labels import queue_rows
from pipelines.dataset.sources.replayed import wanted
from pipelines.evaluation.answer_rule import AnswerRule
from pipelines.feature_store.store import FeedbackRow
from pipelines.gates.policy import Policy, load_policy
from pipelines.models.base_models import Base, open_base
from schemas.records import Pace, RoundRecord
from schemas.settings import Settings
from schemas.toml_file import decode
from serving.artifacts import ArtifactStore
from serving.registry.registry import Registry


class RoundProgress(Protocol):
    """Receive a step's name, its completed share from 0 to 1 and, while training, the pace."""

    def __call__(self, step: str, share: float, pace: Pace | None = None, /) -> None:
        """Report progress."""


class Feedback(Protocol):
    """The part of the feature store that a round reads."""

    def labelled_feedback(self, cut: dict[str, int] | None = None) -> list[FeedbackRow]:
        """Return effective feedback up to the cut."""

    def recent_predictions(self, limit: int) -> list[tuple[str, str]]:
        """Return text and predicted target of the newest predictions."""

    def unchallenged(self, version: str, until: datetime, most: int) -> list[FeedbackRow]:
        """Return predictions of a version that nobody answered."""


@dataclass(frozen=True)
class RoundInputs:
    """Everything that the steps of one round share. The policy is read once: later edits do not affect the round."""

    record: RoundRecord
    settings: Settings
    registry: Registry
    store: ArtifactStore
    features: Feedback | None
    progress: RoundProgress
    folder: Path
    policy_text: str
    policy: Policy
    base: Base

    @property
    def rule(self) -> AnswerRule:
        """Return how the project's outputs become answers."""
        settings = self.settings
        return AnswerRule(settings.gates.sets, self.policy.superiority.metric, settings.model.at_least_one_label)

    def recent_texts(self, limit: int) -> Sequence[str]:
        """Return the texts of at most `limit` recent predictions."""
        return [text for text, _ in self.features.recent_predictions(limit)] if self.features else []

    def champion(self) -> tuple[Path | None, str | None]:
        """Return the champion's verified directory and digest, both None if there is no champion."""
        if self.record.champion_version is None:
            return None, None
        digest = self.registry.version(self.record.champion_version).digest
        return self.store.fetch(digest, self.settings.path(self.settings.artifacts.cache)), digest


def round_folder(settings: Settings, round_id: str) -> Path:
    """Return the folder that holds a round's working files."""
    return settings.path("state/rounds") / round_id


def open_inputs(
    record: RoundRecord,
    settings: Settings,
    registry: Registry,
    store: ArtifactStore,
    features: Feedback | None,
    progress: RoundProgress,
) -> RoundInputs:
    """Create the round's folder, read the policy and load the base model. Raises BadPolicy and BaseModelMissing."""
    folder = round_folder(settings, record.round_id)
    folder.mkdir(parents=True, exist_ok=True)
    text = decode(settings.path(settings.gates.policy).read_bytes(), "policy.toml")
    policy, base = load_policy(text), open_base(settings.model)
    return RoundInputs(record, settings, registry, store, features, progress, folder, text, policy, base)


def _replayed(inputs: RoundInputs, feedback: Sequence[FeedbackRow]) -> list[FeedbackRow]:
    """Return the champion's unchallenged answers that train beside people's corrections."""
    record, settings = inputs.record, inputs.settings
    if record.champion_version is None or inputs.features is None or not feedback:
        return []
    rounds = inputs.registry.rounds()
    judged = next((known for known in rounds if known.candidate_version == record.champion_version), None)
    report = judged.evaluations.get("candidate") if judged else None
    most = wanted(feedback, report.accuracy if report else None, settings.model.task, settings.dataset.unchallenged)
    return inputs.features.unchallenged(record.champion_version, record.created_at, most) if most else []


def collect_dataset(inputs: RoundInputs) -> Dataset:
    """Return the dataset at the round's cut. Replay covers rows up to when the champion's round was claimed."""
    record, registry = inputs.record, inputs.registry
    champion = registry.version(record.champion_version) if record.champion_version else None
    feedback = inputs.features.labelled_feedback(record.cut) if inputs.features else []
    return collect_and_build(
        inputs.settings,
        [*feedback, *_replayed(inputs, feedback)],
        cut=record.cut,
        labels=registry.label_map(),
        ledger=registry,
        base=inputs.base,
        since=registry.round(champion.round_id).created_at if champion else None,
        without=registry.excluded().rows,
        queue=queue_rows(registry, inputs.settings),
        trusted=registry.trust.trusted(),
    )
