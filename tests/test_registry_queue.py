"""The labelling queue: leased, labelled, in conflict, closed; by two people at once, on both databases."""

import threading
from datetime import timedelta

import pytest

from schemas.queue import ItemState, LabelOutcome, NewItem
from schemas.records import RoundState, Settling
from schemas.reports import Verdict
from serving.registry.labelling.queue import BadQueueLabel, BadQueueRows, QueueClosed, UnknownItem
from serving.registry.registry import Registry, RoundOver
from tests.support import registries
from tests.support.registries import START, Clock, begin, gate_report

url, clock, registry = registries.url, registries.clock, registries.registry

PLAN = Settling(look=1, alpha=0.0125, horizon=120, since=START, until=START + timedelta(days=14), about=40)
LABELS = ["card", "loan", "rate"]


def settling_round(registry: Registry) -> str:
    registry.set_labels(LABELS)
    round_id = begin(registry).round_id
    registry.update_round(round_id, gate_report=gate_report(Verdict.INSUFFICIENT))
    registry.begin_settling(round_id, PLAN)
    return round_id


def disagreements(round_id: str, n: int) -> list[NewItem]:
    return [
        NewItem(
            kind="disagreement",
            round_id=round_id,
            task="classification",
            key=f"k{number}",
            text=f"text {number}",
            champion_answer="card",
            candidate_answer="loan",
        )
        for number in range(n)
    ]


def audit_item(key: str, clock: Clock, *, days: float = 14) -> NewItem:
    expires_at = clock.now + timedelta(days=days)
    return NewItem(kind="audit", task="classification", key=key, text=f"text of {key}", expires_at=expires_at)


def item_ids(registry: Registry, round_id: str) -> list[str]:
    return [item.item_id for item in registry.queue.items(round_id=round_id)]


def test_a_text_is_queued_once_a_round_and_shown_without_its_authors(registry: Registry) -> None:
    round_id = settling_round(registry)
    items = disagreements(round_id, 40)

    assert registry.queue_items.add(items) == 40
    assert registry.queue_items.add(items[:3]) == 0

    shown = registry.queue.items(round_id=round_id)
    assert {item.answers for item in shown} == {("card", "loan"), ("loan", "card")}  # shuffled
    assert shown[0].labels == tuple(LABELS)
    assert "candidate" not in shown[0].model_dump_json().replace('"candidate_', "")
    assert [item.text for item in shown] != [f"text {n}" for n in range(40)]  # drawn, not as they came


def test_two_people_who_ask_at_once_get_different_items(registry: Registry) -> None:
    round_id = settling_round(registry)
    registry.queue_items.add(disagreements(round_id, 6))
    leased: list[str] = []

    def ask(name: str) -> None:
        item = registry.queue.next(name)
        assert item is not None
        leased.append(item.item_id)

    people = [threading.Thread(target=ask, args=(f"person {n}",)) for n in range(6)]
    for person in people:
        person.start()
    for person in people:
        person.join(30)

    assert len(set(leased)) == 6
    assert registry.queue.next("a seventh") is None


def test_a_lease_stays_with_its_reviewer_and_runs_out(registry: Registry, clock: Clock) -> None:
    registry.queue_items.add(disagreements(settling_round(registry), 1))
    first = registry.queue.next("ada", lease_minutes=10)
    assert first is not None
    assert first.leased_to == "ada"
    assert first.leased_until == START + timedelta(minutes=10)

    again = registry.queue.next("ada")
    assert again is not None
    assert again.item_id == first.item_id
    assert registry.queue.next("ben") is None
    clock.advance(601)
    taken = registry.queue.next("ben")
    assert taken is not None
    assert taken.item_id == first.item_id
    assert registry.queue.next("ada") is None


def test_one_person_who_labels_twice_replaces_the_first_label(registry: Registry) -> None:
    round_id = settling_round(registry)
    registry.queue_items.add(disagreements(round_id, 1))
    (item_id,) = item_ids(registry, round_id)

    outcomes = [registry.queue.label(item_id, label, reviewer="ada").outcome for label in ("loan", "loan", "card")]

    assert outcomes == [LabelOutcome.RECORDED, LabelOutcome.UNCHANGED, LabelOutcome.REPLACED]
    (decided,) = registry.queue_items.decided(round_id)
    assert (decided.label, decided.champion_answer, decided.candidate_answer) == ("card", "card", "loan")
    assert registry.queue.next("ada") is None


