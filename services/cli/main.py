"""The command line `ratchet`.

Turns arguments into calls on the project, the supervisor and the registry; each other group has a module of its own
(cli/rounds.py, cli/dataset.py, cli/models.py, cli/labels.py, cli/feedback.py). It imports nothing heavy: each command
imports what it needs. Exit 0 done, 1 failed with a one-line reason on stderr, 2 wrong usage.
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
from services.cli.dataset import dataset
from services.cli.feedback import feedback
from services.cli.labels import labels
from services.cli.models import audit, model
from services.cli.project import config_option, json_option, show
from services.cli.prune import prune
from services.cli.rounds import rounds


def _version(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        import platform
        import tomllib

        file = Path(__file__).parents[2] / "pyproject.toml"
        version = (
            tomllib.loads(file.read_text(encoding="utf-8"))["project"]["version"] if file.exists() else "of a container"
        )
        click.echo(f"ratchet {version}, Python {platform.python_version()}")
        context.exit()


# What the loader, the C++ library, the kernel and torch say when memory ends.
NO_MEMORY = (
    "failed to map segment",
    "bad_alloc",
    "Cannot allocate memory",
    "not enough memory",
    "cannot allocate memory",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
def cli() -> None:
    """Continuous learning: serve, collect feedback, fine-tune, gate, hot-swap."""


for group in (rounds, dataset, model, labels, feedback, access, audit, prune):
    cli.add_command(group)


@cli.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--task", type=click.Choice(get_args(Task)), default="classification", show_default=True)
@click.option(
    "--seed",
    required=True,
    type=click.Path(path_type=Path),
    help="labelled rows: CSV, TSV, JSONL, Parquet, XLSX, dataset folder",
)
@click.option("--reference", type=click.Path(path_type=Path), help="curated rows that judge and never train")
@click.option("--text-column", help="column of the text; default: found by its name")
@click.option("--label-column", help="column of the label, labels, target or completion; default: found by its name")
@click.option("--labels", default="", help="further labels, separated by commas")
@click.option("--base-model", help="folder, hub name or, of a model that writes, GGUF file of the pretrained model")
@click.option("--name", help="name of the model; default: the folder's")
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
    "--new-registry", is_flag=True, help="accept a registry that is not the one, or older than, what promoted last"
)
def up(config: Path, new_registry: bool) -> None:
    """Run everything on this machine, until Ctrl-C."""
    from services.checks.preflight import refuse_broken
    from services.projects import accept_registry, open_project
    from services.supervisor.writable_folders import settle

    settings = open_project(config)
    refuse_broken(settings)
    settle(settings, os.environ)
    if new_registry:
        accept_registry(settings)
    from services.supervisor.signals import stop_on
    from services.up import Supervisor  # Kafka and the registry are loaded once nothing speaks against it

    supervisor = Supervisor(settings, config, click.echo)
    stop_on(supervisor.stop, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    supervisor.run()


@cli.command()
@click.option("--no-defences", is_flag=True, help="without cap, quarantine and gates: what the poison then costs")
@click.option("--out", type=click.Path(path_type=Path), default="demo-report.json", show_default=True)
@click.option("--keep", type=click.Path(path_type=Path), help="keep the project in this folder")
def demo(no_defences: bool, out: Path, keep: Path | None) -> None:
    """Walk the whole loop on BBC News, poison included."""
    from services.demo.walk import run_demo

    sys.exit(run_demo(no_defences=no_defences, out=out, keep=keep))


@cli.command()
@config_option
@json_option
def status(config: Path, as_json: bool) -> None:
    """What serves, what learns, what waits."""
    from services.cli.status import look

    value, lines = look(config)
    show(value, as_json, lines)


@cli.command()
@config_option
@json_option
def doctor(config: Path, as_json: bool) -> None:
    """Check every part and say what to do about what is wrong; exit 1 on any FAIL."""
    from services.cli.doctor import examine

    found = examine(config)
    lines = [f"{check.verdict:<5} {check.part:<14} {check.sentence}" for check in found]
    show([check.__dict__ for check in found], as_json, lines)
    sys.exit(1 if any(check.verdict == "FAIL" for check in found) else 0)


def main() -> None:
    """Run, and turn every error into one line."""
    from serving.process.log_lines import log_to
    from serving.process.private_files import keep_private

    _keep_docstrings()
    _use_utf8()
    keep_private()
    log_to(sys.stderr, logging.WARNING)
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


def _keep_docstrings() -> None:
    """Start anew with docstrings where `python -OO` took them away: transformers reads its own, and so does our help."""
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
        return 1  # whoever read our output has seen enough
    except Exception as error:
        if os.environ.get("RATCHET_DEBUG") == "1":
            raise
        with contextlib.suppress(OSError):
            for line in getattr(error, "problems", None) or [_one_line(error)]:
                click.echo(f"ratchet: {redacted(line)}", err=True)
        return 1


def _one_line(error: Exception) -> str:
    """What an error says, in one line; a KeyError's text without the quotes that Python puts around it."""
    said = error.args[0] if isinstance(error, KeyError) and error.args else str(error)
    if isinstance(error, click.ClickException):
        said = error.format_message()
    first = next((line for line in str(said).splitlines() if line.strip()), "")
    if _out_of_memory(error):
        return f"out of memory ({first or type(error).__name__}): free some, or raise the limit of this process"
    ours = type(error).__module__.split(".")[0] in ("schemas", "serving", "pipelines", "services", "click")
    plain = ours or isinstance(error, OSError | ValueError | RuntimeError)
    return first if first and plain else f"{type(error).__name__}: {first}".rstrip(": ")


def _out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is for want of memory: a library that cannot be mapped is an ImportError."""
    while error is not None:
        if isinstance(error, MemoryError) or any(sign in str(error) for sign in NO_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False


if __name__ == "__main__":
    main()
