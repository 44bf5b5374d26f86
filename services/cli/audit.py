"""`ratchet audit`: list, export and verify the audit log.

Turns the registry's log into lines or a file, and its chain of hashes, with heads kept elsewhere, into a list of faults.
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from services.cli.project import config_option, json_option, opened, show

if TYPE_CHECKING:
    from schemas.records import AuditRow

COLUMNS = ("model_name", "sequence", "at", "actor", "action", "detail", "previous", "hash")


@click.group()
def audit() -> None:
    """List, export and verify the audit log."""


@audit.command(name="list")
@click.option("--last", type=click.IntRange(min=1), default=50, show_default=True, help="show this many rows")
@click.option("--actor", help="show only what this person or process did")
@click.option("--action", help="show only this action, such as promote")
@config_option
@json_option
def audit_list(last: int, actor: str | None, action: str | None, config: Path, as_json: bool) -> None:
    """List the newest rows, oldest first."""
    with opened(config) as (_, registry):
        rows = [row for row in registry.audit_rows() if actor in (None, row.actor) and action in (None, row.action)][
            -last:
        ]
    show([row.model_dump(mode="json") for row in rows], as_json, [_line(row) for row in rows] or ["no rows"])


@audit.command(name="export")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="write to this .csv or .jsonl file")
@click.option("--format", "kind", type=click.Choice(["csv", "jsonl"]), help="default: by the file's name")
@config_option
def audit_export(out: Path, kind: str | None, config: Path) -> None:
    """Write the whole log to a file; JSON Lines keep every value as it is hashed."""
    from services.cli.rows.exports import kind_of, write

    with opened(config) as (_, registry):
        rows = registry.audit_export()
    done = write(out, kind_of(out, kind), COLUMNS, rows)
    click.echo(f"{done} rows written to {out}")


@audit.command(name="verify")
@click.option("--head", type=click.Path(path_type=Path), help="compare with the heads in this file too")
@config_option
@json_option
def audit_verify(head: Path | None, config: Path, as_json: bool) -> None:
    """Verify the hash chain, and that no row is gone since a head was kept; exit 1 if something is wrong."""
    from serving.registry.safeguards.audit_heads import faults, read_heads

    with opened(config) as (settings, registry):
        wrong = registry.verify_audit()
        heads = read_heads(head.read_text(encoding="utf-8").splitlines(), settings.model.name) if head else []
        wrong += faults(registry, heads)
        last, _, _ = registry.audit_head()
    value: dict[str, Any] = {"ok": not wrong, "wrong": wrong, "rows": last, "heads": len(heads)}
    compared = f", and holds all of {len(heads)} heads" if heads else ""
    show(value, as_json, wrong or [f"the audit log is whole: {last} rows{compared}"])
    sys.exit(1 if wrong else 0)


def _line(row: "AuditRow") -> str:
    detail = json.dumps(row.detail, ensure_ascii=False, sort_keys=True)
    return f"{row.sequence:>6}  {row.at:%Y-%m-%d %H:%M:%S}  {row.actor:<20} {row.action:<16} {detail}"
