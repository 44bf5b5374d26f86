"""`ratchet dataset`: preview, export and exclude the rows that rounds train on.

Turns arguments into a dataset built now, or a round's dataset, and that into files. It reads the split ledger and never writes
it; only rounds assign sides.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from schemas.records import Role
from services.cli.identity import acting
from services.cli.project import as_option, config_option, json_option, opened, reason_option, round_named, show
from services.cli.rows.exports import WRITERS, kind_of, write

if TYPE_CHECKING:
    from pipelines.dataset.build import Dataset
    from pipelines.dataset.files import FileRow
    from pipelines.feature_store.store import FeatureStore
    from pipelines.models.base_models import Base
    from schemas.settings import Settings
    from serving.registry.registry import Registry


@click.group()
def dataset() -> None:
    """Preview, export and exclude training rows."""


@dataset.command(name="build")
@click.option(
    "--out", type=click.Path(path_type=Path), default="state/dataset", show_default=True, help="write into this folder"
)
@config_option
@json_option
def dataset_build(out: Path, config: Path, as_json: bool) -> None:
    """Build what a round would train on now.

    Writes rows.jsonl, dataset.json and dataset.html.
    """
    from pipelines.dataset.project_dataset import write_rows
    from pipelines.dataset.report.write import write_report

    with opened(config) as (settings, registry):
        built, base, features = _build(settings, registry)
        folder = settings.path(str(out))
        folder.mkdir(parents=True, exist_ok=True)
        write_rows(folder, built)
        write_report(folder, built, settings, registry, features, base)
    m = built.manifest
    dropped = ", ".join(f"{n} {reason}" for reason, n in m.dropped.items()) or "nothing"
    lines = [
        f"{m.rows_in} rows in: {m.rows_train} train, {m.rows_validation} validation, "
        f"{m.rows_rejections + m.rows_held_out + m.rows_audit} otherwise in use; dropped {dropped}",
        f"written to {folder}: dataset.html shows it",
    ]
    show(m.model_dump(mode="json"), as_json, lines)


@dataset.command(name="export")
@click.option("--round", "round_id", metavar="ID", help="export this round's rows; default: build now")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["chat", *WRITERS]),
    help="write this format; default: by file ending or chat",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="write this file")
@config_option
def dataset_export(round_id: str | None, kind: str | None, out: Path, config: Path) -> None:
    """Export training and validation rows to a file.

    Writes chat fine-tuning JSONL, or text and target.

    In a CSV, cells that a spreadsheet would run as a formula begin with an apostrophe.
    """
    from pipelines.dataset.formats import chat_lines, check_chat
    from pipelines.dataset.project_dataset import training_rows
    from pipelines.round_inputs import round_folder
    from schemas.targets import COLUMNS, value_of
    from serving.atomic_write import atomic_write

    if kind is None:
        kind = kind_of(out, None, "chat") if out.suffix.lower() != ".jsonl" else "chat"
    with opened(config) as (settings, registry):
        if round_id:
            round_id = round_named(registry, round_id)
            rows = training_rows(round_folder(settings, round_id))
        else:
            built, _, _ = _build(settings, registry)
            rows = [*built.train, *built.validation]
        labels, task = registry.active_labels(), settings.model.task
    if kind != "chat":
        column = COLUMNS[task]
        done = write(out, kind, ["text", column], ({"text": e.text, column: value_of(task, e.label)} for e in rows))
    else:
        lines = chat_lines(rows, labels, task)
        check_chat(lines)
        atomic_write(out, "".join(f"{line}\n" for line in lines))
        done = len(lines)
    click.echo(f"{done} rows written to {out}")


@dataset.command(name="exclude")
@click.argument("rows", nargs=-1)
@click.option("--find", "words", help="show rows whose text holds these words, with their keys")
@click.option("--undo", is_flag=True, help="include these rows again")
@config_option
@as_option
@reason_option
@json_option
def dataset_exclude(
    rows: tuple[str, ...], words: str | None, undo: bool, config: Path, by: str | None, reason: str, as_json: bool
) -> None:
    """Exclude ROWS of the labelled files from every later round.

    A row is a key that --find shows, or FILE:NUMBER, the line or row by which messages name it. The files stay as they are.
    Without ROWS, show the excluded rows, or those that --find matches.
    """
    from pipelines.dataset.exclusions import row_key, rows_matching

    with opened(config) as (settings, registry):
        registry.migrate()
        actor = acting(settings, registry, by, Role.REVIEW) if rows else ""
        given = {path: read_rows_of(settings, path) for path in _files(settings)}
        keys = [_key(row, given) for row in rows]
        if keys:
            change = registry.include if undo else registry.exclude
            detail = {"keys": keys, "undo": undo, "reason": reason}
            change("row", keys, actor=actor, action="dataset exclude", detail=detail)
        out = registry.excluded().rows
    lines, shown = [], []
    for path, held in given.items():
        matching = rows_matching(held, words) if words else [row for row in held if row_key(row.text) in (keys or out)]
        for row in matching:
            key = row_key(row.text)
            shown.append({"file": path, "key": key, "label": row.label, "text": row.text, "excluded": key in out})
            lines.append(f"{key}  {'out' if key in out else 'in ':<3}  {path}  {row.label}: {row.text[:80]}")
    show(shown, as_json, lines or ["no rows"])


def read_rows_of(settings: "Settings", path: str) -> "list[FileRow]":
    """Return the rows of one of the project's files."""
    from pipelines.dataset.files import read_rows
    from pipelines.dataset.project_dataset import columns_of

    return read_rows(settings.path(path), settings.model.task, columns_of(settings))


