"""The report: gathered from evidence, sealed into the version, rendered to one page that stands alone."""

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from pipelines.dataset.counted import ticks
from pipelines.dataset.files import FileRow
from pipelines.evaluation.evidence.classification import LabelEvidence, score_label
from pipelines.gates.evidence_and_facts import RoundEvidence
from pipelines.gates.policy import Policy, default_policy
from pipelines.report import page as report_page
from pipelines.report import round_report
from schemas.manifests import Calibration, Conformal
from schemas.reports import Robustness, RoundReport
from serving.model_directory import verify, write_manifest
from tests.support.reports import manifest, report_of

HOSTILE = '<script>alert("x")</script> & {{ 7 * 7 }}'


def evidence(labels: list[str], wrong: int, version: str, seed: int) -> LabelEvidence:
    draw = np.random.default_rng(seed)
    n = 300
    rows = [FileRow(f"{HOSTILE} {i}", labels[i % len(labels)], {"channel": ["web", "ios"][i % 2]}) for i in range(n)]
    logits = draw.normal(0, 0.3, (n, len(labels)))
    hit = draw.permutation(n) >= wrong
    for i in range(n):
        logits[i, (i + (not hit[i])) % len(labels)] += 3
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    calibration = Calibration(kind="temperature", temperature=1.2, conformal=Conformal(scores=[0.1] * 80 + [0.9] * 20))
    return score_label(
        probabilities, labels, rows, version=version, split="reference", calibration=calibration, raw=probabilities
    )


def report(k: int = 3, *, bootstrap: bool = False, policy: Policy | None = None) -> RoundReport:
    labels = [f"label {n}" for n in range(k)]
    candidate = evidence(labels, 20, "candidate", 1)
    champion = None if bootstrap else evidence(labels, 60, "champion", 2)
    edits = {"typo": Robustness(edited=100, flipped=3)}
    judged = RoundEvidence(
        candidate, evidence(labels, 30, "probe", 3), champion, {"candidate": edits, "champion": edits}
    )
    return report_of(judged, "classification", labels, policy)


class Checker(HTMLParser):
    """Collects what a page would load or run, and whether its tags are balanced."""

    VOID = frozenset({"meta", "br", "line", "circle", "polyline", "link", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "img", "iframe") or any(name in ("src", "href", "onclick") for name, _ in attrs):
            self.loads.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag, f"{tag} closes something else"


def test_the_page_says_the_verdict_first_and_then_everything() -> None:
    page = report_page.render(report())
    said = [
        *("Every blocking gate passed", "superiority", "Reliability", "Learning curves", "Measures", "channel=ios"),
        *("Right before, wrong now", "Confusion", "Robustness", "Data", "Lineage"),
    ]
    places = [page.index(words) for words in said]
    assert places == sorted(places)
    assert "sets" in page
    assert "/somewhere/secret" not in page
    assert page == report_page.render(report()), "the same report, the same page"


def test_learning_curves_are_drawn_of_what_has_two_points() -> None:
    page = report_page.render(report())
    for title in ("Loss", "Measures on rows not trained on", "Loss in the final phase", "Learning rate"):
        assert f"<h3>{title}</h3>" in page
    assert "rows not trained on: 0.4 at 1" in page
    assert "training: 0.3" not in page, "one point is no curve"
    assert "macro recall" not in page


@pytest.mark.parametrize("k", [2, 3, 40])
@pytest.mark.parametrize("bootstrap", [True, False])
def test_the_page_stands_alone_and_texts_cannot_break_it(k: int, bootstrap: bool) -> None:
    page = report_page.render(report(k, bootstrap=bootstrap))
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert checker.loads == []
    assert "<script" not in page
    assert not re.search(r"https?://(?!www\.w3\.org)", page)
    if not bootstrap:
        assert "{{ 7 * 7 }}" in page


def test_a_changed_policy_is_named_on_the_page() -> None:
    looser = Policy.model_validate({"superiority": {"alpha": 0.4}})
    page = report_page.render(report(policy=looser))
    assert "superiority.alpha: 0.05 -&gt; 0.4" in page


def test_a_report_counts_what_moved() -> None:
    found = report()
    superiority = next(g for g in found.gate_report.results if g.gate == "superiority")
    assert f"{len(found.positive_flips)} rows gained, {len(found.negative_flips)} lost" in superiority.sentence
    assert sum(one.n for one in found.confusion) == 20
    assert sum(one.n for one in found.labels) == 300
    assert found.set_coverage.keys() == found.set_sizes.keys() == {"0.9", "0.95", "0.99"}
    assert RoundReport.model_validate_json(found.model_dump_json()) == found


def test_a_sealed_version_holds_its_report_and_is_only_found_with_the_same_files(tmp_path: Path) -> None:
    directory, found = tmp_path / "version", report()
    directory.mkdir()
    (directory / "model.onnx").write_text("weights", encoding="utf-8")
    judged = write_manifest(directory, manifest(["label 0"]))
    assert round_report.sealed(directory) is None
    round_report.seal(directory, found, judged, default_policy("classification"))
    kept = verify(round_report.sealed_folder(directory))
    assert kept.files.keys() == {"model.onnx", "policy.toml", "report.html", "report.json"}
    assert round_report.sealed(directory) == found
    assert verify(directory) == judged, "what was judged stays as it was"

    half = round_report.sealed_folder(directory) / "report.json"
    half.write_text(half.read_text(encoding="utf-8")[:100], encoding="utf-8")
    assert round_report.sealed(directory) is None, "an attempt that died while sealing"
    round_report.seal(directory, found, judged, default_policy("classification"))
    shutil.rmtree(directory)
    directory.mkdir()
    (directory / "model.onnx").write_text("other weights", encoding="utf-8")
    write_manifest(directory, manifest(["label 0"]))
    assert round_report.sealed(directory) is None, "trained anew, and not judged yet"


def test_ticks_are_round_numbers_around_the_data() -> None:
    assert ticks(0.13, 0.87) == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(5, 5)[0] <= 5 <= ticks(5, 5)[-1]


def test_a_hyperparameter_study_is_a_table_and_a_chart() -> None:
    parameters = {"learning_rate": 1e-3, "lora_rank": 16, "epochs": 8, "weight_decay": 0.01, "adapted_layers": 6}
    trials = [
        {"phase": "hyperparameters", "trial": 0, "state": "complete", **parameters, "value": 0.41},
        {"phase": "hyperparameters", "trial": 1, "state": "pruned", **parameters},
        {"phase": "hyperparameters", "trial": 2, "state": "complete", **parameters, "value": 0.36},
    ]
    end = {"phase": "hyperparameters", "chosen": "trial 2", "gain": 0.05, "gain_needed": 0.02}
    plain = report()
    assert "Hyperparameter study" not in report_page.render(plain)
    page = report_page.render(plain.model_copy(update={"history": [*trials, end, *plain.history]}))
    assert "Chosen: trial 2; it gains" in page
    assert page.count("<td>complete</td>") == 2
    assert "Loss on validation rows, by trial" in page
    skipped = {"phase": "hyperparameters", "chosen": "recipe", "why": "12 validation rows, 30 are needed"}
    page = report_page.render(plain.model_copy(update={"history": [skipped, *plain.history]}))
    assert "Chosen: recipe, because 12 validation rows, 30 are needed" in page
