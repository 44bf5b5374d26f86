"""The dataset: every row accounted for, nothing of the reference in training, people bounded and liars left out."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.dataset.build import NOBODY, Dataset, Sources, build
from pipelines.dataset.examples import UNCHALLENGED, Example
from pipelines.dataset.files import BadFile, FileRow, read_rows
from pipelines.feature_store.store import FeedbackRow
from schemas.records import Trusted
from schemas.setting_groups import DatasetSettings, ModelSettings
from schemas.settings import Settings
from tests.support.dataset_rounds import similarity
from tests.support.fakes import FILLERS, TOPICS, toy_rows

WORDS = {word: n for n, word in enumerate([*FILLERS, *(w for words in TOPICS.values() for w in words)])}


def bag_of_words(texts: object) -> NDArray[np.float32]:
    found = np.zeros((len(list(texts)), len(WORDS)), dtype=np.float32)  # type: ignore[call-overload]  # a sequence of texts
    for row, text in zip(found, texts, strict=True):  # type: ignore[call-overload]
        for word in text.split():
            row[WORDS.get(word, 0)] += 1
    return found


def feedback(rows: list[tuple[str, str]], user: str, *, kind: str = "correction", first: int = 0) -> list[FeedbackRow]:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    return [
        FeedbackRow(
            feedback_id=f"{user}-{first + n}",
            prediction_id=f"p-{user}-{first + n}",
            kind=kind,
            value=label,
            user=user,
            time=start + timedelta(seconds=n),
            text=text,
            predicted_label="money",
            model_version="v",
            metadata={},
        )
        for n, (text, label) in enumerate(rows)
    ]


class Ledger:
    """The registry's split ledger, in memory."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}

    def sides(self, keys: Iterable[str]) -> dict[str, str]:
        return {key: self.kept[key] for key in keys if key in self.kept}

    def record_sides(self, sides: Mapping[str, str]) -> dict[str, str]:
        self.kept = {**sides, **self.kept}
        return {key: self.kept[key] for key in sides}


SEED = [FileRow(*row) for row in toy_rows(30, seed=1)]
REFERENCE = [FileRow(*row) for row in toy_rows(510, seed=2)]


def dataset(
    given: list[FeedbackRow],
    ledger: Ledger | None = None,
    *,
    seed: list[FileRow] = SEED,
    reference: list[FileRow] | None = REFERENCE,
    since: datetime | None = None,
    trusted: Trusted = NOBODY,
    **fields: object,
) -> Dataset:
    settings = Settings(model=ModelSettings(name="m"), dataset=DatasetSettings.model_validate(fields))
    return build(
        Sources(seed=seed, reference=reference, feedback=given, cut={}, since=since, trusted=trusted),
        labels=list(TOPICS),
        settings=settings,
        embed=bag_of_words,
        ledger=ledger or Ledger(),
    )


def texts(rows: Iterable[Example | FileRow]) -> set[str]:
    return {row.text for row in rows}


def test_every_row_is_kept_or_dropped_with_a_reason() -> None:
    rows = feedback(toy_rows(40, seed=3), "u1") + feedback([("", "money"), ("goal and pitch today", "unheard")], "u2")
    rows += feedback([("nice", "up"), ("bad", "down")], "u3", kind="rating") + feedback(
        [("x", "words")], "u4", kind="comment"
    )
    found = dataset(rows)
    m = found.manifest
    assert m.rows_in == len(SEED) + len(rows) == m.rows_kept + sum(m.dropped.values())
    assert {"empty", "label not in the taxonomy", "comment: for people"} <= found.manifest.dropped.keys()


def test_the_reference_never_trains_not_even_nearly() -> None:
    reference = toy_rows(510, seed=2)
    found = dataset(feedback([(text.upper() + " ", label) for text, label in reference[:20]], "u1"))
    assert found.manifest.dropped["in the reference"] == 20
    assert max(similarity(e.text, text) for e in found.train for text, _ in reference) < 0.9
    judged = {r.text for r in found.reference}
    assert judged
    assert not judged & {r.text for r in found.calibration}


def test_one_person_is_capped_and_the_newest_rows_stay() -> None:
    found = dataset(feedback(toy_rows(80, seed=4), "u1"), max_rows_per_person=25)
    assert found.manifest.dropped["over the cap per person"] == 55


