"""The report of a judged round, gathered.

Turns evidence, verdicts and manifests into a `RoundReport`, and writes it, with the page and the policy, beside a round and
into its version. training_round.py calls it; report_page.py renders. It deliberately measures little: what it says was
measured before, or follows from the evidence.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from pipelines import measures, report_page
from pipelines.evaluation import Evidence
from pipelines.gates_comparison import slice_changes
from pipelines.judging import Judged
from pipelines.policy import Policy
from schemas.artifacts import DatasetManifest, GateReport, ModelManifest, RoundRecord
from schemas.reports import Confusion, Flip, LabelScore, Lineage, RoundReport
from serving import calibration as applied
from serving.artifacts import ArtifactDamaged, verify, write_manifest

MOST = 200
COVERAGES = (0.9, 0.95, 0.99)


def build(
    record: RoundRecord,
    judged: Judged,
    verdict: GateReport,
    manifest: ModelManifest,
    dataset: DatasetManifest,
    policy: Policy,
    history: str,
) -> RoundReport:
    """The report; `history` is the text of the version's history.jsonl."""
    candidate, champion = judged.candidate, judged.champion
    sets = manifest.calibration.conformal
    known, within = candidate.probabilities[:, : candidate.known], candidate.truth < candidate.known
    inside = {c: applied.prediction_sets(sets, known, c) for c in (COVERAGES if sets and sets.scores else ())}
    held = {c: found[np.flatnonzero(within), candidate.truth[within]].sum() for c, found in inside.items()}
    raw = candidate.raw if candidate.raw is not None else candidate.probabilities
    confidence, right = raw.max(axis=1), raw.argmax(axis=1) == candidate.truth
    moved = [] if champion is None else np.flatnonzero(champion.right != candidate.right).tolist()
    return RoundReport(
        round_id=record.round_id,
        model_name=record.model_name,
        task=manifest.task,
        reason=record.reason,
        champion_version=champion.report.model_version if champion else None,
        candidate_version=manifest.model_version,
        gate_report=verdict,
        evaluations=judged.reports,
        uncalibrated=measures.reliability(confidence, right),
        uncalibrated_nll=float(measures.row_nll(raw, candidate.truth).mean()),
        uncalibrated_ece=measures.ece(confidence, right),
        calibration=manifest.calibration.model_dump(mode="json", exclude={"conformal": {"scores"}, "knots": True}),
        set_sizes={f"{c:g}": float(found.sum(axis=1).mean()) for c, found in inside.items()},
        set_coverage={f"{c:g}": float(hits / len(within)) for c, hits in held.items()},
        slices=slice_changes(champion, candidate, policy.slices) if champion else [],
        negative_flips=_flips(champion, candidate, (n for n in moved if not candidate.right[n])),
        positive_flips=_flips(champion, candidate, (n for n in moved if candidate.right[n])),
        confusion=_confusion(candidate),
        labels=_labels(candidate),
        robustness=judged.robustness,
        history=[json.loads(line) for line in history.splitlines()],
        dataset=dataset,
        lineage=Lineage(
            base_model=Path(manifest.base_model).name,
            base_model_sha256=manifest.base_model_sha256,
            parent_version=manifest.parent_version,
            method=manifest.method,
            dataset_fingerprint=manifest.dataset_fingerprint,
            reference_sha256=dataset.reference_sha256,
            code_version=manifest.code_version,
            seed=manifest.seed,
        ),
    )


def write(folder: Path, report: RoundReport) -> None:
    """Write report.json and report.html into a folder."""
    (folder / "report.json").write_text(report.model_dump_json(indent=2))
    (folder / "report.html").write_text(report_page.render(report), encoding="utf-8")


def sealed_folder(directory: Path) -> Path:
    """Where the version of a directory lies with its report."""
    return directory.with_name("sealed")


def seal(directory: Path, report: RoundReport, manifest: ModelManifest, policy: str) -> None:
    """Make the version as it is kept: the files that were judged, with the report, the page and the policy beside them.

    It is a directory of its own, so that an attempt that dies here leaves the judged one as its manifest says.
    """
    target = sealed_folder(directory)
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(directory, target, copy_function=_link, ignore=shutil.ignore_patterns("manifest.json"))
    write(target, report)
    (target / "policy.toml").write_text(policy)
    write_manifest(target, manifest)


def sealed(directory: Path) -> RoundReport | None:
    """The report that was sealed with exactly these files by an attempt that died later; None if there is none."""
    target = sealed_folder(directory)
    try:
        if verify(target).files.items() >= verify(directory).files.items():
            return RoundReport.model_validate_json((target / "report.json").read_bytes())
    except (ArtifactDamaged, OSError, ValueError):
        pass
    return None


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # another disk, or a file system without links
        shutil.copy2(source, target)
    return target


def _flips(champion: Evidence | None, candidate: Evidence, rows: Iterable[int]) -> list[Flip]:
    """Rows that moved, the candidate's surest first."""
    if champion is None:
        return []
    ordered = sorted(rows, key=lambda n: -candidate.confidence[n])[:MOST]
    return [
        Flip(
            text=candidate.rows[n].text[:500],
            truth=candidate.rows[n].label,
            champion=str(champion.answers[n]),
            candidate=str(candidate.answers[n]),
            champion_confidence=float(champion.confidence[n]),
            candidate_confidence=float(candidate.confidence[n]),
        )
        for n in ordered
    ]


def _confusion(evidence: Evidence) -> list[Confusion]:
    pairs = Counter(
        (evidence.rows[n].label, str(evidence.answers[n])) for n in np.flatnonzero(~evidence.right).tolist()
    ).most_common(MOST)
    return [Confusion(truth=truth, answer=answer, n=n) for (truth, answer), n in pairs]


def _labels(evidence: Evidence) -> list[LabelScore]:
    found = []
    for column, label in enumerate(evidence.labels):
        own, given = evidence.truth == column, evidence.best == column
        hits = int((own & given).sum())
        found.append(
            LabelScore(
                label=label,
                n=int(own.sum()),
                recall=hits / int(own.sum()) if own.any() else None,
                precision=hits / int(given.sum()) if given.any() else None,
            )
        )
    return found
