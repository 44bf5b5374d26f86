"""`make bench-gates`: what the gates stop and what they let through, and how long they take.

Turns the answers of models trained on Banking77 (tests/bench/gates_models.py, RATCHET_BENCH_DATA) into figures. `python -m
tests.bench.gates slices calibration banking round` runs parts of it. It deliberately asserts nothing.

Slices and calibration are simulated on stored answers: which rows a candidate has right, and what is true, are drawn anew in
each run, so that the true effect is known.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.calibration import maps
from pipelines.dataset.files import FileRow
from pipelines.evaluation.evidence.classification import LabelEvidence
from pipelines.gates.absolute import calibration as calibration_gate
from pipelines.gates.against_champion import slice_changes, slices_hold
from pipelines.gates.policy import Policy, default_policy
from pipelines.metrics import paired_tests, probabilistic
from pipelines.round_inputs import round_folder
from pipelines.training_round import run_round
from schemas.manifests import Calibration
from schemas.records import RoundRecord
from schemas.reports import EvaluationReport, Verdict
from schemas.setting_groups import DatasetSettings, ModelSettings
from schemas.settings import Settings
from serving.artifacts import ArtifactStore
from serving.http.access import write_keys
from serving.inference import calibration as applied
from serving.registry.registry import Registry
from tests.bench.gates_models import KEPT, SEEDS, TRAIN, Answers, answers, split
from tests.bench.report import Figure, write
from tests.support.fakes import write_rows

RUNS = 1000
SLICES, SLICE_ROWS, CHURN = 10, 300, 0.07
TEST_ROWS = 3080
POLICY = Policy()

Floats = NDArray[np.float64]


def main(parts: Sequence[str]) -> None:
    """Run these parts, or all of them, and write what is known of all."""
    known: dict[str, Callable[[], list[Figure]]] = {
        "slices": slice_gate,
        "calibration": calibration_alone,
        "banking": banking,
        "round": gate_step,
    }
    KEPT.mkdir(exist_ok=True)
    for name in parts or list(known):
        figures = known[name]()
        (KEPT / f"part-{name}.json").write_text(json.dumps([asdict(one) for one in figures]), encoding="utf-8")
    stored = [KEPT / f"part-{name}.json" for name in known]
    write(
        "gates",
        [Figure(**one) for path in stored if path.exists() for one in json.loads(path.read_text(encoding="utf-8"))],
    )


# --- slices ---------------------------------------------------------------------------------------------------------


def slice_gate() -> list[Figure]:
    """Ten slices of 300 rows; the candidate answers 7 % of rows otherwise than the champion."""
    first = answers(0)
    truth = np.concatenate([first.truth["judge"], first.truth["calibration"]])[: SLICES * SLICE_ROWS]
    logits = np.vstack([first.logits["judge"], first.logits["calibration"]])[: len(truth)]
    draw = np.random.default_rng(0)
    rows = [FileRow("", first.labels[t], {"slice": str(n % SLICES)}) for n, t in enumerate(truth)]
    champion = replace(evidence(applied.softmax(logits), truth, first.labels), rows=rows)
    harmed = [-0.05] + [0.0] * (SLICES - 1)
    hidden = [-0.05] + [0.03] * (SLICES - 1)

    def stopped(changes: Sequence[float], runs: int = RUNS) -> float:
        hits = 0
        for _ in range(runs):
            moved = slice_changes(champion, candidate_like(champion, changes, draw), POLICY.slices)
            hits += slices_hold(moved, POLICY.slices).verdict is Verdict.FAIL
        return hits / runs

    found = {"harmed": stopped(harmed), "hidden": stopped(hidden), "better": stopped([0.03] * SLICES)}
    equal, little = stopped([0.0] * SLICES), stopped([0.01] * SLICES)
    print(f"slice gate alone stops an equal candidate in {equal:.1%}, one that is +1 point everywhere in {little:.1%}")
    return [
        share("slice gate: -5 points on one of ten slices, stopped", found["harmed"], ">=", 0.9),
        share("slice gate: the same, +3 points on the others, stopped", found["hidden"], ">=", 0.9),
        share("slice gate: +3 points everywhere, stopped", found["better"], "<=", 0.05, baseline=equal),
    ]


def candidate_like(champion: LabelEvidence, changes: Sequence[float], draw: np.random.Generator) -> LabelEvidence:
    """A candidate whose accuracy in slice s differs by changes[s] from the champion's, in truth."""
    right = champion.right
    change = np.array(changes)[np.arange(len(right)) % SLICES]
    lost, gained = (CHURN - change) / 2, (CHURN + change) / 2
    flip = draw.random(len(right)) < np.where(right, lost / right.mean(), gained / (1 - right.mean()))
    after = right ^ flip
    other = (champion.truth + 1) % champion.known
    probabilities = np.zeros_like(champion.probabilities)
    probabilities[np.arange(len(right)), np.where(after, champion.truth, other)] = 1
    return replace(champion, probabilities=probabilities)


