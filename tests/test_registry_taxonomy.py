"""The taxonomy and the split ledger: what is written first stays."""

from collections.abc import Callable

import pytest

from schemas.labels import LabelMap
from schemas.records import Label
from serving.registry.registry import BadLabel, Registry
from tests.support import registries
from tests.support.registries import statement

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


def state(registry: Registry) -> dict[str, str]:
    return {label.name: label.merged_into or label.state for label in registry.labels()}


def test_labels_are_retired_renamed_and_merged_and_taken_up_again(registry: Registry) -> None:
    registry.set_labels(["a", "b", "c", "d"])
    registry.retire_label("d", actor="me", reason="a bad file")
    registry.rename_label("a", "A", actor="me")
    registry.merge_labels("b", "A", actor="me")
    assert state(registry) == {"a": "A", "b": "A", "c": "active", "d": "retired", "A": "active"}
    names = registry.label_map()
    assert names.active == registry.active_labels() == ["c", "A"]
    assert [names.current(name) for name in ("a", "b", "A", "c", "d", "?")] == ["A", "A", "A", "c", "d", "?"]
    assert registry.take_up_labels(["d", "b", "e", "c"], actor="me") == (["e"], ["d", "b"])
    assert state(registry) == {"a": "A", "b": "active", "c": "active", "d": "active", "A": "active", "e": "active"}
    registry.rename_label("A", "a", actor="me")  # back
    assert (registry.label_map().current("A"), state(registry)["a"]) == ("a", "active")
    assert [row.action for row in registry.audit_rows()] == [
        *("labels retire", "labels rename", "labels merge", "labels add", "labels rename")
    ]
    assert registry.verify_audit() == []


def test_the_taxonomy_is_not_changed_into_something_that_nobody_can_train(registry: Registry) -> None:
    registry.set_labels(["a", "b", "c"])
    registry.retire_label("c", actor="me")
    changes: list[Callable[[], None]] = [
        lambda: registry.retire_label("a", actor="me"),
        lambda: registry.retire_label("c", actor="me"),
        lambda: registry.retire_label("?", actor="me"),
        lambda: registry.merge_labels("a", "b", actor="me"),
        lambda: registry.merge_labels("a", "a", actor="me"),
        lambda: registry.rename_label("a", "b", actor="me"),
        lambda: registry.rename_label("a", "c", actor="me"),
    ]
    for change in changes:
        with pytest.raises(BadLabel, match=r"ratchet labels|add another|itself"):
            change()
    assert state(registry) == {"a": "active", "b": "active", "c": "retired"}
    assert len(registry.audit_rows()) == 1


def test_a_target_has_the_present_names_of_its_labels() -> None:
    names = LabelMap(
        [
            Label(name="a", state="merged", merged_into="b"),
            Label(name="b"),
            Label(name="c", state="retired"),
            Label(name="d"),
        ]
    )
    assert [names.target("classification", label) for label in ("a", "b", "c", "?")] == ["b", "b", "c", "?"]
    assert names.target("multilabel", '["a", "b", "c", "d"]') == '["b", "d"]'
    assert names.target("multilabel", '["c"]') == "[]"
    assert names.target("regression", "3.5") == "3.5"
    assert names.outputs(["a", "c", "d"]) == ["b", "c", "d"]
    assert names.outputs(["a", "b", "d"]) == ["a", "b", "d"]
