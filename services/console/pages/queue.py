"""Queue: one text at a time, blind, to be labelled by keyboard; how many labels a round still needs.

Turns a leased item into a page, and a key press into a vote. Which model gave which answer is not known here.
"""

from typing import Any

from starlette.responses import Response

from schemas.records import RoundRecord, RoundState
from schemas.targets import LABELLED
from services.console import actions, charts
from services.console.visit import Visit
from serving.registry.labelling.queue import QueueClosed

KEYS = "123456789qwertyiop"  # without s and u, which skip and say unsure


def page(visit: Visit, settled: RoundRecord | None = None) -> Response:
    """Lease the next item and show it, below what the label before it settled."""
    registry, task = visit.project.registry, visit.project.settings.model.task
    item = registry.queue.next(visit.who.name)
    settling = registry.settling_round()
    progress = registry.queue.progress(settling.round_id) if settling else None
    share = min(1.0, progress.labels / progress.about) if progress and progress.about else 0.0
    return visit.page(
        "queue_item.html" if visit.is_partial else "queue.html",
        section="queue",
        title="Queue",
        item=item,
        task=task,
        choices=_choices(item),
        settling=settling,
        settled=settled,
        progress=progress,
        audit=registry.queue.progress(),
        meter=charts.meter(share, f"{share:.0%} of the labels that settle the round") if progress else "",
        labelled=task in LABELLED,
    )


def _choices(item: Any) -> list[tuple[str, str, str]]:
    """Return key, value and text of each button: the answers first, then the other labels."""
    if item is None:
        return []
    if item.task == "generation":
        return (
            [("1", "1", item.answers[0]), ("2", "2", item.answers[1]), ("3", "tie", "Both alike")]
            if item.answers
            else []
        )
    if item.task != "classification":
        return []
    ordered = [*item.answers, *(label for label in item.labels if label not in item.answers)]
    return [(key, label, label) for key, label in zip(KEYS.ljust(len(ordered)), ordered, strict=False)]


def answer(visit: Visit) -> Response:
    """Take a label, a skip or a new label's name, and show the next item; say so if the item's round has its verdict."""
    item_id = visit.part("item_id")
    try:
        _take(visit, item_id)
        settled = _settled(visit, item_id)
    except QueueClosed:  # the verdict came while the item was on the screen
        settled = _settled(visit, item_id)
        if settled is None:
            raise
    if visit.is_partial:
        return page(visit, settled)
    return visit.redirect(f"/rounds/{settled.round_id}" if settled else "/queue")


def _take(visit: Visit, item_id: str) -> None:
    project, person, form = visit.project, visit.who, visit.form
    if form.get("skip"):
        actions.skip(project, person, item_id, unsure=form["skip"] == "unsure")
    elif proposed := form.get("new_label", "").strip():
        actions.label(project, person, item_id, actions.add_label(project, person, proposed))
    else:
        given = visit.listed.get("label", [])
        actions.label(project, person, item_id, given if len(given) != 1 else given[0])


def _settled(visit: Visit, item_id: str) -> RoundRecord | None:
    """Return the item's round if it waits for labels no more."""
    registry = visit.project.registry
    round_id = registry.queue.item(item_id).round_id
    record = registry.round(round_id) if round_id else None
    return record if record and record.state is not RoundState.SETTLING else None
