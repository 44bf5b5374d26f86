"""`ratchet round`: run, list, show, approve and reject training rounds.

Turns arguments into a round run in this process, or into a person's decision in the registry. The executor starts `round run
--claimed ID`.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from schemas.records import Role
from services.cli.identity import acting
from services.cli.project import as_option, config_option, json_option, opened, reason_option, round_named, show

if TYPE_CHECKING:
    from schemas.records import Pace, RoundRecord
    from schemas.settings import Settings
    from serving.registry.registry import Registry


@click.group(name="round")
def rounds() -> None:
    """Run, inspect and decide training rounds."""


@rounds.command(name="run")
@click.option("--claimed", metavar="ID", help="run this claimed round instead of claiming a new one")
@click.option("--bootstrap", is_flag=True, help="train the first champion; do nothing if there is one")
@click.option("--again", is_flag=True, help="spend another look even if no row has changed since the last round")
@click.option("--token", type=int, help="pass the scheduler's fencing token")
@config_option
def round_run(claimed: str | None, bootstrap: bool, again: bool, token: int | None, config: Path) -> None:
    """Run a round in the foreground, or resume an interrupted one."""
    # Read when torch is imported. Spinning threads would take cores from serving.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from schemas.records import RoundState
    from services.projects import fill_taxonomy
    from services.rounds.announce import announce
    from services.rounds.disk_room import refuse_without_room
    from services.rounds.outcome_lines import ended
    from services.rounds.process import run_claimed

    if claimed and bootstrap:
        raise click.UsageError("--claimed and --bootstrap exclude each other: give one of them")
    with opened(config) as (settings, registry):
        registry.migrate()
        fill_taxonomy(settings, registry)
        if bootstrap and (champion := registry.champion()):
            click.echo(f"there is a champion already: {champion.model_version}")
            return
        unfinished = registry.unfinished_round()
        refuse_without_room(settings, unfinished.round_id if unfinished else None)
        round_id = claimed or _claim(settings, registry, "no champion yet" if bootstrap else "by hand", again)
        try:
            with shown_progress() as progress:
                done = run_claimed(
                    round_id,
                    settings=settings,
                    registry=registry,
                    token=token,
                    show=progress,
                    announce=lambda champion: announce(settings, registry, champion),
                )
            if done.state is RoundState.SETTLING:
                done = _queued(settings, registry, done)
        except KeyboardInterrupt:
            click.echo(f"interrupted: `ratchet round run` resumes {round_id}", err=True)
            raise
    click.echo("\n".join(ended(done)))
    if done.state is RoundState.FAILED:
        sys.exit(1)


def _claim(settings: "Settings", registry: "Registry", reason: str, again: bool) -> str:
    """Return the id of a round to run: an interrupted one, else one claimed now."""
    from schemas.records import RoundState
    from services.rounds.process import Liveness, beats, lock_file, read_lock

    unfinished = registry.unfinished_round()
    if unfinished is None:
        record = registry.claim_round(reason=reason, cut=_cut(settings, registry), token=None, again=again)
        if record is not None:
            return record.round_id
        unfinished = registry.unfinished_round()
        if unfinished is None:
            raise click.ClickException("another process claimed and ended a round just now: try again")
    round_id = unfinished.round_id
    if unfinished.state is RoundState.AWAITING_APPROVAL:
        raise click.ClickException(
            f"round {round_id} awaits approval: `ratchet round approve {round_id}` or `reject {round_id}` first"
        )
    liveness, pid = read_lock(lock_file(settings, round_id))
    if liveness is Liveness.RUNNING:
        raise click.ClickException(f"round {round_id} is already running, as process {pid}: see `ratchet status`")
    if liveness is Liveness.UNKNOWN and beats(registry, unfinished):
        raise click.ClickException(f"round {round_id} is running on another machine: see `ratchet status`")
    click.echo(f"going on with round {round_id}")
    return round_id


def _queued(settings: "Settings", registry: "Registry", record: "RoundRecord") -> "RoundRecord":
    """Queue the first disagreements of a round that settles, and return its record."""
    from pipelines.feature_store.store import FeatureStore
    from services.rounds.queue_filling import fill
    from serving.process.crash_points import crash_at

    crash_at("settling")
    fill(settings, registry, FeatureStore(settings))
    return registry.round(record.round_id)


def _cut(settings: "Settings", registry: "Registry") -> dict[str, int]:
    """Return the stored offsets of feedback; none before the first champion, when the feature store may not exist."""
    if registry.champion() is None:
        return {}
    from pipelines.feature_store.store import FeatureStore

    return FeatureStore(settings).current_cut()


@contextlib.contextmanager
def shown_progress() -> "Iterator[Callable[[str, float, Pace | None], None]]":
    """Yield a function that shows progress: a bar for each step on a terminal, plain lines elsewhere."""
    if not sys.stdout.isatty():
        started, last = time.monotonic(), [""]

        def line(step: str, share: float, pace: "Pace | None") -> None:
            shown = f"{step} {10 * int(10 * share)} %"
            if shown != last[0]:
                last[0] = shown
                click.echo(f"{time.monotonic() - started:6.1f} s  {shown}" + (f"  ({pace})" if pace else ""))

        yield line
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    pace_column = TextColumn("{task.fields[pace]}")
    with Progress(TextColumn("{task.description:<12}"), BarColumn(), TimeElapsedColumn(), pace_column) as bars:
        tasks: dict[str, Any] = {}

        def bar(step: str, share: float, pace: "Pace | None") -> None:
            if step not in tasks:
                for task in tasks.values():
                    bars.update(task, completed=1, pace="")
                tasks[step] = bars.add_task(step, total=1, pace="")
            bars.update(tasks[step], completed=share, pace=str(pace or ""))

        yield bar
        for task in tasks.values():
            bars.update(task, completed=1)


@rounds.command(name="list")
@config_option
@json_option
def round_list(config: Path, as_json: bool) -> None:
    """List all rounds, newest first."""
    with opened(config) as (_, registry):
        records = registry.rounds()
    lines = [f"{r.round_id}  {r.created_at:%Y-%m-%d %H:%M}  {r.state:<21}  {r.detail or r.step or ''}" for r in records]
    show([r.model_dump(mode="json") for r in records], as_json, lines or ["no rounds yet"])


@rounds.command(name="show")
@click.argument("round_id", metavar="ID")
@click.option("--open", "open_page", is_flag=True, help="open the report in a browser")
@config_option
@json_option
def round_show(round_id: str, open_page: bool, config: Path, as_json: bool) -> None:
    """Show one round with its rows, evaluations and gates."""
    from services.rounds.report_file import report_page

    with opened(config) as (settings, registry):
        round_id = round_named(registry, round_id)
        record = registry.round(round_id)
        page = report_page(settings, registry, record)
    if page is None and open_page:
        raise click.ClickException(f"round {round_id} is {record.state} and has no report: only judged rounds have one")
    lines = _lines(record) + ([f"report     {page}"] if page else [])
    show(record.model_dump(mode="json"), as_json, lines)
    if open_page and click.launch(str(page)):
        raise click.ClickException(f"there is no browser to open {page} with: open the file yourself")


def _lines(record: "RoundRecord") -> list[str]:
    lines = [
        f"{record.round_id}  {record.state}",
        f"why        {record.reason}",
        f"against    {record.champion_version or '-'}",
        f"candidate  {record.candidate_version or '-'}",
        f"end        {record.detail or '-'}",
    ]
    if s := record.settling:
        texts = f"{s.disagreements} disagreements in {s.answered} new texts"
        shown = f", {s.wins} wins, {s.losses} losses" if s.wins is not None else ""
        lines.append(f"settling   {s.line}{shown}; {texts}; look {s.look}, until {s.until:%Y-%m-%d %H:%M} UTC")
    if d := record.dataset:
        dropped = ", ".join(f"{n} {reason}" for reason, n in d.dropped.items()) or "nothing"
        lines.append(
            f"rows       {d.rows_in} in: {d.rows_train} train, {d.rows_validation} validation; dropped {dropped}"
        )
    for name, e in record.evaluations.items():
        figures = ", ".join(f"{figure} {value:.4f}" for figure, value in e.figures.items())
        called = "nearest" if name == "probe" and "chrf" in e.measures else name  # the most similar row's text
        lines.append(f"{called:<10} {figures} on {e.n} {e.split} rows")
    if record.gate_report:
        lines += [
            f"  {g.gate:<14} {g.verdict:<21}{'' if g.blocking else ' (advises)'} {g.sentence}"
            for g in record.gate_report.results
        ]
        lines += [f"advice     {line}" for line in record.gate_report.advice]
    return lines


@rounds.command(name="approve")
@click.argument("round_id", metavar="ID")
@click.option("--overrule", is_flag=True, help="promote against the verdict of the gates, or a rejection")
@config_option
@as_option
@reason_option
@json_option
def round_approve(round_id: str, overrule: bool, config: Path, by: str | None, reason: str, as_json: bool) -> None:
    """Approve a round's candidate; promote it once enough people have.

    Needs --reason and the role review. A candidate whose gates did not pass, or that a person rejected, needs --overrule too.
    """
    from services.rounds.announce import announce
    from services.rounds.prune import refuse_pruned
    from serving.registry.registry import UnknownVersion

    with opened(config) as (settings, registry):
        round_id = round_named(registry, round_id)
        actor = acting(settings, registry, by, Role.REVIEW)
        if candidate := registry.round(round_id).candidate_version:
            with contextlib.suppress(UnknownVersion):  # approve() says what is wrong with the round
                refuse_pruned(settings, registry, candidate)
        approval = registry.approve(round_id, actor=actor, reason=reason, overrule=overrule)
        champion = approval.champion
        if champion is not None:
            announce(settings, registry, champion)
    if champion is None:
        missing = approval.needed - approval.given
        lines = [f"{approval.given} of {approval.needed} have approved round {round_id}; {missing} more to go"]
    else:
        lines = [f"{champion.model_version} is the champion, generation {champion.generation}"]
    value = champion.model_dump(mode="json") if champion else {"round_id": round_id}
    show({**value, "approvals": approval.given, "approvals_needed": approval.needed}, as_json, lines)


@rounds.command(name="reject")
@click.argument("round_id", metavar="ID")
@config_option
@as_option
@reason_option
@json_option
def round_reject(round_id: str, config: Path, by: str | None, reason: str, as_json: bool) -> None:
    """Reject a round's candidate, with --reason; end the round if it is running."""
    with opened(config) as (settings, registry):
        round_id = round_named(registry, round_id)
        actor = acting(settings, registry, by, Role.REVIEW)
        record = registry.reject(round_id, actor=actor, reason=reason)
    show(record.model_dump(mode="json"), as_json, [f"round {round_id} is rejected"])
