"""Queue: one text at a time, blind, to be labelled by keyboard; how many labels a round still needs.

Turns a leased item into a page, and a key press into a vote. Which model gave which answer is not known here.
"""

from typing import Any

from starlette.responses import Response

from schemas.targets import LABELLED
from services.console import actions, charts
from services.console.visit import Visit

KEYS = "123456789qwertyiop"  # without s and u, which skip and say unsure


def page(visit: Visit) -> Response:
    """Lease the next item and show it."""
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
    """Take a label, a skip or a new label's name, and show the next item."""
    item_id, form = visit.part("item_id"), visit.form
    project, person = visit.project, visit.who
    if form.get("skip"):
        actions.skip(project, person, item_id, unsure=form["skip"] == "unsure")
    elif proposed := form.get("new_label", "").strip():
        actions.label(project, person, item_id, actions.add_label(project, person, proposed))
    else:
        given = visit.listed.get("label", [])
        actions.label(project, person, item_id, given if len(given) != 1 else given[0])
    return page(visit) if visit.is_partial else visit.redirect("/queue")
