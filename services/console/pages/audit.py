"""Audit: who did what, when and why; whether the chain is intact; the whole log as CSV.

Turns rows of the audit log into a page and a file. Cells that a spreadsheet would run as a formula begin with an apostrophe.
"""

import csv
import io
import json
import time
from collections.abc import Iterator

from starlette.responses import Response, StreamingResponse

from schemas.records import AuditRow
from services.console.project import Project
from services.console.visit import Visit

PER_PAGE = 60
COLUMNS = ("sequence", "at", "actor", "action", "detail", "previous", "hash")


def page(visit: Visit) -> Response:
    """List the log, newest first."""
    before, actor, action = visit.query("before"), visit.query("actor"), visit.query("action")
    history = visit.project.registry.history
    rows = history.audit_page(
        actor=actor, action=action, before=int(before) if before.isdecimal() else None, limit=PER_PAGE + 1
    )
    actors, names = history.audit_names()
    return visit.page(
        "audit.html",
        section="audit",
        title="Audit",
        rows=[(row, details(row)) for row in rows[:PER_PAGE]],
        older=rows[PER_PAGE - 1].sequence if len(rows) > PER_PAGE else None,
        actors=actors,
        names=names,
        actor=actor,
        action=action,
        faults=faults(visit.project),
        is_first=not before,
    )


def faults(project: Project) -> list[str]:
    """Return the chain's faults, checked within the last minute."""
    checked: list[str] = project.kept.get("audit", None, 60.0, time.monotonic(), project.registry.verify_audit)
    return checked


def details(row: AuditRow) -> list[tuple[str, str]]:
    """Return a row's details as name and text, without empty ones."""
    return [
        (name.replace("_", " "), _shown(value)) for name, value in row.detail.items() if value not in (None, "", [], {})
    ]


def _shown(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return ", ".join(value)
    return json.dumps(value, ensure_ascii=False)


def export(visit: Visit) -> Response:
    """Send the whole log as CSV, oldest first."""
    headers = {"content-disposition": 'attachment; filename="audit.csv"'}
    return StreamingResponse(_lines(visit.project), media_type="text/csv; charset=utf-8", headers=headers)


def _lines(project: Project) -> Iterator[bytes]:
    yield _line(COLUMNS)
    for row in project.registry.audit_rows():
        values = {**row.model_dump(mode="json"), "detail": json.dumps(row.detail, ensure_ascii=False)}
        yield _line([plain(str(values[name])) for name in COLUMNS])


def plain(cell: str) -> str:
    """Return a cell that no spreadsheet runs as a formula."""
    return f"'{cell}" if cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell


def _line(cells: object) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerow(cells)  # type: ignore[arg-type]
    return text.getvalue().encode("utf-8", "replace")
