"""Multilabel answers: thresholds fitted by the policy's metric, the same in evaluation and in serving."""

import json

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.calibration import maps, thresholds
from pipelines.dataset.files import FileRow
from pipelines.evaluation.evidence.multilabel import LabelsEvidence, score_labels
from pipelines.gates.absolute import bootstrap
from pipelines.gates.policy import BootstrapPolicy, default_policy, load_policy
from schemas.manifests import Calibration
from schemas.reports import Verdict
from serving.inference import calibration as applied
from serving.inference.outputs import MultilabelOutputs

LABELS = [f"l{n}" for n in range(12)]


def drawn(n: int, seed: int, least_one: bool = True) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Logits [n, k] of rare labels that are seldom likelier than not, and labels drawn from their probabilities."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(-2.2, 1.2, (n, len(LABELS)))
    truth = draw.random(logits.shape) < 1 / (1 + np.exp(-logits))
    if least_one:
        empty = ~truth.any(axis=1)
        truth[empty, logits[empty].argmax(axis=1)] = True
    return logits, truth


def rows_of(truth: NDArray[np.bool_]) -> list[FileRow]:
    return [FileRow(f"text {n}", json.dumps([LABELS[k] for k in np.flatnonzero(row)])) for n, row in enumerate(truth)]


def evidence(logits: NDArray[np.float64], truth: NDArray[np.bool_], fitted: Calibration) -> LabelsEvidence:
    outputs = MultilabelOutputs(LABELS, fitted).apply(logits)
    return score_labels(outputs, LABELS, rows_of(truth), version="v", split="s", calibration=fitted)


@pytest.mark.parametrize("seed", range(5))
def test_micro_f1_is_that_of_the_best_threshold_in_hindsight(seed: int) -> None:
    fitted = maps.fit_each(*drawn(300, seed))
    logits, truth = drawn(3000, seed + 100)
    judged = evidence(logits, truth, fitted)
    outputs = MultilabelOutputs(LABELS, fitted).apply(logits)
    hindsight = max(
        float(thresholds.quality(outputs > limit, truth, "micro_f1")[0]) for limit in np.linspace(0.02, 0.9, 45)
    )
    at_half = float(thresholds.quality(outputs > 0.5, truth, "micro_f1")[0])
    assert judged.score.value >= hindsight - 0.01
    assert judged.score.value > at_half + 0.1


def test_what_is_judged_is_what_is_served() -> None:
    fitted = maps.fit_each(*drawn(300, 1))
    assert fitted.at_least_one and len(fitted.thresholds) == len(LABELS)
    logits, truth = drawn(200, 2)
    outputs = MultilabelOutputs(LABELS, fitted)
    served = [event["label"] for _, event in outputs.predictions(outputs.apply(logits), None)]
    judged = evidence(logits, truth, fitted)
    assert served == judged.answers.tolist()
    assert "[]" not in served
    confidences = [event["confidence"] for _, event in outputs.predictions(outputs.apply(logits), None)]
    assert confidences == pytest.approx(judged.confidence.tolist())


def test_an_answer_has_a_label_if_the_rows_have_or_the_setting_says_so() -> None:
    logits, truth = drawn(300, 3, least_one=False)
    assert not maps.fit_each(logits, truth).at_least_one
    assert maps.fit_each(logits, truth, at_least_one=True).at_least_one
    assert not maps.fit_each(*drawn(300, 3), at_least_one=False).at_least_one
    few = maps.fit_each(*drawn(10, 3))
    assert few.at_least_one
    assert few.thresholds == [], "too few rows to choose any"


def test_the_metric_chooses_the_thresholds() -> None:
    logits, truth = drawn(600, 4, least_one=False)
    new_logits, new_truth = drawn(4000, 5, least_one=False)
    best = {}
    for metric in ("accuracy", "micro_f1", "macro_f1"):
        fitted = maps.fit_each(logits, truth, metric)
        judged = evidence(new_logits, new_truth, fitted)
        best[metric] = {
            m: float(thresholds.quality(judged.predicted, new_truth, m)[0]) for m in ("accuracy", "micro_f1")
        }
    assert best["accuracy"]["accuracy"] > best["micro_f1"]["accuracy"]
    assert best["micro_f1"]["micro_f1"] > best["accuracy"]["micro_f1"]