def test_two_people_who_differ_need_a_third_and_three_who_differ_do_not_count(registry: Registry) -> None:
    round_id = settling_round(registry)
    registry.queue_items.add(disagreements(round_id, 2))
    resolved, disputed = item_ids(registry, round_id)
    label = registry.queue.label

    assert label(resolved, "loan", reviewer="ada").outcome is LabelOutcome.RECORDED
    assert label(resolved, "loan", reviewer="ben").outcome is LabelOutcome.AGREED
    assert label(disputed, "loan", reviewer="ada").state is ItemState.LABELLED
    in_conflict = label(disputed, "card", reviewer="ben")
    assert (in_conflict.outcome, in_conflict.state, in_conflict.label) == (
        LabelOutcome.CONFLICT,
        ItemState.CONFLICT,
        None,
    )
    assert registry.queue.progress(round_id).conflicts == 1
    assert registry.queue.next("ada") is None  # a conflict goes to somebody else
    third = registry.queue.next("cleo")
    assert third is not None
    assert (third.item_id, third.voters) == (disputed, 2)
    assert label(disputed, "rate", reviewer="cleo").outcome is LabelOutcome.DISPUTED
    assert [item.item_id for item in registry.queue_items.decided(round_id)] == [resolved]
    assert label(disputed, "card", reviewer="cleo").outcome is LabelOutcome.RESOLVED
    assert len(registry.queue_items.decided(round_id)) == 2


def test_a_skipped_item_goes_to_others_and_two_who_are_unsure_end_it(registry: Registry) -> None:
    round_id = settling_round(registry)
    registry.queue_items.add(disagreements(round_id, 1))
    (item_id,) = item_ids(registry, round_id)

    assert registry.queue.skip(item_id, reviewer="ada") is ItemState.OPEN
    assert registry.queue.next("ada") is None
    assert registry.queue.next("ben") is not None
    assert registry.queue.skip(item_id, reviewer="ben", unsure=True) is ItemState.OPEN
    assert registry.queue.skip(item_id, reviewer="ada", unsure=True) is ItemState.UNCLEAR
    assert registry.queue.next("cleo") is None
    progress = registry.queue.progress(round_id)
    assert (progress.unclear, progress.labels, progress.line) == (1, 0, "0 of about 40 labels")


def test_labels_outside_the_taxonomy_of_no_item_or_of_nobody_are_refused(registry: Registry) -> None:
    round_id = settling_round(registry)
    registry.queue_items.add(disagreements(round_id, 1))
    (item_id,) = item_ids(registry, round_id)

    with pytest.raises(BadQueueLabel, match="not in the taxonomy: 'rain'; add it with `ratchet labels add`"):
        registry.queue.label(item_id, "rain", reviewer="ada")
    with pytest.raises(UnknownItem, match="no item nowhere"):
        registry.queue.label("nowhere", "card", reviewer="ada")
    with pytest.raises(BadQueueLabel, match="reviewer"):
        registry.queue.label(item_id, "card", reviewer="  ")
    registry.rename_label("rate", "interest", actor="ada")
    assert registry.queue.label(item_id, "rate", reviewer="ada").label == "interest"


def test_after_the_verdict_no_label_is_taken(registry: Registry) -> None:
    round_id = settling_round(registry)
    registry.queue_items.add(disagreements(round_id, 2))
    first, second = item_ids(registry, round_id)
    registry.queue.label(first, "loan", reviewer="ada")
    registry.finish_round(round_id, RoundState.REJECTED, detail="harm shown")

    for item_id in (first, second):
        with pytest.raises(QueueClosed, match="is rejected and takes no more labels"):
            registry.queue.label(item_id, "card", reviewer="ada")
    with pytest.raises(QueueClosed):
        registry.queue.skip(second, reviewer="ada")
    assert registry.queue.next("ada") is None
    assert [item.label for item in registry.queue_items.decided(round_id)] == ["loan"]