# --- the calibration gate alone -------------------------------------------------------------------------------------


def calibration_alone() -> list[Figure]:
    """1,000 rows; what is true is drawn, so that the true calibration error is known."""
    first, n = answers(0), 1000
    fitted = maps.fit(first.logits["calibration"], first.truth["calibration"])
    honest = np.log(applied.apply(fitted, first.logits["judge"][:n]))
    draw = np.random.default_rng(0)
    told = {
        "honest": 1.0,
        "over-confident": sharpened(honest, 0.05, (1.0, 6.0)),
        "timid": sharpened(honest, 0.05, (1.0, 0.1)),
    }
    truths = applied.softmax(honest)
    found = {}
    for name, sharpness in told.items():
        probabilities = applied.softmax(honest * sharpness)
        limit = probabilistic.ece_null(probabilities.max(axis=1))
        stopped = 0
        for _ in range(RUNS):
            truth = (truths.cumsum(axis=1) < draw.random((n, 1))).sum(axis=1).clip(0, truths.shape[1] - 1)
            candidate = evidence(probabilities, truth, first.labels, limit)
            champion = evidence(truths, truth, first.labels, limit)
            stopped += calibration_gate(champion, candidate, POLICY.calibration).verdict is Verdict.FAIL
        found[name] = stopped / RUNS
    rival = answers(1)
    same = equal_rivals(first, rival, n, draw)
    print(f"calibration gate stops one of two equally good, honest models in {same:.1%}")
    return [
        share("calibration gate: true ECE .05, over-confident, stopped", found["over-confident"], ">=", 0.95),
        share("calibration gate: true ECE .05, timid, stopped", found["timid"], ">=", 0.95),
        share("calibration gate: perfectly calibrated, stopped", max(found["honest"], same), "<=", 0.02),
    ]


def sharpened(logits: Floats, error: float, between: tuple[float, float]) -> float:
    """The factor on honest logits at which the true top-label calibration error is `error`."""
    confidence = applied.softmax(logits).max(axis=1)
    low, high = between
    for _ in range(50):
        middle = (low + high) / 2
        gap = np.abs(applied.softmax(logits * middle).max(axis=1) - confidence).mean()
        low, high = (low, middle) if gap > error else (middle, high)
    return (low + high) / 2


def equal_rivals(first: Answers, rival: Answers, n: int, draw: np.random.Generator) -> float:
    """Candidate and champion on rows of their own, each honest there, judged as if on the same: no better, no worse."""
    own = applied.softmax(first.logits["test"][:n])
    other = own[draw.permutation(n)]
    limit = probabilistic.ece_null(own.max(axis=1))
    stopped = 0
    for _ in range(RUNS):
        drawn = [(p.cumsum(axis=1) < draw.random((n, 1))).sum(axis=1).clip(0, p.shape[1] - 1) for p in (own, other)]
        candidate, champion = (evidence(p, t, rival.labels, limit) for p, t in zip((own, other), drawn, strict=True))
        stopped += calibration_gate(champion, candidate, POLICY.calibration).verdict is Verdict.FAIL
    return stopped / RUNS


