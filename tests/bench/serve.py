"""`make bench-serve`: Ratchet's serving against plain BentoML and against the bare model. `PART=speed,swap` runs some parts.

Turns Banking77 (RATCHET_BENCH_DATA) into a project with a real round, once (RATCHET_BENCH_CACHE), and measures real servers
in processes of their own with wrk: full answers, every event stored by the consumer, the scheduler running. It
writes bench-serve.json; a run of some parts replaces the figures of those alone.
"""

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import httpx
import numpy as np
import psutil

from pipelines.calibration.maps import row_nll
from serving.artifacts import ArtifactStore
from serving.model_directory import read_manifest
from tests.bench import serve_bare, serve_baseline, serve_generation, serve_observability, serve_overload, serve_peers
from tests.bench.report import Figure, write
from tests.bench.serve_load import RATCHET_BODY, REPOSITORY, Load, bank_texts, memory, module, percentile, tree, wrk
from tests.bench.serve_project import BASELINE_BODY, CACHE, Project, baseline, project, ratchet, student
from tests.support.versions import copied

SECONDS = float(os.environ.get("SECONDS_EACH", "15"))
TAIL_SECONDS = float(os.environ.get("TAIL_SECONDS", "600"))
MEMORY_REQUESTS = int(os.environ.get("MEMORY_REQUESTS", "1000000"))
SWAPS, WINDOW_SECONDS = 50, 3
SPEED_ROUNDS = 3
# What is asked of the artefact that `auto` picks and of fp32; a second number is the goal.
SPEED: tuple[tuple[str, Literal[">=", "<="], tuple[float, ...], tuple[float, ...]], ...] = (
    ("throughput / baseline, 32 callers", ">=", (7,), (2.2, 2.5)),
    ("p50 / baseline, 1 caller", "<=", (0.2,), (0.2,)),
    ("CPU s per 1,000 / baseline", "<=", (1,), (1,)),
    ("texts/s / bare session, 1 text", ">=", (0.75,), (0.75,)),
    ("texts/s / bare session, 16 texts", ">=", (0.85,), (0.85,)),
)
PEER_TARGETS: tuple[tuple[str, Literal[">=", "<="], float], ...] = (
    ("requests/s, 32 callers / mosec", ">=", 1.15),
    ("p99, 32 callers / mosec", "<=", 1.0),
    ("p50, 1 caller / mosec", "<=", 0.25),
    ("requests/s, 32 callers / litserve", ">=", 2.0),
    ("p99, 32 callers / litserve", "<=", 1.0),
)
STUDENT = {  # its shape: layers, and shares of heads and of feed-forward units
    "student_layers": int(os.environ.get("STUDENT_LAYERS", "3")),
    "student_heads": float(os.environ.get("STUDENT_HEADS", "1")),
    "student_feed_forward": float(os.environ.get("STUDENT_FEED_FORWARD", "1")),
}


def grid() -> list[Figure]:
    """The baseline's best settings for one caller and for 32, kept for the other parts."""
    bank, slow, fast = project(), {}, {}
    for setting in serve_baseline.GRID:
        with baseline(bank, setting) as (url, process):
            # One caller first: BentoML's batching learns from 32 to wait for more.
            one, many = (_baseline_load(bank, url, process, callers, 8) for callers in (1, 32))
        slow[setting] = one.p50
        fast[setting] = many.rate if many.failed < many.requests / 1000 else 0.0
        _tell(f"baseline {setting}, 1 caller", one)
        _tell(f"baseline {setting}, 32 callers", many)
    best = {"one": min(slow, key=lambda setting: slow[setting]), "many": max(fast, key=lambda setting: fast[setting])}
    (CACHE / "baseline.json").write_text(json.dumps(best), encoding="utf-8")
    return []


def speed() -> list[Figure]:
    """Throughput and latency against the baseline, and the share of the bare session's throughput.

    What a machine gives changes from minute to minute. So everything is measured in turn, several times; a figure is the median
    of its ratios, its interval the lowest and the highest.
    """
    bank = project()
    if not (CACHE / "baseline.json").exists():
        grid()
    best = json.loads((CACHE / "baseline.json").read_text(encoding="utf-8"))
    rounds = [_speed_round(bank, best) for _ in range(SPEED_ROUNDS)]
    figures = []
    for artefact in ("auto", "fp32"):
        for what, op, of_auto, of_fp32 in SPEED:
            name = f"{artefact}: {what}"
            ratios, bases, requests = zip(*(found[name] for found in rounds), strict=True)
            figures += [
                _figure(
                    name,
                    statistics.median(ratios),
                    op,
                    target,
                    sum(requests),
                    interval=(min(ratios), max(ratios)),
                    baseline=statistics.median(bases),
                    goal=n > 0,
                )
                for n, target in enumerate(of_auto if artefact == "auto" else of_fp32)
            ]
    return figures


