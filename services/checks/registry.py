"""Make or update the registry's tables, and refuse one that is not this project's.

Turns a registry into one with current tables, or into the reason why it is refused. `ratchet up` and `ratchet migrate` call it.
"""

from schemas.settings import Settings
from serving.artifacts import ArtifactStore
from serving.registry.registry import Registry
from serving.registry.safeguards.marker import check


def migrate_checked(settings: Settings, registry: Registry) -> ArtifactStore:
    """Compare the registry with its marker, migrate it, compare again; return the artefact store. Raises as `check`."""
    store = ArtifactStore(settings.location(settings.artifacts.url))
    if not registry.exists():
        check(registry, store)  # before an empty one is created
    registry.migrate()
    check(registry, store)
    return store
