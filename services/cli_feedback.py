"""`ratchet feedback`: export what people said, replay dead letters.

Turns arguments into a file of effective feedback, or into messages published again. It deliberately does not decide what
is effective or what is bad: pipelines/features.py and event_rows.py do.
"""

import json
import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from services.cli_project import config_option, json_option, show

if TYPE_CHECKING:
    import pyarrow as pa

    from schemas.settings import Settings

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
    """What people said."""


def _moment(_context: click.Context, parameter: click.Parameter, value: str | None) -> datetime | None:
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is no ISO 8601 time such as 2026-03-01T12:00:00Z", param=parameter
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


@feedback.command(name="export")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="file to write: .parquet or .jsonl")
@click.option("--since", callback=_moment, help="said at or after this time (ISO 8601, UTC unless it says otherwise)")
@click.option("--until", callback=_moment, help="said before this time")
@click.option("--user", help="of this user, as the app names them (or as their pseudonym)")
@click.option("--label", help="correction to this label (or a|b, or number); for other kinds: about this predicted one")
@click.option("--model-version", help="about predictions of this version")
@config_option
@json_option
def export(
    out: Path,
    since: datetime | None,
    until: datetime | None,
    user: str | None,
    label: str | None,
    model_version: str | None,
    config: Path,
    as_json: bool,
) -> None:
    """Write one line per effective feedback, the oldest id first; text is empty while the prediction is not known."""
    from pipelines.features import FeatureStore
    from services.projects import open_project

    if out.suffix.lower() not in WRITERS:
        raise click.UsageError(f"--out {out}: the name must end in {' or '.join(WRITERS)}")
    settings = open_project(config)
    rows = FeatureStore(settings).export()
    target = None if label is None else _target(settings, label)
    rows = _chosen(rows, since, until, _names(settings, user), target, model_version)
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        WRITERS[out.suffix.lower()](rows, beside)
        beside.replace(out)
    finally:
        beside.unlink(missing_ok=True)
    show({"rows": rows.num_rows, "file": str(out)}, as_json, [f"{rows.num_rows} feedback in {out}"])


@feedback.command(name="replay")
@click.option("--dlq", is_flag=True, required=True, help="the dead letters of this project")
@config_option
@json_option
def replay_command(dlq: bool, config: Path, as_json: bool) -> None:  # noqa: ARG001 - the flag says what it costs
    """Publish dead letters again that can be read by now, after a fix; the others stay dead letters."""
    from services.dead_letters import replay
    from services.projects import open_project, running_up
    from serving.broker import Topics

    settings = open_project(config)
    bootstrap = settings.kafka.bootstrap_servers or (running_up(settings) or {}).get("broker")
    if not bootstrap:
        raise click.ClickException("there is no broker: start `ratchet up`, or set kafka.bootstrap_servers")
    topics = Topics.of(settings.model.name)
    done = replay(str(bootstrap), topics, timeout_s=max(10.0, settings.kafka.publish_timeout_s))
    line = f"{done.published} published again, {done.still_bad} still bad, {done.in_the_log} in the log already"
    show(done.as_dict(), as_json, [line])


def _names(settings: "Settings", user: str | None) -> list[str] | None:
    """What a user may be called in the log: the pseudonym, or what was given if it is one."""
    from serving import access

    if user is None:
        return None
    return [user, access.pseudonym(access.read_keys(settings.path(settings.access.keys)).secret, user)]


def _target(settings: "Settings", label: str) -> tuple[str, str]:
    """How the log writes a target that was said, and one that was predicted."""
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

    keep = pa.array([True] * rows.num_rows)
    if since is not None:
        keep = pc.and_(keep, pc.greater_equal(rows["event_timestamp"], pa.scalar(since)))
    if until is not None:
        keep = pc.and_(keep, pc.less(rows["event_timestamp"], pa.scalar(until)))
    if users is not None:
        keep = pc.and_(keep, pc.is_in(rows["user"], value_set=pa.array(users)))
    if target is not None:
        corrected = pc.equal(rows["kind"], "correction")
        about = pc.if_else(corrected, rows["value"], rows["predicted_label"])
        wanted = pc.if_else(corrected, *target)
        keep = pc.and_(keep, pc.fill_null(pc.equal(about, wanted), False))
    if model_version is not None:
        keep = pc.and_(keep, pc.fill_null(pc.equal(rows["model_version"], model_version), False))
    rows = rows.filter(keep).append_column("time", rows.filter(keep)["event_timestamp"])
    return rows.select(COLUMNS)


def _records(rows: "pa.Table") -> Iterator[dict[str, Any]]:
    for batch in rows.to_batches(AT_ONCE):
        for row in batch.to_pylist():
            row["value"] = json.loads(row["value"])
            row["metadata"] = json.loads(row["metadata"] or "{}")
            row["time"] = row["time"].astimezone(UTC)
            yield row


def _write_lines(rows: "pa.Table", path: Path) -> None:
    import orjson

    shown = click.progressbar(_records(rows), length=rows.num_rows, label="export", file=sys.stderr)
    with path.open("wb") as file, shown as records:
        for row in records:
            file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))


def _write_parquet(rows: "pa.Table", path: Path) -> None:
    """Texts are texts; numbers and lists of labels are JSON, as in the log."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    values = [v if isinstance(v := json.loads(raw), str) else raw for raw in rows["value"].to_pylist()]
    place = rows.schema.get_field_index("value")
    pq.write_table(rows.set_column(place, "value", pa.array(values, pa.string())), path)


WRITERS = {".parquet": _write_parquet, ".jsonl": _write_lines}