def _speed_round(bank: Project, best: dict[str, Any]) -> dict[str, tuple[float, float, int]]:
    """Each figure's ratio, what it is a ratio to, and the requests behind it."""
    with baseline(bank, tuple(best["one"])) as (url, process):
        base_one = _baseline_load(bank, url, process, 1, SECONDS)
    with baseline(bank, tuple(best["many"])) as (url, process):
        base_many = _baseline_load(bank, url, process, 32, SECONDS)
    _tell("baseline, 1 caller", base_one)
    _tell("baseline, 32 callers", base_many)
    found: dict[str, tuple[float, float, int]] = {}
    for name, version in (("auto", bank.auto), ("fp32", bank.full)):
        with ratchet(bank, version) as (url, process, beside):
            many, one, sixteen = loads = [
                _load(bank, url, process, beside, callers=callers, items=items)
                for callers, items in ((32, 1), (1, 1), (16, 16))
            ]
        for what, load in zip(("32 callers", "1 caller", "16 callers of 16 texts"), loads, strict=True):
            _tell(f"{name}, {what}", load)
        ceiling = serve_bare.ceiling(bank.settings, bank.registry.version(version).digest, bank.texts)
        print(f"{name}, bare session: {ceiling:.0f} texts/s", flush=True)
        found |= {
            f"{name}: throughput / baseline, 32 callers": (many.rate / base_many.rate, base_many.rate, many.requests),
            f"{name}: p50 / baseline, 1 caller": (one.p50 / base_one.p50, base_one.p50, one.requests),
            f"{name}: CPU s per 1,000 / baseline": (many.cpu / base_many.cpu, base_many.cpu, many.requests),
            f"{name}: texts/s / bare session, 1 text": (many.texts_rate / ceiling, ceiling, many.requests),
            f"{name}: texts/s / bare session, 16 texts": (sixteen.texts_rate / ceiling, ceiling, sixteen.requests),
        }
    return found


def peers() -> list[Figure]:
    """Mosec and LitServe with the artefact that `auto` picks, and Ratchet, in turn; figures are medians of ratios."""
    if any(importlib.util.find_spec(name) is None for name in serve_peers.PEERS):
        print("peers: left out, they come with the extra `bench` of pyproject.toml", flush=True)
        return []
    bank = project()
    store = ArtifactStore(bank.settings.location(bank.settings.artifacts.url))
    version = store.fetch(bank.registry.version(bank.auto).digest, bank.settings.path("state/cache"))
    found: dict[str, list[tuple[float, float, int]]] = {}
    for _ in range(SPEED_ROUNDS):
        with ratchet(bank, bank.auto) as (url, process, beside):
            many, one = (_load(bank, url, process, beside, callers=callers) for callers in (32, 1))
        _tell("Ratchet, 32 callers", many)
        _tell("Ratchet, 1 caller", one)
        for name in serve_peers.PEERS:
            with serve_peers.peer(name, version, CACHE / f"{name}.log") as (url, process):
                wrk(url, bank.texts, serve_peers.BODY, callers=32, seconds=4)
                theirs, alone = (
                    wrk(url, bank.texts, serve_peers.BODY, callers=callers, seconds=SECONDS, servers=[process])
                    for callers in (32, 1)
                )
            _tell(f"{name}, 32 callers", theirs)
            _tell(f"{name}, 1 caller", alone)
            for what, ours, other in (
                ("requests/s, 32 callers", many.rate, theirs.rate),
                ("p99, 32 callers", many.p99, theirs.p99),
                ("p50, 1 caller", one.p50, alone.p50),
            ):
                found.setdefault(f"{what} / {name}", []).append((ours / other, other, many.requests))
    figures = []
    for figure, op, target in PEER_TARGETS:
        ratios, bases, requests = zip(*found[figure], strict=True)
        interval, base = (min(ratios), max(ratios)), statistics.median(bases)
        median = statistics.median(ratios)
        figures.append(_figure(figure, median, op, target, sum(requests), interval=interval, baseline=base))
    return figures