def test_a_liar_is_quarantined_and_honest_people_are_not() -> None:
    honest = [r for n in range(12) for r in feedback(toy_rows(20, seed=100 + n), f"u{n}")]
    turn = dict(zip(TOPICS, [*list(TOPICS)[1:], next(iter(TOPICS))], strict=True))
    lies = feedback([(text, turn[label]) for text, label in toy_rows(40, seed=50)], "liar")
    assert dataset(honest + lies).manifest.quarantined_people == ["liar"]
    assert dataset(honest).manifest.quarantined_people == []
    assert dataset(honest + lies, quarantine=False).manifest.quarantined_people == []
    released = dataset(honest + lies, trusted=Trusted(released=frozenset({"liar"}))).manifest
    assert released.quarantined_people == []
    rejected = Trusted(rejected=frozenset({"u1", "nobody here"}))
    assert dataset(honest + lies, trusted=rejected).manifest.quarantined_people == ["liar", "u1"]
    assert dataset(honest, quarantine=False, trusted=rejected).manifest.quarantined_people == ["u1"]


def test_answers_that_nobody_challenged_accuse_nobody_and_are_no_new_rows() -> None:
    """The champion takes cooking for money; one person corrects it, and the others have seldom seen any."""
    mixed = [toy_rows(60, seed=100 + n) for n in range(8)]
    others = [
        r for n, rows in enumerate(mixed) for r in feedback([row for row in rows if row[1] != "cooking"], f"u{n}")
    ]
    cooking = [row for row in toy_rows(600, seed=50) if row[1] == "cooking"]
    given = others + feedback(cooking[:8], "u0", first=100) + feedback(cooking[8:40], "cook")
    silent = [replace(row, user=None) for row in feedback(cooking[40:], "nobody", kind=UNCHALLENGED)]
    alone, beside = dataset(given).manifest, dataset(given + silent).manifest
    assert alone.quarantined_people == beside.quarantined_people == []
    assert beside.rows_by_source[UNCHALLENGED] > 50
    assert (beside.given_sha256, beside.fingerprint != alone.fingerprint) == (alone.given_sha256, True)
    assert dataset(given[1:] + silent).manifest.given_sha256 != alone.given_sha256


def test_the_majority_decides_and_a_tie_is_nobodys() -> None:
    text = "the coach of the team and the penalty today"
    two = [
        *feedback([(text, "football")], "u1"),
        *feedback([(text, "football")], "u2"),
        *feedback([(text, "money")], "u3"),
    ]
    found = dataset(two)
    assert [e.label for e in [*found.train, *found.validation] if e.text == text] == ["football"]
    tie = dataset(two[1:])
    assert text not in {e.text for e in [*tie.train, *tie.validation]}
    assert tie.manifest.dropped["disagreement"] == 2


def test_a_side_once_given_is_kept_and_the_fingerprint_is_the_rows() -> None:
    ledger = Ledger()
    rows = feedback(toy_rows(60, seed=5), "u1")
    first = dataset(rows, ledger, max_rows_per_person=None)
    again = dataset(list(reversed(rows)), ledger, max_rows_per_person=None)
    more = dataset(rows + feedback(toy_rows(60, seed=6), "u2"), ledger, max_rows_per_person=None)
    assert first.manifest.fingerprint == again.manifest.fingerprint != more.manifest.fingerprint
    assert texts(first.validation) <= texts(more.validation)
    assert texts(first.train) <= texts(more.train)
    assert first.validation


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"text,topic\nhi,x\n", "no column 'label'"),
        ("a.csv", b"text,label\nhi,\n", "line 2: label is empty"),
        ("a.csv", b"", "no rows"),
        ("a.csv", b"text,label\n\xff\xfe,x\n", "a.csv"),
        ("a.jsonl", b'{"text": "hi", "label": "x"}\n[1]\n', "line 2: .* is not an object"),
        ("a.txt", b"hi", "expected .csv, .tsv, .jsonl"),
    ],
)
def test_a_bad_file_is_named_with_row_and_column(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadFile, match=said) as caught:
        read_rows(tmp_path / name, "classification")
    assert name in str(caught.value)


def test_rows_of_files_are_anonymised_and_keep_their_metadata(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label,channel\nmail bob@example.org,x,ios\n", encoding="utf-8")
    assert read_rows(tmp_path / "a.csv", "classification") == [FileRow("mail <EMAIL>", "x", {"channel": "ios"})]