# --- Banking77 ------------------------------------------------------------------------------------------------------


def banking() -> list[Figure]:
    """Five seeds: calibrated on 1,001 rows, measured on the test file."""
    within, nll_held, rows = 0, 0, []
    covered: dict[tuple[str, float], list[float]] = {}
    sizes: dict[tuple[str, float], list[float]] = {}
    least = 99
    for seed in range(SEEDS):
        found = answers(seed)
        fitted = maps.fit(found.logits["calibration"], found.truth["calibration"])
        logits, truth = found.logits["test"], found.truth["test"]
        raw, honest = applied.softmax(logits), applied.apply(fitted, logits)
        before, after = (probabilistic.row_nll(p, truth).mean() for p in (raw, honest))
        confidence, right = honest.max(axis=1), honest.argmax(axis=1) == truth
        ece, limit = probabilistic.ece(confidence, right), probabilistic.ece_null(confidence)
        raw_ece = probabilistic.ece(raw.max(axis=1), raw.argmax(axis=1) == truth)
        within += int(ece <= max(limit, 0.02))
        nll_held += int(after <= before + 0.002)
        rows.append((right.mean(), before, after, raw_ece, ece, limit))
        print(
            f"seed {seed}: {fitted.kind} (T {fitted.temperature:.2f}), accuracy {right.mean():.4f}, NLL {before:.4f} -> "
            f"{after:.4f}, ECE {raw_ece:.4f} -> {ece:.4f} (99th percentile of its null {limit:.4f})",
            flush=True,
        )
        for method in ("lac", "aps"):
            sets = maps.fit(found.logits["calibration"], found.truth["calibration"], method).conformal
            assert sets is not None
            for coverage in (0.9, 0.95, 0.99):
                inside = applied.prediction_sets(sets, honest, coverage)
                least = min(least, int(inside.sum(axis=1).min()))
                hits = int(inside[np.arange(len(truth)), truth].sum())
                covered.setdefault((method, coverage), []).append(hits / len(truth))
                sizes.setdefault((method, coverage), []).append(float(inside.sum(axis=1).mean()))
    for (method, coverage), values in covered.items():
        size = sizes[method, coverage]
        spread = f"{np.mean(values):.4f} ({min(values):.4f} to {max(values):.4f})"
        print(f"{method} at {coverage}: covers {spread}, {np.mean(size):.2f} labels")
    mean = np.mean(rows, axis=0).tolist()
    figures = [
        Figure(
            figure="calibrated: seeds with ECE in its null or <= .02", value=within, op=">=", target=SEEDS, n=TEST_ROWS
        ),
        Figure(figure="calibrated: mean ECE", value=mean[4], op="<=", target=0.02, n=TEST_ROWS, baseline=mean[3]),
        Figure(
            figure="calibrated: seeds with NLL <= uncalibrated + .002",
            value=nll_held,
            op=">=",
            target=SEEDS,
            n=TEST_ROWS,
        ),
        Figure(
            figure="calibrated: mean NLL", value=mean[2], op="<=", target=mean[1] + 0.002, n=TEST_ROWS, baseline=mean[1]
        ),
        Figure(figure="sets: labels in the smallest", value=least, op=">=", target=1, n=SEEDS * TEST_ROWS),
    ]
    for coverage in (0.95, 0.99):
        values = covered["lac", coverage]
        off = abs(float(np.mean(values)) - coverage)
        name = f"sets (lac) at {coverage}: mean coverage is off by"
        figures.append(
            Figure(
                figure=name, value=off, op="<=", target=0.01, n=SEEDS * TEST_ROWS, interval=(min(values), max(values))
            )
        )
        lac, aps = float(np.mean(sizes["lac", coverage])), float(np.mean(sizes["aps", coverage]))
        name = f"sets (lac) at {coverage}: mean labels (baseline: aps)"
        figures.append(Figure(figure=name, value=lac, op="<=", target=aps, n=SEEDS * TEST_ROWS, baseline=aps))
    return figures


