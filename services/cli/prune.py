"""`ratchet prune`: show and remove files that past rounds no longer need.

Turns leftovers into lines or JSON; services/rounds/prune.py chooses them.
"""

from pathlib import Path

import click

from services.cli.project import config_option, json_option, opened, show


@click.command()
@click.option("--dry-run", is_flag=True, help="show what would be removed, and remove nothing")
@config_option
@json_option
def prune(dry_run: bool, config: Path, as_json: bool) -> None:
    """Remove models and versions that are no longer needed."""
    from services.rounds.prune import leftovers, remove

    with opened(config) as (settings, registry):
        removable = leftovers(settings, registry)
        freed = 0 if dry_run else remove(settings, removable)
    total = sum(one.size for one in removable)
    lines = [f"{one.kind:<8} {one.name:<36} {one.size / 1e6:8.1f} MB  {one.why}" for one in removable]
    verdict = f"would free {total / 1e6:.1f} MB" if dry_run else f"freed {freed / 1e6:.1f} MB"
    value = {
        "dry_run": dry_run,
        "bytes": total if dry_run else freed,
        "removed": [{"kind": one.kind, "name": one.name, "bytes": one.size, "why": one.why} for one in removable],
    }
    show(value, as_json, [*lines, verdict if removable else "nothing to remove"])
