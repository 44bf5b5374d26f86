"""Sides: decided once, never leaking, whatever rounds bring; the same rows are the same dataset anywhere (invariant 7)."""

import random
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipelines.dataset.build import Sources, build
from pipelines.dataset.cleaning.deduplicate import Grams, cluster
from pipelines.dataset.files import FileRow
from pipelines.dataset.sources.queue_labels import QueueRows
from schemas.setting_groups import DatasetSettings, ModelSettings
from schemas.settings import Settings
from tests.support.dataset_rounds import (
    LABELS,
    Simulation,
    edited,
    no_embedding,
    said,
    sentence,
    sides_in_use,
    similar_pairs,
    similarity,
)
from tests.support.fakes import REPOSITORY, toy_rows


def test_over_20_rounds_nothing_leaks_and_no_row_changes_side() -> None:
    simulated = Simulation(seed=1, rows=60)
    simulated.run(20)
    assert (simulated.leaks, simulated.changed, simulated.late) == (0, 0, 0)
    assert len(simulated.judged_audits) > 10
    assert simulated.dropped["waits for an audit label"] > 0
    assert simulated.dropped["bridge"] > 0, "the simulation made no bridge: it proves nothing"
    assert simulated.dropped["in the reference"] > 0
    assert simulated.dropped["duplicate"] > 0


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32),
    duplicates=st.floats(0, 0.6),
    bridges=st.floats(0, 0.4),
    absent=st.floats(0, 0.8),
    by=st.sampled_from(["text", "time", "person"]),
)
@example(seed=79, duplicates=0.539, bridges=0.1875, absent=0.21875, by="text")  # the words of a trained text are drawn
@example(seed=887943917, duplicates=0.51, bridges=0.29, absent=0.62, by="time")  # drawn words come back undrawn
def test_no_rounds_leak(seed: int, duplicates: float, bridges: float, absent: float, by: str) -> None:
    simulated = Simulation(
        seed=seed, rows=25, duplicates=duplicates, bridges=bridges, absent=absent, settings={"split_by": by}
    )
    for _ in range(5):
        before = set(simulated.ledger.kept)
        found = simulated.round()
        again = simulated.build(list(reversed([*simulated.given]))) if absent == 0 else None
        assert again is None or again.manifest.fingerprint == found.manifest.fingerprint
        in_training = Counter(e.label for e in found.train)
        fresh = [e for e in found.validation if _key(e.text) not in before]
        for label in {e.label for e in fresh}:
            assert in_training[label] >= 2, f"{label} validates before two of its rows train"
    assert (simulated.leaks, simulated.changed) == (0, 0)


def _key(text: str) -> str:
    from pipelines.dataset.split import cluster_key

    return cluster_key("m", text)


def test_a_round_that_is_run_again_is_the_same_round() -> None:
    simulated = Simulation(seed=3, rows=120, bridges=0.2)
    simulated.run(3)
    first = simulated.build(simulated.given)
    shuffled = list(simulated.given)
    random.Random(0).shuffle(shuffled)
    again = simulated.build(shuffled)
    assert again.manifest == first.manifest
    assert sides_in_use(again) == sides_in_use(first)


