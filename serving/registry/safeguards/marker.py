"""A marker of the registry beside the artefacts, which reveals a lost, replaced or older registry.

Turns a registry's identity, generation and audit log into `registry-<model>.json` in the artefact store, and a difference
between the two into one line. Promotions write it; `ratchet up`, `doctor`, rounds and serving compare. Nothing is
repaired here: a person decides which of the two is right.
"""

from pydantic import BaseModel, ConfigDict, ValidationError

from serving.artifacts import ArtifactStore
from serving.registry.registry import Registry

WAY_OUT = "restore the registry from its newest backup, or accept this one with `ratchet up --new-registry`"


class RegistryLost(ValueError):
    """The registry is not the one that promoted the stored artefacts, or it is an older state of that one."""


class Marker(BaseModel):
    """The state of a registry, as last written to the artefact store."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = 1
    model_name: str
    registry_id: str
    generation: int
    audit_rows: int
    audit_head: str


def check(registry: Registry, store: ArtifactStore) -> None:
    """Compare a registry with the marker of its model; do nothing if there is no marker.

    Raises:
        RegistryLost: the registry is missing, another one, or behind the marker; or its audit log is truncated or rewritten.
        RegistryUnavailable, ArtifactStoreUnavailable: one of the two cannot be reached.

    """
    if (marker := _read(registry, store)) and (fault := _fault(marker, registry)):
        raise RegistryLost(f"{fault}, according to {store.path_of(_name(registry))}: {WAY_OUT}")


def keep(registry: Registry, store: ArtifactStore) -> None:
    """Write the marker after a promotion. Raises what `check` raises, and OSError."""
    check(registry, store)
    accept(registry, store)


def accept(registry: Registry, store: ArtifactStore) -> None:
    """Replace the marker by the state of this registry, without a comparison. Raises OSError."""
    rows, head, first = registry.audit_head()
    champion = registry.champion()
    if champion is None or first is None or head is None:
        store.remove_note(_name(registry))
        return
    marker = Marker(
        model_name=registry.model_name,
        registry_id=first,
        generation=champion.generation,
        audit_rows=rows,
        audit_head=head,
    )
    store.write_note(_name(registry), marker.model_dump_json(indent=2).encode())


def _name(registry: Registry) -> str:
    return f"registry-{registry.model_name}.json"


def _read(registry: Registry, store: ArtifactStore) -> Marker | None:
    content = store.read_note(_name(registry))
    try:
        return Marker.model_validate_json(content) if content is not None else None
    except ValidationError as error:
        path = store.path_of(_name(registry))
        raise RegistryLost(f"{path} cannot be read: restore it from a backup, or remove it") from error


def _fault(marker: Marker, registry: Registry) -> str | None:
    """Return the first difference between a registry and its marker; None if they agree."""
    if not registry.exists():
        return f"the registry is missing or empty, and generation {marker.generation} was promoted"
    champion = registry.champion()
    generation = champion.generation if champion else 0
    rows, _, first = registry.audit_head()
    if generation < marker.generation:
        state = f"is at generation {generation}" if generation else "has no champion"
        return f"the registry is lost or an older copy: it {state}, and generation {marker.generation} was promoted"
    if rows < marker.audit_rows:
        return f"the audit log of {registry.model_name} has {rows} rows, and had {marker.audit_rows}"
    if first != marker.registry_id:
        return f"the registry is not the one that promoted generation {marker.generation}"
    if registry.audit_hash(marker.audit_rows) != marker.audit_head:
        return f"the audit log of {registry.model_name} was rewritten up to row {marker.audit_rows}"
    return None
