"""The report page: one self-contained HTML file with the verdict on a candidate, and the reasons.

Turns a `RoundReport` into HTML by the template page.html. round_report.py writes it, `ratchet round show ID --open` opens it.
The page has no scripts and loads nothing from elsewhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2

from pipelines.report import plots
from pipelines.report.remarks import accounting, ece_limit, remarks
from schemas.reports import Confusion, GateResult, LabelScore, RoundReport, SliceChange, Verdict

MATRIX_LABELS = 12
SHOWN_SLICES = 30
DRAWN = ("accuracy", "macro_f1", "subset_accuracy", "r2", "spearman", "perplexity")  # three of a task at most
VERDICT_CLASS = {Verdict.PASS: "pass", Verdict.FAIL: "fail", Verdict.INSUFFICIENT: "unsure"}


@dataclass(frozen=True)
class Wording:
    """A task's wording on the page."""

    plot: tuple[str, str]
    diagonal: str  # meaning of the reliability diagram's dashed line
    region: str
    width: str
    worse: str = "Right before, wrong now"
    better: str = "Wrong before, right now"
    confuses: bool = False
    probe: str = "probe"


_CLASSIFICATION = Wording(
    ("confidence", "share right"),
    "on the dashed line, accuracy equals confidence",
    "prediction sets",
    "labels a set",
    confuses=True,
)
_MULTILABEL = replace(
    _CLASSIFICATION,
    plot=("probability", "share true"),
    diagonal="on the dashed line, labels are true as often as their probability",
    confuses=False,
)
_REGRESSION = Wording(
    ("nominal coverage", "observed coverage"),
    "on the dashed line, intervals contain the truth as often as promised",
    "intervals",
    "mean width",
    "Error grew most",
    "Error shrank most",
)
_GENERATION = Wording(
    ("confidence", "share accepted"),
    "on the dashed line, texts are accepted (chrF of at least 0.5, or an exact match) as often as the confidence",
    "",
    "",
    "Farther from the reference",
    "Nearer to the reference",
    probe="most similar row",
)
WORDING = {
    "classification": _CLASSIFICATION,
    "multilabel": _MULTILABEL,
    "regression": _REGRESSION,
    "generation": _GENERATION,
}


def render(report: RoundReport) -> str:
    """Return the page as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(number=_number, signed=lambda value: f"{value:+.3f}", share=lambda value: f"{value:.1%}")
    shown = [one for n, one in enumerate(report.slices) if one.stops or n < SHOWN_SLICES]
    return environment.get_template("page.html").render(
        r=report,
        headline=_headline(report),
        verdict_class=VERDICT_CLASS,
        wording=WORDING[report.task],
        numbers=_gate_numbers,
        figures=_figures(report),
        remarks=remarks(report),
        accounting=accounting(report.dataset),
        curves=_curves(report.history),
        study=[line for line in report.history if "trial" in line],
        study_end=next(
            (line for line in report.history if line["phase"] == "hyperparameters" and "chosen" in line), None
        ),
        reliability=_reliability(report),
        slices=[(one, _forest(shown, one, report)) for one in shown],
        hidden_slices=len(report.slices) - len(shown),
        matrix=_matrix(report.labels, report.confusion) if WORDING[report.task].confuses else [],
        worst_labels=sorted((one for one in report.labels if one.n), key=lambda one: (one.recall or 0, -one.n)),
        percent=lambda part, whole: f"{100 * part / max(1, whole):.1f}%",
    )


def _headline(report: RoundReport) -> str:
    verdict, against = report.gate_report, report.champion_version
    if verdict.verdict is Verdict.PASS:
        return f"Every blocking gate passed{f', against {against}' if against else ': it is the first champion'}."
    named = ", ".join(name.replace("_", " ") for name in verdict.stopped_by())
    failed = verdict.verdict is Verdict.FAIL
    return f"{'Stopped' if failed else 'Not shown to be good enough'} by: {named}."


def _figures(report: RoundReport) -> list[tuple[str, str, str]]:
    """Return name, candidate's value and comparison of each headline figure."""
    evaluations = report.evaluations
    candidate, champion, probe = evaluations["candidate"], evaluations.get("champion"), evaluations.get("probe")
    beside = champion or probe
    whose = "champion" if champion else WORDING[report.task].probe
    comparison = {name: f"{whose} {_number(beside.figures.get(name))}" if beside else "" for name in candidate.figures}
    comparison["ECE"] = f"limit {_number(ece_limit(report))}"
    return [(name, _number(value), comparison[name]) for name, value in candidate.figures.items()]


