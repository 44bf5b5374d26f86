"""`ratchet prune`: show and remove what past rounds have left.

Turns leftovers into lines or JSON. cli.py adds it. It deliberately decides nothing: services/rounds/prune.py does.
"""

from pathlib import Path

import click

from services.cli.project import config_option, json_option, opened, show


@click.command()
@click.option("--dry-run", is_flag=True, help="show what would go, and remove nothing")
@config_option
@json_option
def prune(dry_run: bool, config: Path, as_json: bool) -> None:
    """Remove models of ended rounds, and versions that cannot come back."""
    from services.rounds.prune import leftovers, remove

    with opened(config) as (settings, registry):
        found = leftovers(settings, registry)
        freed = 0 if dry_run else remove(settings, found)
    total = sum(one.size for one in found)
    lines = [f"{one.kind:<8} {one.name:<36} {one.size / 1e6:8.1f} MB  {one.why}" for one in found]
    verdict = f"would free {total / 1e6:.1f} MB" if dry_run else f"freed {freed / 1e6:.1f} MB"
    value = {
        "dry_run": dry_run,
        "bytes": total if dry_run else freed,
        "removed": [{"kind": one.kind, "name": one.name, "bytes": one.size, "why": one.why} for one in found],
    }
    show(value, as_json, [*lines, verdict if found else "nothing to remove"])
