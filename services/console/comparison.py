"""Comparison of any two versions: both answer the judging rows, and the answers are compared row by row.

Turns two version names into metrics with paired intervals and the answers that moved. The runs take seconds, so a thread makes
them once and keeps the result beside the project's state, until the files of rows or the labels change; the page asks until it
is there. A failure is shown once, and the next question tries again. Artefacts are loaded exactly as serving loads them.
"""

import hashlib
import logging
import threading
from pathlib import Path

from pydantic import Field

from schemas.events import Frozen
from schemas.reports import EvaluationReport, Flip
from services.console.project import Project
from serving.atomic_write import atomic_write

log = logging.getLogger("ratchet.console")
MOST_MOVED = 100


class PairedMetric(Frozen):
    """The change of one metric from the first version to the second, on the same rows."""

    name: str
    change: float
    low: float = Field(description="95 %")
    high: float = Field(description="95 %")
    sentence: str


class Compared(Frozen):
    """Two versions on the same rows."""

    first: str
    second: str
    n: int
    reports: dict[str, EvaluationReport] = Field(description="'first' and 'second'")
    metrics: list[PairedMetric]
    better: list[Flip]
    worse: list[Flip]
    error: str | None = None


class Comparisons:
    """Compares versions of one project, one pair at a time."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._lock = threading.Lock()
        self._running: set[Path] = set()
        self._failed: dict[Path, Compared] = {}

    def of(self, first: str, second: str) -> Compared | None:
        """Return the comparison; None while a thread makes it. Raises UnknownVersion."""
        digests = [self._project.registry.version(name).digest for name in (first, second)]
        name = f"{digests[0][:20]}-{digests[1][:20]}-{self._rows_version()}.json"
        path = self._project.settings.path("state/console") / name
        if path.exists():
            return Compared.model_validate_json(path.read_bytes())
        with self._lock:
            if failed := self._failed.pop(path, None):
                return failed
            if path not in self._running:
                self._running.add(path)
                threading.Thread(target=self._make, args=(first, second, path), daemon=True).start()
        return None

    def _make(self, first: str, second: str, path: Path) -> None:
        failed = None
        try:
            made = compare(self._project, first, second)
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, made.model_dump_json())
        except Exception as error:
            log.exception("%s and %s were not compared", first, second)
            failed = Compared(
                first=first, second=second, n=0, reports={}, metrics=[], better=[], worse=[], error=f"{error}"[:300]
            )
        with self._lock:
            self._running.discard(path)
            if failed:
                self._failed[path] = failed

    def _rows_version(self) -> str:
        """Return what changes when the files of rows or the labels do."""
        settings = self._project.settings
        files = [settings.path(name) for name in (settings.dataset.reference, settings.dataset.seed) if name]
        stats = [(file.stat().st_size, file.stat().st_mtime_ns) if file.exists() else None for file in files]
        labels = [label.model_dump_json() for label in self._project.registry.labels()]
        return hashlib.sha256(repr((stats, labels)).encode()).hexdigest()[:12]


def compare(project: Project, first: str, second: str) -> Compared:
    """Return the comparison of two versions on the rows that judge.

    Raises:
        ValueError: no row judges, or the versions are of different tasks.
        UnknownVersion, ArtifactMissing, ArtifactDamaged: a version cannot be loaded.

    """
    from pipelines.dataset.judging_rows import judging_rows
    from pipelines.evaluation.evaluators import evaluator_for
    from pipelines.report.round_report import flips
    from serving.inference.loading import open_version

    settings, registry = project.settings, project.registry
    task = evaluator_for(settings.model.task)
    rows = task.sample(judging_rows(settings, registry.label_map(), registry))
    if not rows:
        raise ValueError("no row judges yet: dataset.reference names none, and no round has held rows out")
    evidence = []
    for name in (first, second):
        digest = registry.version(name).digest
        evidence.append(task.evaluate(open_version(project.version_folder(digest), digest), rows, split="reference"))
    before, after = evidence
    metrics = []
    for name in after.metrics:
        paired = after.compared_with(before, name)
        low, high = paired.interval()
        metrics.append(PairedMetric(name=name, change=paired.observed, low=low, high=high, sentence=paired.sentence))
    return Compared(
        first=first,
        second=second,
        n=len(rows),
        reports={"first": before.report, "second": after.report},
        metrics=metrics,
        better=flips(before, after, before.worse_than(after))[:MOST_MOVED],
        worse=flips(before, after, after.worse_than(before))[:MOST_MOVED],
    )
