"""Project folders: made by `ratchet init`, opened by every other command.

Turns data files into a folder with settings, keys and policy, and a settings file into `Settings`. It deliberately starts
nothing.
"""

import fcntl
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.settings import Settings, load_settings, render_settings
from schemas.targets import COLUMNS, LABELLED, Task, labels_of

if TYPE_CHECKING:
    from serving.registry import Registry

LOCK = "state/up.lock"  # held by the `ratchet up` of the folder for as long as it lives
STATE = "state/up.json"  # where its parts are, written once they are ready
# A language model costs a hundred times an encoder's row: few epochs, the best of them kept, nothing trained twice.
TEXT_TRAINING: Mapping[str, object] = {"epochs": 3, "refit_below": 0}


class ProjectError(ValueError):
    """A folder cannot be made or opened; the message says what to do."""


def open_project(config: Path) -> Settings:
    """Settings of a project. Raises ProjectError or SettingsError."""
    if not config.is_file():
        raise ProjectError(f"{config} does not exist: run `ratchet init`, or name the file with -c")
    return load_settings(config.read_text(encoding="utf-8"), os.environ, root=config.absolute().parent)


def running_up(settings: Settings) -> dict[str, Any] | None:
    """What the folder's `ratchet up` wrote of its parts; None if it is not up, or not ready yet."""
    try:
        with settings.path(LOCK).open(encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        try:
            found: dict[str, Any] = json.loads(settings.path(STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found
    except OSError:
        pass
    return None


def create_project(
    folder: Path,
    *,
    seed: Path,
    reference: Path | None,
    task: Task = "classification",
    labels: Sequence[str] = (),
    base_model: str | None = None,
    name: str | None = None,
    overrides: Mapping[str, Mapping[str, object]] | None = None,
) -> Settings:
    """Make a project folder; nothing half-made stays if something is wrong.

    Raises:
        ProjectError: the folder is not empty, there is nothing to tell apart, or the task has no labels to name.
        BadFile: seed or reference cannot be read.

    """
    from pipelines.dataset.files import read_rows
    from pipelines.features import default_feature_store_yaml
    from pipelines.policy import default_policy
    from serving.access import write_keys
    from serving.registry import Registry

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ProjectError(f"{folder} is not an empty folder")
    if labels and task not in LABELLED:
        raise ProjectError(f"--labels {','.join(labels)}: {task} has no labels")
    found = [{row.label for row in read_rows(path, task)} for path in (seed, reference) if path]
    if len(found[0]) < 2:
        held = f"{seed}: column {COLUMNS[task]} holds {', '.join(found[0])} alone"
        raise ProjectError(f"{held}; there is nothing to tell apart")
    named = {label for targets in found for target in targets for label in labels_of(task, target)}
    existed = folder.exists()
    try:
        (folder / "data").mkdir(parents=True)
        shutil.copyfile(seed, folder / f"data/seed{seed.suffix.lower()}")
        dataset: dict[str, object] = {"seed": f"data/seed{seed.suffix.lower()}"}
        if reference:
            shutil.copyfile(reference, folder / f"data/reference{reference.suffix.lower()}")
            dataset["reference"] = f"data/reference{reference.suffix.lower()}"
        chosen = name or re.sub(r"[^a-z0-9_-]+", "-", folder.absolute().name.lower()).strip("-_")[:63] or "model"
        model: dict[str, object] = {"name": chosen, "task": task}
        if base_model:
            model["base_model"] = str(Path(base_model).absolute()) if Path(base_model).exists() else base_model
        wanted: dict[str, Mapping[str, object]] = {"model": model, "dataset": dataset}
        if task == "generation":
            wanted["training"] = TEXT_TRAINING
        for group, values in (overrides or {}).items():
            wanted[group] = {**wanted.get(group, {}), **values}
        (folder / "ratchet.toml").write_text(render_settings(wanted), encoding="utf-8")
        settings = open_project(folder / "ratchet.toml")
        (folder / "feature_store.yaml").write_text(default_feature_store_yaml(chosen), encoding="utf-8")
        (folder / "policy.toml").write_text(default_policy(task), encoding="utf-8")
        write_keys(folder / "keys.env")
        registry = Registry(settings.registry_url, settings.model.name)
        try:
            registry.migrate()
            registry.set_labels([*sorted(named), *labels])
        finally:
            registry.close()
    except BaseException:
        for made in list(folder.iterdir()) if folder.is_dir() else []:
            shutil.rmtree(made) if made.is_dir() else made.unlink()
        if not existed and folder.is_dir():
            folder.rmdir()
        raise
    return settings


def fill_taxonomy(settings: Settings, registry: "Registry") -> None:
    """Put the labels of seed and reference into a registry that has none: it was set after `ratchet init`."""
    from pipelines.dataset.files import read_rows

    task = settings.model.task
    if task in LABELLED and not registry.labels():
        paths = [settings.path(path) for path in (settings.dataset.seed, settings.dataset.reference) if path]
        rows = [row for path in paths for row in read_rows(path, task)]
        registry.set_labels(sorted({label for row in rows for label in labels_of(task, row.label)}))