def agree() -> list[Figure]:
    """Predictions over HTTP on the test file, against the baseline's."""
    bank = project()
    rows = bank_texts("test")
    labels = read_manifest(bank.full_directory).labels
    truth = np.array([labels.index(label) for _, label in rows])
    texts = [text for text, _ in rows]
    with baseline(bank, (1, 2, 32, 10_000)) as (url, _):
        expected = _asked(f"{url}/predict", texts, "", lambda chunk: {"texts": chunk}, labels)
    figures = []
    for name, version in (("auto", bank.auto), ("fp32", bank.full)):
        with ratchet(bank, version) as (url, _, _):
            found = _asked(
                f"{url}/predict",
                texts,
                bank.header,
                lambda chunk: {"items": [{"text": text} for text in chunk]},
                labels,
            )
        same = float((found.argmax(axis=1) == expected.argmax(axis=1)).mean())
        right, before = found.argmax(axis=1) == truth, expected.argmax(axis=1) == truth
        nll, nll_before = (row_nll(np.log(np.clip(p, 1e-30, 1)), truth) for p in (found, expected))
        print(f"{name}: agreement {same:.4f}, accuracy {right.mean():.4f}, NLL {nll.mean():.4f}", flush=True)
        print(f"baseline: accuracy {before.mean():.4f}, NLL {nll_before.mean():.4f}", flush=True)
        n = len(rows)
        if name == "fp32":
            figures.append(_figure("fp32: max |dp|", float(np.abs(found - expected).max()), "<=", 1e-4, n))
        else:
            fell, rose = before.astype(float) - right, nll - nll_before
            figures += [
                _figure("auto: agreement", same, ">=", 0.985, n),
                _figure(
                    "auto: accuracy lost",
                    float(fell.mean()),
                    "<=",
                    0.01,
                    n,
                    interval=_interval(fell),
                    baseline=float(before.mean()),
                ),
                _figure(
                    "auto: NLL gained",
                    float(rose.mean()),
                    "<=",
                    0.02,
                    n,
                    interval=_interval(rose),
                    baseline=float(nll_before.mean()),
                ),
            ]
    return figures


def tail() -> list[Figure]:
    """p99 against p50 at half of the most that 32 callers get, for TAIL_SECONDS."""
    bank = project()
    with ratchet(bank, bank.auto) as (url, process, beside):
        full = _load(bank, url, process, beside, callers=32)
        _tell("all it can", full)
        think = 2 * 32_000 / full.rate - full.p50 / 2
        half = _load(bank, url, process, beside, callers=32, seconds=TAIL_SECONDS, think_ms=think)
        _tell(f"half of it, {TAIL_SECONDS:.0f} s", half)
    return [
        _figure(
            "p99 / p50 at half load",
            half.p99 / half.p50,
            "<=",
            4,
            half.requests,
            baseline=half.p50,
        )
    ]


def flat() -> list[Figure]:
    """Memory over MEMORY_REQUESTS requests."""
    bank, done, first, last = project(), 0, 0, 0
    with ratchet(bank, bank.auto) as (url, process, beside):
        while done < MEMORY_REQUESTS:
            load = _load(bank, url, process, beside, callers=32, seconds=20, warm=not done)
            done += load.requests
            last = sum(memory(process))
            first = first or last
            print(f"{done:>9,} requests, {load.rate:.0f}/s, {last / 1e6:.0f} MB, {load.failed} failed", flush=True)
    return [
        _figure(
            "memory at the end / after 20 s",
            last / first,
            "<=",
            1.1,
            done,
            baseline=first / 1e6,
        )
    ]


def swap() -> list[Figure]:
    """50 swaps under 32 callers of 4 texts. Three versions in turn, so that none is still warm."""
    bank = project()
    versions = _rotating(bank)
    rest: Counter[int] = Counter()
    moved: Counter[int] = Counter()
    failed = mixed = requests = 0
    delays, sizes = [], []
    with ratchet(bank, versions[0]) as (url, process, beside):
        common: dict[str, Any] = {"callers": 32, "items": 4, "check": True, "seconds": WINDOW_SECONDS}
        for _ in range(10):
            load = _load(bank, url, process, beside, warm=False, **common)
            rest += load.latencies
        for n in range(1, SWAPS + 1):
            version = versions[n % len(versions)]
            delay: list[float] = []
            thread = threading.Thread(target=_swap_soon, args=(bank, version, delay))
            thread.start()
            load = _load(bank, url, process, beside, warm=False, **common)
            thread.join()
            moved += load.latencies
            failed, mixed, requests = failed + load.failed, mixed + load.mixed, requests + load.requests
            delays += delay
            sizes.append(sum(memory(process)))
    still, moving = percentile(rest, 0.99), percentile(moved, 0.99)
    print(f"p99 at rest {still:.1f} ms, in windows with a swap {moving:.1f} ms; slowest swaps {sorted(delays)[-5:]} s")
    print(f"memory in MB after each tenth swap: {[round(size / 1e6) for size in sizes[1::10]]}")
    ratio = moving / still
    return [
        _figure("swaps: failed requests", failed, "<=", 0, requests),
        _figure("swaps: mixed answers", mixed, "<=", 0, requests),
        _figure(
            "swaps: p99 / p99 at rest",
            ratio,
            "<=",
            2,
            requests,
            baseline=still,
        ),
        _figure("swaps: s until all workers follow, worst", max(delays), "<=", 3, len(delays)),
        _figure(
            "swaps: memory after 50 / after 2",
            sizes[-1] / sizes[1],
            "<=",
            1.1,
            SWAPS,
            baseline=sizes[1] / 1e6,
        ),
    ]


