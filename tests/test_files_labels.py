"""What labels say: words for missing, near-equal names, several in one cell, one-hot columns, exported feedback."""

import json
from pathlib import Path

import pytest

from pipelines.dataset.files import BadFile, FileRow, read_file
from pipelines.files.label_checks import near_equal
from schemas.targets import Task


def notes(path: Path, labels: list[str], task: Task = "classification") -> list[str]:
    column = "labels" if task == "multilabel" else "label"
    lines = "".join(json.dumps({"text": f"t{n}", column: label}) + "\n" for n, label in enumerate(labels))
    (path / "a.jsonl").write_text(lines, encoding="utf-8")
    return read_file(path / "a.jsonl", task).notes


@pytest.mark.parametrize(
    "word", ["NaN", "nan", "NULL", "None", "n/a", "#N/A", "NA", "-", "?", "<NA>", " none ", "(blank)"]
)
def test_a_word_for_a_missing_label_is_warned_of(tmp_path: Path, word: str) -> None:
    assert notes(tmp_path, ["a", "b", word, word]) == [
        f"label {word.strip()!r} (2 rows): a word for a missing value, read as a label; if none was meant, remove the rows"
    ]


def test_several_words_for_missing_are_one_note_and_texts_have_their_own(tmp_path: Path) -> None:
    assert notes(tmp_path, ["a", "NaN", "null"])[0].startswith("labels 'NaN' (1 row), 'null' (1 row): a word for")
    (tmp_path / "a.csv").write_text("text,label\nhi,a\nNaN,b\n", encoding="utf-8")
    assert read_file(tmp_path / "a.csv", "classification").notes == [
        "1 row whose text is a word for a missing value, such as NaN or n/a"
    ]


@pytest.mark.parametrize(
    ("labels", "groups"),
    [
        (["Refund", "refund", "other"], [["Refund", "refund"]]),
        (["card arrival", "card_arrival", "Card-Arrival"], [["Card-Arrival", "card arrival", "card_arrival"]]),
        (["refund", "refund!", "refund?"], [["refund", "refund!", "refund?"]]),
        (["ｒｅｆｕｎｄ", "refund"], [["refund", "ｒｅｆｕｎｄ"]]),
        (["c", "c++", "c#"], []),
        (["1", "-1", "15", "1.5"], []),
        (["+", "-", "/"], []),
        (["a", "b"], []),
    ],
)
def test_near_equal_labels(labels: list[str], groups: list[list[str]]) -> None:
    assert near_equal(labels) == groups


def test_near_equal_labels_are_noted_by_what_tells_them_apart(tmp_path: Path) -> None:
    assert notes(tmp_path, ["Refund", "refund", "card x", "card_x"]) == [
        "labels 'Refund' and 'refund' differ only by case: are they the same label?",
        "labels 'card x' and 'card_x' differ only by case, space or punctuation: are they the same label?",
    ]


def test_what_only_looks_different_is_one_label(tmp_path: Path) -> None:
    odd = ["caf\u00e9 x", "cafe\u0301 x", "caf\u00e9\u00a0x", "caf\u00e9  x ", "caf\u00e9\u200b x", "b"]
    assert notes(tmp_path, odd) == []
    assert {row.label for row in read_file(tmp_path / "a.jsonl", "classification").rows} == {"caf\u00e9 x", "b"}


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (
            ["a, b", "c", "a, c"],
            "no cell holds '|', and 2 rows have ',' inside a label, such as 'a, b', read as one label",
        ),
        (["a;b", "c"], "no cell holds '|', and 1 row has ';' inside a label, such as 'a;b', read as one label"),
        (["a/b", "a"], "no cell holds '|', and 1 row has '/' inside a label, such as 'a/b', read as one label"),
    ],
)
def test_several_labels_in_one_are_warned_of(tmp_path: Path, labels: list[str], said: str) -> None:
    assert notes(tmp_path, labels, "multilabel")[0].startswith(said)


@pytest.mark.parametrize("labels", [["a, b|c", "c"], ['["a, b"]', "c"], ["and/or", "c"]])
def test_labels_with_separators_of_their_own_are_not(tmp_path: Path, labels: list[str]) -> None:
    assert notes(tmp_path, labels, "multilabel") == []


