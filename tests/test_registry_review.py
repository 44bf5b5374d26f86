"""Pages of the registry's history, and decisions about people, on SQLite and Postgres."""

from serving.registry.registry import Registry
from tests.support import registries
from tests.support.registries import Clock, add_versions, begin

clock, registry, url = registries.clock, registries.registry, registries.url


def test_rounds_come_in_pages_by_state(registry: Registry) -> None:
    for n in range(7):
        record = begin(registry)
        registry.reject(record.round_id, actor="rita", reason=f"number {n}")
    begin(registry)
    first = registry.history.rounds_page(limit=5)
    second = registry.history.rounds_page(before=first[-1][0], limit=5)
    assert [len(first), len(second)] == [5, 3]
    assert registry.history.round_counts() == {"rejected": 7, "running": 1}
    rejected = registry.history.rounds_page(states=["rejected"], limit=10)
    assert [record.detail for _, record in rejected][:1] == ["rejected by rita: number 6"]
    ids = [record.round_id for _, record in first]
    assert set(registry.history.evaluations(ids)) == set(ids)


def test_the_audit_log_is_filtered_and_searched(registry: Registry) -> None:
    add_versions(registry, "a")
    registry.promote("a", expected=None, token=None, actor="gates")
    record = begin(registry)
    registry.reject(record.round_id, actor="rita", reason='100 % "sure"_')
    assert [row.action for row in registry.history.audit_page()] == ["round reject", "promote"]
    assert [row.actor for row in registry.history.audit_page(actor="rita")] == ["rita"]
    assert registry.history.audit_page(action="promote", before=1) == []
    assert [row.action for row in registry.history.audit_about(record.round_id)] == ["round reject"]
    assert registry.history.audit_about("%") == []
    assert registry.history.audit_names() == (["gates", "rita"], ["promote", "round reject"])


def test_decisions_about_people_are_in_force_until_forgotten(registry: Registry, clock: Clock) -> None:
    registry.trust.decide(["a", "b"], "released", actor="adam", reason="testers")
    clock.advance(1)
    registry.trust.decide(["b"], "rejected", actor="rita", reason="spam")
    trusted = registry.trust.trusted()
    assert (trusted.released, trusted.rejected) == (frozenset({"a"}), frozenset({"b"}))
    registry.trust.decide(["a"], "undecided", actor="adam", reason="left again")
    assert [one.user for one in registry.trust.decisions()] == ["b"]
    assert [row.action for row in registry.audit_rows()] == ["quarantine"] * 3
