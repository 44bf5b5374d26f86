"""Evidence and gates of several labels and of numbers: what is better passes, what is worse or dishonest does not."""

from functools import cache
from typing import Any

import numpy as np
import pytest
from scipy.stats import wilcoxon

from pipelines.calibration import conformal, intervals, maps
from pipelines.dataset.files import FileRow
from pipelines.evaluation.evidence.evidence import Evidence, UnknownMetric
from pipelines.evaluation.evidence.multilabel import LabelsEvidence, score_labels
from pipelines.evaluation.evidence.regression import NumberEvidence, score_number
from pipelines.gates.compressed import judge_compressed
from pipelines.gates.evidence_and_facts import RoundEvidence
from pipelines.gates.policy import Policy, load_policy
from pipelines.gates.verdict import Facts, judge
from pipelines.metrics import paired_tests, probabilistic
from pipelines.report import page as report_page
from schemas.manifests import Calibration, IntervalCalibration
from schemas.reports import GateReport, GateResult, Verdict
from schemas.targets import canonical
from serving.inference import calibration as applied
from tests.support.reports import report_of

LABELS = ["a", "b", "c", "d"]


@cache
def labels(noise: float, *, n: int = 600, sharpness: float = 1.0, seed: int = 0, fitted: bool = True) -> LabelsEvidence:
    """Rows of which each label is true by its own logit; the model sees that logit with noise and may exaggerate."""
    draw, other = np.random.default_rng(5), np.random.default_rng(seed)
    logits = draw.normal(-1, 2.5, (2 * n, len(LABELS)))
    truth = draw.random(logits.shape) < applied.sigmoid(logits)
    seen = (logits + other.normal(0, noise, logits.shape)) * sharpness
    own = maps.fit_each(seen[n:], truth[n:]) if fitted else Calibration()
    named = [canonical("multilabel", [LABELS[k] for k in np.flatnonzero(row)]) for row in truth]
    rows = [FileRow(f"text {i}", named[i], {"channel": ["web", "ios"][i % 2]}) for i in range(n)]
    probabilities = applied.apply_to_each(own, seen[:n])
    return score_labels(
        probabilities, LABELS, rows, version="v", split="r", calibration=own, raw=applied.sigmoid(seen[:n])
    )


@cache
def numbers(noise: float, *, n: int = 400, bias: float = 0.0, claim: float = 1.0, seed: int = 0) -> NumberEvidence:
    """Rows in thousands; the model misses by noise and bias, and claims `claim` of what it should."""
    draw, other = np.random.default_rng(5), np.random.default_rng(seed)
    truth = draw.normal(5000, 2000, 2 * n)
    said = truth + other.normal(0, noise, 2 * n) + bias
    fitted = intervals.fit(said[n:], None, truth[n:])
    told = IntervalCalibration(
        factor=fitted.factor * claim, scores=[claim * s for s in fitted.scores], fitted_rows=fitted.fitted_rows
    )
    rows = [
        FileRow(f"text {i}", canonical("regression", truth[i]), {"channel": ["web", "ios"][i % 2]}) for i in range(n)
    ]
    return score_number(said[:n, None], [], rows, version="v", split="r", calibration=Calibration(intervals=told))


def verdict(champion: Evidence | None, candidate: Evidence, policy: Policy | None = None, **more: Any) -> GateReport:
    facts = Facts(look=1, alpha=0.025, people=9, quarantined=0, latency_ms=5.0, load_error=None, **more)
    return judge(champion, candidate, candidate, facts, policy or Policy())


def gate(report: GateReport, name: str) -> GateResult:
    return next(result for result in report.results if result.gate == name)


@pytest.mark.parametrize("metric", ["accuracy", "nll", "brier", "macro_f1"])
@pytest.mark.parametrize(("make", "good", "bad"), [(labels, 0.3, 3.0), (numbers, 300, 900)])
def test_a_clearly_better_candidate_passes_and_a_worse_one_fails(
    make: Any, good: float, bad: float, metric: str
) -> None:
    policy = load_policy(f'[superiority]\nmetric = "{metric}"\n[flips]\nmax_share = 0.9')
    better, worse = verdict(make(bad), make(good), policy), verdict(make(good), make(bad), policy)
    assert better.verdict is Verdict.PASS, better.results
    assert {"superiority", "non_inferiority", "slices", "calibration"} <= set(worse.stopped_by())
    names = [result.gate for result in better.results]
    assert ("flips" in names) == ("forgetting" in names) == (make is labels)
    assert gate(verdict(make(good), make(good), policy), "superiority").verdict is Verdict.INSUFFICIENT


