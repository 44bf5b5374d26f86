"""Whether what would be served is sound: the champion's files, and those of the versions to fall back on.

Turns the registry's champion and artefacts into one sentence about what is wrong and what to do. `ratchet up` asks before it
starts serving, `ratchet model rollback` before it moves the champion, `ratchet doctor` when somebody looks. It repairs nothing.
"""

from pathlib import Path

from schemas.records import Champion
from schemas.settings import Settings
from serving.artifacts import ArtifactMissing, ArtifactStore
from serving.model_directory import ArtifactDamaged, verify
from serving.registry.registry import Registry

MOST_EARLIER = 5  # versions that served before and are hashed: each costs a read of all its files


def unservable(settings: Settings, registry: Registry) -> str | None:
    """Return why the champion cannot be served, and the way out; None if it can, or there is none.

    A sound copy in this machine's cache is enough. Raises ConnectionError if the store cannot be reached.
    """
    champion = registry.champion()
    if champion is None or _cached(settings, champion):
        return None
    wrong = wrong_files(settings, champion.digest)
    if wrong is None:
        return None
    sound = next((one for one in _earlier(registry, champion) if not wrong_files(settings, one.digest)), None)
    said = f"the champion {champion.model_version} cannot be served: {wrong}"
    if sound is None:
        return f"{said}; no earlier version is sound: put back the artefacts of a backup"
    return f"{said}; `ratchet model rollback {sound.model_version}` serves {sound.model_version}, whose files are sound"


def damaged(settings: Settings, registry: Registry) -> list[str]:
    """Return what is wrong with the stored files of the champion and of the versions that served before it, newest first."""
    champion = registry.champion()
    versions = [champion, *_earlier(registry, champion)] if champion else []
    found = ((one.model_version, wrong_files(settings, one.digest)) for one in versions)
    return [f"{version}: {wrong}" for version, wrong in found if wrong]


def wrong_files(settings: Settings, digest: str) -> str | None:
    """Return what is wrong with the stored files of a version, None if they are sound. Raises ConnectionError."""
    location = settings.location(settings.artifacts.url)
    try:
        ArtifactStore(location).check(digest)
    except ArtifactMissing:
        return f"{Path(location).name}/{digest} is missing"
    except ArtifactDamaged as error:
        return f"{Path(location).name}/{digest}/{error}"
    return None


def _earlier(registry: Registry, champion: Champion) -> list[Champion]:
    """Versions that served before, each once, newest first."""
    served = {one.model_version: one for one in reversed(registry.promotions())}
    served.pop(champion.model_version, None)
    newest_first = sorted(served.values(), key=lambda one: -one.generation)
    return [one for one in newest_first if registry.version(one.model_version).servable][:MOST_EARLIER]


def _cached(settings: Settings, champion: Champion) -> bool:
    try:
        verify(settings.path(settings.artifacts.cache) / champion.digest, champion.digest)
    except (OSError, ArtifactDamaged):
        return False
    return True
