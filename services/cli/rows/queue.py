"""`ratchet queue`: label the texts that settle a round, and the audit sample.

Turns arguments into leases and labels of the registry's queue. After labels the settling round is brought to where they are, so
that the last label needed promotes at once, with `ratchet up` or without.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from schemas.printable import one_line
from schemas.queue import ItemState, QueueItem, QueueProgress
from schemas.records import Role
from services.cli.identity import acting
from services.cli.project import as_option, config_option, json_option, one_of, opened, show

if TYPE_CHECKING:
    from schemas.records import RoundRecord
    from schemas.settings import Settings
    from serving.registry.registry import Registry

WAITS = (ItemState.CONFLICT, ItemState.OPEN)
DONE = {
    "recorded": "recorded",
    "unchanged": "recorded already",
    "replaced": "replaces your earlier label",
    "agreed": "agrees with the earlier label",
    "conflict": "differs from the earlier label: a third person decides",
    "resolved": "decides between the earlier labels",
    "disputed": "no majority among three people or more: the item does not count",
}
kind_option = click.option("--kind", type=click.Choice(["audit", "disagreement"]), help="take only items of this kind")


@click.group()
def queue() -> None:
    """Label texts that settle a round, and the audit sample."""


@queue.command(name="status")
@config_option
@json_option
def queue_status(config: Path, as_json: bool) -> None:
    """Show how many labels there are, and about how many are needed."""
    with opened(config) as (_, registry):
        settling = registry.settling_round()
        progress = [registry.queue.progress(settling.round_id)] if settling else []
        progress.append(registry.queue.progress())
    values = [{**one.model_dump(mode="json"), "line": one.line} for one in progress]
    show(values, as_json, [_progress_line(one) for one in progress])


@queue.command(name="next")
@kind_option
@config_option
@as_option
@json_option
def queue_next(kind: Any, config: Path, by: str | None, as_json: bool) -> None:
    """Show the next text to label; it is yours for ten minutes."""
    with opened(config) as (settings, registry):
        item = registry.queue.next(acting(settings, registry, by, Role.REVIEW), kind=kind)
        progress = registry.queue.progress(item.round_id) if item else None
    if item is None:
        show(None, as_json, ["nothing waits for a label from you"])
        return
    value = {**item.model_dump(mode="json"), "progress": progress.line if progress else None}
    show(value, as_json, [*_item_lines(item), *([_progress_line(progress)] if progress else [])])


@queue.command(name="label")
@click.argument("item_id", metavar="ID")
@click.argument("label")
@config_option
@as_option
@json_option
def queue_label(item_id: str, label: str, config: Path, by: str | None, as_json: bool) -> None:
    """Label item ID with LABEL: a label, labels separated by |, a number, a text, or the better text's 1, 2 or tie."""
    with opened(config) as (settings, registry):
        named, actor = _named(registry, item_id), acting(settings, registry, by, Role.REVIEW)
        result = _refused(lambda: registry.queue.label(named, label, reviewer=actor))
        lines, value = _moved(settings, registry)
    shown = result.label if result.label is not None else "no label counts"
    first = f"{result.item_id}: {shown}; {DONE[result.outcome.value]}"
    show({**result.model_dump(mode="json"), **value}, as_json, [first, *lines])


@queue.command(name="skip")
@click.argument("item_id", metavar="ID")
@click.option("--unsure", is_flag=True, help="say that the text does not show its label")
@config_option
@as_option
@json_option
def queue_skip(item_id: str, unsure: bool, config: Path, by: str | None, as_json: bool) -> None:
    """Leave item ID to others."""
    with opened(config) as (settings, registry):
        item_id, actor = _named(registry, item_id), acting(settings, registry, by, Role.REVIEW)
        state = _refused(lambda: registry.queue.skip(item_id, reviewer=actor, unsure=unsure))
    show({"item_id": item_id, "state": state.value}, as_json, [f"{item_id}: skipped, {state.value}"])


@queue.command(name="list")
@kind_option
@click.option("--all", "every", is_flag=True, help="show labelled items and those of ended rounds too")
@config_option
@json_option
def queue_list(kind: Any, every: bool, config: Path, as_json: bool) -> None:
    """List the items that wait for a label."""
    with opened(config) as (_, registry):
        items = registry.queue.items(kind=kind) if every else _waiting(registry, kind)
    lines = [f"{i.item_id}  {i.kind:<12}  {i.state.value:<8}  {i.label or '-'}  {one_line(i.text)[:80]}" for i in items]
    show([item.model_dump(mode="json") for item in items], as_json, lines or ["nothing waits for a label"])


