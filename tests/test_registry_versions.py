"""Versions: registered once, servable once their gates passed or a person said so."""

import pytest

from serving.registry.registry import Registry, UnknownVersion
from tests.support import registries
from tests.support.manifests import manifest
from tests.support.registries import START

url, clock, registry = registries.url, registries.clock, registries.registry


def test_a_version_is_registered_once(registry: Registry) -> None:
    registry.register_version(manifest("v1"), "d1", servable=False)
    registry.register_version(manifest("v1"), "d1", servable=False)
    registry.register_version(manifest("v2"), "d2", servable=False)

    assert [version.model_version for version in registry.versions()] == ["v2", "v1"]
    with pytest.raises(ValueError, match="another digest"):
        registry.register_version(manifest("v1"), "d9", servable=True)
    with pytest.raises(ValueError, match="is of other"):
        registry.register_version(manifest("v3", model_name="other"), "d3", servable=True)
    with pytest.raises(UnknownVersion):
        registry.version("v3")
    assert registry.version("v1").created_at == START


def test_servable_is_granted_and_never_lost(registry: Registry) -> None:
    registry.register_version(manifest("v1"), "d1", servable=False)
    registry.register_version(manifest("v1"), "d1", servable=False)
    assert not registry.version("v1").servable
    registry.register_version(manifest("v1"), "d1", servable=True)
    registry.register_version(manifest("v1"), "d1", servable=False)
    assert registry.version("v1").servable

    registry.register_version(manifest("v2"), "d2", servable=False)
    registry.mark_servable("v2", approved_by="ada")
    registry.mark_servable("v2")
    assert registry.version("v2").approved_by == "ada"
    assert [(row.actor, row.action) for row in registry.audit_rows()] == [("ada", "approve")]
    with pytest.raises(UnknownVersion):
        registry.mark_servable("v3")
