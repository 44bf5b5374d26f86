"""`ratchet feedback`: export feedback, replay dead letters; erasure.py erases.

Turns arguments into a file of effective feedback, or into replayed messages. pipelines/feature_store/effective_feedback.py
decides which feedback is effective, event_rows.py which messages are bad.
"""

import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from services.cli.project import config_option, json_option, opened, show
from services.cli.rows.erasure import erase
from services.cli.rows.exports import WRITERS, kind_of, write

if TYPE_CHECKING:
    import pyarrow as pa

    from schemas.labels import LabelMap
    from schemas.settings import Settings
    from schemas.targets import Task

COLUMNS = (
    "feedback_id",
    "prediction_id",
    "kind",
    "value",
    "user",
    "text",
    "time",
    "predicted_label",
    "model_version",
    "metadata",
)
AT_ONCE = 10_000


@click.group()
def feedback() -> None:
    """Export, erase and replay feedback."""


def _moment(_context: click.Context, parameter: click.Parameter, value: str | None) -> datetime | None:
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise click.BadParameter(
            f"expected an ISO 8601 time such as 2026-03-01T12:00:00Z, got {value!r}", param=parameter
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


@feedback.command(name="export")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="write this file: .jsonl, .csv or .parquet")
@click.option("--format", "kind", type=click.Choice(list(WRITERS)), help="write this format; default: by file ending")
@click.option("--since", callback=_moment, help="keep feedback from this time on (ISO 8601)")
@click.option("--until", callback=_moment, help="keep feedback before this time")
@click.option("--user", help="keep feedback of this user (name or pseudonym)")
@click.option(
    "--label", help="keep corrections to this label (a|b, or a number), and other feedback on predictions of it"
)
@click.option("--model-version", help="keep feedback on predictions of this version")
@click.option("--labelled", is_flag=True, help="keep only rows with text and target, as in a seed")
@config_option
@json_option
def export(
    out: Path,
    kind: str | None,
    since: datetime | None,
    until: datetime | None,
    user: str | None,
    label: str | None,
    model_version: str | None,
    labelled: bool,
    config: Path,
    as_json: bool,
) -> None:
    """Export effective feedback, one row each, oldest id first.

    Times without an offset are in UTC. The text is empty while the prediction is unknown. The target column (label, labels,
    target or completion, by task) holds the target of a correction or a thumbs-up, so that the file can be a seed. In a CSV,
    cells that a spreadsheet would run as a formula begin with an apostrophe.
    """
    from pipelines.feature_store.store import FeatureStore
    from schemas.targets import COLUMNS as TARGETS

    kind = kind_of(out, kind)
    with opened(config) as (settings, registry):
        names = registry.label_map()
    rows = FeatureStore(settings).export()
    target = None if label is None else _target(settings, label)
    chosen = _chosen(rows, since, until, _names(settings, user), target, model_version)
    shown = click.progressbar(
        _records(chosen, settings.model.task, names), length=chosen.num_rows, label="export", file=sys.stderr
    )
    column = TARGETS[settings.model.task]
    with shown as records:
        wanted = (row for row in records if not labelled or (row["text"] is not None and row[column] is not None))
        done = write(out, kind, [*COLUMNS[:6], column, *COLUMNS[6:]], wanted)
    line = f"{done} feedback in {out}" if done or rows.num_rows else f"there is no feedback yet: 0 rows in {out}"
    show({"rows": done, "file": str(out)}, as_json, [line])