# --- the gate step of a round ---------------------------------------------------------------------------------------


def gate_step() -> list[Figure]:
    """Two real rounds, on 300 and on 2,000 rows; seconds of the second from the trained artefact to its sealed report."""
    parts = split(0)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        (root / "policy.toml").write_text(default_policy("classification"), encoding="utf-8")
        write_keys(root / "keys.env")
        reference = [*parts["judge"], *parts["calibration"]]
        write_rows(root / "data/reference.csv", [(row.text, row.label) for row in reference])
        settings = Settings(
            root=root,
            model=ModelSettings(name="bench", max_length=64),
            dataset=DatasetSettings(reference="data/reference.csv", calibration_share=0.33),
        )
        registry = Registry(settings.registry_url, "bench")
        registry.migrate()
        registry.set_labels(sorted({row.label for row in parts["train"]}))
        for size in (300, TRAIN):
            write_rows(root / "data/seed.csv", [(row.text, row.label) for row in parts["train"][:size]])
            record, seconds = timed_round(settings, registry)
        assert record.dataset is not None
        page = round_folder(settings, record.round_id) / "report.html"
        (KEPT / "report.html").write_text(page.read_text(encoding="utf-8"), encoding="utf-8")
        registry.close()
    judged = record.dataset.reference_rows
    print({step: round(value, 1) for step, value in seconds.items()}, record.state, record.detail)
    value = seconds["evaluation"] + seconds["gates"]
    name = f"gate step: seconds for champion and candidate, {judged} rows, robustness included"
    return [Figure(figure=name, value=value, op="<=", target=60, n=judged)]


def timed_round(settings: Settings, registry: Registry) -> tuple[RoundRecord, dict[str, float]]:
    """The round's record, and the seconds that each step took."""
    claimed = registry.claim_round(reason="bench", cut={}, token=None)
    assert claimed is not None
    starts: dict[str, float] = {}

    def progress(step: str, share_done: float, pace: object = None, /) -> None:
        starts.setdefault(step, time.perf_counter())
        print(f"  {step} {share_done:.0%}", end="\r", flush=True)

    record = run_round(
        claimed.round_id,
        settings=settings,
        registry=registry,
        store=ArtifactStore(settings.location(settings.artifacts.url)),
        features=None,
        token=None,
        progress=progress,
    )
    starts["end"] = time.perf_counter()
    order = list(starts)
    return record, {step: starts[after] - starts[step] for step, after in pairwise(order)}


# --- small parts ----------------------------------------------------------------------------------------------------


def evidence(
    probabilities: Floats, truth: NDArray[np.int64], labels: Sequence[str], limit: float | None = None
) -> LabelEvidence:
    """LabelEvidence with what the gates read of it, and no more: thousands of runs need no bootstrap."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    report = EvaluationReport(
        model_version="bench",
        split="bench",
        n=len(truth),
        accuracy=float(right.mean()),
        macro_f1=0.0,
        nll=float(probabilistic.row_nll(probabilities, truth).mean()),
        brier=float(probabilistic.row_brier(probabilities, truth).mean()),
        ece=probabilistic.ece(confidence, right),
        ece_null_99=probabilistic.ece_null(confidence) if limit is None else limit,
    )
    return LabelEvidence(report, [], list(labels), len(labels), probabilities, truth, Calibration())


def share(name: str, value: float, op: str, target: float, baseline: float | None = None) -> Figure:
    """A share of RUNS runs with its exact interval."""
    low, high = paired_tests.share_interval(round(value * RUNS), RUNS)
    return Figure(
        figure=name,
        value=value,
        op=">=" if op == ">=" else "<=",
        target=target,
        n=RUNS,
        interval=(low, high),
        baseline=baseline,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
