"""The entry point of the command line `ratchet`.

Turns arguments into calls on the project, the supervisor and the registry; every group of commands has a module of its own.
Exit codes: 0 done, 1 failed with a one-line reason on stderr, 2 wrong usage.
"""

import codecs
import contextlib
import io
import locale
import logging
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import get_args

import click

from schemas.redact import redacted
from schemas.targets import Task, label_name
from services.cli.access import access
from services.cli.audit import audit
from services.cli.evidence import evidence
from services.cli.models import model
from services.cli.project import config_option, json_option, show
from services.cli.prune import prune
from services.cli.rounds import rounds
from services.cli.rows.dataset import dataset
from services.cli.rows.feedback import feedback
from services.cli.rows.labels import labels
from services.cli.rows.queue import queue
from services.cli.server import bootstrap, migrate, start
from services.rounds.failures import out_of_memory


def _version(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        import platform

        from serving.process.start import release

        click.echo(f"ratchet {release()}, Python {platform.python_version()}")
        context.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="show the version")
def cli() -> None:
    """Serve a text model, collect feedback on its predictions, fine-tune, gate and hot-swap."""


for group in (
    rounds,
    queue,
    dataset,
    model,
    labels,
    feedback,
    evidence,
    access,
    audit,
    prune,
    migrate,
    bootstrap,
    start,
):
    cli.add_command(group)


@cli.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--task",
    type=click.Choice(get_args(Task)),
    default="classification",
    show_default=True,
    help="train for this task",
)
@click.option(
    "--seed",
    required=True,
    type=click.Path(path_type=Path),
    help="train on these rows: CSV, TSV, JSONL, Parquet, XLSX or a dataset folder",
)
@click.option("--reference", type=click.Path(path_type=Path), help="judge on these curated rows, which never train")
@click.option("--text-column", help="read texts from this column; default: by its name")
@click.option("--label-column", help="read targets from this column; default: by its name")
@click.option("--labels", default="", help="add these labels, separated by commas")
@click.option("--base-model", help="start from this pretrained model: folder, hub name or, for generation, GGUF file")
@click.option("--name", help="name the model; default: as the folder")
def init(
    folder: Path,
    task: Task,
    seed: Path,
    reference: Path | None,
    text_column: str | None,
    label_column: str | None,
    labels: str,
    base_model: str | None,
    name: str | None,
) -> None:
    """Make a project folder DIR from labelled data."""
    from services.projects import create_project

    extra = [label_name(label) for label in labels.split(",") if label.strip()]
    settings = create_project(
        folder,
        seed=seed,
        reference=reference,
        task=task,
        labels=extra,
        base_model=base_model,
        name=name,
        text_column=text_column,
        label_column=label_column,
        say=click.echo,
    )
    click.echo(f"made {folder}: the {task} project {settings.model.name}")
    click.echo("settings are in ratchet.toml, gates in policy.toml, the API key in keys.env")
    click.echo(f"next: cd {folder} && ratchet up")


@cli.command()
@config_option
@click.option(
    "--new-registry",
    is_flag=True,
    help="accept a new or restored registry",
)
def up(config: Path, new_registry: bool) -> None:
    """Run every process of the project on this machine until Ctrl-C."""
    from services.checks.preflight import refuse_broken
    from services.projects import accept_registry, open_project
    from services.supervisor.writable_folders import settle

    settings = open_project(config)
    refuse_broken(settings)
    settle(settings, os.environ)
    if new_registry:
        accept_registry(settings)
    from services.supervisor.signals import stop_on
    from services.up import Supervisor  # imported after the checks: it loads Kafka and the registry

    supervisor = Supervisor(settings, config, click.echo)
    stop_on(supervisor.stop, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    supervisor.run()


@cli.command()
@click.option("--no-defences", is_flag=True, help="switch off cap, quarantine and gates")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="demo-report.json",
    show_default=True,
    help="write the report to this file",
)
@click.option("--keep", type=click.Path(path_type=Path), help="keep the project in this folder")
@click.option("--stay", is_flag=True, help="start it again on the finished walk, and print the console's address")
def demo(no_defences: bool, out: Path, keep: Path | None, stay: bool) -> None:
    """Run the whole loop on BBC News, including poisoned feedback."""
    from services.demo.walk import run_demo

    sys.exit(run_demo(no_defences=no_defences, out=out, keep=keep, stay=stay))