@queue.command(name="export")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="write this file: .csv or .jsonl")
@kind_option
@config_option
@json_option
def queue_export(out: Path, kind: Any, config: Path, as_json: bool) -> None:
    """Write the items that wait for a label to a file; fill its column `label` and import it."""
    from services.cli.rows.exports import kind_of, write
    from services.cli.rows.queue_files import COLUMNS, exported

    with opened(config) as (_, registry):
        items = _waiting(registry, kind)
    done = write(out, kind_of(out, None), COLUMNS, exported(items))
    show({"file": str(out), "items": done}, as_json, [f"{out}: {done} items; fill the column label, then import it"])


@queue.command(name="import")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@config_option
@as_option
@json_option
def queue_import(file: Path, config: Path, by: str | None, as_json: bool) -> None:
    """Store the labels of FILE, all or none; rows without a label are passed over."""
    from services.cli.rows.queue_files import BadQueueFile, changed_texts, read
    from serving.registry.labelling.queue import BadQueueRows

    rows = read(file)
    with opened(config) as (settings, registry):
        texts = {item.item_id: item.text for item in registry.queue.items()}
        if errors := changed_texts(rows, texts):
            raise BadQueueFile(file, errors)
        actor = acting(settings, registry, by, Role.REVIEW)
        try:
            results = registry.queue.label_all([(row.item_id, row.label) for row in rows], reviewer=actor)
        except BadQueueRows as error:
            raise BadQueueFile(file, [(rows[n - 1].line, what) for n, what in error.errors]) from None
        lines, value = _moved(settings, registry)
    counts = {name: sum(r.outcome.value == name for r in results) for name in DONE}
    summary = ", ".join(f"{n} {name}" for name, n in counts.items() if n) or "no label in the file"
    show({"labels": len(results), **counts, **value}, as_json, [f"{file}: {summary}", *lines])


@queue.command(name="fill", hidden=True)
@config_option
def queue_fill(config: Path) -> None:
    """Queue new disagreements and audit texts from traffic; the scheduler runs this."""
    from pipelines.feature_store.store import FeatureStore
    from services.rounds.queue_filling import fill

    with opened(config) as (settings, registry):
        added = fill(settings, registry, FeatureStore(settings))
    click.echo("another process fills the queue" if added is None else f"added {added}")


def _moved(settings: "Settings", registry: "Registry") -> tuple[list[str], dict[str, Any]]:
    """Bring the settling round to where its labels are, and return lines and JSON values about it."""
    from services.rounds.announce import announce
    from services.rounds.settling import advance

    record = advance(settings, registry, token=None, announce=lambda champion: announce(settings, registry, champion))
    line = _round_line(record)
    return [line] if line else [], {"round": record.model_dump(mode="json") if record else None}


def _refused(act: Any) -> Any:
    """Call `act`; turn the queue's refusals into the command's one line."""
    from serving.registry.labelling.queue import BadQueueLabel, QueueClosed, UnknownItem

    try:
        return act()
    except (BadQueueLabel, QueueClosed, UnknownItem) as error:
        raise click.ClickException(str(error)) from None


def _named(registry: "Registry", given: str) -> str:
    return one_of(given, [item.item_id for item in registry.queue.items()], "queue")


def _waiting(registry: "Registry", kind: Any) -> list[QueueItem]:
    """Return the open items of the settling round and of the audit sample."""
    settling = registry.settling_round()
    rounds = {None, settling.round_id if settling else None}
    return [item for item in registry.queue.items(kind=kind, states=WAITS) if item.round_id in rounds]


def _item_lines(item: QueueItem) -> list[str]:
    why = "which label is right?" if item.labels else "which number is right?"
    if item.task == "generation":
        why = "which text is better: 1, 2 or tie?" if item.answers else "write the right text"
    lines = [f"item       {item.item_id} ({item.kind})", f"text       {item.text}"]
    lines += [f"answer {n}   {answer}" for n, answer in enumerate(item.answers, 1)]
    lines += [f"labels     {', '.join(item.labels)}"] if item.labels else []
    return [*lines, f"then       ratchet queue label {item.item_id[:13]} LABEL   ({why})"]


def _progress_line(progress: QueueProgress) -> str:
    name = f"round {progress.round_id}" if progress.round_id else "audit"
    return f"{name}: {progress.line}, {progress.open} texts wait"


def _round_line(record: "RoundRecord | None") -> str | None:
    from schemas.records import RoundState

    if record is None or record.settling is None:
        return None
    if record.state is RoundState.SETTLING:
        return f"round {record.round_id}: {record.settling.line}"
    return f"round {record.round_id} is {record.state}. {record.detail or ''}"
