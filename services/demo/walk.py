"""`ratchet demo`: the whole loop on BBC News.

Makes a project, runs `ratchet up` on it, sends traffic, waits for the triggered round and the swap, sends poison, stops and
writes a report. It uses the commands and the HTTP API of users; only the report reads artefacts and the feature store.
"""

import csv
import json
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from schemas.records import GATED_STATES, RoundRecord, RoundState
from schemas.settings import Settings, load_settings
from services.demo.articles import Article, DemoError, bbc_news, split
from services.demo.report import Walk, report_of
from services.demo.traffic import Traffic
from services.demo.up_process import (
    ROUND_LIMIT_S,
    check_alive,
    leave_open,
    ready,
    start_up,
    stop,
    stop_on_sigterm,
    wait_for,
)
from services.projects import create_project
from services.supervisor.own_address import free_port, refused
from serving.http.access import read_keys
from serving.registry.registry import Registry

MAX_LENGTH = 64
RATE = 22.0  # visits a second
MIN_FEEDBACK = 180
CONSOLE_PORT = 3001

console = Console(highlight=False)


def run_demo(*, no_defences: bool, out: Path, keep: Path | None, stay: bool = False) -> int:
    """Run the demo, write the report to `out` and return the exit status; with `stay`, leave it running until Ctrl-C."""
    stop_on_sigterm()
    started = time.monotonic()
    folder = keep or Path(tempfile.mkdtemp(prefix="ratchet-demo-"))
    splits = split(bbc_news())
    settings = _make_project(folder, splits, no_defences=no_defences)
    say = _speaker(started)
    say(f"project in {folder}")
    up = start_up(folder)
    try:
        report = _walk(settings, splits, up, say, no_defences=no_defences)
        report["events_stored"] = _stored(settings)
        report["seconds"] = round(time.monotonic() - started, 1)
        out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        _print_table(report)
        console.print(f"written to {out}")
        if stay:
            leave_open(settings, folder)
    except DemoError as error:
        console.print(f"[red]{error}[/red]; logs are in {folder / 'state/logs'}", soft_wrap=True)
        return 1
    finally:
        stop(up)
    if keep is None:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def _stored(settings: Settings) -> int:
    from pipelines.feature_store.store import FeatureStore

    return sum(FeatureStore(settings).stored_events().values())


def _make_project(folder: Path, splits: dict[str, list[Article]], *, no_defences: bool) -> Settings:
    with tempfile.TemporaryDirectory() as scratch:
        paths = {}
        for name in ("seed", "reference"):
            paths[name] = Path(scratch) / f"{name}.csv"
            with paths[name].open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(["text", "label"])
                writer.writerows((a.text, a.topic) for a in splits[name])
        overrides: dict[str, dict[str, object]] = {
            "model": {"max_length": MAX_LENGTH},
            "triggers": {"min_feedback": MIN_FEEDBACK, "tick_seconds": 1.0},
            "training": {"epochs": 3, "patience": 1},
            "serving": {"port": free_port()},
            "console": {"port": _console_port(), "try_page": "open"},
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
    state = ready(settings, up)
    registry = Registry(settings.registry_url, settings.model.name)
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
    say("stopping: storing the accepted events")
    up.send_signal(signal.SIGTERM)
    if up.wait(120):
        raise DemoError(f"`ratchet up` ended with {up.returncode}")

    say("measuring on test articles")
    walk = Walk(seen=traffic.seen, first=first, promoted=promoted, swap=swap, poisoned=poisoned, end=end)
    try:
        return report_of(walk, settings, registry, splits, no_defences=no_defences)
    finally:
        registry.close()


def _learn(
    traffic: Traffic,
    articles: list[Article],
    registry: Registry,
    up: subprocess.Popen[bytes],
    say: Callable[[str], None],
) -> RoundRecord:
    """Send the articles with feedback, then predictions alone, until 6 seconds after a promotion; return its round."""
    say(f"{len(articles)} articles as live traffic, {RATE:.0f} a second; users correct wrong predictions")
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
            check_alive(up)
            if promoted is None and trained and trained[0].state in GATED_STATES and n > 3 * len(articles):
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
    """Send several hundred wrong labels as one user; return the round that they trigger, once it has ended."""
    targets = [*splits["poison"], *splits["traffic"][:150]]
    say(f"poison: one user sends {len(targets)} wrong labels")
    begun = time.monotonic()
    for n, article in enumerate(targets):
        _pace(begun, n)
        traffic.submit(traffic.poison, n, article)
    traffic.drain()

    def ended() -> RoundRecord | None:
        fresh = [r for r in registry.rounds() if r.round_id not in known and r.state in GATED_STATES]
        # Judged on a dataset: it was triggered by MIN_FEEDBACK of the poison.
        return next((r for r in reversed(fresh) if r.dataset is not None and r.gate_report is not None), None)

    wait_for(lambda: ended() is not None, up, ROUND_LIMIT_S, "the poisoned round did not end")
    record = ended()
    assert record is not None
    say(f"the poisoned round: {record.state}. {record.detail}")
    time.sleep(2)
    return record


# --- small parts ----------------------------------------------------------------------------------------------------


def _pace(begun: float, n: int) -> None:
    ahead = n / RATE - (time.monotonic() - begun)
    if ahead > 0:
        time.sleep(ahead)


def _console_port() -> int:
    """Return the console's usual port if it is free, else another."""
    return free_port() if refused("127.0.0.1", CONSOLE_PORT) else CONSOLE_PORT


def _speaker(started: float) -> Callable[[str], None]:
    return lambda text: console.print(f"[dim]{time.monotonic() - started:6.1f} s[/dim]  {text}")


def _print_table(report: dict[str, object]) -> None:
    table = Table(title="ratchet demo", show_header=False)
    for key, value in report.items():
        shown = f"{value:.4f}" if isinstance(value, float) else json.dumps(value)
        table.add_row(key, shown)
    console.print(table)
