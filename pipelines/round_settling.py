"""Settling a round: the plan by which labels decide it, and the texts on which champion and candidate disagree.

Turns a report short of evidence into a `Settling`, and new traffic into items of the labelling queue. training_round.py plans,
services/rounds/queue_filling.py queues, services/rounds/settling.py decides.

Only texts that first came after the round was claimed are queued. People choose what they give feedback on, and that trains. So
the older texts that have not trained are no fair sample. No feedback on the later texts can have trained the candidate.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

from pipelines.dataset.cleaning.deduplicate import cluster
from pipelines.dataset.cleaning.names import installed_tier
from pipelines.dataset.project_dataset import training_rows
from pipelines.dataset.split import cluster_key
from pipelines.gates import settling
from pipelines.round_inputs import RoundInputs, round_folder
from schemas.queue import NewItem
from schemas.records import GATED_STATES, RoundRecord, Settling
from schemas.reports import GateReport
from schemas.settings import Settings
from serving.artifacts import ArtifactStore
from serving.inference.encoder_runtime import Runtime
from serving.inference.loading import Loaded, open_version
from serving.inference.normalise import normalise
from serving.registry.registry import Registry

MOST_TEXTS = 5000  # distinct texts that both models answer for one round
FEWER_TEXTS = {"regression": 400, "generation": 200}  # tasks in which nearly every text is a disagreement
BATCH = 500  # texts between two writes to the queue


class Traffic(Protocol):
    """The part of the feature store that settling reads."""

    def new_texts(self, since: datetime, after: datetime | None, limit: int) -> tuple[list[str], datetime | None]:
        """Return texts of predictions made from `since` on, and up to which storage time they were read."""


def plan(inputs: RoundInputs, report: GateReport) -> Settling | None:
    """Return how labels settle the round; None if its report leaves nothing to settle or the policy has no settling."""
    record, policy, registry = inputs.record, inputs.policy, inputs.registry
    if not policy.settling.enabled or record.champion_version is None or not settling.may_settle(report):
        return None
    look = 1 + _judged_before(registry.rounds(), record)
    e = 1.0 if report.reference_p is None else settling.e_value(report.reference_p)
    alpha, horizon = policy.settling_alpha_at(look), policy.settling.max_labels
    standing = settling.settle([], settling.level(alpha, e), horizon, policy.settling.harm_alpha)
    return Settling(
        look=look,
        alpha=alpha,
        reference_e=e,
        horizon=horizon,
        harm_alpha=policy.settling.harm_alpha,
        since=record.created_at,
        until=registry.database.clock() + timedelta(days=policy.settling.days),
        about=standing.more,
    )


def _judged_before(rounds: Sequence[RoundRecord], record: RoundRecord) -> int:
    """Return how many other rounds were judged against the same champion version."""
    return sum(
        known.round_id != record.round_id
        and known.champion_version == record.champion_version
        and known.gate_report is not None
        and known.state in GATED_STATES
        for known in rounds
    )


def queue_disagreements(
    record: RoundRecord, *, settings: Settings, registry: Registry, store: ArtifactStore, traffic: Traffic, threads: int
) -> int:
    """Let both models answer new traffic, and queue the texts on which they disagree; return how many were added.

    Killed at any point, the next call goes on: answered texts are noted after their disagreements are queued, and the queue has
    each text once. Raises RoundOver if the round has ended meanwhile.
    """
    assert record.settling is not None
    left = FEWER_TEXTS.get(settings.model.task, MOST_TEXTS) - record.settling.answered
    new, until = traffic.new_texts(record.settling.since, record.settling.answered_until, MOST_TEXTS)
    if left <= 0 or until is None:
        return 0
    unseen = _unseen([normalise(text) for text in new], record, settings, registry)
    texts = dict(
        sorted(unseen.items(), key=lambda pair: pair[1])[:left]
    )  # by key: at random, the same in every attempt
    models = _models(record, settings, registry, store, threads) if texts else ()
    added = 0
    for start in range(0, len(texts), BATCH):
        some = dict(list(texts.items())[start : start + BATCH])
        added += registry.queue_items.add(_disagreements(some, models, record, settings, registry))
    registry.update_settling(
        record.round_id,
        answered=record.settling.answered + len(texts),
        answered_until=until,
        disagreements=record.settling.disagreements + added,
    )
    return added


def _unseen(texts: Sequence[str], record: RoundRecord, settings: Settings, registry: Registry) -> dict[str, str]:
    """Return text -> key of the distinct texts that no round has used and that are near none of the round's rows and items."""
    redact = installed_tier() if settings.dataset.names else None
    distinct = list(dict.fromkeys(text for text in texts if text))
    stored = dict(zip(distinct, redact(distinct) if redact else distinct, strict=True))  # as datasets have them
    keys = {text: cluster_key(settings.model.name, redacted) for text, redacted in stored.items()}
    used = registry.sides(keys.values())
    fresh = [text for text in distinct if keys[text] not in used]
    trained = [row.text for row in training_rows(round_folder(settings, record.round_id))]
    queued = [stored.get(item.text, item.text) for item in registry.queue.items(round_id=record.round_id)]
    clusters = cluster([*trained, *queued, *(stored[text] for text in fresh)], len(trained) + len(queued))
    first = len(trained) + len(queued)
    return {text: keys[text] for n, text in enumerate(fresh, first) if clusters.leader[n] == n}


def _models(
    record: RoundRecord, settings: Settings, registry: Registry, store: ArtifactStore, threads: int
) -> tuple[Loaded, Loaded]:
    """Return champion and candidate."""
    cache: Path = settings.path(settings.artifacts.cache)

    def opened(version: str | None) -> Loaded:
        digest = registry.version(version or "").digest
        return open_version(store.fetch(digest, cache), digest, threads=threads)

    return opened(record.champion_version), opened(record.candidate_version)


def _disagreements(
    texts: Mapping[str, str],
    models: Sequence[Loaded],
    record: RoundRecord,
    settings: Settings,
    registry: Registry,
) -> list[NewItem]:
    """Return the texts (with their keys) on which champion and candidate give different answers."""
    task, names = settings.model.task, registry.label_map()
    champions, candidates = ([names.target(task, answer) for answer in answers(model, list(texts))] for model in models)
    return [
        NewItem(
            kind="disagreement",
            round_id=record.round_id,
            task=task,
            key=texts[text],
            text=text,
            champion_answer=champion,
            candidate_answer=candidate,
        )
        for text, champion, candidate in zip(texts, champions, candidates, strict=True)
        if settling.differ(task, champion, candidate)
    ]


def answers(model: Loaded, texts: Sequence[str]) -> list[str]:
    """Return a version's predictions as canonical targets, as it serves them."""
    if isinstance(model, Runtime):
        predictions = model.outputs.predictions(model.probabilities(texts), None)
        return [str(event["label"]) for _, event in predictions]
    return [written.text.strip() for written in model.generate(list(texts))]
