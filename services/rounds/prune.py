"""Prune: list and remove files of past rounds that are no longer needed.

Turns the registry's rounds, versions and champions into a list of leftovers: models in the folders of ended rounds, versions
that can never serve again, cached copies, old logs. `ratchet prune` shows and removes them; the scheduler removes them after
each round. Versions of other projects and folders of unknown rounds stay.

Rows, pages, reports and round.json of every round stay, as do the registry's rounds and the audit log.
"""

import contextlib
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipelines.round_file import update_round_files
from schemas.records import FINAL_STATES, RoundRecord, VersionRecord
from schemas.settings import Settings
from services.rounds.disk_room import clear_models, disk_bytes, models
from services.rounds.process import Liveness, lock_file, read_lock
from serving.artifacts import ArtifactStore
from serving.registry.registry import Registry

LOGS_BYTES = 50 * 10**6  # of all rounds' logs; the oldest are removed first


@dataclass(frozen=True, kw_only=True)
class Leftover:
    """A removable file or folder at `path`, or the version `digest` in the artefact store; `size` in bytes."""

    kind: str
    name: str
    why: str
    size: int
    path: Path | None = None
    digest: str = ""


class Pruned(ValueError):
    """The registry lists the version, but the artefact store no longer holds it."""


def leftovers(settings: Settings, registry: Registry, *, logs_bytes: int = LOGS_BYTES) -> list[Leftover]:
    """Return what may be removed, the rounds' logs beyond `logs_bytes`. Raises OSError if the artefact store is unreachable."""
    rounds, versions = registry.rounds(), registry.versions()
    kept = _kept(settings, registry, rounds, versions)
    removable = [*_rounds(settings, rounds), *_logs(settings, rounds, logs_bytes)]
    removable += _versions(settings, [version for version in versions if version.digest not in kept])
    return removable + _cached(settings, registry, versions)


def remove(settings: Settings, removable: Iterable[Leftover]) -> int:
    """Remove leftovers and return the bytes freed; skip those that cannot be removed now."""
    store, freed = ArtifactStore(settings.location(settings.artifacts.url)), 0
    for one in removable:
        with contextlib.suppress(OSError):
            if one.path is None:
                store.remove(one.digest)
            elif one.kind == "round":
                clear_models(one.path)
            elif one.path.is_dir():
                shutil.rmtree(one.path)
            else:
                one.path.unlink(missing_ok=True)
            freed += one.size
    return freed


def tidy_up(settings: Settings, registry: Registry) -> int:
    """Bring the files of recent rounds up to date, remove all leftovers, and return the bytes freed. Raises OSError."""
    update_round_files(settings, registry.rounds())
    return remove(settings, leftovers(settings, registry))


def refuse_pruned(settings: Settings, registry: Registry, model_version: str) -> None:
    """Raise Pruned if the artefact store lacks the version, UnknownVersion if the registry does.

    An unreachable store is no error here: workers may have the version in their cache.
    """
    digest = registry.version(model_version).digest
    try:
        size = ArtifactStore(settings.location(settings.artifacts.url)).size(digest)
    except OSError:
        return
    if size is None:
        raise Pruned(
            f"{model_version} is no longer in the artefact store (artifacts.keep_versions = {settings.artifacts.keep_versions} "
            "are kept): choose another of `ratchet model list`, or run a round"
        )


def _kept(settings: Settings, registry: Registry, rounds: list[RoundRecord], versions: list[VersionRecord]) -> set[str]:
    """Return digests of the newest versions, of all that have served (for rollbacks), and of those an open round needs."""
    most = settings.artifacts.keep_versions
    needed = {
        name
        for record in rounds
        if record.state not in FINAL_STATES
        for name in (record.candidate_version, record.champion_version)
    }
    return {
        *(champion.digest for champion in registry.promotions()),
        *(version.digest for version in versions[:most]),
        *(version.digest for version in versions if version.model_version in needed),
    }


def _rounds(settings: Settings, rounds: list[RoundRecord]) -> list[Leftover]:
    leftover = []
    for record in rounds:
        folder = settings.path("state/rounds") / record.round_id
        if record.state not in FINAL_STATES or not (paths := models(folder)):
            continue
        if read_lock(lock_file(settings, record.round_id))[0] is Liveness.RUNNING:
            continue  # its process still writes the report
        why = f"the round has ended ({record.state})"
        leftover.append(Leftover(kind="round", name=record.round_id, why=why, size=disk_bytes(paths), path=folder))
    return leftover


def _logs(settings: Settings, rounds: list[RoundRecord], most: int) -> list[Leftover]:
    """Return the oldest logs of ended rounds, beyond `most` bytes in all."""
    leftover, total = [], 0
    for record in rounds:
        path = settings.path("state/logs") / f"round-{record.round_id}.log"
        size = path.stat().st_size if path.exists() else 0
        total += size
        if size and total > most and record.state in FINAL_STATES:
            why = f"newer rounds' logs take {most // 10**6} MB"
            leftover.append(Leftover(kind="log", name=path.name, why=why, size=size, path=path))
    return leftover


def _versions(settings: Settings, unkept: list[VersionRecord]) -> list[Leftover]:
    store, most = ArtifactStore(settings.location(settings.artifacts.url)), settings.artifacts.keep_versions
    why = f"it never served and is not among the newest {most} versions (artifacts.keep_versions)"
    sized = [(version, store.size(version.digest)) for version in unkept]
    return [
        Leftover(kind="version", name=version.model_version, why=why, size=size, digest=version.digest)
        for version, size in sized
        if size is not None
    ]


def _cached(settings: Settings, registry: Registry, versions: list[VersionRecord]) -> list[Leftover]:
    """Return cached copies, except the champion's, its predecessor's, and those a round or worker may open."""
    cache = settings.path(settings.artifacts.cache)
    used = {champion.digest for champion in registry.promotions()[:2]} | _last_good(cache)
    for open_round in filter(None, (registry.unfinished_round(), registry.settling_round())):
        needed = (open_round.champion_version, open_round.candidate_version)
        used |= {version.digest for version in versions if version.model_version in needed}
    return [
        Leftover(
            kind="cache",
            name=version.model_version,
            why="neither the champion nor its predecessor; the artefact store holds the original",
            size=disk_bytes([path]),
            path=path,
        )
        for version in versions
        if version.digest not in used and (path := cache / version.digest).is_dir()
    ]


def _last_good(cache: Path) -> set[str]:
    """Return digests of the versions that workers serve while the registry is unreachable."""
    digests = set()
    for path in cache.glob("last-good-*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            digests.add(str(json.loads(path.read_text(encoding="utf-8"))["digest"]))
    return digests
