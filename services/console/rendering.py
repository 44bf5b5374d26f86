"""Rendering: templates with autoescape, and the filters that say times, shares and ids alike on every page.

Turns a template's name and values into a response. Texts, labels, names and reasons come from outside: autoescape is on in
every template, and charts.py escapes what it draws.
"""

import functools
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import jinja2
from starlette.responses import HTMLResponse

from schemas.printable import one_line, span
from schemas.records import RoundRecord, RoundState
from schemas.reports import Verdict

FOLDER = Path(__file__).parent
TONES = {
    RoundState.CLAIMED: "wait",
    RoundState.RUNNING: "wait",
    RoundState.AWAITING_APPROVAL: "ask",
    RoundState.SETTLING: "ask",
    RoundState.PROMOTED: "good",
    RoundState.REJECTED: "bad",
    RoundState.FAILED: "bad",
    RoundState.INSUFFICIENT: "ask",
    RoundState.SKIPPED: "none",
    Verdict.PASS: "good",
    Verdict.FAIL: "bad",
    Verdict.INSUFFICIENT: "ask",
}

MEASURES = {
    "nll": "NLL", "brier": "Brier score", "ece": "ECE", "classwise_ece": "ECE by class", "smooth_ece": "smooth ECE",
    "macro_f1": "macro F1", "micro_f1": "micro F1", "accuracy_or_brier": "accuracy or Brier score", "mae": "MAE",
    "rmse": "RMSE", "r2": "R²", "chrf": "chrF", "coverage_90": "coverage of 90 % intervals",
    "width_90": "width of 90 % intervals", "confidence_auroc": "AUROC of the confidence",
}  # fmt: skip


@functools.cache
def environment() -> jinja2.Environment:
    """Return the templates' environment."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    made.filters.update(
        ago=ago, span=span, number=number, share=share, signed=lambda value: f"{value:+.3f}", stamp=stamp, tone=tone,
        short=short, day=lambda moment: f"{moment:%Y-%m-%d}", value=shown_value, line=one_line,
        measure=measure, actor=actor, outcome=outcome,
    )  # fmt: skip
    made.globals.update(asset=asset)
    return made


def render(template: str, code: int = 200, headers: Mapping[str, str] | None = None, **values: Any) -> HTMLResponse:
    """Return a page."""
    text = environment().get_template(template).render(**values)
    # Unpaired surrogates, which JSON may contain, become question marks.
    return HTMLResponse(text.encode("utf-8", "replace"), code, dict(headers or {}))


@functools.cache
def asset(name: str) -> str:
    """Return the address of a static file; it changes with the file, so that browsers may keep it for ever."""
    digest = sha256((FOLDER / "static" / name).read_bytes()).hexdigest()[:10]
    return f"/static/{name}?v={digest}"


def ago(moment: datetime | str | None) -> str:
    """Return how long ago a time was."""
    if moment is None:
        return "never"
    if isinstance(moment, str):
        moment = datetime.fromisoformat(moment)
    seconds = (datetime.now(UTC) - moment).total_seconds()
    return "just now" if -5 < seconds < 5 else f"{span(seconds)} ago" if seconds > 0 else f"in {span(-seconds)}"


def stamp(moment: datetime | None) -> str:
    """Return a time in UTC, to the minute."""
    return "–" if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def number(value: float | None) -> str:
    """Return a number with three decimals, an integer without; a dash for None."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1 and value == int(value) else f"{value:.3f}"


def share(value: float | None) -> str:
    """Return a share as a percentage; a dash for None."""
    return "–" if value is None else f"{100 * value:.1f} %"


def measure(name: str) -> str:
    """Return a measure's key as people write its name."""
    return MEASURES.get(name, name.replace("_", " "))


def actor(name: str) -> str:
    """Return who did something: a person's name, or the gates."""
    return "the gates" if name == "gates" else name


def outcome(record: RoundRecord) -> str:
    """Return what came of a round, without the command that would go on with it: the page has a button."""
    return (record.detail or "").partition("; waiting for `ratchet")[0]


def short(identifier: str | None) -> str:
    """Return the start of a round's id, long enough to be unique among a thousand; a version's name is left whole."""
    return "–" if not identifier else identifier if len(identifier) < 24 else identifier[:13]


def tone(state: str) -> str:
    """Return the colour class of a round's state or a verdict."""
    return next((name for key, name in TONES.items() if key == state), "none")


def shown_value(text: str) -> str:
    """Return feedback's stored JSON value as a person would write it."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
