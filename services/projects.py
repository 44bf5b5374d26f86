"""Project folders: made by `ratchet init`, opened by every other command.

Turns data files into a folder with settings, keys and policy, and a settings file into `Settings`. It deliberately starts
nothing.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.settings import FILE, Settings, load_settings, render_settings
from schemas.targets import LABELLED, Task, label_name, labels_of
from serving.file_lock import holder

if TYPE_CHECKING:
    from pipelines.dataset.files import Columns
    from services.checks.data_summary import ProjectData
    from serving.registry.registry import Registry

LOCK = "state/up.lock"  # held by the `ratchet up` of the folder for as long as it lives
STATE = "state/up.json"  # where its parts are, written once they are ready
# A language model costs a hundred times an encoder's row: few epochs, the best of them kept, nothing trained twice.
# What a project keeps to itself and its machine; settings, gates and data may be committed.
GITIGNORE = """\
# Keys are secret, and state is this machine's: texts of users, models, logs. The rest may be committed.
keys.env
*keys.env.*
state/
"""
TEXT_TRAINING: Mapping[str, object] = {"epochs": 3, "refit_below": 0}


class ProjectError(ValueError):
    """A folder cannot be made or opened; the message says what to do."""


def settings_file(config: Path) -> Path:
    """The settings file that `-c` names: the file itself, or the ratchet.toml of a folder."""
    return config / FILE if config.is_dir() else config


def open_project(config: Path) -> Settings:
    """Settings of a project, by its settings file or its folder. Raises ProjectError or SettingsError."""
    config = settings_file(config)
    if not config.is_file():
        raise ProjectError(f"{config} does not exist: run `ratchet init`, or name the file with -c")
    settings = load_settings(config.read_bytes(), os.environ, root=config.absolute().parent)
    return _with_base_path(settings)


def _with_base_path(settings: Settings) -> Settings:
    """A base model that lies below the project, as an absolute path: it is loaded from other working directories."""
    named = settings.model.base_model
    if not named or not (path := settings.path(os.path.expanduser(named))).exists():
        return settings
    return settings.model_copy(update={"model": settings.model.model_copy(update={"base_model": str(path)})})


def running_up(settings: Settings) -> dict[str, Any] | None:
    """What the folder's `ratchet up` wrote of its parts; None if it is not up, or not ready yet."""
    try:
        up, _ = holder(settings.path(LOCK))
        state: dict[str, Any] | None = json.loads(settings.path(STATE).read_text(encoding="utf-8")) if up else None
    except (OSError, ValueError):
        return None
    return state


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
    text_column: str | None = None,
    label_column: str | None = None,
    say: Callable[[str], None] | None = None,
) -> Settings:
    """Make a project folder; nothing half-made stays if something is wrong.

    `say` is told what the files were understood to hold, a line a fact.

    Raises:
        BrokenProject: the base model is not there, or another part that `ratchet up` would refuse.
        ProjectError: the folder is not empty, the task has no labels to name, there is nothing to tell apart, or no row of the
            seed is left to train beside the reference.
        BadFile: seed or reference cannot be read.

    """
    from pipelines.dataset.files import Columns
    from pipelines.feature_store.event_log_files import check_folder
    from pipelines.feature_store.store import default_feature_store_yaml
    from pipelines.gates.policy import default_policy, load_policy
    from services.checks.data_summary import describe
    from serving.registry.registry import Registry

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ProjectError(f"{folder} is not an empty folder")
    if labels and task not in LABELLED:
        raise ProjectError(f"--labels {','.join(labels)}: {task} has no labels")
    data = _checked(seed, reference, task, Columns(text_column, label_column))
    existed = folder.exists()
    try:
        (folder / "data").mkdir(parents=True)
        copied = {
            name: _copied(path, folder, name) for name, path in (("seed", seed), ("reference", reference)) if path
        }
        columns = {"text_column": text_column, "label_column": label_column}
        dataset: dict[str, object] = {**copied, **{key: column for key, column in columns.items() if column}}
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
        check_folder(settings.location(settings.feature_store.event_log))
        (folder / "feature_store.yaml").write_text(default_feature_store_yaml(chosen), encoding="utf-8")
        (folder / "policy.toml").write_text(default_policy(task), encoding="utf-8")
        _finish(folder, settings)
        registry = Registry(settings.registry_url, settings.model.name)
        try:
            registry.migrate()
            registry.set_labels([*sorted(data.labels), *map(label_name, labels)])
        finally:
            registry.close()
    except BaseException:
        for made in list(folder.iterdir()) if folder.is_dir() else []:
            shutil.rmtree(made) if made.is_dir() else made.unlink()
        if not existed and folder.is_dir():
            folder.rmdir()
        raise
    if say:
        say("\n".join(describe(data, settings, load_policy(default_policy(task)))))
    return settings


def _checked(seed: Path, reference: Path | None, task: Task, columns: "Columns") -> "ProjectData":
    from services.checks.data_summary import DataError, check, read_data

    data = read_data(seed, reference, task, columns)
    try:
        check(data)
    except DataError as error:
        raise ProjectError(str(error)) from error
    return data


def _copied(path: Path, folder: Path, name: str) -> str:
    """Copy a file or dataset folder of rows into the project's data/; return its path from the project's folder."""
    from pipelines.files.dataset_folders import files_of

    if not path.is_dir():
        inside = f"data/{name}{path.suffix.lower()}"
        shutil.copyfile(path, folder / inside)
        return inside
    for file in files_of(path):
        copy = folder / "data" / name / file.relative_to(path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    return f"data/{name}"


def _finish(folder: Path, settings: Settings) -> None:
    """Write what is secret and what keeps it so, then check the whole project as `up` will. Raises BrokenProject."""
    from services.checks.preflight import refuse_broken
    from serving.http.access import write_keys

    (folder / ".gitignore").write_text(GITIGNORE, encoding="utf-8")
    write_keys(settings.path(settings.access.keys))
    refuse_broken(settings)


def fill_taxonomy(settings: Settings, registry: "Registry") -> None:
    """Put the labels of seed and reference into a registry that has none: it was set after `ratchet init`."""
    from pipelines.dataset.files import read_rows
    from pipelines.dataset.project_dataset import columns_of

    task = settings.model.task
    if task in LABELLED and not registry.labels():
        paths = [settings.path(path) for path in (settings.dataset.seed, settings.dataset.reference) if path]
        rows = [row for path in paths for row in read_rows(path, task, columns_of(settings))]
        registry.set_labels(sorted({label for row in rows for label in labels_of(task, row.label)}))


def accept_registry(settings: Settings) -> None:
    """Take the project's registry for the right one, whatever the artefact store remembers of another."""
    from serving.artifacts import ArtifactStore
    from serving.registry.marker import accept
    from serving.registry.registry import Registry

    registry = Registry(settings.registry_url, settings.model.name)
    try:
        registry.migrate()
        accept(registry, ArtifactStore(settings.location(settings.artifacts.url)))
    finally:
        registry.close()
