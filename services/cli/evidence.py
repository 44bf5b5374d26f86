"""`ratchet evidence`: the ledger of looks at the reference set, and what the next look can show.

Turns the registry's ledger into lines or JSON. It changes nothing.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from services.cli.project import config_option, json_option, opened, show

if TYPE_CHECKING:
    from schemas.records import Look


@click.command()
@config_option
@json_option
def evidence(config: Path, as_json: bool) -> None:
    """Show every look at the reference set: champion, candidate, rows, alpha and p; and what the next one can show."""
    from services.checks.evidence import outlook

    with opened(config) as (settings, registry):
        lines, out_of_reach = outlook(settings, registry)
        champion, looks = registry.champion(), registry.looks()
    live = champion.model_version if champion else None
    value = {
        "champion": live,
        "looks": [look.model_dump(mode="json") for look in looks],
        "spent": sum(look.alpha for look in looks if look.champion == live),
        "outlook": lines,
        "out_of_reach": out_of_reach,
    }
    show(value, as_json, [*(_line(look) for look in looks), *([] if looks else ["no looks yet"]), *lines])


def _line(look: "Look") -> str:
    p = "-" if look.p is None else f"{look.p:.2g}"
    fresh = f", {look.fresh_rows} for the first time" if look.fresh_rows else ""
    return (
        f"{look.at:%Y-%m-%d %H:%M}  look {look.number} at {look.champion}: {look.candidate or '-'} on {look.rows} rows{fresh}; "
        f"alpha {look.alpha:.2g}, p {p}  {look.verdict or 'not decided'}"
    )
