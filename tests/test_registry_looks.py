"""The ledger of looks: alpha is spent once a round, against a champion version, and nothing renews it."""

import json

import pytest

from schemas.manifests import DatasetManifest
from schemas.records import Look, RoundRecord, RoundState
from schemas.reports import Verdict
from serving.registry.registry import Registry
from tests.support import registries
from tests.support.registries import Clock, add_versions, begin, gate_report, statement

url, clock, registry = registries.url, registries.clock, registries.registry


def spending(look: int, fresh: int | None) -> float:
    return 1 / look + (10.0 / fresh if fresh else 0.0)


def open_look(registry: Registry, champion: str, keys: list[str], record: RoundRecord | None = None) -> Look:
    record = record or begin(registry)
    look = registry.open_look(record.round_id, champion, "c", keys, "f" * 64, spending, least_fresh=3)
    if registry.round(record.round_id).state is RoundState.RUNNING:
        registry.finish_round(record.round_id, RoundState.INSUFFICIENT, detail="x")
    return look


OLD, NEW = ["a", "b", "c", "d"], ["e", "f", "g"]


def test_looks_count_against_the_champion_version_and_a_rollback_renews_none(registry: Registry, clock: Clock) -> None:
    add_versions(registry, "v1", "v2")
    registry.promote("v1", expected=None, token=None, actor="ada")
    first, second = open_look(registry, "v1", OLD), open_look(registry, "v1", OLD)
    assert [(look.number, look.fresh_rows, look.at) for look in (first, second)] == [
        (1, 4, clock.now),
        (2, 0, clock.now),
    ]
    assert [look.alpha for look in (first, second)] == [11.0, 0.5]
    registry.promote("v2", expected="v1", token=None, actor="ada")
    assert open_look(registry, "v2", OLD).number == 1, "against another champion nothing was tried yet"
    registry.promote("v1", expected="v2", token=None, actor="ada")
    back = open_look(registry, "v1", OLD)
    assert (back.number, back.fresh_rows) == (3, 0)
    assert [look.sequence for look in registry.looks()] == [1, 2, 3, 4]
    assert [look.number for look in registry.looks("v1")] == [1, 2, 3]


def test_rows_never_looked_at_carry_an_alpha_of_their_own(registry: Registry) -> None:
    open_look(registry, "v1", OLD)
    few = open_look(registry, "v1", [*OLD, *NEW[:2]])
    assert (few.fresh_rows, few.alpha) == (0, 0.5), "two new rows wait until there are three"
    enough = open_look(registry, "v1", [*OLD, *NEW])
    assert enough.fresh_rows == 3
    assert enough.alpha == pytest.approx(1 / 3 + 10 / 2)
    assert open_look(registry, "v1", [*OLD, *NEW]).fresh_rows == 0, "seen once, they are no longer fresh"


def test_a_round_that_dies_spends_its_alpha_once(registry: Registry) -> None:
    record = begin(registry)
    first = open_look(registry, "v1", OLD, record)
    assert first.p is None
    assert first.verdict is None
    assert open_look(registry, "v1", [*OLD, *NEW], record) == first, "it resumes with the same look"
    registry.close_look(first.sequence, p=0.2, verdict=Verdict.INSUFFICIENT.value)
    [look] = registry.looks()
    assert (look.p, look.verdict) == (0.2, "insufficient evidence")
    registry.close_look(99, p=0.1, verdict="pass")
    assert registry.looks() == [look], "there is no such look"
    moved = registry.open_look(record.round_id, "v2", "c", OLD, "f" * 64, spending, least_fresh=3)
    assert (moved.champion, moved.number) == ("v2", 1), "resumed against another champion, it looks anew"


def test_a_registry_from_before_the_ledger_enters_its_rounds(registry: Registry, url: str) -> None:
    dataset = DatasetManifest(
        fingerprint="d" * 64, cut={}, labels=[], rows_in=0, rows_train=0, rows_validation=0, rows_by_source={},
        rows_by_label={}, dropped={}, reference_rows=300, reference_calibration_rows=100, reference_sha256="e" * 64,
    )  # fmt: skip
    add_versions(registry, "v1")
    registry.promote("v1", expected=None, token=None, actor="ada")
    for bootstrap in (True, False, False):
        record = begin(registry)
        report = gate_report(Verdict.FAIL, bootstrap=bootstrap)
        registry.update_round(record.round_id, gate_report=report, dataset=dataset, candidate_version="c")
        registry.finish_round(record.round_id, RoundState.REJECTED, detail="worse")
    for table in ("looks", "looked_rows", "people", "approvals", "signed_ids", "trust", "deliveries"):
        statement(url, f"DROP TABLE {table}")
    statement(url, "ALTER TABLE versions DROP COLUMN state")
    statement(url, "DROP INDEX rounds_by_state")
    statement(url, "UPDATE alembic_version SET version_num = '0004_queue'")
    assert registry.looks() == [], "a registry that is not migrated yet can be read"
    registry.migrate()
    assert [(look.champion, look.number, look.rows, look.candidate) for look in registry.looks()] == [
        ("v1", 1, 300, "c"),
        ("v1", 2, 300, "c"),
    ]
    assert open_look(registry, "v1", OLD).number == 3
    assert json.loads(registry.looks()[0].model_dump_json())["verdict"] == "fail"
