"""The champion's files, verified against their checksums, and those of the versions it may roll back to.

Turns the registry's champion and artefacts into one sentence on what is wrong and the way out, for `ratchet up`, `ratchet model
rollback` and `ratchet doctor`. It repairs nothing.
"""

from pathlib import Path

from schemas.records import Champion
from schemas.settings import Settings
from serving.artifacts import ArtifactMissing, ArtifactStore
from serving.model_directory import ArtifactDamaged, verify
from serving.registry.registry import Registry

MOST_EARLIER = 5  # earlier versions that are verified: each costs a read of all its files


def unservable(settings: Settings, registry: Registry) -> str | None:
    """Return why the champion cannot be served, and the way out; None if it can be, or there is none.

    An intact copy in this machine's cache is enough. Raises ConnectionError if the store cannot be reached.
    """
    champion = registry.champion()
    if champion is None or _cached(settings, champion):
        return None
    wrong = wrong_files(settings, champion.digest)
    if wrong is None:
        return None
    sound = next((one for one in _earlier(registry, champion) if not wrong_files(settings, one.digest)), None)
    problem = f"the champion {champion.model_version} cannot be served: {wrong}"
    if sound is None:
        return f"{problem}; no earlier version is sound: put back the artefacts of a backup"
    return (
        f"{problem}; `ratchet model rollback {sound.model_version}` serves {sound.model_version}, whose files are sound"
    )


def damaged(settings: Settings, registry: Registry) -> list[str]:
    """Return what is wrong with the stored files of the champion and of earlier champions, newest first."""
    champion = registry.champion()
    versions = [champion, *_earlier(registry, champion)] if champion else []
    checked = ((one.model_version, wrong_files(settings, one.digest)) for one in versions)
    return [f"{version}: {wrong}" for version, wrong in checked if wrong]


def wrong_files(settings: Settings, digest: str) -> str | None:
    """Return what is wrong with the stored files of a version; None if they are intact. Raises ConnectionError."""
    location = settings.location(settings.artifacts.url)
    try:
        ArtifactStore(location).check(digest)
    except ArtifactMissing:
        return f"{Path(location).name}/{digest} is missing"
    except ArtifactDamaged as error:
        return f"{Path(location).name}/{digest}/{error}"
    return None


def _earlier(registry: Registry, champion: Champion) -> list[Champion]:
    """Return the earlier champions, each once, newest first."""
    served = {one.model_version: one for one in reversed(registry.promotions())}
    served.pop(champion.model_version, None)
    return sorted(served.values(), key=lambda one: -one.generation)[:MOST_EARLIER]


def _cached(settings: Settings, champion: Champion) -> bool:
    try:
        verify(settings.path(settings.artifacts.cache) / champion.digest, champion.digest)
    except (OSError, ArtifactDamaged):
        return False
    return True
