"""Project folders: `ratchet init` makes them, every other command opens one.

Turns data files into a folder with settings, keys and policy, and a settings file into `Settings`. It starts no process.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.settings import FILE, Settings, load_settings, render_settings
from schemas.targets import LABELLED, Task, label_name, labels_of
from serving.file_lock import holder

if TYPE_CHECKING:
    from pipelines.dataset.files import Columns
    from services.checks.data_summary import ProjectData
    from serving.messaging.connection import Broker
    from serving.registry.registry import Registry

LOCK = "state/up.lock"  # held by the folder's `ratchet up` while it lives
STATE = "state/up.json"  # addresses and processes of its parts, written once they are ready
GITIGNORE = """\
# Keys are secret, and state is this machine's: texts of users, models, logs. The rest may be committed.
keys.env
*keys.env.*
state/
"""
# A row costs a language model a hundred times an encoder's: train few epochs, and never again on all rows.
TEXT_TRAINING: Mapping[str, object] = {"epochs": 3, "refit_below": 0}


class ProjectError(ValueError):
    """A project cannot be made or opened; the message says what to do."""


def settings_file(config: Path) -> Path:
    """Return the settings file that `-c` names: the file itself, or the ratchet.toml of a folder."""
    return config / FILE if config.is_dir() else config


def open_project(config: Path) -> Settings:
    """Return the settings of a project, given its settings file or folder. Raises ProjectError or SettingsError."""
    config = settings_file(config)
    if not config.is_file():
        raise ProjectError(f"{config} does not exist: run `ratchet init`, or name the file with -c")
    settings = load_settings(config.read_bytes(), os.environ, root=config.absolute().parent)
    return _with_base_path(settings)


def _with_base_path(settings: Settings) -> Settings:
    """Return the settings with a base model of the project as an absolute path, for other working directories."""
    name = settings.model.base_model
    if not name or not (path := settings.path(os.path.expanduser(name))).exists():
        return settings
    return settings.model_copy(update={"model": settings.model.model_copy(update={"base_model": str(path)})})


def running_up(settings: Settings) -> dict[str, Any] | None:
    """Return the state file of the folder's `ratchet up`; None unless it is running and ready."""
    try:
        running, _ = holder(settings.path(LOCK))
        state: dict[str, Any] | None = json.loads(settings.path(STATE).read_text(encoding="utf-8")) if running else None
    except (OSError, ValueError):
        return None
    return state


def broker_of(settings: Settings) -> "Broker | None":
    """Return the broker that the settings name, else the embedded one of a running `ratchet up`; None without either."""
    from serving.messaging.connection import Broker

    address = settings.kafka.bootstrap_servers or (running_up(settings) or {}).get("broker")
    return Broker.of(settings, str(address)) if address else None


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
    """Make a project folder and return its settings; on any error, remove what was made.

    `say` receives a summary of the files, a line a fact.

    Raises:
        BrokenProject: `ratchet up` would refuse the project, because the base model is missing or for another reason.
        ProjectError: the folder is not empty, the task takes no labels, or seed and reference leave nothing to learn or judge.
        BadFile: seed or reference cannot be read.

    """
    from pipelines.dataset.files import Columns
    from pipelines.feature_store.event_log_files import check_folder
    from pipelines.feature_store.store import default_feature_store_yaml
    from pipelines.gates.policy import default_policy, load_policy
    from services.checks.data_summary import describe

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ProjectError(f"{folder} is not an empty folder: name a new or empty one")
    if labels and task not in LABELLED:
        raise ProjectError(f"--labels {','.join(labels)}: {task} has no labels; leave the option out")
    data = _checked(seed, reference, task, Columns(text_column, label_column))
    existed = folder.exists()
    try:
        (folder / "data").mkdir(parents=True)
        files = {n: _copied(path, folder, n) for n, path in (("seed", seed), ("reference", reference)) if path}
        columns = {"text_column": text_column, "label_column": label_column}
        dataset = {**files, **{key: column for key, column in columns.items() if column}}
        model_name = name or _model_name(folder)
        groups = _settings_groups(model_name, task, base_model, dataset, overrides or {})
        groups["model"] = {**_chosen_length(data, groups["model"]), **groups["model"]}
        (folder / FILE).write_text(render_settings(groups), encoding="utf-8")
        settings = open_project(folder / FILE)
        check_folder(settings.location(settings.feature_store.event_log))
        (folder / "feature_store.yaml").write_text(default_feature_store_yaml(model_name), encoding="utf-8")
        (folder / "policy.toml").write_text(default_policy(task), encoding="utf-8")
        _finish(folder, settings)
        _make_registry(settings, [*sorted(data.labels), *map(label_name, labels)])
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