def _curves(history: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str], str]]:
    """Return title, line names and chart of each learning curve with two points or more."""
    epochs = [line for line in history if "epoch" in line]
    last = next((line["phase"] for line in reversed(history) if "step" in line), None)
    steps = [line for line in history if "step" in line and line["phase"] == last]
    losses = {
        "rows not trained on": "held_out_nll",
        "training, while searching": "search_loss",
        "training": "train_loss",
    }
    trials = [line for line in history if "trial" in line]
    charts = [
        ("Loss", "epoch", epochs, losses),
        ("Measures on rows not trained on", "epoch", epochs, {key: key for key in DRAWN}),
        (f"Loss in the {last} phase", "step", steps, {"training": "loss"}),
        ("Learning rate", "step", steps, {"adapter": "learning_rate", "head": "head_learning_rate"}),
        ("Loss on validation rows, by trial", "trial", trials, {"validation": "value"}),
    ]
    curves: list[tuple[str, list[str], str]] = []
    for title, x, lines, wanted in charts:
        series = {
            name.replace("_", " "): [(line[x], line[key]) for line in lines if line.get(key) is not None]
            for name, key in wanted.items()
        }
        drawn = {name: points for name, points in series.items() if len(points) > 1}
        if drawn:
            curves.append((title, list(drawn), plots.line_chart(drawn, x, "")))
    return curves


def _reliability(report: RoundReport) -> str:
    series = {
        "before calibration": report.uncalibrated,
        "after calibration": report.evaluations["candidate"].reliability,
    }
    drawn = {name: bins for name, bins in series.items() if bins}
    return plots.reliability(drawn, WORDING[report.task].plot) if drawn else ""


def _forest(shown: Sequence[SliceChange], one: SliceChange, report: RoundReport) -> str:
    span = max([0.02, *(min(1.0, max(abs(each.low), abs(each.high))) for each in shown)])
    margin = report.gate_report.policy.get("slices", {}).get("margin", 0.01)
    return plots.interval_bar(
        one.change, one.low, one.high, span, margin if isinstance(margin, float) else 0.01, bad=one.stops
    )


def _matrix(labels: Sequence[LabelScore], confusion: Sequence[Confusion]) -> list[tuple[LabelScore, list[int]]]:
    """Return counts by true label (rows) and predicted label (columns); empty beyond MATRIX_LABELS labels."""
    if len(labels) > MATRIX_LABELS:
        return []
    wrong = {(one.truth, one.answer): one.n for one in confusion}
    return [
        (
            truth,
            [
                round((truth.recall or 0) * truth.n)
                if truth is predicted
                else wrong.get((truth.label, predicted.label), 0)
                for predicted in labels
            ],
        )
        for truth in labels
    ]


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:g}" if abs(value) >= 1 and value == int(value) else f"{value:.3f}"


def _gate_numbers(gate: GateResult) -> str:
    """Return observed value, interval, threshold and n in one line."""
    parts = [] if gate.observed is None else [_number(gate.observed)]
    if gate.interval:
        parts[-1:] = [f"{parts[-1] if parts else ''} [{_number(gate.interval[0])}, {_number(gate.interval[1])}]"]
    if gate.threshold is not None:
        parts.append(f"limit {_number(gate.threshold)}")
    return " · ".join([*parts, f"n = {gate.n:,}"] if gate.n else parts)
