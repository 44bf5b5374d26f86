"""The command line `ratchet`.

Turns arguments into calls on the project, the supervisor and the registry; each other group has a module of its own
(cli_rounds.py, cli_dataset.py, cli_models.py, cli_feedback.py). It deliberately imports nothing heavy: each command
imports what it needs. Exit 0 done, 1 failed with a one-line reason on stderr, 2 wrong usage.
"""

import codecs
import contextlib
import io
import locale
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import get_args

import click

from schemas.targets import Task
from services.cli_dataset import dataset
from services.cli_feedback import feedback
from services.cli_models import audit, labels, model
from services.cli_project import config_option, json_option, show
from services.cli_prune import prune
from services.cli_rounds import rounds


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Continuous learning: serve, collect feedback, fine-tune, gate, hot-swap."""


for group in (rounds, dataset, model, labels, feedback, audit, prune):
    cli.add_command(group)


@cli.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--task", type=click.Choice(get_args(Task)), default="classification", show_default=True)
@click.option("--seed", required=True, type=click.Path(path_type=Path), help="labelled rows: CSV, JSONL or Parquet")
@click.option("--reference", type=click.Path(path_type=Path), help="curated rows that judge and never train")
@click.option("--labels", default="", help="further labels, separated by commas")
@click.option("--base-model", help="folder, hub name or, of a model that writes, GGUF file of the pretrained model")
@click.option("--name", help="name of the model; default: the folder's")
def init(
    folder: Path, task: Task, seed: Path, reference: Path | None, labels: str, base_model: str | None, name: str | None
) -> None:
    """Make a project folder DIR from labelled data."""
    from services.projects import create_project

    extra = [label.strip() for label in labels.split(",") if label.strip()]
    settings = create_project(
        folder, seed=seed, reference=reference, task=task, labels=extra, base_model=base_model, name=name
    )
    click.echo(f"made {folder}: the {task} project {settings.model.name}")
    click.echo("settings are in ratchet.toml, gates in policy.toml, the API key in keys.env")
    click.echo(f"next: cd {folder} && ratchet up")


@cli.command()
@config_option
def up(config: Path) -> None:
    """Run everything on this machine, until Ctrl-C."""
    from services.projects import open_project
    from services.up import Supervisor

    supervisor = Supervisor(open_project(config), config, click.echo)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
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
    from services.status import look

    value, lines = look(config)
    show(value, as_json, lines)


@cli.command()
@config_option
@json_option
def doctor(config: Path, as_json: bool) -> None:
    """Check every part and say what to do about what is wrong; exit 1 on any FAIL."""
    from services.doctor import examine

    found = examine(config)
    lines = [f"{check.verdict:<5} {check.part:<14} {check.sentence}" for check in found]
    show([check.__dict__ for check in found], as_json, lines)
    sys.exit(1 if any(check.verdict == "FAIL" for check in found) else 0)


def main() -> None:
    """Run, and turn every error into one line."""
    _use_utf8()
    if os.environ.get("RATCHET_DEBUG") != "1":
        # Libraries' advice to their callers is not for users. Not by a filter: some libraries reset those.
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
    """Go on as Python in UTF-8 mode if the locale has another encoding; the terminal is still written to in its own.

    Paths, arguments and what libraries open would otherwise be read by the locale's encoding. What the terminal cannot show is
    escaped, never an error.
    """
    if codecs.lookup(locale.getencoding()).name != "utf-8" and not sys.flags.utf8_mode:
        environment = {**os.environ, "PYTHONUTF8": "1"}
        environment.setdefault("PYTHONIOENCODING", f"{sys.stdout.encoding}:backslashreplace")
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)  # noqa: S606 - ourselves
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


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
        return 1  # whoever read our output has seen enough
    except Exception as error:
        if os.environ.get("RATCHET_DEBUG") == "1":
            raise
        with contextlib.suppress(OSError):
            click.echo(f"ratchet: {_one_line(error)}", err=True)
        return 1


def _one_line(error: Exception) -> str:
    """What an error says, in one line; a KeyError's text without the quotes that Python puts around it."""
    said = error.args[0] if isinstance(error, KeyError) and error.args else str(error)
    if isinstance(error, click.ClickException):
        said = error.format_message()
    first = next((line for line in str(said).splitlines() if line.strip()), "")
    ours = type(error).__module__.split(".")[0] in ("schemas", "serving", "pipelines", "services", "click")
    plain = ours or isinstance(error, OSError | ValueError | RuntimeError)
    return first if first and plain else f"{type(error).__name__}: {first}".rstrip(": ")


if __name__ == "__main__":
    main()