def _files(settings: "Settings") -> list[str]:
    files = settings.dataset
    return [files.seed, *([files.reference] if files.reference else []), *files.domain]


def _key(given: str, files: "Mapping[str, list[FileRow]]") -> str:
    """Return the key of the one row that `given` names. Raises UsageError."""
    from pipelines.dataset.exclusions import row_key

    known = {row_key(row.text) for rows in files.values() for row in rows}
    path, _, number = given.rpartition(":")
    rows = files.get(path) or next((held for file, held in files.items() if Path(file).name == path), None)
    if rows is not None and number.isdecimal():
        there = [row for row in rows if row.where.rpartition(" ")[2] == str(int(number))]
        if len(there) == 1:
            return row_key(there[0].text)
        several = f"{path} has {', '.join(row.where for row in there)} there"
        none = f"there is no such row; {path} has rows from {rows[0].where} to {rows[-1].where}"
        raise click.UsageError(f"{given}: {several if there else none}; --find WORDS shows keys")
    if path and number.isdecimal():
        raise click.UsageError(f"{given}: the project has no file {path}; it has {', '.join(files)}")
    matching = [key for key in known if given and key.startswith(given.lower())]
    if len(matching) != 1:
        raise click.UsageError(f"{given}: {len(matching)} rows have a key that begins so; --find WORDS shows keys")
    return matching[0]


class LedgerPreview:
    """The registry's split ledger for a look ahead: what would be written is dropped."""

    def __init__(self, registry: "Registry") -> None:
        self._registry = registry

    def sides(self, keys: Iterable[str]) -> dict[str, str]:
        """Return the side of each key that has one."""
        return self._registry.sides(keys)

    def record_sides(self, sides: Mapping[str, str]) -> dict[str, str]:
        """Return the sides that would count, and write none."""
        return {**sides, **self._registry.sides(sides)}


def _build(settings: "Settings", registry: "Registry") -> "tuple[Dataset, Base, FeatureStore | None]":
    from pipelines.dataset.project_dataset import collect_and_build
    from pipelines.dataset.sources.queue_labels import queue_rows
    from pipelines.feature_store.store import FeatureStore
    from pipelines.models.base_models import open_base

    registry.migrate()  # the queue may be newer than the project
    champion = registry.champion()
    features = FeatureStore(settings) if champion else None  # before the first champion the store may not exist
    cut = features.current_cut() if features else {}
    base = open_base(settings.model)
    built = collect_and_build(
        settings,
        features.labelled_feedback(cut) if features else [],
        cut=cut,
        labels=registry.label_map(),
        ledger=LedgerPreview(registry),
        base=base,
        since=registry.round(champion.round_id).created_at if champion and champion.round_id else None,
        without=registry.excluded().rows,
        queue=queue_rows(registry, settings),
    )
    return built, base, features
