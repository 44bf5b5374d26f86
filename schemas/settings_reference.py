"""The settings reference: docs/settings.md, generated from the models.

Turns the settings' descriptions and defaults into Markdown. `make docs` writes it; tests/test_docs.py compares the file.
"""

import json
from pathlib import Path

from schemas.settings import BASIC, groups

PAGE = Path(__file__).parents[1] / "docs/settings.md"
HEAD = """# Settings

All settings with their meanings and defaults. `ratchet init` writes the basic ones to `ratchet.toml`; any other may be added.
`RATCHET_<GROUP>__<KEY>` in the environment overrides the file. Relative paths start at the folder of `ratchet.toml`;
`RATCHET_STATE` replaces its folder `state/`. To unset a setting that has a default, give it an empty text, as in
`max_rows_per_person = ""`. Made by `make docs`; do not edit."""


def reference() -> str:
    """Return the page: basic settings first, then advanced ones, each by group."""
    return "\n\n".join([HEAD, "## Basic", *_tables(basic=True), "## Advanced", *_tables(basic=False)]) + "\n"


def _tables(*, basic: bool) -> list[str]:
    tables = []
    for group, model in groups():
        rows = [
            f"| `{group}.{key}` | {_default(field.default)} | {_cell(field.description or '')} |"
            for key, field in model.model_fields.items()
            if (f"{group}.{key}" in BASIC) == basic
        ]
        if rows:
            table = ["| setting | default | meaning |", "|---|---|---|", *rows]
            tables.append("\n".join([f"**{group}.** {model.__doc__}", "", *table]))
    return tables


def _default(value: object) -> str:
    return "unset" if value is None else f"`{json.dumps(value)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
