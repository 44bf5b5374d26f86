"""The command line `ratchet`.

Turns arguments into calls on the registry, the round and the supervisor. Everything heavy is imported by the command that
needs it. Exit 0 done, 1 failed with a one-line reason on stderr, 2 wrong usage.
"""

import contextlib
import fcntl
import getpass
import json
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from schemas.artifacts import Champion
    from schemas.settings import Settings
    from serving.registry import Registry

config_option = click.option(
    "-c", "--config", type=click.Path(path_type=Path), default="ratchet.toml", show_default=True, help="settings file"
)
json_option = click.option("--json", "as_json", is_flag=True, help="print JSON")
by_option = click.option("--by", default=getpass.getuser, show_default="you", help="who decides")
reason_option = click.option("--reason", default="", help="why")


@contextlib.contextmanager
def opened(config: Path) -> "Iterator[tuple[Settings, Registry]]":
    """A project's settings and registry."""
    from services.projects import open_project
    from serving.registry import Registry

    settings = open_project(config)
    registry = Registry(settings.registry_url, settings.model.name)
    try:
        yield settings, registry
    finally:
        registry.close()


def show(value: Any, as_json: bool, lines: list[str]) -> None:
    """Print JSON, or lines."""
    click.echo(json.dumps(value, indent=2, default=str) if as_json else "\n".join(lines))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Continuous learning: serve, collect feedback, fine-tune, gate, hot-swap."""


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--task", default="classification", show_default=True, type=click.Choice(["classification"]))
@click.option("--seed", required=True, type=click.Path(path_type=Path), help="labelled rows: CSV, JSONL or Parquet")
@click.option("--reference", type=click.Path(path_type=Path), help="curated rows that judge and never train")
@click.option("--labels", default="", help="further labels, separated by commas")
@click.option("--base-model", help="folder or hub name of a pretrained encoder")
@click.option("--name", help="name of the model; default: the folder's")
def init(
    folder: Path, task: str, seed: Path, reference: Path | None, labels: str, base_model: str | None, name: str | None
) -> None:
    """Make a project FOLDER from labelled data."""
    from services.projects import create_project

    extra = [label.strip() for label in labels.split(",") if label.strip()]
    settings = create_project(folder, seed=seed, reference=reference, labels=extra, base_model=base_model, name=name)
    click.echo(f"made {folder}: a {task} project named {settings.model.name}\nnext: cd {folder} && ratchet up")


@cli.command()
@config_option
def up(config: Path) -> None:
    """Run everything on this machine, until Ctrl-C."""
    from services.projects import open_project
    from services.up import Supervisor

    supervisor = Supervisor(open_project(config), config, click.echo)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: supervisor.stop.set())
    supervisor.run()


@cli.command()
@click.option("--no-defences", is_flag=True, help="without cap, quarantine and gates: what the poison then costs")
@click.option("--out", type=click.Path(path_type=Path), default="demo-report.json", show_default=True)
@click.option("--keep", type=click.Path(path_type=Path), help="keep the project in this folder")
def demo(no_defences: bool, out: Path, keep: Path | None) -> None:
    """Walk the whole loop on BBC News, poison included."""
    from services.demo import run_demo

    sys.exit(run_demo(no_defences=no_defences, out=out, keep=keep))


@cli.command()
@config_option
@json_option
def status(config: Path, as_json: bool) -> None:
    """What serves, what learns, what waits."""
    from pipelines.features import FeatureStore

    with opened(config) as (settings, registry):
        champion, unfinished, workers = registry.champion(), registry.unfinished_round(), registry.workers()
        counted = FeatureStore(settings).count_labelled_since(registry.last_cut())
        is_up = settings.path("state/up.json").exists()
    value = {
        "model": settings.model.name,
        "up": is_up,
        "champion": champion.model_dump(mode="json") if champion else None,
        "workers": [worker.model_dump(mode="json") for worker in workers],
        "round": {"id": unfinished.round_id, "state": unfinished.state, "step": unfinished.step}
        if unfinished
        else None,
        "feedback": counted,
        "min_feedback": settings.triggers.min_feedback,
    }
    lines = [
        f"model      {settings.model.name}{'' if is_up else '  (not up)'}",
        f"champion   {champion.model_version}, generation {champion.generation}" if champion else "champion   none yet",
        *(f"worker     {w.worker} serves {w.model_version}{f'  ! {w.error}' if w.error else ''}" for w in workers),
        f"round      {unfinished.round_id} {unfinished.state}: {unfinished.step}" if unfinished else "round      none",
        f"feedback   {counted} of {settings.triggers.min_feedback} since the last round",
    ]
    show(value, as_json, lines)


@cli.group(name="round")
def rounds() -> None:
    """Training rounds."""


@rounds.command(name="run")
@click.option("--claimed", help="run this claimed round instead of claiming one now")
@click.option("--token", type=int, help="the scheduler's fencing token")
@config_option
def round_run(claimed: str | None, token: int | None, config: Path) -> None:
    """Run a round in the foreground."""
    from pipelines.features import FeatureStore
    from pipelines.training_round import round_folder, run_round
    from schemas.artifacts import RoundState
    from serving.artifacts import ArtifactStore

    with opened(config) as (settings, registry):
        registry.migrate()
        features = FeatureStore(settings)
        if claimed is None:
            record = registry.claim_round(reason="by hand", cut=features.current_cut(), token=None)
            if record is None:
                raise click.ClickException("another round is unfinished: see `ratchet round list`")
            claimed = record.round_id
        folder = round_folder(settings, claimed)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("a") as lock, _heartbeat(registry, claimed), _progress() as progress:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise click.ClickException(f"round {claimed} is running in another process") from None
            store = ArtifactStore(settings.location(settings.artifacts.url))
            done = run_round(
                claimed,
                settings=settings,
                registry=registry,
                store=store,
                features=features,
                token=token,
                progress=progress,
                announce=lambda champion: _announce(settings, champion),
            )
    click.echo(f"round {claimed}: {done.state}. {done.detail}")
    if done.state is RoundState.FAILED:
        sys.exit(1)


@contextlib.contextmanager
def _heartbeat(registry: "Registry", round_id: str) -> Iterator[None]:
    """Say every few seconds that the round's process lives."""
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(5):
            with contextlib.suppress(ConnectionError, RuntimeError):
                registry.update_round(round_id)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(5)


