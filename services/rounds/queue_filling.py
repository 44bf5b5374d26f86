"""Filling the labelling queue: disagreements of the settling round, and the audit sample, from new traffic.

Turns stored predictions into queue items. `fill` runs in a niced process, `ratchet queue fill`, which queue_filler.py starts; the
round's process calls it once when the round begins to settle. A killed one is started again.
"""

import contextlib
import os
from datetime import timedelta

from pipelines.dataset.split import cluster_key
from pipelines.feature_store.store import FeatureStore
from schemas.queue import NewItem
from schemas.settings import Settings
from services.rounds.queue_filler import wants_items
from serving.artifacts import ArtifactStore
from serving.file_lock import LockHeld, held
from serving.inference.normalise import normalise
from serving.registry.registry import Registry

LOCK = "state/queue.lock"
MOST_AUDIT = 500  # audit texts that wait for a label at a time; feedback on them does not train meanwhile


def fill(settings: Settings, registry: Registry, features: FeatureStore) -> dict[str, int] | None:
    """Add items to the queue and return how many of each kind; None while another process does so."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(held(settings.path(LOCK), str(os.getpid()), wait_s=0))
        except LockHeld:
            return None
        added = {"audit": queue_audit_sample(settings, registry, features), "disagreement": 0}
        record = registry.settling_round()
        if record is not None and wants_items(registry, record):
            from pipelines.evaluation.evaluators import evaluation_threads  # torch, which the audit sample does without
            from pipelines.round_settling import queue_disagreements

            added["disagreement"] = queue_disagreements(
                record,
                settings=settings,
                registry=registry,
                store=ArtifactStore(settings.location(settings.artifacts.url)),
                traffic=features,
                threads=evaluation_threads(settings.training),
            )
        return added


def queue_audit_sample(settings: Settings, registry: Registry, features: FeatureStore) -> int:
    """Queue the texts of audited predictions, whatever their confidence and feedback; return how many were added.

    A text that a dataset already uses is left out: what has trained cannot judge.
    """
    room = MOST_AUDIT - len(registry.queue_items.waiting())
    if not settings.dataset.audit_rate or room <= 0:
        return 0
    expires_at = registry.database.clock() + timedelta(days=settings.dataset.audit_days)
    since = registry.database.clock() - timedelta(days=settings.dataset.audit_days)
    texts, _ = features.new_texts(since, None, MOST_AUDIT, audit=True)
    keys = {text: cluster_key(settings.model.name, text) for text in dict.fromkeys(map(normalise, texts)) if text}
    used = registry.sides(keys.values())
    items = [
        NewItem(kind="audit", task=settings.model.task, key=key, text=text, expires_at=expires_at)
        for text, key in keys.items()
        if key not in used
    ]
    return registry.queue_items.add(items[:room])
