"""Project folders: made by `ratchet init`, opened by every other command.

Turns data files into a folder with settings, keys and policy, and a settings file into `Settings`. It deliberately starts
nothing.
"""

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from schemas.settings import Settings, load_settings, render_settings


class ProjectError(ValueError):
    """A folder cannot be made or opened; the message says what to do."""


def open_project(config: Path) -> Settings:
    """Settings of a project. Raises ProjectError or SettingsError."""
    if not config.is_file():
        raise ProjectError(f"{config} does not exist: run `ratchet init`, or name the file with -c")
    return load_settings(config.read_text(), os.environ, root=config.absolute().parent)


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
    from pipelines.gates import DEFAULT_POLICY
    from serving.access import write_keys
    from serving.registry import Registry

    if folder.exists() and any(folder.iterdir()):
        raise ProjectError(f"{folder} is not empty")
    found = [row.label for path in (seed, reference) if path for row in read_rows(path)]
    taxonomy = list(dict.fromkeys([*sorted(set(found)), *labels]))
    if len({row.label for row in read_rows(seed)}) < 2:
        raise ProjectError(f"{seed}: one label only; there is nothing to tell apart")
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
        settings = load_settings((folder / "ratchet.toml").read_text(), {}, root=folder.absolute())
        (folder / "feature_store.yaml").write_text(default_feature_store_yaml(chosen))
        (folder / "policy.toml").write_text(DEFAULT_POLICY)
        write_keys(folder / "keys.env")
        registry = Registry(settings.registry_url, settings.model.name)
        registry.migrate()
        registry.set_labels(taxonomy)
        registry.close()
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        if existed:
            folder.mkdir(exist_ok=True)
        raise
    return settings