@contextlib.contextmanager
def _progress() -> Iterator[Any]:
    """A bar on a terminal, plain lines elsewhere."""
    if not sys.stdout.isatty():
        started, last = time.monotonic(), [""]

        def line(step: str, share: float) -> None:
            shown = f"{step} {10 * int(10 * share)} %"
            if shown != last[0]:
                last[0] = shown
                click.echo(f"{time.monotonic() - started:6.1f} s  {shown}")

        yield line
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(TextColumn("{task.description:<12}"), BarColumn(), TimeElapsedColumn()) as bars:
        tasks: dict[str, Any] = {}

        def bar(step: str, share: float) -> None:
            if step not in tasks:
                for task in tasks.values():
                    bars.update(task, completed=1)
                tasks[step] = bars.add_task(step, total=1)
            bars.update(tasks[step], completed=share)

        yield bar


def _announce(settings: "Settings", champion: "Champion") -> None:
    """Tell the promotions topic; a hint only, so a broker that is away costs 2 seconds and nothing else."""
    from schemas.events import ModelPromoted, PromotionData
    from serving.broker import BrokerUnavailable, Outgoing, Publisher, Topics

    bootstrap = settings.kafka.bootstrap_servers
    state = settings.path("state/up.json")
    if bootstrap is None and state.exists():
        bootstrap = json.loads(state.read_text())["broker"]
    if bootstrap is None:
        return
    data = PromotionData(
        model_name=settings.model.name,
        model_version=champion.model_version,
        previous_version=None,
        generation=champion.generation,
        round_id=champion.round_id,
        actor=champion.actor,
    )
    event = ModelPromoted(source=f"ratchet/{settings.model.name}/rounds", subject=champion.model_version, data=data)
    topic = Topics.of(settings.model.name).promotions
    publisher = Publisher(bootstrap, timeout_s=2)
    with contextlib.suppress(BrokerUnavailable):
        publisher.publish_many([Outgoing(topic, settings.model.name.encode(), event.model_dump_json().encode())])
    publisher.close()


@rounds.command(name="list")
@config_option
@json_option
def round_list(config: Path, as_json: bool) -> None:
    """All rounds, newest first."""
    with opened(config) as (_, registry):
        found = registry.rounds()
    lines = [f"{r.round_id}  {r.created_at:%Y-%m-%d %H:%M}  {r.state:<22} {r.detail or r.step or ''}" for r in found]
    show([r.model_dump(mode="json") for r in found], as_json, lines or ["no rounds yet"])


@rounds.command(name="show")
@click.argument("round_id")
@config_option
@json_option
def round_show(round_id: str, config: Path, as_json: bool) -> None:
    """One round, with every gate."""
    with opened(config) as (_, registry):
        record = registry.round(round_id)
    lines = [f"{record.round_id}  {record.state}", f"why: {record.reason}", f"end: {record.detail or '-'}"]
    if record.dataset:
        d = record.dataset
        lines.append(f"rows: {d.rows_in} in, {d.rows_train} train, {d.rows_validation} validation, dropped {d.dropped}")
    if record.gate_report:
        lines += [f"  {g.gate:<12} {g.verdict:<22} {g.sentence}" for g in record.gate_report.results]
    show(record.model_dump(mode="json"), as_json, lines)


@rounds.command(name="approve")
@click.argument("round_id")
@config_option
@by_option
@reason_option
def round_approve(round_id: str, config: Path, by: str, reason: str) -> None:
    """Promote a round's candidate in your name."""
    from schemas.artifacts import RoundState

    with opened(config) as (settings, registry):
        record = registry.round(round_id)
        if record.state not in (RoundState.AWAITING_APPROVAL, RoundState.INSUFFICIENT) or not record.candidate_version:
            raise click.ClickException(
                f"round {round_id} is {record.state}: only a candidate that waits can be approved"
            )
        registry.audit(by, "approve", {"round": round_id, "version": record.candidate_version, "reason": reason})
        registry.mark_servable(record.candidate_version, approved_by=by)
        champion = registry.promote(
            record.candidate_version, expected=record.champion_version, token=None, actor=by, round_id=round_id
        )
        _announce(settings, champion)
    click.echo(f"{champion.model_version} is the champion, generation {champion.generation}")