def bento() -> list[Figure]:
    """What a Bento weighs, how long it takes from nothing to ready, and what a worker then holds."""
    bank = project()
    with tempfile.TemporaryDirectory() as home:
        command = [*module("bentoml"), "build", "-f", "deploy/bentofile.yaml", "--output", "tag", "."]
        environment = {**os.environ, "BENTOML_HOME": home, "BENTOML_DO_NOT_TRACK": "true"}
        subprocess.run(command, cwd=REPOSITORY, env=environment, check=True, capture_output=True)
        size = sum(path.stat().st_size for path in Path(home).glob("bentos/ratchet/*/**/*") if path.is_file())
    starts = []
    for _ in range(3):
        started = time.monotonic()
        with ratchet(bank, bank.auto) as (url, process, beside):
            starts.append(time.monotonic() - started)
            _load(bank, url, process, beside, callers=32, seconds=3, warm=False)
            held = max(memory(process))
            torch = [
                p.pid for p in tree(process) if "libtorch" in Path(f"/proc/{p.pid}/maps").read_text(encoding="utf-8")
            ]
    model = (bank.settings.path("state/cache") / bank.registry.version(bank.auto).digest / "model.onnx").stat().st_size
    print(f"starts {starts} s; a worker holds {held / 1e6:.0f} MB, its model file {model / 1e6:.0f} MB")
    return [
        _figure("Bento: MB, model and packages apart", size / 1e6, "<=", 5, 1),
        _figure("cold start of broker and serving to ready, s, median", sorted(starts)[1], "<=", 15, len(starts)),
        _figure("memory of a worker under load, MB", held / 1e6, "<=", 400, 1),
        _figure("processes that loaded torch", len(torch), "<=", 0, 1),
    ]


def distilled() -> list[Figure]:
    """A student of the shape STUDENT beside int8 of the full model: speed of the session and over HTTP, and the test file."""
    bank = project()
    name, passed = student(bank, STUDENT)
    rows = bank_texts("test")
    labels = read_manifest(bank.full_directory).labels
    rates, sessions, right = [], [], []
    for version in (bank.auto, name):
        with ratchet(bank, version) as (url, process, beside):
            load = _load(bank, url, process, beside, callers=32)
            found = _asked(
                f"{url}/predict",
                [text for text, _ in rows],
                bank.header,
                lambda chunk: {"items": [{"text": text} for text in chunk]},
                labels,
            )
        _tell(version, load)
        rates.append(load.rate)
        sessions.append(serve_bare.ceiling(bank.settings, bank.registry.version(version).digest, bank.texts))
        right.append(found.argmax(axis=1) == np.array([labels.index(label) for _, label in rows]))
    print(f"texts/s of the bare session {sessions}, accuracy {[each.mean() for each in right]}", flush=True)
    lost, n = right[0].astype(float) - right[1], len(rows)
    return [
        _figure("student: bare session / int8's", sessions[1] / sessions[0], ">=", 1.7, n, baseline=sessions[0]),
        _figure("student: throughput, 32 callers / int8's", rates[1] / rates[0], ">=", 1.7, n, baseline=rates[0]),
        _figure(
            "student: accuracy lost to int8",
            float(lost.mean()),
            "<=",
            0.01,
            n,
            interval=_interval(lost),
            baseline=float(right[0].mean()),
        ),
        _figure("student: stands in by its gate", float(passed), ">=", 1, n),
    ]