@feedback.command(name="replay")
@click.option("--dlq", is_flag=True, required=True, help="replay the dead-letter topic of this project")
@config_option
@json_option
def replay_command(dlq: bool, config: Path, as_json: bool) -> None:  # noqa: ARG001 - a required flag, for clarity
    """Publish dead letters again that can be read after a fix."""
    from services.ingestion.feedback_gate import FeedbackGate
    from services.ingestion.replay import replay, settled_letters
    from services.projects import broker_of
    from serving.messaging.publisher import Topics

    with opened(config) as (settings, registry):
        broker = broker_of(settings)
        if broker is None:
            raise click.ClickException("no broker is running: start `ratchet up`, or set kafka.bootstrap_servers")
        topics, timeout_s = Topics.of(settings.stream_name), max(10.0, settings.kafka.publish_timeout_s)
        gate, settled = FeedbackGate(settings, registry), settled_letters(registry)
        done = replay(broker, topics, gate, timeout_s=timeout_s, settled=settled)
    line = f"{done.published} published again, {done.still_bad} still bad, {done.in_the_log} in the log already"
    lines = [line + (f", {done.erased} erased and dropped" if done.erased else "")]
    show(done.as_dict(), as_json, lines)


def _names(settings: "Settings", user: str | None) -> list[str] | None:
    """Return the pseudonyms that may stand for a user in the log; None without a user."""
    from serving.http import access

    if user is None:
        return None
    return [user, access.pseudonym(access.read_keys(settings.path(settings.access.keys)).secret, user)]


def _target(settings: "Settings", label: str) -> tuple[str, str]:
    """Return how the event log writes a corrected and a predicted target."""
    import orjson

    from schemas.targets import BadTarget, from_cell, value_of

    try:
        target = from_cell(settings.model.task, label)
    except BadTarget as error:
        raise click.UsageError(f"--label {error}") from error
    return orjson.dumps(value_of(settings.model.task, target)).decode(), target


def _chosen(
    rows: "pa.Table",
    since: datetime | None,
    until: datetime | None,
    users: list[str] | None,
    target: tuple[str, str] | None,
    model_version: str | None,
) -> "pa.Table":
    import pyarrow as pa
    import pyarrow.compute as pc

    keep = pa.array([True] * rows.num_rows, pa.bool_())
    if since is not None:
        keep = pc.and_(keep, pc.greater_equal(rows["event_timestamp"], pa.scalar(since)))
    if until is not None:
        keep = pc.and_(keep, pc.less(rows["event_timestamp"], pa.scalar(until)))
    if users is not None:
        keep = pc.and_(keep, pc.is_in(rows["user"], value_set=pa.array(users)))
    if target is not None:
        corrected = pc.equal(rows["kind"], "correction")
        target_of_row = pc.if_else(corrected, rows["value"], rows["predicted_label"])
        wanted = pc.if_else(corrected, *target)
        keep = pc.and_(keep, pc.fill_null(pc.equal(target_of_row, wanted), False))
    if model_version is not None:
        keep = pc.and_(keep, pc.fill_null(pc.equal(rows["model_version"], model_version), False))
    rows = rows.filter(keep).append_column("time", rows.filter(keep)["event_timestamp"])
    return rows.select(COLUMNS)


def _records(rows: "pa.Table", task: "Task", names: "LabelMap") -> Iterator[dict[str, Any]]:
    from schemas.targets import COLUMNS as TARGETS

    for batch in rows.to_batches(AT_ONCE):
        for row in batch.to_pylist():
            row["value"] = json.loads(row["value"])
            row["metadata"] = json.loads(row["metadata"] or "{}")
            row["time"] = row["time"].astimezone(UTC)
            row[TARGETS[task]] = _target_of(row, task, names)
            yield row


def _target_of(row: dict[str, Any], task: "Task", names: "LabelMap") -> Any:
    """Return the target of a correction or a thumbs-up, by its present name; None if there is none."""
    from schemas.targets import BadTarget, canonical, value_of

    if row["text"] is None:
        return None
    try:
        if row["kind"] == "correction":
            target = names.target(task, canonical(task, row["value"]))
        elif (row["kind"], row["value"]) == ("rating", "up"):
            target = names.target(task, row["predicted_label"])
        else:
            return None
        return value_of(task, target)
    except BadTarget:
        return None


feedback.add_command(erase)