def test_a_batch_is_stored_whole_or_not_at_all(registry: Registry) -> None:
    round_id = settling_round(registry)
    registry.queue_items.add(disagreements(round_id, 3))
    first, second, third = item_ids(registry, round_id)

    with pytest.raises(BadQueueRows) as refused:
        registry.queue.label_all([(first, "card"), ("gone", "card"), (second, "rain"), (first, "loan")], reviewer="ada")

    assert [n for n, _ in refused.value.errors] == [2, 3, 4]
    assert "in row 1 already" in refused.value.errors[2][1]
    assert registry.queue.progress(round_id).labels == 0
    results = registry.queue.label_all([(first, "card"), (second, "loan"), (third, "rate")], reviewer="ada")
    assert {result.outcome for result in results} == {LabelOutcome.RECORDED}
    assert registry.queue.progress(round_id).labels == 3


def test_audit_items_wait_until_they_are_labelled_or_expire(registry: Registry, clock: Clock) -> None:
    registry.set_labels(LABELS)
    registry.queue_items.add([audit_item("a", clock), audit_item("b", clock, days=1)])
    assert registry.queue_items.waiting() == {"text of a", "text of b"}
    item = registry.queue.next("ada", kind="audit")
    assert item is not None
    assert (item.answers, item.round_id) == ((), None)
    clock.advance(2 * 86400)
    assert registry.queue_items.waiting() == {"text of a"}
    by_key = {item.text: item.item_id for item in registry.queue.items(kind="audit")}
    with pytest.raises(QueueClosed, match="expired"):
        registry.queue.label(by_key["text of b"], "card", reviewer="ada")
    registry.queue.label(by_key["text of a"], "card", reviewer="ada")
    assert registry.queue_items.waiting() == frozenset()
    assert [row.text for row in registry.queue_items.decided()] == ["text of a"]


def test_the_better_of_two_texts_is_named_by_its_number(registry: Registry) -> None:
    round_id = settling_round(registry)
    both = {"champion_answer": "hello", "candidate_answer": "hi"}
    item = NewItem(kind="disagreement", round_id=round_id, task="generation", key="k", text="greet", **both)
    registry.queue_items.add([item])
    (shown,) = registry.queue.items(round_id=round_id)

    with pytest.raises(BadQueueLabel, match="1, 2 or tie"):
        registry.queue.label(shown.item_id, "hi", reviewer="ada")

    assert registry.queue.label(shown.item_id, "2", reviewer="ada").label == "2"


def test_erased_texts_leave_the_queue_with_their_votes(registry: Registry) -> None:
    round_id = settling_round(registry)
    registry.queue_items.add(disagreements(round_id, 2))
    for item in registry.queue.items(round_id=round_id):
        registry.queue.label(item.item_id, "card", reviewer="ada")

    assert registry.queue_items.erase(["text 1", "unknown"]) == 1
    assert [item.text for item in registry.queue.items(round_id=round_id)] == ["text 0"]


def test_a_newer_settling_round_supersedes_the_older(registry: Registry) -> None:
    older = settling_round(registry)
    registry.queue_items.add(disagreements(older, 1))
    (item_id,) = item_ids(registry, older)
    newer = settling_round(registry)

    assert registry.round(older).state is RoundState.SUPERSEDED
    assert newer in str(registry.round(older).detail)
    settling = registry.settling_round()
    assert settling is not None
    assert settling.round_id == newer
    with pytest.raises(QueueClosed, match="is superseded"):
        registry.queue.label(item_id, "card", reviewer="ada")
    assert registry.begin_settling(newer, PLAN).state is RoundState.SETTLING  # again, as a resumed round does
    with pytest.raises(RoundOver):
        registry.begin_settling(older, PLAN)
    with pytest.raises(RoundOver):
        registry.update_settling(older, labels=3)
    assert registry.update_settling(newer, labels=3).settling == PLAN.model_copy(update={"labels": 3})


def test_a_settling_round_lets_others_run(registry: Registry) -> None:
    settling = settling_round(registry)
    assert registry.unfinished_round() is None
    running = begin(registry)
    with pytest.raises(RoundOver, match="until the running round has ended"):
        registry.finish_round(settling, RoundState.AWAITING_APPROVAL, detail="passed")
    registry.finish_round(running.round_id, RoundState.SKIPPED, detail="nothing to do")
    registry.finish_round(settling, RoundState.AWAITING_APPROVAL, detail="passed")