@pytest.mark.parametrize(
    ("cell", "read"),
    [
        ("b|a", '["a", "b"]'),
        ('["b", "a"]', '["a", "b"]'),
        ("['b', 'a']", '["a", "b"]'),
        ("['it''s']", None),
        ("['a' 'b']", None),
        ("['a'\n 'b']", None),
        ("[a, b]", None),
        ("[None]", None),
        ("a||b", None),
    ],
)
def test_lists_are_read_as_json_and_python_write_them_and_never_joined(
    tmp_path: Path, cell: str, read: str | None
) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x", "labels": cell}) + "\n", encoding="utf-8")
    if read is None:
        with pytest.raises(BadFile, match="line 1: labels is "):
            read_file(tmp_path / "a.jsonl", "multilabel")
    else:
        assert read_file(tmp_path / "a.jsonl", "multilabel").rows[0].label == read


@pytest.mark.parametrize("cell", ["['a']", '["a", "b"]', "{'name': 'a'}", "[1]", "[]"])
def test_a_list_in_a_cell_is_no_label_of_classification(tmp_path: Path, cell: str) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x", "label": cell}) + "\n", encoding="utf-8")
    with pytest.raises(BadFile, match="expected one label; several are read with --task multilabel"):
        read_file(tmp_path / "a.jsonl", "classification")
    assert notes(tmp_path, ["[urgent]", "[later]"]) == []


def test_columns_of_noughts_and_ones_are_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,a,b\nx,1,0\ny,0,1\n", encoding="utf-8")
    with pytest.raises(BadFile) as caught:
        read_file(tmp_path / "a.csv", "multilabel")
    assert "no column 'labels', but 2 columns that hold only 0 and 1 (a, b): write the names" in str(caught.value)


@pytest.mark.parametrize(
    ("task", "values", "read"),
    [
        ("classification", ["a", "b"], ["a", "b"]),
        ("multilabel", [["b", "a"], []], ['["a", "b"]', "[]"]),
        ("regression", [3, 0.5], ["3.0", "0.5"]),
        ("generation", ["one", "two"], ["one", "two"]),
    ],
)
def test_exported_feedback_is_read_as_its_corrections(
    tmp_path: Path, task: Task, values: list[object], read: list[str]
) -> None:
    def line(n: int, kind: str, value: object, text: str) -> str:
        ids = {"feedback_id": f"f{n}", "prediction_id": f"p{n}", "user": "u", "time": "2026-03-01T12:00:00Z"}
        about = {"predicted_label": "x", "model_version": "v", "metadata": {"channel": "ios"}}
        return json.dumps({**ids, "kind": kind, "value": value, "text": text, **about}) + "\n"

    rows = [line(n, "correction", value, f"t{n}") for n, value in enumerate(values)]
    (tmp_path / "f.jsonl").write_text(
        "".join([*rows, line(8, "rating", "up", "t8"), line(9, "correction", values[0], "")]), encoding="utf-8"
    )
    found = read_file(tmp_path / "f.jsonl", task)
    assert found.rows == [FileRow(f"t{n}", label, {"channel": "ios"}) for n, label in enumerate(read)]
    assert found.notes == [
        "read as exported feedback: 2 rows with a correction",
        "1 row of other kinds (rating, score, comment) left out: they name no target",
        "1 row without a text left out: their prediction is not stored",
    ]


def test_minus_one_among_numbers_is_noted(tmp_path: Path) -> None:
    assert notes(tmp_path, ["0", "1", "-1"]) == ["label '-1' (1 row) often means no label: if so, remove the rows"]
    assert notes(tmp_path, ["0", "a", "-1"]) == []


def test_texts_in_the_place_of_labels_are_noted(tmp_path: Path) -> None:
    assert (
        notes(tmp_path, ["x" * 200, "y"])[0]
        == "1 row with a label of more than 100 characters: is this the label column?"
    )
    assert notes(tmp_path, [f"label {n}" for n in range(30)])[0].startswith("nearly every row has a different label")