def test_a_metric_that_a_task_does_not_have_is_refused_and_a_policy_that_names_it_means_the_main_one() -> None:
    with pytest.raises(
        UnknownMetric, match="metric = 'mse': multilabel is compared by one of 'micro_f1', 'accuracy', 'nll', 'brier'"
    ):
        labels(0.3).compared_with(labels(3.0), "mse")
    with pytest.raises(UnknownMetric, match="metric = 'accuracy': regression is compared by one of 'mse', 'nll'"):
        numbers(300).compared_with(numbers(900), "accuracy")
    for metric, judged_by in {"accuracy": "mean squared error", "brier": "mean squared error", "nll": "NLL"}.items():
        policy = load_policy(f'[superiority]\nmetric = "{metric}"')
        assert judged_by in gate(verdict(numbers(900), numbers(300), policy), "superiority").sentence


@pytest.mark.parametrize(("make", "good", "useless"), [(labels, 0.3, 1e6), (numbers, 300, 9000)])
def test_a_first_champion_has_to_beat_guessing(make: Any, good: float, useless: float) -> None:
    assert verdict(None, make(good)).verdict is Verdict.PASS
    assert "bootstrap" in verdict(None, make(useless)).stopped_by()


def test_claims_have_to_be_honest() -> None:
    champion = numbers(400)
    assert gate(verdict(champion, numbers(400)), "calibration").verdict is Verdict.PASS
    narrow = gate(verdict(champion, numbers(400, claim=0.7)), "calibration")
    assert "intervals contain the truth less often than promised" in narrow.sentence
    assert "too high" in gate(verdict(champion, numbers(400, bias=300)), "calibration").sentence
    bold = gate(verdict(labels(0.3), labels(0.3, sharpness=3.0, fitted=False)), "calibration")
    assert bold.verdict is Verdict.FAIL
    assert "ECE is above" in bold.sentence


def test_a_harmed_slice_stops_a_candidate_that_is_better_overall() -> None:
    champion, better = numbers(600, n=800), numbers(300, n=800)
    ios = np.array([row.metadata["channel"] == "ios" for row in better.rows])
    mixed = score_number(
        np.where(ios, champion.numbers + 2 * (champion.numbers - champion.truth), better.truth)[:, None],
        [], better.rows, version="v", split="r", calibration=better.calibration,
    )  # fmt: skip
    assert "channel=ios" in gate(verdict(champion, mixed), "slices").sentence
    assert gate(verdict(champion, better), "slices").verdict is Verdict.PASS


def test_a_smaller_artefact_stands_in_if_its_numbers_are_as_good_as_the_same() -> None:
    full = numbers(400)
    nearly = score_number(
        full.outputs + np.random.default_rng(1).normal(0, 10, full.outputs.shape), [], full.rows,
        version="int8", split="r", calibration=full.calibration,
    )  # fmt: skip
    assert judge_compressed(full, nearly, Policy()).verdict is Verdict.PASS
    assert "agreement" in judge_compressed(full, numbers(400, seed=2), Policy()).stopped_by()
    assert judge_compressed(labels(0.3), labels(0.3), Policy()).verdict is Verdict.PASS
    assert "agreement" in judge_compressed(labels(0.3), labels(1.0), Policy()).stopped_by()


