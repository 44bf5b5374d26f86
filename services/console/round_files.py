"""A round's files on this machine: report, dataset report, log, and the trace of a training that runs.

Turns a round's record into pages and text, from its folder or from the version that it made. Pages read them; nothing here
follows a name that a request brings.
"""

import json
import os
from pathlib import Path

from schemas.records import RoundRecord
from services.console.project import Project
from services.rounds import report_file
from services.rounds.process import TRACE
from serving.model_directory import ArtifactDamaged

LOG_BYTES = 24_000


def report_page(project: Project, record: RoundRecord) -> Path | None:
    """Return the round's report.html; None if it has none, or the version that holds it is out of reach."""
    try:
        return report_file.report_page(project.settings, project.registry, record)
    except (OSError, ArtifactDamaged):  # the version was pruned, or the store is away
        return None


def report_json(project: Project, record: RoundRecord) -> Path | None:
    """Return report.json beside the report's page; None if the round has none."""
    page = report_page(project, record)
    beside = page.with_name("report.json") if page else None
    return beside if beside and beside.exists() else None


def dataset_page(project: Project, record: RoundRecord) -> Path | None:
    """Return the round's dataset.html; None if it has none."""
    page = folder(project, record) / "dataset.html"
    return page if page.exists() else None


def folder(project: Project, record: RoundRecord) -> Path:
    """Return the round's folder, which may not exist."""
    return project.settings.path("state/rounds") / record.round_id


def log_tail(project: Project, record: RoundRecord) -> str:
    """Return the end of the round's output; empty if it has none on this machine."""
    path = project.settings.path("state/logs") / f"round-{record.round_id}.log"
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return text if len(text) < LOG_BYTES else text.partition("\n")[2]


def losses(project: Project, record: RoundRecord) -> list[tuple[float, float]]:
    """Return (seconds since training began, loss) while a round trains, oldest first."""
    points: list[tuple[float, float]] = []
    try:
        lines = (folder(project, record) / TRACE).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    for line in lines[-2000:]:
        try:
            one = json.loads(line)
            if one.get("loss") is not None:
                points.append((float(one["at"]), float(one["loss"])))
        except (ValueError, KeyError, TypeError):  # the last line may be half written
            continue
    start = points[0][0] if points else 0.0
    return [(at - start, loss) for at, loss in points]
