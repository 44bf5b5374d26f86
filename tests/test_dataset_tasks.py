"""The dataset of labels in plural and of numbers: files, feedback, votes, sides, quarantine, counts, profile."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.dataset.build import Sources, build
from pipelines.dataset.cleaning.aggregate import aggregate
from pipelines.dataset.cleaning.quarantine import quarantined
from pipelines.dataset.counted import Counted
from pipelines.dataset.examples import Drops, Example
from pipelines.dataset.files import BadFile, FileRow, read_rows
from pipelines.dataset.report.profile import profile
from pipelines.dataset.sources.collect import from_feedback
from pipelines.dataset.split import Policy, cluster_key, decide
from schemas.setting_groups import DatasetSettings, ModelSettings
from schemas.settings import Settings
from schemas.targets import Task, canonical
from tests.support.dataset_rounds import Ledger, no_embedding, said
from tests.support.fakes import TOPICS, toy_rows


@pytest.mark.parametrize(
    ("task", "name", "content", "labels"),
    [
        ("multilabel", "a.csv", 'text,labels\nx,b|a\ny,"[""a""]"\nz,[]\n', ['["a", "b"]', '["a"]', "[]"]),
        ("multilabel", "a.jsonl", '{"text": "x", "labels": ["b", "a", "b"]}\n{"text": "y", "labels": []}', ['["a", "b"]', "[]"]),
        ("regression", "a.csv", "text,target\nx,3\ny, -0.5 \nz,1e3\n", ["3.0", "-0.5", "1000.0"]),
        ("regression", "a.jsonl", '{"text": "x", "target": 3}', ["3.0"]),
    ],
)  # fmt: skip
def test_targets_of_a_file(tmp_path: Path, task: Task, name: str, content: str, labels: list[str]) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert [row.label for row in read_rows(tmp_path / name, task)] == labels


@pytest.mark.parametrize(
    ("task", "content", "said"),
    [
        ("regression", "text,label\nx,3\n", "no column 'target'"),
        ("regression", "text,target\nx,3\ny,\n", "line 3: target is empty"),
        ("regression", "text,target\nx,3\ny,many\n", "line 3: target is 'many': expected a finite number"),
        ("regression", 'text,target\nx,"3,5"\n', "line 2: target is '3,5'"),
        ("regression", "text,target\nx,nan\n", "line 2: target is 'nan': expected"),
        ("multilabel", "text,labels\nx,\n", r"line 2: labels is empty; write \[\] for"),
        ("multilabel", "text,labels\nx,[a]\n", "line 2: labels is '.a.': expected labels as a JSON list"),
        ("multilabel", "text,labels\nx,a||b\n", "line 2: labels is .*expected a label"),
    ],
)
def test_a_bad_target_names_its_row(tmp_path: Path, task: Task, content: str, said: str) -> None:
    (tmp_path / "a.csv").write_text(content, encoding="utf-8")
    with pytest.raises(BadFile, match=said):
        read_rows(tmp_path / "a.csv", task)


def row(label: object, source: str = "correction", task: Task = "regression", **fields: object) -> Example:
    return Example(text="t", label=canonical(task, label), source=source, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("numbers", "median", "weight"),
    [
        ([row(2), row(3), row(9)], "3.0", 1.0),
        ([row(2), row(9)], "5.5", 1.0),
        ([row(2, "seed"), row(9), row(9)], "2.0", 1.0),
        ([row(4, "rating", weight=0.5)], "4.0", 0.5),
        ([row(4, "rating", weight=0.5), row(8)], "8.0", 1.0),
    ],
)
def test_numbers_merge_into_their_weighted_median(numbers: list[Example], median: str, weight: float) -> None:
    drops = Drops()
    found = aggregate("the leader", numbers, drops, "regression")
    assert found is not None
    assert (found.text, found.label, found.weight) == ("the leader", median, weight)
    assert drops.counts.total() == len(numbers) - 1


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        ([["a"], ["a", "b"], ["a"]], ["a"]),
        ([["a"], ["a", "b"], ["b", "c"]], ["a", "b"]),
        ([["a"], ["b"], ["c"]], []),
        ([["a"], ["b"]], None),
        ([[]], []),
    ],
)
def test_every_label_is_voted_on(given: list[list[str]], labels: list[str] | None) -> None:
    found = aggregate("t", [row(own, task="multilabel") for own in given], Drops(), "multilabel")
    assert (found.label if found else None) == (None if labels is None else canonical("multilabel", labels))


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ([("one", "correction", "1"), ("two", "correction", "2")], "two"),
        ([("one", "correction", "1"), ("two", "correction", "2"), ("one", "correction", "0")], "one"),
        ([("one", "seed", ""), ("two", "correction", "2"), ("two", "correction", "3")], "one"),
    ],
)
def test_of_texts_with_as_many_votes_the_newest_trains(given: list[tuple[str, str, str]], text: str) -> None:
    rows = [row(said, source, "generation", order=order) for said, source, order in given]
    for ordered in (rows, rows[::-1]):
        found = aggregate("t", ordered, Drops(), "generation")
        assert found is not None
        assert found.label == text


def test_a_thumbs_down_weighs_against_the_labels_that_were_shown() -> None:
    down = row(["a"], "rejection", "multilabel", weight=0.5)
    for others, expected in (
        ([], ('["a"]', 0.5, True)),
        ([["a"]], ('["a"]', 0.5, False)),
        ([["b"]], ('["b"]', 1.0, False)),
    ):
        found = aggregate("t", [down, *(row(own, task="multilabel") for own in others)], Drops(), "multilabel")
        assert found is not None
        assert (found.label, found.weight, found.rejects) == expected


def test_feedback_becomes_a_target_of_its_task() -> None:
    base = replace(said("some text", "x", 1), predicted_label="3.0")
    kinds: list[tuple[str, object]] = [
        *(("correction", 3), ("correction", 4.5), ("correction", "four")),
        *(("rating", "up"), ("rating", "down"), ("score", 0.2), ("comment", "hm")),
    ]
    drops = Drops()
    found = from_feedback([replace(base, kind=kind, value=value) for kind, value in kinds], drops, "regression")
    assert [(e.label, e.source) for e in found] == [("3.0", "confirmation"), ("4.5", "correction"), ("3.0", "rating")]
    assert drops.counts == {
        "correction: no target of regression": 1,
        "thumbs-down: does not say what is wrong": 1,
        "score: names no target": 1,
        "comment: for people": 1,
    }


def test_numbers_are_held_out_and_rare_labels_are_not() -> None:
    policy = Policy(validation=0.15, calibration=0.33)
    numbers = [Example(text=f"t{n}", label=f"{n}.0", source="seed") for n in range(200)]
    keys = [cluster_key("m", e.text) for e in numbers]
    sides = Counter(decide(numbers, keys, {}, policy, task="regression", reference_rows=0))
    assert 30 < sides["test"] + sides["calibration"] < 90
    sets = [replace(e, label='["a", "rare"]' if n < 2 else '["a"]') for n, e in enumerate(numbers)]
    assert decide(sets, keys, {}, policy, task="multilabel", reference_rows=0)[:2] == ["train", "train"]


@pytest.mark.parametrize("task", ["multilabel", "regression"])
@pytest.mark.parametrize("over_words", [False, True])
def test_who_contradicts_everybody_is_found(task: Task, over_words: bool) -> None:
    """One person turns every label into another, or every number around."""
    topics = list(TOPICS)

    def target(label: str, turned: bool) -> str:
        place = topics.index(label)
        if task == "regression":
            return canonical(task, 2 - place if turned else place)
        return canonical(task, [topics[(place + turned) % 3], topics[(place + turned + 1) % 3]])

    rows = [(text, target(label, False), f"u{n % 40}") for n, (text, label) in enumerate(toy_rows(600, seed=3))]
    rows += [(text, target(label, True), "liar") for text, label in toy_rows(40, seed=4)]
    words = sorted({word for own in TOPICS.values() for word in own})

    def embed(texts: object) -> "np.ndarray":
        assert not over_words
        return np.array([[text.split().count(word) for word in words] for text in texts], dtype=np.float32)  # type: ignore[attr-defined]

    texts, labels, people = zip(*rows, strict=True)
    limit = 0 if over_words else 1000
    found = quarantined(
        texts, labels, people, [True] * len(rows), task=task, embed=embed, probe_c=1.0, embedded_rows=limit
    )
    assert found == {"liar"}


def test_what_rows_count_under() -> None:
    sets = ['["a", "b"]', '["a"]', "[]"]
    assert Counted.over("multilabel", ["a", "b", "c"], sets).rows(sets) == {"a": 2, "b": 1}
    stars = [f"{n}.0" for n in (1, 2, 2, 5)]
    assert Counted.over("regression", [], stars).rows(stars) == {"1": 1, "2": 2, "5": 1}
    many = [f"{n / 100}" for n in range(1000)] + ["1000.0"]
    found = Counted.over("regression", [], many).rows(many)
    assert sum(found.values()) == len(many)
    assert next(iter(found)).startswith("below") or next(iter(found)) == "0 to 1"
    assert found["10 and more"] == 1
    assert json.loads(canonical("regression", 1e3)) == 1000


def test_a_profile_compares_labels_only_where_there_are_some() -> None:
    rows = [FileRow(text, canonical("multilabel", [label])) for text, label in toy_rows(30, seed=1)]
    found = build(
        Sources(seed=rows, feedback=[], cut={}),
        labels=list(TOPICS),
        settings=Settings(model=ModelSettings(task="multilabel"), dataset=DatasetSettings(quarantine=False)),
        embed=no_embedding,
        ledger=Ledger(),
    )
    texts = [text for text, _ in toy_rows(20, seed=2)]
    described = profile(
        found,
        task="multilabel",
        embed=lambda texts: np.array([[text.count(one) for one in "aeiou"] for text in texts], dtype=np.float32),
        count_tokens=lambda texts: [len(text.split()) for text in texts],
        max_length=16,
        against={"silent": [(text, "[]") for text in texts], "said": [(text, '["money"]') for text in texts]},
    )
    silent, said_money = described.drift
    assert (silent.rows, silent.chi2_p, silent.psi) == (20, None, None)
    assert silent.two_sample_p is not None
    assert said_money.chi2_p is not None
    assert said_money.chi2_p < 0.01
