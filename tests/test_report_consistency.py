"""The report never contradicts itself: each contradiction that was once seen, as a check on the report's data."""

import numpy as np
import pytest

from pipelines.dataset.files import FileRow
from pipelines.evaluation.evidence.classification import LabelEvidence, score_label
from pipelines.gates.evidence_and_facts import RoundEvidence
from pipelines.report import page
from pipelines.report.remarks import accounting, ece_limit, remarks
from schemas.manifests import Calibration, DatasetManifest
from schemas.reports import RoundReport, Verdict
from tests.support.reports import contradictions, report_of

LABELS = [f"label {n}" for n in range(7)]


def evidence(version: str, wrong: int, seed: int, sharp: float = 3.0, n: int = 300) -> LabelEvidence:
    """Predictions of a model that is wrong on `wrong` rows; `sharp` is how sure it is."""
    draw = np.random.default_rng(seed)
    rows = [FileRow(f"text {i}", LABELS[i % len(LABELS)]) for i in range(n)]
    logits = draw.normal(0, 0.3, (n, len(LABELS)))
    hit = draw.permutation(n) >= wrong
    for i in range(n):
        logits[i, (i + (not hit[i])) % len(LABELS)] += sharp
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return score_label(probabilities, LABELS, rows, version=version, split="reference", calibration=Calibration())


def report(candidate: LabelEvidence, probe: LabelEvidence, method: str = "lora") -> RoundReport:
    made = report_of(RoundEvidence(candidate, probe, evidence("champion", 60, 2)), "classification", LABELS)
    return made.model_copy(update={"lineage": made.lineage.model_copy(update={"method": method})})


@pytest.fixture(scope="module")
def sound() -> RoundReport:
    return report(evidence("candidate", 20, 1), evidence("probe", 30, 3))


def test_a_report_of_real_gates_is_sound(sound: RoundReport) -> None:
    assert contradictions(sound) == []


def test_the_header_and_the_gate_name_one_limit_of_calibration() -> None:
    sure = report(evidence("candidate", 0, 1, sharp=12.0), evidence("probe", 30, 3))
    null = sure.evaluations["candidate"].ece_null_99
    assert null is not None
    gate = next(g for g in sure.gate_report.results if g.gate == "calibration")
    assert gate.threshold is not None
    assert null < gate.threshold  # the gate has a floor, so its limit is not the null's
    assert ece_limit(sure) == gate.threshold
    assert contradictions(sure) == []
    assert f"limit {gate.threshold:.3f}" in page.render(sure)


def test_rows_that_would_settle_it_are_more_than_there_are(sound: RoundReport) -> None:
    results = [
        g.model_copy(update={"verdict": Verdict.INSUFFICIENT, "needed": 46, "n": 57}) if g.gate == "superiority" else g
        for g in sound.gate_report.results
    ]
    broken = sound.model_copy(update={"gate_report": sound.gate_report.model_copy(update={"results": results})})
    assert contradictions(broken) == ["superiority: about 46 rows would settle it, and there are 57"]


@pytest.mark.parametrize("n", [57, 120, 300])
@pytest.mark.parametrize("wrong", [4, 9, 14])
def test_gates_that_lack_rows_name_more_than_there_are(n: int, wrong: int) -> None:
    champion, probe = evidence("champion", 12, 2, n=n), evidence("probe", 20, 3, n=n)
    judged = RoundEvidence(evidence("candidate", wrong, 1, n=n), probe, champion)
    made = report_of(judged, "classification", LABELS)
    assert [g for g in made.gate_report.results if g.verdict is Verdict.INSUFFICIENT] or n > 120
    assert contradictions(made) == []


def test_every_row_that_came_in_is_accounted_for(sound: RoundReport) -> None:
    dataset = DatasetManifest(
        **{
            **sound.dataset.model_dump(),
            "rows_in": 522, "rows_train": 373, "rows_validation": 61, "rows_rejections": 25, "rows_held_out": 50,
            "rows_audit": 10, "dropped": {"duplicate": 3},
        }
    )  # fmt: skip
    assert sum(n for _, n in accounting(dataset)) == 522
    text = page.render(sound.model_copy(update={"dataset": dataset}))
    assert "522 rows in: 373 train, 61 validate, 25 train as rejected labels, 50 held out to judge" in text


def test_a_probe_under_the_curves_of_a_training_is_explained() -> None:
    served = report(evidence("candidate", 20, 1), evidence("probe", 20, 1), method="probe")
    assert any("The linear probe serves" in one for one in remarks(served))
    assert contradictions(served) == []
    assert "The linear probe serves" in page.render(served)


def test_a_baseline_with_a_lower_loss_is_mentioned() -> None:
    worse = report(evidence("candidate", 20, 1, sharp=1.0), evidence("probe", 10, 3))
    assert worse.evaluations["probe"].nll < worse.evaluations["candidate"].nll
    assert any("NLL is lower" in one for one in remarks(worse))
    assert contradictions(worse) == []


def test_the_confusion_matrix_holds_every_label(sound: RoundReport) -> None:
    text = page.render(sound)
    head = text.split('class="matrix"')[1].split("</thead>")[0]
    assert head.count("<th>") == 1 + len(LABELS)
    fewer = [one for one in sound.confusion if one.truth != LABELS[0]]
    extra = [*fewer, *(one.model_copy(update={"n": 99}) for one in sound.confusion[:1])]
    assert contradictions(sound.model_copy(update={"confusion": extra}))
