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

if TYPE_CHECKING:
    from serving.registry import Registry

LOCK = "state/up.lock"  # held by the `ratchet up` of the folder for as long as it lives
STATE = "state/up.json"  # where its parts are, written once they are ready


class ProjectError(ValueError):
    """A folder cannot be made or opened; the message says what to do."""


def open_project(config: Path) -> Settings:
    """Settings of a project. Raises ProjectError or SettingsError."""
    if not config.is_file():
        raise ProjectError(f"{config} does not exist: run `ratchet init`, or name the file with -c")
    return load_settings(config.read_text(), os.environ, root=config.absolute().parent)


def running_up(settings: Settings) -> dict[str, Any] | None:
    """What the folder's `ratchet up` wrote of its parts; None if it is not up, or not ready yet."""
    try:
        with settings.path(LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        try:
            found: dict[str, Any] = json.loads(settings.path(STATE).read_text())
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
    labels: Sequence[str] = (),
    base_model: str | None = None,
    name: str | None = None,
    overrides: Mapping[str, Mapping[str, object]] | None = None,
) -> Settings:
    """Make a project folder; nothing half-made stays if something is wrong.

    Raises:
        ProjectError: the folder is not empty, or there are fewer than two labels.
        BadFile: seed or reference cannot be read.

    """
    from pipelines.dataset.files import read_rows
    from pipelines.features import default_feature_store_yaml
    from pipelines.policy import DEFAULT_POLICY
    from serving.access import write_keys
    from serving.registry import Registry

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ProjectError(f"{folder} is not an empty folder")
    found = [{row.label for row in read_rows(path)} for path in (seed, reference) if path]
    if len(found[0]) < 2:
        raise ProjectError(f"{seed}: column label holds {', '.join(found[0])} alone; there is nothing to tell apart")
    existed = folder.exists()
    try:
        (folder / "data").mkdir(parents=True)
        shutil.copyfile(seed, folder / f"data/seed{seed.suffix.lower()}")
        dataset: dict[str, object] = {"seed": f"data/seed{seed.suffix.lower()}"}
        if reference:
            shutil.copyfile(reference, folder / f"data/reference{reference.suffix.lower()}")
            dataset["reference"] = f"data/reference{reference.suffix.lower()}"
        chosen = name or re.sub(r"[^a-z0-9_-]+", "-", folder.absolute().name.lower()).strip("-_")[:63] or "model"
        model: dict[str, object] = {"name": chosen}
        if base_model:
            model["base_model"] = str(Path(base_model).absolute()) if Path(base_model).is_dir() else base_model
        wanted: dict[str, Mapping[str, object]] = {"model": model, "dataset": dataset}
        for group, values in (overrides or {}).items():
            wanted[group] = {**wanted.get(group, {}), **values}
        (folder / "ratchet.toml").write_text(render_settings(wanted))
        settings = open_project(folder / "ratchet.toml")
        (folder / "feature_store.yaml").write_text(default_feature_store_yaml(chosen))
        (folder / "policy.toml").write_text(DEFAULT_POLICY)
        write_keys(folder / "keys.env")
        registry = Registry(settings.registry_url, settings.model.name)
        try:
            registry.migrate()
            registry.set_labels([*sorted(set().union(*found)), *labels])
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

    if not registry.labels():
        paths = [settings.path(path) for path in (settings.dataset.seed, settings.dataset.reference) if path]
        registry.set_labels(sorted({row.label for path in paths for row in read_rows(path)}))
