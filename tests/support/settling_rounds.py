"""A round that settles, without models: every text has one answer by the champion and another by the candidate."""

from datetime import timedelta

from schemas.queue import NewItem
from schemas.records import RoundRecord, Settling
from schemas.reports import Verdict
from serving.registry.registry import Registry
from tests.support.manifests import manifest
from tests.support.registries import add_versions, begin, gate_report

CHAMPION, CANDIDATE = "card", "loan"  # the two answers to every text
TEXTS = 40


def settle(registry: Registry, version: str = "v2") -> RoundRecord:
    """A round that compares `version` with the champion v1 and waits for labels on TEXTS texts."""
    registry.set_labels([CHAMPION, CANDIDATE, "rate"])
    if registry.champion() is None:
        add_versions(registry, "v1")
        registry.promote("v1", expected=None, token=None, actor="gates")
    record = wait_for_labels(registry, version)
    registry.queue_items.add(
        NewItem(
            kind="disagreement",
            round_id=record.round_id,
            task="classification",
            key=f"{number:064x}",
            text=f"text {number}",
            champion_answer=CHAMPION,
            candidate_answer=CANDIDATE,
        )
        for number in range(TEXTS)
    )
    return registry.round(record.round_id)


def wait_for_labels(registry: Registry, version: str) -> RoundRecord:
    """A round that compares `version` with the champion and waits for labels; its queue is empty."""
    record = begin(registry)
    registry.update_round(record.round_id, candidate_version=version, gate_report=gate_report(Verdict.INSUFFICIENT))
    now = registry.database.clock()
    plan = Settling(
        look=1, alpha=0.01, reference_e=1.0, horizon=120, since=now, until=now + timedelta(days=14), about=50
    )
    return registry.begin_settling(record.round_id, plan)


def candidate(registry: Registry, name: str) -> None:
    """Register a version that no gate has passed."""
    registry.register_version(manifest(name, model_name=registry.model_name), f"digest of {name}", servable=False)