@rounds.command(name="reject")
@click.argument("round_id")
@config_option
@by_option
@reason_option
def round_reject(round_id: str, config: Path, by: str, reason: str) -> None:
    """Turn a waiting candidate down in your name."""
    from schemas.artifacts import RoundState

    with opened(config) as (_, registry):
        registry.finish_round(round_id, RoundState.REJECTED, detail=f"rejected by {by}: {reason or 'no reason given'}")
        registry.audit(by, "reject", {"round": round_id, "reason": reason})
    click.echo(f"round {round_id} is rejected")


@cli.group()
def model() -> None:
    """Model versions."""


@model.command(name="list")
@config_option
@json_option
def model_list(config: Path, as_json: bool) -> None:
    """All versions, newest first."""
    with opened(config) as (_, registry):
        found, champion = registry.versions(), registry.champion()
    live = champion.model_version if champion else None
    lines = [
        f"{'*' if v.model_version == live else ' '} {v.model_version}  {'servable' if v.servable else '-'}"
        for v in found
    ]
    value = [{**v.model_dump(mode="json"), "champion": v.model_version == live} for v in found]
    show(value, as_json, lines or ["no versions yet"])


@model.command(name="rollback")
@click.argument("version", required=False)
@config_option
@by_option
@reason_option
def model_rollback(version: str | None, config: Path, by: str, reason: str) -> None:
    """Make an earlier VERSION the champion again; default: the one before."""
    with opened(config) as (settings, registry):
        history = registry.promotions()
        live = history[0].model_version if history else None
        wanted = version or next((c.model_version for c in history if c.model_version != live), None)
        if wanted is None or wanted == live:
            raise click.ClickException(
                "there is no other version to roll back to" if wanted is None else f"{wanted} is live"
            )
        registry.audit(by, "rollback", {"from": live, "to": wanted, "reason": reason})
        champion = registry.promote(wanted, expected=live, token=None, actor=by)
        _announce(settings, champion)
    click.echo(f"{champion.model_version} is the champion, generation {champion.generation}")


@cli.group()
def labels() -> None:
    """The taxonomy."""


@labels.command(name="list")
@config_option
@json_option
def labels_list(config: Path, as_json: bool) -> None:
    """All labels."""
    with opened(config) as (_, registry):
        found = registry.labels()
    show([label.model_dump() for label in found], as_json, [f"{label.name}  {label.state}" for label in found])


@labels.command(name="add")
@click.argument("names", nargs=-1, required=True)
@config_option
@by_option
def labels_add(names: tuple[str, ...], config: Path, by: str) -> None:
    """Add labels; feedback may use them at once."""
    with opened(config) as (_, registry):
        registry.set_labels(names)
        registry.audit(by, "labels add", {"names": list(names)})
    click.echo(f"added: {', '.join(names)}")


@cli.group()
def audit() -> None:
    """The audit log."""


@audit.command(name="verify")
@config_option
@json_option
def audit_verify(config: Path, as_json: bool) -> None:
    """Check the hash chain."""
    with opened(config) as (_, registry):
        wrong = registry.verify_audit()
    show({"ok": not wrong, "wrong": wrong}, as_json, wrong or ["the audit log is whole"])
    sys.exit(1 if wrong else 0)


@cli.command()
@config_option
@json_option
def doctor(config: Path, as_json: bool) -> None:
    """Check every part and say what to do about what is wrong."""
    from services.doctor import examine

    found = examine(config)
    lines = [f"{check.verdict:<5} {check.part:<14} {check.sentence}" for check in found]
    show([check.__dict__ for check in found], as_json, lines)
    sys.exit(1 if any(check.verdict == "FAIL" for check in found) else 0)


def main() -> None:
    """Run, and turn every error into one line."""
    if os.environ.get("RATCHET_DEBUG") != "1":
        warnings.simplefilter("ignore")  # libraries' advice to their callers is not for users
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    code = _run()
    # Native libraries report reference counts at a normal exit, hundreds of lines of them.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _run() -> int:
    try:
        code = cli(standalone_mode=False)
        return code if isinstance(code, int) else 0
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    except click.exceptions.Exit as ended:
        return int(ended.exit_code)
    except click.Abort:
        return 130
    except click.UsageError as error:
        error.show()
        return 2
    except click.ClickException as error:
        click.echo(error.message, err=True)
        return 1
    except Exception as error:
        if os.environ.get("RATCHET_DEBUG") == "1":
            raise
        message = str(error).strip().splitlines() or [""]
        name = f"{type(error).__name__}: " if isinstance(error, KeyError) or not message[0] else ""
        click.echo(f"ratchet: {name}{message[0]}", err=True)
        return 1


if __name__ == "__main__":
    main()
