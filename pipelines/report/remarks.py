"""Remarks: sentences on what the numbers of a report alone would leave open.

Turns a `RoundReport` into sentences for its page, which page.py shows.
"""

from schemas.manifests import DatasetManifest
from schemas.reports import RoundReport

CURVES = frozenset({"held_out_nll", "search_loss", "loss", "train_loss"})


def accounting(dataset: DatasetManifest) -> list[tuple[str, int]]:
    """Return what became of every row that came in, as (words, rows); the rows add up to `rows_in`."""
    parts = [
        ("train", dataset.rows_train),
        ("validate", dataset.rows_validation),
        ("train as rejected labels", dataset.rows_rejections),
        ("held out to judge", dataset.rows_held_out),
        ("kept in the audit sample", dataset.rows_audit),
        ("left out", sum(dataset.dropped.values())),
    ]
    return [part for part in parts if part[1]]


def ece_limit(report: RoundReport) -> float | None:
    """Return the limit that the calibration gate applied to the candidate's ECE; without it, that of a calibrated model."""
    gate = next((g for g in report.gate_report.results if g.gate == "calibration"), None)
    if gate is not None and gate.threshold is not None and gate.observed == report.evaluations["candidate"].ece:
        return gate.threshold
    return report.evaluations["candidate"].ece_null_99


def remarks(report: RoundReport) -> list[str]:
    """Return sentences on what the numbers alone would leave open."""
    sentences = []
    candidate, probe = report.evaluations["candidate"], report.evaluations.get("probe")
    if probe is not None and report.lineage.method != "probe" and probe.nll < candidate.nll:
        sentences.append(
            f"The baseline's NLL is lower: {probe.nll:.3f} against the candidate's {candidate.nll:.3f}. "
            f"The baseline gate compares {report.measure}, not NLL."
        )
    if report.lineage.method == "probe" and has_curves(report):
        sentences.append(
            "The linear probe serves: the training whose curves are shown was not better on held-out rows and was not kept."
        )
    return sentences


def has_curves(report: RoundReport) -> bool:
    """Return whether the report shows the curves of a training."""
    return any(CURVES & line.keys() and line.get("phase") != "probe" for line in report.history)
