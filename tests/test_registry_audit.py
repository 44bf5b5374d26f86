"""The audit log: whoever changes a row is found out, and the row is named."""

import pytest

from serving.registry import database
from serving.registry.registry import Registry
from tests.support import registries
from tests.support.registries import START, Clock, statement

url, clock, registry = registries.url, registries.clock, registries.registry


def test_the_audit_log_keeps_what_it_was_told(registry: Registry, clock: Clock) -> None:
    registry.audit("ada", "reject", {"round": "r1", "reason": "naïve\x00 🐝", "n": 3, "at": START})
    clock.advance(1)
    registry.audit("bob", "look", {})

    first, second = registry.audit_rows()
    assert (first.sequence, first.at, first.actor, first.action) == (1, START, "ada", "reject")
    assert first.detail == {"round": "r1", "reason": "naïve\x00 🐝", "n": 3, "at": str(START)}
    assert second.previous == first.hash
    assert registry.verify_audit() == []


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("UPDATE audit SET detail = '{}' WHERE sequence = 2", ["row 2 was changed"]),
        ("UPDATE audit SET actor = 'eve' WHERE sequence = 1", ["row 1 was changed"]),
        ("UPDATE audit SET at = '2020' WHERE sequence = 4", ["row 4 was changed"]),
        ("UPDATE audit SET hash = '0' WHERE sequence = 3", ["row 3 was changed"]),
        ("UPDATE audit SET previous = '0' WHERE sequence = 3", ["row 3 was changed"]),
        ("DELETE FROM audit WHERE sequence = 2", ["row 2 is missing"]),
        ("DELETE FROM audit WHERE sequence < 3", ["rows 1 to 2 are missing"]),
        ("UPDATE audit SET sequence = 9 WHERE sequence = 4", ["rows 4 to 8 are missing", "row 9 was changed"]),
        ("UPDATE audit SET actor = 'eve' WHERE sequence <> 3", [f"row {n} was changed" for n in (1, 2, 4)]),
    ],
)
def test_a_change_of_the_audit_log_is_named(registry: Registry, url: str, text: str, faults: list[str]) -> None:
    for n in range(4):
        registry.audit("ada", "look", {"n": n})
    assert registry.verify_audit() == []

    statement(url, text)

    assert registry.verify_audit() == [f"audit log of m: {fault}" for fault in faults]


def test_a_row_rewritten_together_with_its_hash_is_named(registry: Registry, url: str) -> None:
    for n in range(3):
        registry.audit("ada", "look", {"n": n})
    rows = registry.audit_rows()
    statement(url, "DELETE FROM audit WHERE sequence >= 2")
    registry.audit("ada", "look", {"n": "forged"})
    row = rows[2]
    statement(
        url,
        "INSERT INTO audit VALUES ('m', 3, :at, 'ada', 'look', '{\"n\": 2}', :previous, :hash)",
        at=database.iso(row.at),
        previous=row.previous,
        hash=row.hash,
    )

    (fault,) = registry.verify_audit()
    assert "row 2 was rewritten" in fault