def _model_name(folder: Path) -> str:
    return re.sub(r"[^a-z0-9_-]+", "-", folder.absolute().name.lower()).strip("-_")[:63] or "model"


def _settings_groups(
    model_name: str,
    task: Task,
    base_model: str | None,
    dataset: Mapping[str, object],
    overrides: Mapping[str, Mapping[str, object]],
) -> dict[str, Mapping[str, object]]:
    """Return the settings that differ from the defaults, by group."""
    model: dict[str, object] = {"name": model_name, "task": task}
    if base_model:
        model["base_model"] = str(Path(base_model).absolute()) if Path(base_model).exists() else base_model
    groups: dict[str, Mapping[str, object]] = {"model": model, "dataset": dataset}
    if task == "generation":
        groups["training"] = TEXT_TRAINING
    for group, values in overrides.items():
        groups[group] = {**groups.get(group, {}), **values}
    return groups


def _chosen_length(data: "ProjectData", model: Mapping[str, object]) -> dict[str, object]:
    """Return `model.max_length`, and for generation `max_new_tokens`, where the rows need others than the defaults."""
    from pydantic import ValidationError

    from pipelines.models.token_statistics import ROUGH_LIMIT, covering
    from schemas.setting_groups import ModelSettings

    try:
        settings = ModelSettings.model_validate(model)
    except ValidationError:  # loading the settings reports it
        return {}
    measured, default = data.tokens(settings), ModelSettings()
    chosen = {"max_length": measured.max_length} if measured else {}
    if settings.task == "generation":
        texts, answers, about = data.lengths(settings)
        reads = measured.limit if measured and not about else 2 * ROUGH_LIMIT  # of prompt and answer together
        answer = min(ROUGH_LIMIT, reads // 2, covering(answers))
        taken = min(reads // 2, settings.max_new_tokens) if "max_new_tokens" in model else answer
        longest = min(covering(texts), ROUGH_LIMIT if about else reads - taken)
        chosen = {"max_new_tokens": answer, "max_length": longest}
    return {name: value for name, value in chosen.items() if value != getattr(default, name)}


def _make_registry(settings: Settings, labels: Sequence[str]) -> None:
    from serving.registry.registry import Registry

    with closing(Registry(settings.registry_url, settings.model.name)) as registry:
        registry.migrate()
        registry.set_labels(labels)


def _finish(folder: Path, settings: Settings) -> None:
    """Write keys.env and .gitignore, then check the project as `up` does. Raises BrokenProject."""
    from services.checks.preflight import refuse_broken
    from serving.http.access import write_keys

    (folder / ".gitignore").write_text(GITIGNORE, encoding="utf-8")
    write_keys(settings.path(settings.access.keys))
    refuse_broken(settings)


def fill_taxonomy(settings: Settings, registry: "Registry") -> None:
    """Copy the labels of seed and reference into a registry without labels, as after a change of `registry.url`."""
    from pipelines.dataset.files import read_rows
    from pipelines.dataset.project_dataset import columns_of

    task = settings.model.task
    if task in LABELLED and not registry.labels():
        paths = [settings.path(path) for path in (settings.dataset.seed, settings.dataset.reference) if path]
        rows = [row for path in paths for row in read_rows(path, task, columns_of(settings))]
        registry.set_labels(sorted({label for row in rows for label in labels_of(task, row.label)}))


def accept_registry(settings: Settings) -> None:
    """Record the project's registry in the artefact store as the right one, in place of an earlier one."""
    from serving.artifacts import ArtifactStore
    from serving.registry.registry import Registry
    from serving.registry.safeguards.marker import accept

    with closing(Registry(settings.registry_url, settings.model.name)) as registry:
        registry.migrate()
        accept(registry, ArtifactStore(settings.location(settings.artifacts.url)))