def _rotating(bank: Project) -> list[str]:
    """Three versions of the same files."""
    names = [f"{bank.auto}-{letter}" for letter in "abc"]
    known = {version.model_version for version in bank.registry.versions()}
    store = ArtifactStore(bank.settings.location(bank.settings.artifacts.url))
    found = store.fetch(bank.registry.version(bank.auto).digest, bank.settings.path("state/cache"))
    for name in names:
        if name not in known:
            made = copied(found, CACHE / name, model_version=name)
            bank.registry.register_version(read_manifest(made), store.put(made), servable=True)
    return names


def _swap_soon(bank: Project, version: str, delay: list[float]) -> None:
    time.sleep(0.3)
    bank.serve(version)
    committed = time.monotonic()
    while time.monotonic() < committed + 10:
        champion = bank.registry.champion()
        assert champion is not None
        if all(worker.generation == champion.generation for worker in bank.alive()):
            break
        time.sleep(0.02)
    delay.append(time.monotonic() - committed)


# --- parts of the above -----------------------------------------------------------------------------------------------


def _load(
    bank: Project,
    url: str,
    process: psutil.Process,
    beside: list[psutil.Process],
    *,
    seconds: float = SECONDS,
    warm: bool = True,
    **how: Any,
) -> Load:
    common: dict[str, Any] = {"servers": [process], "beside": beside, "header": bank.header}
    if warm:
        wrk(f"{url}/predict", bank.texts, RATCHET_BODY, callers=32, seconds=4, **common)
    return wrk(f"{url}/predict", bank.texts, RATCHET_BODY, seconds=seconds, **common, **how)


def _baseline_load(bank: Project, url: str, process: psutil.Process, callers: int, seconds: float) -> Load:
    wrk(f"{url}/predict", bank.texts, BASELINE_BODY, callers=callers, seconds=4)
    return wrk(f"{url}/predict", bank.texts, BASELINE_BODY, callers=callers, seconds=seconds, servers=[process])


def _asked(
    url: str, texts: list[str], header: str, body: Callable[[list[str]], object], labels: list[str]
) -> np.ndarray[Any, np.dtype[np.float64]]:
    rows = []
    with httpx.Client(headers={"Authorization": header} if header else {}, timeout=60) as client:
        for start in range(0, len(texts), 16):
            answer = client.post(url, json=body(texts[start : start + 16]))
            answer.raise_for_status()
            rows += [[said["probabilities"][label] for label in labels] for said in answer.json()]
    return np.array(rows)


def _interval(difference: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float, float]:
    half = 1.96 * float(difference.std()) / np.sqrt(len(difference))
    return float(difference.mean() - half), float(difference.mean() + half)


def _figure(figure: str, value: float, op: Literal[">=", "<="], target: float, n: int, **more: Any) -> Figure:
    return Figure(figure=figure, value=value, op=op, target=target, n=n, **more)


def _tell(what: str, load: Load) -> None:
    print(
        f"{what}: {load.rate:.0f} requests/s, {load.texts_rate:.0f} texts/s, p50 {load.p50:.2f} ms, p99 {load.p99:.2f}, "
        f"{load.failed} of {load.requests} failed; CPU s per 1,000 texts: server {load.cpu:.2f}, all {load.all_cpu:.2f}",
        flush=True,
    )


PARTS: dict[str, Callable[[], list[Figure]]] = {
    "grid": grid,
    "speed": speed,
    "agree": agree,
    "peers": peers,
    "overload": serve_overload.measure,
    "observability": serve_observability.measure,
    "swap": swap,
    "tail": tail,
    "memory": flat,
    "bento": bento,
    "student": distilled,
    "generation": serve_generation.measure,
}


def main() -> None:
    """Run the parts that PART names, all of them by default."""
    wanted = os.environ["PART"].split(",") if os.environ.get("PART") else list(PARTS)
    if unknown := set(wanted) - PARTS.keys():
        sys.exit(f"PART={','.join(sorted(unknown))}: parts are {', '.join(PARTS)}")
    if "RATCHET_BENCH_DATA" not in os.environ:
        sys.exit("set RATCHET_BENCH_DATA to the folder with Banking77's train.csv and test.csv")
    figures: dict[tuple[str, float], Figure] = {}
    if os.environ.get("PART") and Path("bench-serve.json").exists():
        figures = {
            (f.figure, f.target): f
            for f in (Figure(**row) for row in json.loads(Path("bench-serve.json").read_text(encoding="utf-8")))
        }
    for part in wanted:
        print(f"== {part}", flush=True)
        figures |= {(figure.figure, figure.target): figure for figure in PARTS[part]()}
        write("serve", list(figures.values()))


if __name__ == "__main__":
    main()