def test_a_policy_that_names_accuracy_or_the_brier_score_chooses_thresholds_by_accuracy() -> None:
    rows = drawn(300, 4, least_one=False)
    assert maps.fit_each(*rows, "accuracy_or_brier").thresholds == maps.fit_each(*rows, "accuracy").thresholds
    assert maps.fit_each(*rows, "nll").thresholds == maps.fit_each(*rows, "micro_f1").thresholds


@pytest.mark.parametrize("n", [200, 20])
def test_a_rows_own_labels_never_decide_how_it_is_judged(n: int) -> None:
    logits, truth = drawn(n, 7)
    before = maps.cross_fit_each(logits, truth)
    mine, altered = before.fold == before.fold[3], truth.copy()
    altered[mine] = truth[mine][:, ::-1]
    after = maps.cross_fit_each(logits, altered)
    assert before.answers is not None and after.answers is not None and before.answers.any()
    assert after.calibration.kind == before.calibration.kind, (
        "all rows choose the kind, so this case would tell nothing"
    )
    assert after.calibration != before.calibration, "what ships uses every row"
    np.testing.assert_array_equal(after.answers[mine], before.answers[mine])


def test_rows_that_fit_the_thresholds_look_no_better_than_new_rows() -> None:
    """Labels that nothing predicts: thresholds that see a row's labels make it look better than new rows are."""
    draw, found = np.random.default_rng(3), []
    for _ in range(12):
        logits, truth = draw.normal(0, 1, (60, 6)), draw.random((60, 6)) < 0.3
        fitted = maps.cross_fit_each(logits, truth, "accuracy", at_least_one=False)
        others, other_truth = draw.normal(0, 1, (2000, 6)), draw.random((2000, 6)) < 0.3
        shipped = MultilabelOutputs(LABELS[:6], fitted.calibration)
        answers = [applied.answered(fitted.calibration, shipped.apply(each)) for each in (logits, others)]
        assert fitted.answers is not None
        pairs = [(answers[0], truth), (answers[1], other_truth), (fitted.answers, truth)]
        found.append([float(thresholds.quality(*pair, "accuracy")[0]) for pair in pairs])
    seen, new, honest = np.mean(found, axis=0)
    assert seen > new, "the case is too easy to tell anything"
    assert honest < seen
    assert honest < new + 0.02, (seen, new, honest)


def test_labels_of_different_frequency_get_their_own_thresholds_for_macro_f1() -> None:
    """A label whose probabilities all lie below the best common threshold is never answered with it."""
    draw = np.random.default_rng(0)
    truth = draw.random((1500, 2)) < [0.5, 0.06]
    probabilities = np.column_stack([np.where(truth[:, 0], 0.8, 0.2), np.where(truth[:, 1], 0.15, 0.03)])
    probabilities += draw.uniform(-0.02, 0.02, probabilities.shape)
    assert thresholds.fit(probabilities, truth, "macro_f1", False)["thresholds"][1] < 0.15
    low, high = sorted(thresholds.fit(probabilities, truth, "macro_f1", False)["thresholds"])
    assert low < 0.15 < high


def test_the_first_model_has_to_beat_the_best_constant_answer() -> None:
    truth = np.zeros((200, len(LABELS)), dtype=bool)
    truth[:, 0] = True
    truth[::4, 1] = True
    constant = np.tile(np.where(np.arange(len(LABELS)) == 0, 0.9, 0.1), (200, 1))
    judged = score_labels(constant, LABELS, rows_of(truth), version="v", split="s")
    assert judged.score.value == pytest.approx(judged.score.constant_baseline) == pytest.approx(400 / 450)
    result = bootstrap(judged, BootstrapPolicy(), 100)
    assert result.verdict is Verdict.FAIL
    assert result.sentence == "micro F1 0.889, always giving the best constant answer 0.889"
    few = bootstrap(judged, BootstrapPolicy(), 201)
    assert (few.verdict, few.blocking) == (Verdict.INSUFFICIENT, False)
    assert few.sentence.endswith("; 200 rows cannot tell which is better")


def test_a_new_multilabel_project_is_judged_by_micro_f1() -> None:
    assert load_policy(default_policy("multilabel")).superiority.metric == "micro_f1"
    assert load_policy(default_policy("classification")).superiority.metric == "accuracy_or_brier"
    before, after = (evidence(*drawn(400, 6), Calibration(thresholds=[t] * len(LABELS))) for t in (0.6, 0.2))
    change = after.compared_with(before)
    assert change.observed > 0.1
    assert change.p_better < 1e-6, "many looks at the evidence need less than one in the number of draws"
    assert before.compared_with(after).p_better > 0.99
    assert "micro F1" in change.sentence
