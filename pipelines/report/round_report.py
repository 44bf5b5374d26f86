"""The report of a judged round: build it, write it, seal it into the version.

Turns evidence, verdict and manifests into a `RoundReport`, and writes it with its page and the policy. training_round.py calls
it; page.py renders the page.
"""

import json
import os
import shutil
from collections.abc import Sequence
from math import isfinite
from pathlib import Path

from pipelines.evaluation.evidence.evidence import Evidence, OutputEvidence
from pipelines.gates.against_champion import slice_changes
from pipelines.gates.evidence_and_facts import RoundEvidence
from pipelines.gates.policy import Policy
from pipelines.pages import write_page
from pipelines.report import page
from schemas.manifests import DatasetManifest, ModelManifest
from schemas.records import RoundRecord
from schemas.reports import Flip, GateReport, Lineage, RoundReport
from serving.model_directory import ArtifactDamaged, verify, write_manifest

MOST = 200
COVERAGES = (0.9, 0.95, 0.99)


def build(
    record: RoundRecord,
    judged: RoundEvidence,
    verdict: GateReport,
    manifest: ModelManifest,
    dataset: DatasetManifest,
    policy: Policy,
    history: str,
) -> RoundReport:
    """Return the report; `history` is the text of the version's history.jsonl."""
    candidate, champion = judged.candidate, judged.champion
    before, covered = candidate.uncalibrated, COVERAGES if candidate.scores else ()
    return RoundReport(
        round_id=record.round_id,
        model_name=record.model_name,
        task=manifest.task,
        reason=record.reason,
        champion_version=champion.report.model_version if champion else None,
        candidate_version=manifest.model_version,
        gate_report=verdict,
        evaluations=judged.reports,
        uncalibrated=before.reliability,
        uncalibrated_nll=before.nll,
        uncalibrated_ece=before.ece,
        calibration=manifest.calibration.model_dump(
            mode="json", exclude={"conformal": {"scores"}, "intervals": {"scores"}, "knots": True}
        ),
        set_sizes={f"{c:g}": size for c in covered if isfinite(size := candidate.mean_width(c))},
        set_coverage={f"{c:g}": float(candidate.covered(c).mean()) for c in covered},
        slices=slice_changes(champion, candidate, policy.slices) if champion else [],
        measure=candidate.measure,
        negative_flips=flips(champion, candidate, candidate.worse_than(champion)) if champion else [],
        positive_flips=flips(champion, candidate, champion.worse_than(candidate)) if champion else [],
        moved_answers=moved_answers(champion, candidate) if champion else None,
        confusion=candidate.confusion(MOST),
        labels=candidate.label_scores(),
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


def moved_answers(champion: Evidence, candidate: Evidence) -> float:
    """Return the share of rows that two models answer differently; of a number, by more than rounding."""
    if isinstance(champion, OutputEvidence) and isinstance(candidate, OutputEvidence):
        same, n, _ = candidate.agreement(champion)
        return 1 - same / n
    return float((candidate.answers != champion.answers).mean())


def write(folder: Path, report: RoundReport) -> None:
    """Write report.json and report.html into a folder."""
    (folder / "report.json").write_text(report.model_dump_json(indent=2), encoding="utf-8")
    write_page(folder / "report.html", lambda: page.render(report))


def sealed_folder(directory: Path) -> Path:
    """Return the folder of the sealed version, beside the judged `directory`."""
    return directory.with_name("sealed")


def seal(directory: Path, report: RoundReport, manifest: ModelManifest, policy: str) -> None:
    """Write the version to keep: the judged files, with the report, its page and the policy.

    It is a folder of its own, written manifest last: a crash here leaves the judged folder unchanged.
    """
    target = sealed_folder(directory)
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(directory, target, copy_function=_link, ignore=shutil.ignore_patterns("manifest.json"))
    write(target, report)
    (target / "policy.toml").write_text(policy, encoding="utf-8")
    write_manifest(target, manifest)


def sealed(directory: Path) -> RoundReport | None:
    """Return the report that an earlier attempt sealed with exactly these files; None if there is none."""
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
    except OSError:  # another disk, or a file system without hard links
        shutil.copy2(source, target)
    return target


def flips(champion: Evidence, candidate: Evidence, rows: Sequence[int]) -> list[Flip]:
    """Return what two models answered on these rows, MOST at most."""
    before, after = champion.confidence, candidate.confidence
    return [
        Flip(
            text=candidate.rows[n].text[:500],
            truth=candidate.rows[n].label,
            champion=str(champion.answers[n]),
            candidate=str(candidate.answers[n]),
            champion_confidence=None if before is None else float(before[n]),
            candidate_confidence=None if after is None else float(after[n]),
        )
        for n in rows[:MOST]
    ]
