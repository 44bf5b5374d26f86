"""What past rounds have left and nobody needs any more, and its removal.

Turns the registry's rounds, versions and champions into a list of what may go: models in the folders of rounds that have ended,
versions that cannot come back, their copies in the cache, logs. `ratchet prune` shows and removes it, the scheduler removes it
after each round. It deliberately leaves alone what it does not know: other projects' versions, and folders of no known round.

Rows, pages, reports and round.json of every round stay, as do the registry's rounds and the audit log.
"""

import contextlib
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from schemas.records import FINAL_STATES, RoundRecord, VersionRecord
from schemas.settings import Settings
from services.rounds.disk_room import clear_models, disk_bytes, models
from services.rounds.process import Whereabouts, lock_file, whereabouts
from serving.artifacts import ArtifactStore
from serving.registry.registry import Registry

LOGS_BYTES = 50 * 10**6  # of rounds' outputs together; the oldest go first


@dataclass(frozen=True, kw_only=True)
class Leftover:
    """One thing that may go: what lies at `path` on this disk, or the version `digest` in the artefact store."""

    kind: str
    name: str
    why: str
    size: int
    path: Path | None = None
    digest: str = ""


class Pruned(ValueError):
    """The version is in the registry, but no longer in the artefact store."""


def leftovers(settings: Settings, registry: Registry) -> list[Leftover]:
    """Return what may go, without removing anything. Raises OSError when the artefact store cannot be asked."""
    rounds, versions = registry.rounds(), registry.versions()
    kept = _kept(settings, registry, rounds, versions)
    found = [*_rounds(settings, rounds), *_logs(settings, rounds)]
    found += _versions(settings, [version for version in versions if version.digest not in kept])
    return found + _cached(settings, registry, versions)


def remove(settings: Settings, found: Iterable[Leftover]) -> int:
    """Remove leftovers and return the bytes freed. What cannot be removed now stays for the next time."""
    store, freed = ArtifactStore(settings.location(settings.artifacts.url)), 0
    for one in found:
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


def refuse_pruned(settings: Settings, registry: Registry, model_version: str) -> None:
    """Raise Pruned if the artefact store lacks the version. Raises UnknownVersion too.

    A store that cannot be asked stops nobody: workers keep the versions that served last.
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
    """Digests of the newest versions, of all that have served (a rollback may ask for any), and of what a round needs."""
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
    found = []
    for record in rounds:
        folder = settings.path("state/rounds") / record.round_id
        if record.state not in FINAL_STATES or not (paths := models(folder)):
            continue
        if whereabouts(lock_file(settings, record.round_id))[0] is Whereabouts.HERE:
            continue  # it is writing its report
        why = f"the round has ended ({record.state})"
        found.append(Leftover(kind="round", name=record.round_id, why=why, size=disk_bytes(paths), path=folder))
    return found


def _logs(settings: Settings, rounds: list[RoundRecord]) -> list[Leftover]:
    """Outputs of ended rounds beyond LOGS_BYTES, from the newest on."""
    found, total = [], 0
    for record in rounds:
        path = settings.path("state/logs") / f"round-{record.round_id}.log"
        size = path.stat().st_size if path.exists() else 0
        total += size
        if size and total > LOGS_BYTES and record.state in FINAL_STATES:
            why = f"newer rounds' logs take {LOGS_BYTES // 10**6} MB"
            found.append(Leftover(kind="log", name=path.name, why=why, size=size, path=path))
    return found


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
    """Copies in the cache but of the champion, the one before, and what a round or a worker is about to open."""
    cache = settings.path(settings.artifacts.cache)
    used = {champion.digest for champion in registry.promotions()[:2]} | _last_good(cache)
    if unfinished := registry.unfinished_round():
        used |= {
            v.digest for v in versions if v.model_version in (unfinished.champion_version, unfinished.candidate_version)
        }
    return [
        Leftover(
            kind="cache",
            name=version.model_version,
            why="neither the champion nor the one before; the artefact store is the original",
            size=disk_bytes([path]),
            path=path,
        )
        for version in versions
        if version.digest not in used and (path := cache / version.digest).is_dir()
    ]


def _last_good(cache: Path) -> set[str]:
    """Digests of what workers serve while the registry is away."""
    found = set()
    for path in cache.glob("last-good-*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            found.add(str(json.loads(path.read_text(encoding="utf-8"))["digest"]))
    return found
