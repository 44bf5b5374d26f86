"""A round's report made of evidence that a test gives, and the contradictions between the parts of a report.

The tests of the page and of evidence use it.
"""

import json
from collections.abc import Sequence

from pipelines.gates.evidence_and_facts import RoundEvidence
from pipelines.gates.policy import Policy
from pipelines.gates.verdict import Facts, judge
from pipelines.report import round_report
from pipelines.report.remarks import accounting, ece_limit, has_curves, remarks
from schemas.events import utc_now
from schemas.manifests import Calibration, Conformal, DatasetManifest, ModelManifest
from schemas.records import RoundRecord, RoundState
from schemas.reports import RoundReport, Verdict
from tests.support import manifests


def manifest(labels: list[str]) -> ModelManifest:
    calibration = Calibration(kind="temperature", temperature=1.2, conformal=Conformal(scores=[0.1] * 80 + [0.9] * 20))
    return manifests.manifest(
        "20260101-000000-abcdef",
        model_name="toys",
        labels=labels,
        base_model="/somewhere/secret/base",
        base_model_sha256="b" * 64,
        round_id="r1",
        dataset_fingerprint="d" * 64,
        seed=13,
        code_version="c0de",
        calibration=calibration,
    )


def report_of(
    judged: RoundEvidence, task: str, labels: Sequence[str] = (), policy: Policy | None = None
) -> RoundReport:
    facts = Facts(
        look=1, alpha=0.025, people=3, quarantined=0, latency_ms=4.0, load_error=None,
        robustness=judged.robustness,
    )  # fmt: skip
    dataset = DatasetManifest(
        fingerprint="d" * 64, cut={}, labels=list(labels), rows_in=110, rows_train=90, rows_validation=10,
        rows_by_source={"seed": 60, "correction": 40}, rows_by_label=dict.fromkeys(labels or ["2"], 30),
        dropped={"duplicate": 10}, reference_rows=300, reference_calibration_rows=100, reference_sha256="e" * 64,
    )  # fmt: skip
    record = RoundRecord(
        round_id="r1", model_name="toys", state=RoundState.RUNNING, reason="200 feedback", created_at=utc_now()
    )
    lines = [
        *(
            {"phase": "search", "epoch": n, "held_out_nll": 0.5 - n / 10, "accuracy": 0.8, "macro_recall": 0.7}
            for n in (0, 1)
        ),
        *({"phase": "final", "step": n, "loss": 1 / n, "learning_rate": n / 1000} for n in range(1, 50)),
        {"phase": "final", "epoch": 1, "train_loss": 0.3},
    ]
    history = "".join(json.dumps(line) + "\n" for line in lines)
    policy = policy or Policy()
    verdict = judge(judged.champion, judged.candidate, judged.baseline, facts, policy, previous=Policy().values())
    made = manifest(list(labels)).model_copy(update={"task": task})
    return round_report.build(record, judged, verdict, made, dataset, policy, history)


def contradictions(report: RoundReport) -> list[str]:
    """Return what two parts of the report say differently; empty for a sound report."""
    wrong = []
    dataset, candidate = report.dataset, report.evaluations["candidate"]
    if sum(n for _, n in accounting(dataset)) != dataset.rows_in:
        wrong.append(
            f"{dataset.rows_in} rows came in, and the parts add up to {sum(n for _, n in accounting(dataset))}"
        )
    for gate in report.gate_report.results:
        if gate.needed is not None and gate.needed <= gate.n:
            wrong.append(f"{gate.gate}: about {gate.needed} rows would settle it, and there are {gate.n}")
        if gate.gate == "calibration" and candidate.ece is not None and gate.threshold is not None:
            passed, within = gate.verdict is Verdict.PASS, candidate.ece <= gate.threshold
            if passed and not within:
                wrong.append(f"calibration passed with an ECE of {candidate.ece:.3f} above {gate.threshold:.3f}")
            if ece_limit(report) != gate.threshold:
                wrong.append(f"the header's limit {ece_limit(report)} is not the gate's {gate.threshold}")
    shown = " ".join(remarks(report))
    probe = report.evaluations.get("probe")
    if probe is not None and report.lineage.method != "probe" and probe.nll < candidate.nll and "NLL" not in shown:
        wrong.append(f"the baseline's NLL {probe.nll:.3f} is below the candidate's {candidate.nll:.3f} without a word")
    if report.lineage.method == "probe" and has_curves(report) and "probe serves" not in shown:
        wrong.append("the method is the probe, and the curves are another training's")
    return wrong + _uneven_labels(report)


def _uneven_labels(report: RoundReport) -> list[str]:
    """Return the labels whose right and wrong predictions do not add up to their rows, while all confusions are listed."""
    if not report.confusion or sum(one.n for one in report.confusion) < _wrong_rows(report):
        return []
    uneven = []
    for label in report.labels:
        right = round((label.recall or 0.0) * label.n)
        confused = sum(one.n for one in report.confusion if one.truth == label.label)
        if right + confused != label.n:
            uneven.append(f"label {label.label}: {right} right and {confused} wrong of {label.n} rows")
    return uneven


def _wrong_rows(report: RoundReport) -> int:
    return sum(label.n - round((label.recall or 0.0) * label.n) for label in report.labels)