@cli.command()
@config_option
@json_option
def status(config: Path, as_json: bool) -> None:
    """Show what serves, which round runs, and how much feedback waits."""
    from services.cli.status import look

    value, lines = look(config)
    show(value, as_json, lines)


@cli.command()
@config_option
@json_option
def doctor(config: Path, as_json: bool) -> None:
    """Check every part; exit 1 on any FAIL."""
    from services.cli.doctor import examine

    checks = examine(config)
    lines = [f"{check.verdict:<5} {check.part:<14} {check.sentence}" for check in checks]
    show([check.__dict__ for check in checks], as_json, lines)
    sys.exit(1 if any(check.verdict == "FAIL" for check in checks) else 0)


def main() -> None:
    """Run the command line and exit; print every error as one line."""
    from serving.process.log_lines import log_to
    from serving.process.private_files import keep_private

    os.environ.pop("PYTHONSAFEPATH", None)  # child processes find our modules in their working directory
    _keep_docstrings()
    _use_utf8()
    keep_private()
    log_to(sys.stderr, logging.WARNING)
    if os.environ.get("RATCHET_DEBUG") != "1":
        # Warnings of libraries are not for users. Filters would not do: some libraries reset them.
        warnings.showwarning = lambda *_, **__: None
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TQDM_DISABLE", "1")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    code = _run()
    # Native libraries report reference counts at a normal exit, hundreds of lines of them.
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(code)


def _use_utf8() -> None:
    """Restart Python in UTF-8 mode if the locale has another encoding, so that paths, arguments and files are read as UTF-8.

    Output keeps the terminal's encoding; characters that it cannot show are escaped.
    """
    if codecs.lookup(locale.getencoding()).name != "utf-8" and not sys.flags.utf8_mode:
        environment = {**os.environ, "PYTHONUTF8": "1"}
        environment.setdefault("PYTHONIOENCODING", f"{sys.stdout.encoding}:backslashreplace")
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)  # noqa: S606 - ourselves
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _keep_docstrings() -> None:
    """Restart with docstrings if `python -OO` removed them: transformers and our help texts need theirs."""
    if sys.flags.optimize > 1:
        os.environ["PYTHONOPTIMIZE"] = "1"
        os.execv(sys.executable, [sys.executable, *(word for word in sys.orig_argv[1:] if word != "-OO")])  # noqa: S606 - ourselves


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
    except BrokenPipeError:
        return 1  # the reader closed the pipe
    except Exception as error:
        if os.environ.get("RATCHET_DEBUG") == "1":
            raise
        with contextlib.suppress(OSError):
            for line in getattr(error, "problems", None) or [error_line(error)]:
                click.echo(f"ratchet: {redacted(line)}", err=True)
        return 1


def error_line(error: Exception) -> str:
    """Return an error's message as one line; a KeyError's without its quotes."""
    message = error.args[0] if isinstance(error, KeyError) and error.args else str(error)
    if isinstance(error, click.ClickException):
        message = error.format_message()
    first = next((line for line in str(message).splitlines() if line.strip()), "")
    if out_of_memory(error):
        return f"out of memory ({first or type(error).__name__}): free some, or raise the limit of this process"
    ours = type(error).__module__.split(".")[0] in ("schemas", "serving", "pipelines", "services", "click")
    plain = ours or isinstance(error, OSError | ValueError | RuntimeError)
    return first if first and plain else f"{type(error).__name__}: {first}".rstrip(": ")


if __name__ == "__main__":
    main()
