"""The taxonomy and the split ledger: what is written first stays."""

from serving.registry import (
    Registry,
)
from tests import registries
from tests.registries import statement

url, clock, registry = registries.url, registries.clock, registries.registry


def test_labels_are_added_in_order_and_never_changed(registry: Registry, url: str) -> None:
    registry.set_labels(["zebra", "ant", "zebra"])
    statement(url, "UPDATE labels SET state = 'retired' WHERE name = 'ant'")
    registry.set_labels(["ant", "bee", "🐝"])
    registry.set_labels([])

    assert [(label.name, label.state) for label in registry.labels()] == [
        ("zebra", "active"),
        ("ant", "retired"),
        ("bee", "active"),
        ("🐝", "active"),
    ]
    assert registry.active_labels() == ["zebra", "bee", "🐝"]


def test_the_first_writer_of_a_side_wins(registry: Registry) -> None:
    first = {f"key {n}": "train" for n in range(1200)}
    assert registry.record_sides(first) == first
    later = {f"key {n}": "test" for n in range(1000, 1300)}
    in_force = registry.record_sides(later)
    assert list(in_force) == list(later)
    assert sorted(in_force.values()) == ["test"] * 100 + ["train"] * 200
    assert registry.sides([*first, *later, "unseen"]) == first | in_force
    assert registry.sides([]) == registry.record_sides({}) == {}