def test_another_process_and_another_order_give_the_same_fingerprint() -> None:
    code = (
        "import sys; from tests.support.dataset_rounds import Simulation\n"
        "s = Simulation(seed=4, rows=80); s.grow(); rows = sorted(s.given, key=lambda r: r.text)\n"
        "print(s.build(rows).manifest.fingerprint)"
    )
    found = set()
    for hash_seed in ("1", "2"):
        command = [sys.executable, "-c", code]
        done = subprocess.run(
            command,
            cwd=REPOSITORY,
            env={"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
            encoding="utf-8",
        )
        found.add(done.stdout.strip())
    here = Simulation(seed=4, rows=80)
    here.grow()
    assert found == {here.build(here.given).manifest.fingerprint}


def test_clusters_are_exact_against_all_pairs() -> None:
    draw = random.Random(5)
    texts = [sentence(draw, draw.choice(LABELS)) for _ in range(150)]
    while len(texts) < 500:
        texts.append(edited(draw, draw.choice(texts)))
    texts += ["", "a", "ab", "abc", "ABC ", " a  B", "ß", "ss", "\U0001f600" * 40]
    found = cluster(texts)
    similar = similar_pairs(texts)
    pairs = {*similar, *((j, i) for i, j in similar)}
    leaders: list[int] = []
    for i in range(len(texts)):
        if not any((i, j) in pairs for j in leaders):
            leaders.append(i)
    assert [i for i, leader in enumerate(found.leader) if i == leader] == leaders
    for i in set(range(len(texts))) - set(leaders):
        expected = [j for j in leaders if (i, j) in pairs]
        assert found.leader[i] in expected
        assert found.near[i] == expected[: len(found.near[i])]


@given(st.text(max_size=40), st.text(max_size=40))
def test_grams_are_sets_of_three_characters(one: str, other: str) -> None:
    made = Grams([one, other])
    a, b = made.of(0), made.of(1)
    assert len(a & b) / len(a | b) == similarity(one, other)


def test_thousands_of_one_template_are_no_trap() -> None:
    texts = [f"order number {n} has not arrived yet, please help me soon, thanks a lot in advance" for n in range(3000)]
    found = cluster(texts)
    assert found.leader.count(0) > 1
    assert all(len(near) <= 8 for near in found.near.values())


@pytest.mark.parametrize(("reference", "drawn"), [(0, True), (100, True), (500, False)])
def test_rows_of_files_are_held_out_while_the_reference_is_small(reference: int, drawn: bool) -> None:
    simulated = Simulation(seed=6, rows=0)
    rows = [FileRow(*row) for row in toy_rows(200, seed=8)]
    simulated.files = rows
    simulated.reference = [FileRow(*row) for row in toy_rows(reference, seed=9)] if reference else []
    found = simulated.build([said(text, label, n + 1) for n, (text, label) in enumerate(toy_rows(90, seed=10))])
    held_out = found.manifest.rows_held_out
    assert 0.2 < held_out / 200 < 0.4 if drawn else held_out == 0
    judges = {r.text for r in [*found.reference, *found.calibration]}
    assert judges <= {r.text for r in [*rows, *simulated.reference]}, "feedback never judges"
    kept = sides_in_use(found)
    simulated.reference = [FileRow(*row) for row in toy_rows(600, seed=11)]
    later = sides_in_use(simulated.build([]))
    assert all(later[text] == side for text, side in kept.items() if text in later)


def test_what_has_trained_cannot_judge() -> None:
    simulated = Simulation(seed=7, rows=0)
    first = simulated.build([])
    trained = first.train[0]
    simulated.reference.append(FileRow(trained.text, trained.label))
    later = simulated.build([])
    assert later.manifest.reference_dropped == {"has trained: it cannot judge": 1}
    assert trained.text not in sides_in_use(later)


def test_a_reference_label_outside_the_taxonomy_judges_nothing() -> None:
    simulated = Simulation(seed=7, rows=0)
    simulated.reference.append(FileRow("a row about gardening that no model can answer", "gardening"))
    found = simulated.build([])
    assert found.manifest.reference_dropped == {"label is not in the taxonomy": 1}
    assert "gardening" not in {row.label for row in [*found.reference, *found.calibration]}


def test_every_reference_row_judges_unless_a_share_only_calibrates() -> None:
    whole, parted = Simulation(seed=7, rows=0), Simulation(seed=7, rows=0, settings={"calibration_share": 0.33})
    found, apart = whole.build([]), parted.build([])
    assert not found.calibration
    assert found.calibrating == found.reference
    assert {row.text for row in found.reference} == {row.text for row in [*apart.reference, *apart.calibration]}
    assert apart.calibration
    assert not {row.text for row in apart.calibration} & {row.text for row in apart.reference}


def test_by_time_the_newest_validate_and_by_person_nobody_is_on_two_sides() -> None:
    rows = [said(text, label, n + 1) for n, (text, label) in enumerate(toy_rows(300, seed=12))]
    simulated = Simulation(seed=8, rows=0, settings={"split_by": "time"})
    found = simulated.build(rows)
    cut = min(e.order for e in found.validation if e.order)
    assert all(e.order < cut for e in found.train if e.order)
    simulated = Simulation(seed=8, rows=0, settings={"split_by": "person"})
    found = simulated.build(rows)
    people = [{e.person for e in side if e.person} for side in (found.train, found.validation)]
    assert people[1]
    assert not people[0] & people[1]


def test_feedback_on_an_audit_text_waits_until_it_has_a_label_or_expires() -> None:
    simulated = Simulation(seed=9, rows=0)
    text = "a text of its own that nobody has sent before"
    given = [said(text, LABELS[1], n) for n in range(1, 6)] + [said(text + "!", LABELS[1], 6)]
    simulated.waiting = {text: 1}

    waits = simulated.build(given)
    assert text not in sides_in_use(waits)
    assert waits.manifest.dropped["waits for an audit label"] == 6  # its near-duplicate too

    simulated.waiting = {}
    expired = simulated.build(given)
    assert sides_in_use(expired)[text] in ("train", "validation")
    # a label that comes too late does not judge
    simulated.audited = [FileRow(text, LABELS[1])]
    later = simulated.build(given)
    assert later.manifest.reference_dropped["has trained: it cannot judge"] == 1
    assert sides_in_use(later)[text] in ("train", "validation")


def test_a_frequent_text_that_has_trained_goes_on_when_it_is_audited() -> None:
    simulated = Simulation(seed=9, rows=0)
    text = "a text of its own that fifty people send and correct"
    first = [said(text, LABELS[1], n) for n in range(1, 4)]
    assert text in sides_in_use(simulated.build(first))

    simulated.waiting = {text: 2}
    found = simulated.build([said(text, LABELS[1], n) for n in range(1, 51)])

    assert sides_in_use(found)[text] in ("train", "validation")
    assert "waits for an audit label" not in found.manifest.dropped


def test_a_labelled_audit_text_judges_and_never_trains() -> None:
    simulated = Simulation(seed=9, rows=0)
    text = "a text of its own that nobody has sent before"
    simulated.audited = [FileRow(text, LABELS[0])]

    found = simulated.build([said(text, LABELS[1], 1), said(text + ".", LABELS[1], 2)])

    assert sides_in_use(found)[text] in ("calibration", "test")
    [judged] = [row for row in [*found.reference, *found.calibration] if row.text == text]
    assert judged.label == LABELS[0]
    assert found.manifest.dropped["in the reference"] == 2


def test_an_audit_text_near_a_row_that_has_trained_does_not_judge() -> None:
    simulated = Simulation(seed=9, rows=0)
    text = "a rather long text of its own, which many people send with small changes"
    given = [said(text, LABELS[1], 1)]
    simulated.build(given)
    simulated.audited = [FileRow(text + ".", LABELS[0]), FileRow("another text that nobody has ever sent", LABELS[0])]

    found = simulated.build(given)

    assert found.manifest.reference_dropped["near a row that has trained: it cannot judge"] == 1
    assert sides_in_use(found)[text] in ("train", "validation")
    assert sides_in_use(found)["another text that nobody has ever sent"] in ("calibration", "test")


def test_labels_of_settled_rounds_train_with_a_reviewers_votes_and_are_never_held_out() -> None:
    simulated = Simulation(seed=9, rows=0)
    text = "a text of its own that two models disagreed on"
    draw = random.Random(3)
    others = [FileRow(sentence(draw, label), label) for label in LABELS * 20]
    sources = Sources(
        seed=simulated.files,
        reference=simulated.reference,
        feedback=[said(text, LABELS[1], 1)],
        cut={},
        queue=QueueRows(trains=[FileRow(text, LABELS[0]), *others]),
    )

    settings = Settings(model=ModelSettings(name="m"), dataset=DatasetSettings(quarantine=False))
    found = build(sources, labels=LABELS, settings=settings, embed=no_embedding, ledger=simulated.ledger)

    judging = {row.text for row in [*found.reference, *found.calibration]}
    assert judging.isdisjoint(row.text for row in others)
    [row] = [row for row in [*found.train, *found.validation] if row.text == text]
    assert (row.label, row.source) == (LABELS[0], "settled")  # ten votes against one
