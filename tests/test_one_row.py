"""A project of a few rows judges by one or two: every gate has an answer then, warns of nothing, and its report is JSON."""

import json
from typing import Any

import numpy as np
import pytest

from pipelines.calibration import intervals, maps, sequence_confidence
from pipelines.dataset.files import FileRow
from pipelines.evaluation.evidence.classification import score_label
from pipelines.evaluation.evidence.evidence import Evidence, OutputEvidence
from pipelines.evaluation.evidence.generation import Likelihood, score_text
from pipelines.evaluation.evidence.multilabel import score_labels
from pipelines.evaluation.evidence.regression import score_number
from pipelines.gates.compressed import judge_compressed
from pipelines.gates.policy import Policy, default_policy, load_policy
from pipelines.gates.verdict import Facts, judge
from schemas.manifests import Calibration
from schemas.reports import GateReport, Verdict
from schemas.targets import Task

TASKS = ["classification", "multilabel", "regression", "generation"]
TRUTH = {"classification": "a", "multilabel": '["a"]', "regression": "3.0", "generation": "one two"}


def evidence(task: str, n: int, *, miss: float) -> Evidence:
    """Return the evidence of n rows on which the model is a little wrong, by `miss`."""
    rows = [FileRow(f"text {number}", TRUTH[task], {"channel": "web"}) for number in range(n)]
    sure = np.column_stack([np.full(n, 0.9 - miss), np.full(n, 0.1 + miss)])
    if task == "classification":
        return score_label(sure, ["a", "b"], rows, version="v", split="r")
    if task == "multilabel":
        return score_labels(sure, ["a", "b"], rows, version="v", split="r")
    if task == "regression":
        return score_number(np.full((n, 1), 3.0 + miss), [], rows, version="v", split="r")
    likelihood = Likelihood(np.full(n, 1.0 + miss), np.full(n, 2))
    return score_text(["one two" if miss < 0.1 else "one"] * n, likelihood, rows, version="v", split="r")


def assert_json(report: GateReport) -> None:
    json.dumps(report.model_dump(mode="json"), allow_nan=False)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("miss", [0.01, 0.2])
def test_few_rows_are_judged_against_a_champion_and_without_one(task: Task, n: int, miss: float) -> None:
    facts = Facts(look=1, alpha=0.025, people=1, quarantined=0, latency_ms=5.0, load_error=None)
    policy = load_policy(default_policy(task))
    champion, candidate = evidence(task, n, miss=0.1), evidence(task, n, miss=miss)
    for metric in (policy.superiority.metric, *candidate.metrics):
        named = policy.model_copy(update={"superiority": policy.superiority.model_copy(update={"metric": metric})})
        report = judge(champion, candidate, candidate, facts, named)
        assert report.verdict is not Verdict.PASS, f"{n} rows by {metric}: {report}"
        assert all(result.verdict is not Verdict.FAIL for result in report.results if result.gate == "superiority")
        assert_json(report)
    assert_json(judge(None, candidate, candidate, facts, policy))


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
@pytest.mark.parametrize("n", [1, 2])
def test_one_row_leaves_a_smaller_artefact_undecided(task: str, n: int) -> None:
    full, smaller = evidence(task, n, miss=0.01), evidence(task, n, miss=0.0101)
    assert isinstance(full, OutputEvidence)
    assert isinstance(smaller, OutputEvidence)
    report = judge_compressed(full, smaller, Policy())
    open_nll = [result.verdict for result in report.results if result.gate == "nll"]
    assert open_nll == [Verdict.INSUFFICIENT if n == 1 else Verdict.PASS]
    assert_json(report)


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_few_rows_fit_a_calibration_or_none(n: int) -> None:
    draw = np.random.default_rng(0)
    logits, truth = draw.normal(size=(n, 3)), np.arange(n) % 3
    fits: list[Any] = [maps.fit(logits, truth), maps.fit_each(logits, np.eye(3, dtype=bool)[truth])]
    if n:
        fits.append(Calibration(intervals=intervals.fit(logits[:, 0], None, truth.astype(float))))
    fits.append(Calibration(sequence=sequence_confidence.fit([[-0.5, -0.1]] * n, truth == 0)))
    for fitted in fits:
        json.dumps(fitted.model_dump(mode="json"), allow_nan=False)


def test_one_row_that_fitted_the_intervals_is_judged_by_those_that_are_claimed() -> None:
    numbers, truth, rows = np.array([[3.2]]), np.array([3.0]), [FileRow("text", "3.0")]
    fitted = Calibration(intervals=intervals.fit(numbers[:, 0], None, truth))
    alone, crossed = (
        score_number(numbers, [], rows, version="v", split="r", calibration=fitted, fold=fold)
        for fold in (None, np.array([0]))
    )
    assert crossed.losses["nll"] == pytest.approx(alone.losses["nll"])
    assert crossed.covered(0.5).tolist() == alone.covered(0.5).tolist()
    assert crossed.report == alone.report
