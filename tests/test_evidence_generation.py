"""Evidence and gates of models that write: what is likelier and nearer passes, what is worse or dishonest does not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.calibration import sequence_confidence
from pipelines.dataset.build import Dataset
from pipelines.dataset.cleaning.quarantine import quarantined
from pipelines.dataset.examples import Example
from pipelines.dataset.files import FileRow
from pipelines.evaluation.answer_rule import AnswerRule
from pipelines.evaluation.evidence.evidence import Evidence, UnknownMetric
from pipelines.evaluation.evidence.generation import Likelihood, TextEvidence, accepted, score_text
from pipelines.evaluation.text_evaluator import MOST, TextEvaluator, likelihood
from pipelines.gates.evidence_and_facts import RoundEvidence
from pipelines.gates.policy import default_policy, load_policy
from pipelines.gates.verdict import Facts, judge
from pipelines.models.decoder import Decoder
from pipelines.report import page as report_page
from schemas.configuration.training import TrainingSettings
from schemas.manifests import Calibration
from schemas.reports import GateReport, GateResult, Verdict
from serving.inference.decoder_runtime import DecoderRuntime
from tests.support.reports import report_of

N = 200
ANSWERS = [
    f"the {thing} is on page {n}" for n, thing in enumerate(["card", "loan", "invoice", "account", "refund"] * 40)
]
ROWS = [FileRow(f"text {n}", answer, {"channel": ["web", "ios"][n % 2]}) for n, answer in enumerate(ANSWERS)]


def texts(right: float, *, nll: float = 2.0, honest: bool = True, seed: int = 0, cut: float = 1.0) -> TextEvidence:
    """A model that writes a share of the answers rightly and else something else; `cut`: tokens for one of the reference's."""
    draw = np.random.default_rng(seed)
    good = draw.random(2 * N) < right
    written = [ROWS[n % N].label if good[n] else "nobody knows" for n in range(2 * N)]
    sure = np.where(good, -0.2, -1.0) + draw.normal(0, 0.2, 2 * N)
    logprobs = [[value] * 3 for value in sure.tolist()]
    fitted = sequence_confidence.fit(logprobs[N:], good[N:])
    if not honest:
        fitted = fitted.model_copy(update={"shift": fitted.shift + 3})
    tokens = np.full(N, 10 * cut)
    own = Likelihood(10 * (nll + draw.normal(0, 0.5, N)), tokens)
    calibration = Calibration(fitted_rows=fitted.fitted_rows, sequence=fitted)
    return score_text(written[:N], own, ROWS, version="v", split="r", logprobs=logprobs[:N], calibration=calibration)


def verdict(champion: Evidence | None, candidate: Evidence, probe: Evidence | None = None, **more: Any) -> GateReport:
    facts = Facts(look=1, alpha=0.025, people=9, quarantined=0, latency_ms=5.0, load_error=None, **more)
    return judge(champion, candidate, probe or candidate, facts, load_policy(default_policy("generation")))


def gate(report: GateReport, name: str) -> GateResult:
    return next(result for result in report.results if result.gate == name)


def test_what_is_likelier_and_nearer_passes() -> None:
    better, worse = texts(0.8, nll=1.5, seed=1), texts(0.5, nll=2.5)
    passed = verdict(worse, better)
    assert passed.verdict is Verdict.PASS, passed.results
    assert "NLL per token lower by" in gate(passed, "superiority").sentence
    assert not {"flips", "forgetting", "drift"} & {result.gate for result in passed.results}
    assert {"superiority", "non_inferiority", "slices", "calibration"} <= set(verdict(better, worse).stopped_by())
    assert gate(verdict(better, better), "superiority").verdict is Verdict.INSUFFICIENT
    # likelier answers alone do not make up for worse texts
    assert verdict(texts(0.8, nll=2.5), texts(0.5, nll=1.5)).stopped_by()[0] == "non_inferiority"
    assert gate(verdict(worse, better), "slices").sentence.startswith("none of 2 slices")


def test_a_first_champion_has_to_write_better_than_one_text_and_than_its_neighbours() -> None:
    assert verdict(None, texts(0.8)).verdict is Verdict.PASS
    assert "bootstrap" in verdict(None, texts(0.0)).stopped_by()
    beaten = verdict(None, texts(0.7), texts(0.95, seed=2))
    assert beaten.stopped_by() == ["baseline"]
    assert "most similar training row" in gate(beaten, "baseline").sentence
    slightly = verdict(None, texts(0.7), texts(0.72))
    assert (slightly.verdict, slightly.stopped_by()) == (Verdict.INSUFFICIENT, ["baseline"]), "a person has to want it"
    later = verdict(texts(0.6, nll=2.5), texts(0.8, nll=1.5, seed=1), texts(0.81, seed=1))
    assert later.stopped_by() == [], "a later one is judged by its gain"


def test_a_confidence_has_to_be_honest_where_it_was_fitted() -> None:
    champion = texts(0.7)
    assert gate(verdict(champion, texts(0.7)), "calibration").verdict is Verdict.PASS
    bold = gate(verdict(champion, texts(0.7, honest=False)), "calibration")
    assert bold.verdict is Verdict.FAIL
    assert "over-confident" in bold.sentence
    assert champion.report.measures["confidence_auroc"].value > 0.9
    unfitted = texts(1.0)  # one outcome alone fits nothing
    assert unfitted.report.ece is None
    assert unfitted.bias is None
    assert gate(verdict(champion, unfitted), "calibration").verdict is Verdict.PASS


