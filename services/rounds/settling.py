"""Settling rounds: labels on disagreements promote the candidate, reject it, or leave the round short of evidence.

Turns the labelled items of the settling round into its next state. The training scheduler calls `advance` at every tick, `ratchet
queue` after every label. Nothing is kept between calls, so a process killed at any point is followed by one that does the same.
The statistics are in pipelines/gates/settling.py.
"""

import logging
from collections.abc import Callable, Sequence

from pipelines.round_file import write_round_file
from schemas.labels import LabelMap
from schemas.queue import DecidedItem
from schemas.records import Champion, RoundRecord, RoundState
from schemas.reports import Verdict
from schemas.settings import Settings
from services.rounds.announce import announce
from serving.process.crash_points import crash_at
from serving.registry.registry import ChampionMoved, Registry, RoundOver

log = logging.getLogger("ratchet.settling")

ENDS = {Verdict.FAIL: RoundState.REJECTED, Verdict.INSUFFICIENT: RoundState.INSUFFICIENT}


class Settler:
    """Brings the settling round forward at each tick of the scheduler; a failure keeps no other round from running."""

    def __init__(self, settings: Settings, registry: Registry, fill: Callable[[], None]) -> None:
        self._settings, self._registry, self._fill = settings, registry, fill
        self._last = ""

    def tick(self, token: int) -> None:
        """Decide by the labels so far, and let the queue be filled. Never raises."""
        try:
            advance(self._settings, self._registry, token=token, announce=self._announce)
            self._fill()
        except Exception as error:
            if (news := f"{type(error).__name__}: {error}") != self._last:
                log.warning("the settling round waits, the next tick tries again: %s", news)
            self._last = news

    def _announce(self, champion: Champion) -> None:
        announce(self._settings, self._registry, champion)


def advance(
    settings: Settings, registry: Registry, *, token: int | None, announce: Callable[[Champion], None]
) -> RoundRecord | None:
    """Bring the settling round to where its labels are, and return its record; None if no round is settling.

    Args:
        settings: the project's settings.
        registry: holds round, items and labels.
        token: fencing token of the scheduler's lease; None when a person labels.
        announce: receives the promotion.

    Raises StaleLease if another scheduler took over.

    """
    record = registry.settling_round()
    if record is None or record.settling is None:
        return None
    try:
        return _advanced(record, settings, registry, token, announce)
    except RoundOver:  # another process ended it, or it waits for the running round
        return registry.round(record.round_id)


def _advanced(
    record: RoundRecord,
    settings: Settings,
    registry: Registry,
    token: int | None,
    announce: Callable[[Champion], None],
) -> RoundRecord:
    from pipelines.gates import settling

    plan, live = record.settling, registry.champion()
    assert plan is not None
    current = live.model_version if live else None
    if current != record.champion_version:
        moved = f"the candidate was compared with {record.champion_version}, and the champion is {current} now"
        return _end(record, RoundState.SUPERSEDED, moved, settings, registry)
    decided = _current(registry.queue_items.decided(record.round_id), registry.label_map())
    outcomes = [settling.favours(item) for item in decided]
    at = settling.level(plan.alpha, plan.reference_e)
    standing = settling.settle(outcomes, at, plan.horizon, plan.harm_alpha)
    news = {"labels": len(decided), "about": len(decided) + standing.more}
    if standing.verdict is None:
        if registry.database.clock() >= plan.until:
            late = f"{standing.sentence}; the time for labels ended at {plan.until:%Y-%m-%d %H:%M} UTC"
            return _end(record, RoundState.INSUFFICIENT, late, settings, registry)
        changed = (plan.labels, plan.about) != (news["labels"], news["about"])
        return registry.update_settling(record.round_id, **news) if changed else record
    registry.update_settling(record.round_id, **news, wins=standing.wins, losses=standing.losses)
    crash_at("settled")
    if standing.verdict is not Verdict.PASS:
        return _end(record, ENDS[standing.verdict], standing.sentence, settings, registry)
    return _pass(record, standing.sentence, settings, registry, token, announce)


def _pass(
    record: RoundRecord,
    sentence: str,
    settings: Settings,
    registry: Registry,
    token: int | None,
    announce: Callable[[Champion], None],
) -> RoundRecord:
    """Promote the candidate, or let it wait for approval."""
    if settings.gates.approval == "manual" or record.approval_reasons:
        why = f": {'; '.join(record.approval_reasons)}" if record.approval_reasons else ""
        detail = f"{sentence}; waiting for `ratchet round approve {record.round_id}`{why}"
        return _end(record, RoundState.AWAITING_APPROVAL, detail, settings, registry)
    version = record.candidate_version or ""
    registry.mark_servable(version)
    crash_at("settled version")
    try:
        champion = registry.promote(
            version, expected=record.champion_version, token=token, actor="gates", round_id=record.round_id
        )
    except ChampionMoved as error:
        return _end(record, RoundState.SUPERSEDED, f"{sentence}, but {error}", settings, registry)
    announce(champion)
    return _written(record, settings, registry)


def _current(items: Sequence[DecidedItem], names: LabelMap) -> list[DecidedItem]:
    """Return the items with the present names of all labels, so that a rename changes no outcome."""

    def renamed(item: DecidedItem) -> DecidedItem:
        fields = ("champion_answer", "candidate_answer", "label")
        values = {field: getattr(item, field) for field in fields}
        return item.model_copy(
            update={field: names.target(item.task, value) for field, value in values.items() if value is not None}
        )

    return [renamed(item) for item in items]


def _end(record: RoundRecord, state: RoundState, detail: str, settings: Settings, registry: Registry) -> RoundRecord:
    registry.finish_round(record.round_id, state, detail=detail)
    return _written(record, settings, registry)


def _written(record: RoundRecord, settings: Settings, registry: Registry) -> RoundRecord:
    """Return the round's record, after writing it into its folder if this machine has it."""
    ended = registry.round(record.round_id)
    write_round_file(settings, ended)
    return ended
