"""`ratchet dataset`: look at what a round would train on, and take it elsewhere.

Turns arguments into a dataset built as of now, or a round's, and that into files. cli.py adds the group. It deliberately
writes no side to the ledger: that is a round's to do.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from services.cli_project import config_option, json_option, opened, round_named, show

if TYPE_CHECKING:
    from pipelines.dataset.build import Dataset
    from pipelines.features import FeatureStore
    from pipelines.training.bases import Base
    from schemas.settings import Settings
    from serving.registry import Registry


@click.group()
def dataset() -> None:
    """What rounds train on."""


@dataset.command(name="build")
@click.option("--out", type=click.Path(path_type=Path), default="state/dataset", show_default=True, help="folder")
@config_option
@json_option
def dataset_build(out: Path, config: Path, as_json: bool) -> None:
    """What a round would train on if it began now: rows.jsonl, dataset.json and dataset.html, for looking at."""
    from pipelines.dataset.report import write_report
    from pipelines.dataset.rows import write_rows

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
@click.option("--round", "round_id", metavar="ID", help="the rows of this round; default: as of now")
@click.option("--format", "kind", type=click.Choice(["chat", "jsonl"]), default="chat", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="file to write")
@config_option
def dataset_export(round_id: str | None, kind: str, out: Path, config: Path) -> None:
    """Write training and validation rows for training elsewhere: chat fine-tuning JSONL, or text and target."""
    import json

    from pipelines.dataset.formats import chat_lines, check_chat
    from pipelines.dataset.rows import training_rows
    from pipelines.training_round import round_folder
    from schemas.targets import COLUMNS, value_of

    with opened(config) as (settings, registry):
        if round_id:
            round_id = round_named(registry, round_id)
            rows = training_rows(round_folder(settings, round_id))
        else:
            built, _, _ = _build(settings, registry)
            rows = [*built.train, *built.validation]
        labels, task = registry.active_labels(), settings.model.task
    if kind == "chat":
        lines = chat_lines(rows, labels, task)
        check_chat(lines)
    else:
        found = [{"text": e.text, COLUMNS[task]: value_of(task, e.label)} for e in rows]
        lines = [json.dumps(row, ensure_ascii=False) for row in found]
    beside = out.with_name(f"{out.name}.tmp")
    beside.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    beside.rename(out)
    click.echo(f"{len(lines)} rows written to {out}")


class _Preview:
    """The registry's ledger, read but not written."""

    def __init__(self, registry: "Registry") -> None:
        self._registry = registry

    def sides(self, keys: Iterable[str]) -> dict[str, str]:
        return self._registry.sides(keys)

    def record_sides(self, sides: Mapping[str, str]) -> dict[str, str]:
        return {**sides, **self._registry.sides(sides)}


def _build(settings: "Settings", registry: "Registry") -> "tuple[Dataset, Base, FeatureStore | None]":
    from pipelines.dataset.rows import collect_and_build
    from pipelines.features import FeatureStore
    from pipelines.training.bases import open_base

    champion = registry.champion()
    features = FeatureStore(settings) if champion else None  # before, there is no feedback, and no store to open
    cut = features.current_cut() if features else {}
    base = open_base(settings.model)
    built = collect_and_build(
        settings,
        features.labelled_feedback(cut) if features else [],
        cut=cut,
        labels=registry.active_labels(),
        ledger=_Preview(registry),
        base=base,
        since=registry.round(champion.round_id).created_at if champion and champion.round_id else None,
    )
    return built, base, features