def test_another_tokenizer_makes_an_answer_no_likelier() -> None:
    one, finer = texts(0.7, nll=2.0), texts(0.7, nll=2.0, cut=3.0)
    assert finer.losses["nll"].mean() < one.losses["nll"].mean() / 2
    assert finer.compared_with(one, "nll").observed == pytest.approx(0)


def test_a_policy_that_says_accuracy_means_chrf() -> None:
    facts = Facts(look=1, alpha=0.025, people=9, quarantined=0, latency_ms=5.0, load_error=None)
    better, worse = texts(0.8, seed=1), texts(0.5)
    with pytest.raises(UnknownMetric, match="metric = 'accuracy': generation is compared by one of 'chrf', 'nll'"):
        better.compared_with(worse, "accuracy")
    report = judge(worse, better, better, facts, load_policy('[superiority]\nmetric = "accuracy"'))
    assert "better than the champion: chrF" in gate(report, "superiority").sentence


def test_an_exact_answer_is_accepted_however_short() -> None:
    rows = [FileRow("x", "Yes."), FileRow("y", "Yes."), FileRow("z", "open the app and choose cards")]
    assert accepted(["yes.", "No.", "open your app and choose cards"], rows).tolist() == [True, False, True]
    assert accepted([""], rows[:1]).tolist() == [False]


def test_the_report_speaks_of_texts() -> None:
    candidate, champion = texts(0.8, nll=1.5, seed=1), texts(0.5, nll=2.5)
    page = report_page.render(report_of(RoundEvidence(candidate, champion, champion), "generation"))
    for one in (
        "chrF",
        "perplexity",
        "Farther from the reference",
        "channel=ios",
        "share accepted",
        "most similar row",
    ):
        assert one in page, one
    assert candidate.report.figures.keys() == {"chrF", "BLEU", "ROUGE-L", "exact match", "perplexity", "NLL", "ECE"}
    assert champion.worse_than(candidate)


def test_a_version_is_evaluated_as_it_serves(text_version: Path, tiny_decoder: Path) -> None:
    task, writer = TextEvaluator(), DecoderRuntime(text_version)
    rows = [FileRow(f"text number {n}", ["yes", "no"][n % 2]) for n in range(6)]
    found = task.evaluate(writer, rows, split="reference")
    assert found.answers.tolist() == [one.text.strip() for one in writer.generate([row.text for row in rows])]
    own = likelihood(writer, rows)
    assert own.tokens.tolist() == [4, 3] * 3, "the end counts"
    assert found.report.measures["perplexity"].value == pytest.approx(own.perplexity)
    assert {kind: one.edited for kind, one in task.edit_flips(writer, found, np.arange(3)).items()}.keys() == {
        "typo", "case", "white space", "padding",
    }  # fmt: skip
    assert task.edit_flips(writer, found, np.arange(0)) == {}
    assert task.calibrate(writer, rows, AnswerRule()).sequence is not None
    assert len(task.sample([FileRow(f"t{n}", "a") for n in range(2 * MOST)])) == MOST
    assert len(task.sample(rows)) == 6

    known = [
        Example(text=t, label=label, source="seed") for t, label in (("my card is lost", "block it"), ("a loan", "ask"))
    ]
    dataset = Dataset.__new__(Dataset)
    object.__setattr__(dataset, "train", known)
    object.__setattr__(dataset, "validation", [])
    base = Decoder(tiny_decoder, 48, 12)
    asked = [FileRow("I lost my card", "block it"), FileRow("loans?", "no")]
    baselines = task.score_baselines(base, dataset, asked, TrainingSettings(), AnswerRule())
    cheap, untrained = baselines["probe"], baselines["untrained"]
    assert cheap.answers.tolist() == ["block it", "ask"]
    assert cheap.losses["nll"].min() > 0
    assert cheap.confidence is None
    assert untrained.losses["nll"].tolist() == cheap.losses["nll"].tolist()
    assert untrained.answers.tolist() != cheap.answers.tolist()


def test_who_answers_at_random_is_left_out(tiny_decoder: Path) -> None:
    base, draw = Decoder(tiny_decoder, 48, 12), np.random.default_rng(0)
    topics = {"zzzz qqqq": "1111 2222 3333", "xxxx wwww": "aaaa bbbb cccc"}
    asked = [list(topics)[n % 2] + f" {n}" for n in range(120)]
    people = [f"p{n // 2 % 6}" for n in range(120)]
    said = [topics[text.rsplit(" ", 1)[0]] for text in asked]
    wrong = [
        list(topics.values())[draw.integers(2)][::-1].upper() + "!!!" if person == "p3" else target
        for person, target in zip(people, said, strict=True)
    ]
    found = quarantined(asked, wrong, people, [True] * 120, task="generation", embed=base.embed, probe_c=0.1)
    assert found == {"p3"}
    assert base.embed(["", "a"]).shape == (2, 32)
    assert np.linalg.norm(base.embed(["a"])) == pytest.approx(20, rel=1e-5)
