"""A round's report made of evidence that a test gives.

The tests of the page and of evidence use it.
"""

import json
from collections.abc import Sequence

from pipelines.gates.evidence_and_facts import RoundEvidence
from pipelines.gates.policy import Policy
from pipelines.gates.verdict import Facts, judge
from pipelines.report import round_report
from schemas.events import utc_now
from schemas.manifests import Calibration, Conformal, DatasetManifest, Golden, ModelManifest
from schemas.records import RoundRecord, RoundState
from schemas.reports import RoundReport


def manifest(labels: list[str]) -> ModelManifest:
    calibration = Calibration(kind="temperature", temperature=1.2, conformal=Conformal(scores=[0.1] * 80 + [0.9] * 20))
    return ModelManifest(
        model_version="20260101-000000-abcdef",
        model_name="toys",
        task="classification",
        labels=labels,
        base_model="/somewhere/secret/base",
        base_model_sha256="b" * 64,
        max_length=32,
        parent_version=None,
        round_id="r1",
        dataset_fingerprint="d" * 64,
        method="lora",
        seed=13,
        code_version="c0de",
        calibration=calibration,
        golden=Golden(texts=[], probabilities=[]),
        files={},
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
    verdict = judge(judged.champion, judged.candidate, judged.probe, facts, policy, previous=Policy().values())
    made = manifest(list(labels)).model_copy(update={"task": task})
    return round_report.build(record, judged, verdict, made, dataset, policy, history)
