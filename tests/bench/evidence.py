"""`make bench-evidence`: what the gates promise, by simulation through the real gate functions.

Turns simulated worlds (tests/bench/evidence_worlds.py), in which the true difference of two models is known, into shares of
rounds that promote, with exact intervals. `python -m tests.bench.evidence power equal worse` runs parts. All blocking gates are
in force. It asserts nothing; smaller versions are in tests/test_gate_promises.py.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import numpy as np
from scipy.stats import norm

from pipelines.calibration import maps
from pipelines.evaluation.evidence.classification import LabelEvidence
from pipelines.gates import absolute, before_looking, compressed, power
from pipelines.gates.against_champion import superiority
from pipelines.gates.policy import Policy
from pipelines.gates.settling_policy import SettlingPolicy
from pipelines.gates.verdict import Facts, judge
from pipelines.metrics import paired_tests, probabilistic
from schemas.reports import Verdict
from serving.inference import calibration as applied
from tests.bench import evidence_worlds as worlds
from tests.bench.evidence_worlds import Drawn, Floats, Integers
from tests.bench.report import Figure, measure_parts

RUNS, RUNS_OF_ROUNDS = 1000, 1000
CHEAP = 8.0  # a look whose normal p-value is above this multiple of alpha is not judged in full: it cannot pass
POLICY = Policy()  # labels have a part of alpha; what they find is in evidence_settling.py
NO_LABELS = Policy(settling=SettlingPolicy(enabled=False))  # the reference set has all of alpha
POLICIES = (("", POLICY), (", labels off", NO_LABELS))
PROPENSITIES = ((50, 10), (50, 30), (100, 30))  # per cent of wrong answers reported, of right ones confirmed


def main() -> None:
    """Run the parts that the command line names, or all."""
    measure_parts(
        "evidence",
        {
            "power": lambda _: power_of_a_look(),
            "equal": lambda _: equal_candidates(),
            "worse": lambda _: worse_candidates(),
            "propensities": lambda _: propensities(),
            "calibration": lambda _: calibration_gate(),
            "honesty": lambda _: honesty(),
            "chosen": lambda _: chosen_on_judging_rows(),
        },
    )


# --- one look ---


def promoted(
    champion: LabelEvidence, candidate: LabelEvidence, look: int, fresh: int | None = None, policy: Policy = POLICY
) -> bool:
    """Return whether every blocking gate passes at this look."""
    alpha = policy.alpha_at(look, fresh)
    first = superiority(champion, candidate, look, alpha, policy.superiority)
    if first.verdict is not Verdict.PASS:  # any other gate can only stop it
        return False
    facts = Facts(look=look, alpha=alpha, people=9, quarantined=0, latency_ms=5.0, load_error=None)
    return judge(champion, candidate, champion, facts, policy).verdict is Verdict.PASS


def share_promoted(draw_world: Drawn, n: int, look: int, runs: int = RUNS, policy: Policy = POLICY) -> int:
    """Return how many of `runs` candidates are promoted on n rows."""
    draw, hits = np.random.default_rng(0), 0
    null = null_of(draw_world(n, draw)[2])
    for _ in range(runs):
        truth, before, after = draw_world(n, draw)
        if generous_p(truth, before, after, n)[0] <= CHEAP * policy.alpha_at(look):
            rows = worlds.rows_of(truth)
            champion, candidate = (worlds.known(logits, truth, rows, null) for logits in (before, after))
            hits += promoted(champion, candidate, look, policy=policy)
    return hits


def null_of(logits: Floats) -> float:
    """Return the limit of ECE for rows of a world, which hardly differs between draws: it is what takes longest."""
    return probabilistic.ece_null(applied.softmax(logits).max(axis=1))


def generous_p(truth: Integers, before: Floats, after: Floats, n: int) -> Floats:
    """Return a normal p-value for every n rows: the smaller one of accuracy and Brier score, not corrected for the choice."""
    moved = (after.argmax(axis=1) == truth).astype(np.float64) - (before.argmax(axis=1) == truth)
    brier = [probabilistic.row_brier(applied.softmax(logits), truth) for logits in (before, after)]
    parts = [each.reshape(-1, n) for each in (moved, brier[0] - brier[1])]
    scores = [each.sum(axis=1) / np.maximum(np.sqrt((each**2).sum(axis=1)), 1e-9) for each in parts]
    return np.asarray(norm.sf(np.maximum(*scores)))


def power_of_a_look() -> list[Figure]:
    """+3 points at churn .07, in the calibrated world and in less friendly ones, with labels on and off."""
    figures = []
    better = worlds.world(0.03)
    for name, policy in POLICIES:
        for n, look, target in ((300, 1, 0.55), (500, 1, 0.80), (1000, 1, 0.95), (500, 20, 0.40)):
            hits = share_promoted(better.draw, n, look, policy=policy)
            forecast = power.chance(n, policy, policy.alpha_at(look))
            title = f"+3 points, {n} rows, look {look}{name}: promoted (baseline: forecast)"
            figures.append(figure(title, hits, RUNS, ">=", target, forecast))
    others: dict[str, Drawn] = {
        "2 labels, accuracy .80": worlds.world(0.03, accuracy=0.80, labels=2).draw,
        "77 labels, accuracy .92": worlds.world(0.03, accuracy=0.92, labels=77).draw,
        "3 % of reference labels wrong": replace(better, wrong_labels=0.03).draw,
        "confidence says nothing": lambda n, draw: worlds.two_opinions(0.03, n, draw),
    }
    for name, drawn in others.items():
        for n, look in ((300, 1), (500, 1), (1000, 1), (500, 20)):
            hits = share_promoted(drawn, n, look, RUNS // 4)
            print(f"  {name}, {n} rows, look {look}: {hits / (RUNS // 4):.3f}", flush=True)
    return figures


# --- many looks ---


def rounds(
    world: worlds.World,
    n: int,
    most: int,
    kind: Literal["fresh", "reused"],
    draw: np.random.Generator,
    policy: Policy = POLICY,
) -> Iterator[tuple[int, int | None, Integers, Floats, Floats]]:
    """Yield the looks of `most` rounds that may pass: number, number among those with fresh rows, truth, both models' logits.

    All rounds are drawn at once. With "reused" rows, champion and rows stay, and each candidate has noise of its own.
    """
    if kind == "fresh":
        rows = world.rows(n * most, draw)
        before = world.logits(rows, world.champion, draw)
    else:
        first = world.rows(n, draw)
        before = np.tile(world.logits(first, world.champion, draw), (most, 1))
        rows = worlds.Rows(*(np.concatenate([each] * most) for each in (first.signal, first.given, first.common)))
    after = world.logits(rows, world.candidate, draw)
    p = generous_p(rows.given, before, after, n)
    for look in range(1, most + 1):
        fresh, part = look if kind == "fresh" else None, slice(n * (look - 1), n * look)
        if p[look - 1] <= CHEAP * policy.alpha_at(look, fresh):
            yield look, fresh, rows.given[part], before[part], after[part]


def false_promotions(
    world: worlds.World, n: int, most: int, kind: Literal["fresh", "reused"], runs: int, policy: Policy = POLICY
) -> dict[int, int]:
    """Return in how many runs an equal candidate was promoted within 50 and within `most` rounds."""
    draw, first = np.random.default_rng(3), []
    null = null_of(world.draw(n, draw)[2])
    for _ in range(runs):
        for look, fresh, truth, before, after in rounds(world, n, most, kind, draw, policy):
            rows = worlds.rows_of(truth)
            champion, candidate = (worlds.known(logits, truth, rows, null) for logits in (before, after))
            if promoted(champion, candidate, look, fresh, policy):
                first.append(look)
                break
    return {within: sum(look <= within for look in first) for within in (50, most)}


def equal_candidates() -> list[Figure]:
    """Candidates that are exactly as good as the champion, on 500 rows, round after round."""
    figures, equal = [], worlds.world(0.0, labels=4)
    kinds: tuple[Literal["fresh", "reused"], ...] = ("fresh", "reused")
    for off, policy in POLICIES:
        for kind in kinds:
            for within, hits in false_promotions(equal, 500, 200, kind, RUNS_OF_ROUNDS, policy).items():
                name = f"equal candidates, {kind} rows{off}: one promoted within {within} rounds"
                figures.append(figure(name, hits, RUNS_OF_ROUNDS, "<=", 0.05))
    return figures


def worse_candidates() -> list[Figure]:
    """Candidates one point worse, at the first look, which spends most."""
    figures = []
    for name, drawn in (
        ("1 point worse", worlds.world(-0.01).draw),
        ("1 point worse, confidence says nothing", lambda n, draw: worlds.two_opinions(-0.01, n, draw)),
    ):
        for n in (300, 1000):
            hits = share_promoted(drawn, n, 1, 2 * RUNS)
            figures.append(figure(f"{name}, {n} rows, look 1: promoted", hits, 2 * RUNS, "<=", 0.005))
    deceptive = deceptive_world(-0.01)
    for n in (300, 1000):
        hits = share_promoted(deceptive, n, 1, RUNS)
        print(f"  1 point less accurate, Brier score .03 better, {n} rows: promoted {hits / RUNS:.4f}", flush=True)
    return figures


def deceptive_world(gain: float) -> Drawn:
    """Return a world whose candidate is less accurate but much better calibrated than an over-confident champion."""

    def draw_world(n: int, draw: np.random.Generator) -> tuple[Integers, Floats, Floats]:
        truth, before, after = worlds.world(gain).draw(n, draw)
        return truth, 4.0 * before, after

    return draw_world


def propensities() -> list[Figure]:
    """Feedback reports wrong answers more often than it confirms right ones; it may hold back, and never judges."""
    figures, n, of_feedback, most = [], 500, 60, 50
    equal = worlds.world(0.0, labels=4)
    for reported, confirmed in PROPENSITIES:
        draw, hits, kept = np.random.default_rng(5), 0, 0
        runs = RUNS_OF_ROUNDS // 2
        for _ in range(runs):
            for look, fresh, truth, before, after in rounds(equal, n, most, "reused", draw):
                if _held_back(equal, of_feedback, reported, confirmed, draw):
                    continue
                rows = worlds.rows_of(truth)
                if promoted(worlds.known(before, truth, rows), worlds.known(after, truth, rows), look, fresh):
                    hits += 1
                    break
            kept += _held_back(worlds.world(0.03), of_feedback, reported, confirmed, draw)
        name = f"feedback {reported}/{confirmed}: "
        figures.append(figure(f"{name}equal candidates, one promoted within {most} rounds", hits, runs, "<=", 0.05))
        figures.append(
            figure(f"{name}+3 points, held back by its {of_feedback} validation rows", kept, runs, "<=", 0.05)
        )
    return figures


def _held_back(world: worlds.World, n: int, reported: int, confirmed: int, draw: np.random.Generator) -> bool:
    truth, before, after = world.draw(n * 12, draw)
    right = before.argmax(axis=1) == truth
    given = np.flatnonzero(draw.random(len(truth)) < np.where(right, confirmed, reported) / 100)[:n]
    rows = worlds.rows_of(truth[given])
    champion, candidate = (worlds.known(each[given], truth[given], rows) for each in (before, after))
    return before_looking.not_better(champion, candidate) is not None


# --- calibration ---


def calibration_gate() -> list[Figure]:
    """Maps chosen and fitted on the judging rows, by cross-fitting; raw logits are over-confident."""
    figures, good = [], worlds.world(0.0)
    for n in (100, 200, 500, 1000):
        runs = RUNS // 2
        hits = sum(_stopped(good.draw(n, draw), 1.7) for draw in [np.random.default_rng(7)] for _ in range(runs))
        figures.append(
            figure(f"calibration gate, fitted map, n = {n}: good candidates stopped", hits, runs, "<=", 0.03)
        )
    runs = RUNS // 4
    for name, bend in (("over-confident", 1.0), ("timid", -1.0)):
        draw = np.random.default_rng(8)
        hits = sum(_stopped(bent(good, 1000, bend, draw), 1.7) for _ in range(runs))
        title = (
            f"calibration gate, fitted map, n = 1,000: true ECE .05 beyond any map ({name} where it is sure), stopped"
        )
        figures.append(figure(title, hits, runs, ">=", 0.90))
    return figures


def _stopped(drawn: tuple[Integers, Floats, Floats], sharpness: float) -> bool:
    truth, before, after = drawn
    rows = worlds.rows_of(truth)
    champion, candidate = (worlds.cross_fitted(sharpness * each, truth, rows) for each in (before, after))
    return absolute.calibration(champion, candidate, POLICY.calibration).verdict is not Verdict.PASS


def bent(world: worlds.World, n: int, direction: float, draw: np.random.Generator) -> tuple[Integers, Floats, Floats]:
    """Return a candidate whose confidences are wrong in a way that no temperature or vector map mends: true ECE .05."""
    truth, before, after = world.draw(n, draw)
    return truth, before, np.log(bend(applied.softmax(after), direction * _bend_for(direction)))


def bend(probabilities: Floats, strength: float) -> Floats:
    """Return probabilities whose top one is moved by a wave over its rank: up where sure and down where not, or the reverse."""
    best = probabilities.argmax(axis=1)
    rows, top = np.arange(len(best)), probabilities.max(axis=1)
    moved = np.clip(top + strength * np.sin(3 * np.pi * top), 0.02, 0.998)
    bent_ones = probabilities * ((1 - moved) / np.maximum(1 - top, 1e-9))[:, None]
    bent_ones[rows, best] = moved
    return np.asarray(np.maximum(bent_ones, 1e-12))


def _bend_for(direction: float) -> float:
    """Return the strength at which the calibration error that the best map leaves is .05, measured on 40,000 rows."""
    if direction not in _STRENGTHS:
        truth, _, after = worlds.world(0.0).draw(40_000, np.random.default_rng(9))
        honest = applied.softmax(after)
        low, high = 0.0, 0.6
        for _ in range(12):
            middle = (low + high) / 2
            logits = np.log(bend(honest, direction * middle))
            claimed = applied.softmax(logits / maps.fit_temperature(logits, truth))
            error = probabilistic.ece(claimed.max(axis=1), claimed.argmax(axis=1) == truth)
            low, high = (low, middle) if error > 0.05 else (middle, high)
        _STRENGTHS[direction] = high
    return _STRENGTHS[direction]


_STRENGTHS: dict[float, float] = {}


def honesty() -> list[Figure]:
    """How far the NLL that all rows show under cross-fitting is from that of the shipped map on new rows."""
    figures, world = [], worlds.world(0.0)
    fresh_truth, _, fresh = world.draw(20_000, np.random.default_rng(11))
    for n in (100, 300, 1000):
        draw, runs = np.random.default_rng(12), 300
        gaps: dict[str, list[float]] = {"cross": [], "same": [], "split": []}
        for _ in range(runs):
            truth, _, after = world.draw(n, draw)
            logits = 1.7 * after
            whole = maps.cross_fit(logits, truth)
            true = _nll(applied.apply(whole.calibration, 1.7 * fresh), fresh_truth)
            gaps["cross"].append(_nll(whole.probabilities, truth) - true)
            gaps["same"].append(_nll(applied.apply(whole.calibration, logits), truth) - true)
            third = maps.fit(logits[: n // 3], truth[: n // 3])
            parted = _nll(applied.apply(third, logits[n // 3 :]), truth[n // 3 :])
            gaps["split"].append(parted - _nll(applied.apply(third, 1.7 * fresh), fresh_truth))
        spread = {name: (float(np.mean(each)), float(np.sqrt(np.mean(np.square(each))))) for name, each in gaps.items()}
        print(f"  n = {n}, NLL measured minus true, mean and root mean square: {spread}", flush=True)
        name = f"cross-fitted NLL, {n} rows: root mean square error (baseline: a third calibrates)"
        value, beside = spread["cross"][1], spread["split"][1]
        figures.append(Figure(figure=name, value=value, op="<=", target=beside, n=runs, baseline=beside))
    return figures


def _nll(probabilities: Floats, truth: Integers) -> float:
    return float(probabilistic.row_nll(probabilities, truth).mean())


def chosen_on_judging_rows() -> list[Figure]:
    """The faster int8 artefact serves if it passes on the rows that then judge: does that choice promote equal candidates?"""
    hits = {"chosen": 0, "full": 0}
    draw, runs, equal = np.random.default_rng(13), 2 * RUNS, worlds.world(0.0)
    for _ in range(runs):
        truth, before, full = equal.draw(500, draw)
        small = full + draw.normal(0, 0.25, full.shape)
        rows = worlds.rows_of(truth)
        champion, large, int8 = (worlds.known(each, truth, rows, 1.0) for each in (before, full, small))
        passed = compressed.judge_compressed(large, int8, POLICY).verdict is Verdict.PASS
        hits["chosen"] += promoted(champion, int8 if passed else large, 1)
        hits["full"] += promoted(champion, large, 1)
    name = "int8 chosen on the judging rows: equal candidates promoted at look 1 (baseline: full precision always)"
    return [figure(name, hits["chosen"], runs, "<=", POLICY.alpha_at(1), hits["full"] / runs)]


def figure(
    name: str, hits: int, runs: int, op: Literal[">=", "<="], target: float, baseline: float | None = None
) -> Figure:
    """Return a share of runs with its exact interval (Clopper & Pearson 1934)."""
    interval = paired_tests.share_interval(hits, runs)
    made = Figure(figure=name, value=hits / runs, op=op, target=target, n=runs, interval=interval, baseline=baseline)
    print(f"  {name}: {made.value:.4f} [{interval[0]:.4f}, {interval[1]:.4f}]", flush=True)
    return made


if __name__ == "__main__":
    main()