def test_of_many_labels_each_is_compared_and_what_nobody_says_counts_for_nothing() -> None:
    names = [f"l{n:02}" for n in range(40)]
    truth = np.zeros((200, 40), dtype=bool)
    for n in range(200):
        truth[n, [(n + step) % 40 for step in range(0, 30, 3)]] = True
    rows = [FileRow("text", canonical("multilabel", list(np.array(names)[own]))) for own in truth]

    def model(missed: float) -> LabelsEvidence:
        """Of its ten labels a row, a share of rows misses one."""
        said = np.where(truth, 0.9, 0.1)
        for n in range(round(missed * 200)):
            said[n, n % 40] = 0.4
        return score_labels(said, names, rows, version="v", split="r")

    same, n, what = model(0).agreement(model(0.12))
    assert (same, n, what) == (1976, 1988, "labels")
    agreed = gate(judge_compressed(model(0), model(0.12), Policy()), "agreement")
    assert agreed.verdict is Verdict.PASS, "98.8 % of the labels, though only 88 % of the answers"
    assert "agreement" in judge_compressed(model(0), model(0.4), Policy()).stopped_by()
    flat = score_labels(np.full((200, 40), 0.25), names, rows, version="v", split="r")
    assert flat.score.value == pytest.approx(0, abs=1e-6)
    assert verdict(None, flat).verdict is Verdict.FAIL
    unsure = model(1.0)
    assert unsure.right.mean() == 0
    assert gate(verdict(None, unsure), "bootstrap").verdict is Verdict.PASS, (
        "seldom right about all forty, and yet useful"
    )
    silent = score_labels(np.full((200, 40), 0.1), names, rows, version="v", split="r")
    assert silent.agreement(silent) == (200, 200, "answers")


def test_labels_that_do_not_exclude_each_other_are_calibrated() -> None:
    draw = np.random.default_rng(0)
    logits = draw.normal(-1, 1.5, (3000, 3))
    truth = draw.random(logits.shape) < applied.sigmoid(logits)
    fitted = maps.fit_each(4 * logits[:1000], truth[:1000])
    assert fitted.kind == "temperature"
    assert fitted.temperature == pytest.approx(4, rel=0.1)
    shifted = maps.fit_each(logits[:1000] * [1, 3, 1] + [2, 0, -2], truth[:1000])
    assert shifted.kind == "vector"
    found = probabilistic.measure_each(
        applied.apply_to_each(shifted, logits[1000:] * [1, 3, 1] + [2, 0, -2]), truth[1000:]
    )
    assert found["ece"].null_99 is not None
    assert found["ece"].value <= 1.2 * found["ece"].null_99
    assert found["accuracy"].low < found["accuracy"].value < found["accuracy"].high
    assert fitted.conformal is not None
    inside = applied.outer_sets(fitted.conformal, applied.apply_to_each(fitted, 4 * logits[1000:]), 0.9)
    held = int((inside | ~truth[1000:]).all(axis=1).sum())
    assert conformal.p_covered(fitted.conformal.scores, held, 2000, 0.9) > 0.001
    assert maps.fit_each(logits[:9], truth[:9]).kind == "none"


def test_a_label_that_the_model_does_not_know_is_never_right() -> None:
    rows = [FileRow("x", '["a", "new"]'), FileRow("y", "[]")]
    found = score_labels(np.array([[0.9], [0.1]]), ["a"], rows, version="v", split="r")
    assert found.right.tolist() == [False, True]
    assert found.answers.tolist() == ['["a"]', "[]"]
    assert found.covered(0.5).tolist() == [False, True]
    assert found.losses["nll"][0] > 20


def test_saved_loss_agrees_with_another_test_of_it() -> None:
    draw = np.random.default_rng(0)
    saved = paired_tests.MeanGain(draw.normal(0.1, 1, 500), "{}")
    assert saved.p_better == pytest.approx(wilcoxon(saved.gains, alternative="greater").pvalue, abs=0.02)
    assert saved.p_better + saved.p_worse == pytest.approx(1)
    low, high = saved.interval()
    assert low < saved.observed < high
    assert saved.harm_probability(-low) == pytest.approx(0.025, abs=0.005)
    needed = saved.rows_needed(0.0, 0.05)
    assert needed is not None
    shown = [paired_tests.MeanGain(draw.normal(saved.observed, 1, needed), "{}").p_better <= 0.05 for _ in range(400)]
    assert 0.74 < np.mean(shown) < 0.86
    assert paired_tests.MeanGain(np.zeros(9), "{}").harm_probability(0.01) == 0


@pytest.mark.parametrize(
    ("champion", "candidate", "said"),
    [
        (labels(1.0), labels(0.3), ("micro F1", "share true", "labels a set")),
        (numbers(900), numbers(300), ("Error grew most", "R²", "mean width")),
    ],
)
def test_the_report_speaks_of_the_task(champion: Evidence, candidate: Evidence, said: tuple[str, ...]) -> None:
    page = report_page.render(report_of(RoundEvidence(candidate, champion, champion), candidate.task))
    for one in (*said, "channel=ios", "superiority"):
        assert one in page, one
    assert "Confusion" not in page
