"""Parquet, Excel workbooks, saved datasets and cloned repositories: class labels by name, nulls left out, one table each."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.dataset.files import BadFile, FileRow, read_file
from schemas.targets import Task

NAMES = ["no", "yes"]
CLASS = {"names": NAMES, "_type": "ClassLabel"}


def parquet(path: Path, columns: dict[str, Any], features: dict[str, Any] | None = None) -> Path:
    """Write a Parquet file; `features` as Hugging Face datasets writes them into its schema."""
    table = pa.table(columns)
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def labels(path: Path, task: Task = "classification") -> list[str]:
    return [row.label for row in read_file(path, task).rows]


@pytest.mark.parametrize(
    ("column", "read", "left_out"),
    [
        (pa.array([1, 0, -1, None]), ["yes", "no"], 2),
        (pa.array([1.0, 0.0, None]), ["yes", "no"], 1),
        (pa.array(["yes", "no"]), ["yes", "no"], 0),
    ],
)
def test_class_labels_are_read_by_the_names_in_the_schema(
    tmp_path: Path, column: "pa.Array", read: list[str], left_out: int
) -> None:
    texts = [f"t{n}" for n in range(len(column))]
    found = read_file(
        parquet(tmp_path / "a.parquet", {"text": texts, "label": column}, {"label": CLASS}), "classification"
    )
    assert [row.label for row in found.rows] == read
    rows = f"{left_out} row{'s' * (left_out > 1)}"
    first = len(read) + 1
    assert found.notes == ([f"{rows} without a label left out (the first: row {first})"] if left_out else [])


@pytest.mark.parametrize(
    "feature", [{"feature": CLASS, "_type": "Sequence"}, {"feature": CLASS, "_type": "List"}, [CLASS]]
)
def test_lists_of_class_labels_are_lists_of_names(tmp_path: Path, feature: object) -> None:
    columns = {"text": ["a", "b", "c", "d"], "labels": pa.array([[0, 1], [1], [], None])}
    path = parquet(tmp_path / "a.parquet", columns, {"labels": feature})
    assert labels(path, "multilabel") == ['["no", "yes"]', '["yes"]', "[]"]


@pytest.mark.parametrize(
    ("column", "read"),
    [
        (pa.array(["x", "y", None]).dictionary_encode(), ["x", "y"]),
        (pa.array([1.0, 2.0, float("nan")]), ["1", "2"]),
        (pa.array([1.5, 2.0, None]), ["1.5", "2"]),
        (pa.array([True, False, None]), ["True", "False"]),
        (pa.array([b"x", b"y", None]), ["x", "y"]),
        (pa.array([Decimal("1.0"), Decimal("2.0"), None]), ["1", "2"]),
        (pa.array(["x", "y", None], pa.large_string()), ["x", "y"]),
    ],
)
def test_columns_of_any_plain_type_are_labels(tmp_path: Path, column: "pa.Array", read: list[str]) -> None:
    found = read_file(parquet(tmp_path / "a.parquet", {"text": ["a", "b", "c"], "label": column}), "classification")
    assert [row.label for row in found.rows] == read
    assert found.notes == ["1 row without a label left out (the first: row 3)"]


@pytest.mark.parametrize(
    ("column", "features", "said"),
    [
        (pa.array([0, 2, 7]), {"label": CLASS}, "2 rows cannot be read: row 2: class label 2 has no name: the schema names 0 "
         "to 1; row 3: class label 7 has no name"),
        (pa.array([["x"], ["y"], ["z"]]), None, "3 rows cannot be read: row 1: label is ['x']: expected a label"),
        (pa.array([{"name": "x"}] * 3), None, "3 rows cannot be read: row 1: label is {'name': 'x'}: expected a label"),
        (pa.array(["x", "", " "]), None, "2 rows cannot be read: row 2: label is empty; row 3: label is empty"),
        (pa.array([None, None, None], pa.string()), None, "no rows; 3 rows without a label left out (the first: row 1)"),
        (pa.array([b"\xff", b"x", b"y"]), None, "row 1: label is b'\\xff': expected a label"),
    ],
)  # fmt: skip
def test_what_is_no_label_is_refused_by_its_row(
    tmp_path: Path, column: "pa.Array", features: dict[str, Any] | None, said: str
) -> None:
    path = parquet(tmp_path / "a.parquet", {"text": ["a", "b", "c"], "label": column}, features)
    with pytest.raises(BadFile) as caught:
        read_file(path, "classification")
    assert str(caught.value).startswith(f"{path}: {said}")


def test_an_index_is_no_metadata_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    columns = {"text": ["a", "b"], "label": ["x", "y"], "n": [1, 2], "__index_level_0__": [7, 8]}
    path = parquet(tmp_path / "a.parquet", columns)
    assert read_file(path, "classification").rows == [FileRow("a", "x", {"n": "1"}), FileRow("b", "y", {"n": "2"})]
    for content, said in (
        (path.read_bytes()[:-9], "not a whole Parquet file"),
        (b"", "no rows"),
        (b"hi", "not a whole"),
    ):
        path.write_bytes(content)
        with pytest.raises(BadFile, match=said):
            read_file(path, "classification")
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    with pytest.raises(BadFile, match="holds a pointer of Git LFS: fetch the file with `git lfs pull`"):
        read_file(path, "classification")


@pytest.mark.parametrize("place", ["", "data", "default"])
def test_a_cloned_dataset_is_read_from_its_data_files(tmp_path: Path, place: str) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    (tmp_path / ".git").mkdir()
    (tmp_path / "dataset_infos.json").write_text("{}", encoding="utf-8")
    parquet(tmp_path / place / "train-00000-of-00002.parquet", {"text": ["a"], "label": [1]}, {"label": CLASS})
    parquet(tmp_path / place / "train-00001-of-00002.parquet", {"text": ["b"], "label": [0]}, {"label": CLASS})
    parquet(tmp_path / place / "test-00000-of-00001.parquet", {"text": ["c"], "label": [-1]}, {"label": CLASS})
    found = read_file(tmp_path, "classification")
    assert found.rows == [FileRow("a", "yes"), FileRow("b", "no")]
    assert "read from 3 files or splits" in found.notes[0]
    assert f"1 row without a label left out (the first: {Path(place, 'test')}" in found.notes[1]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_class_names_of_a_clones_readme_stand_for_its_numbers(tmp_path: Path, suffix: str) -> None:
    names = "class_label:\n        names:\n          '0': no\n          '1': yes\n"
    features = f"  features:\n  - name: text\n    dtype: string\n  - name: label\n    dtype:\n      {names}"
    (tmp_path / "README.md").write_text(f"---\ndataset_info:\n{features}---\n# A dataset\n", encoding="utf-8")
    if suffix == "parquet":
        parquet(tmp_path / "train.parquet", {"text": ["a", "b", "c"], "label": [1, 0, -1]})
    else:
        rows = "text,label\na,1\nb,0\nc,-1\n"
        lines = "".join(json.dumps({"text": t, "label": n}) + "\n" for t, n in zip("abc", (1, 0, -1), strict=True))
        (tmp_path / f"train.{suffix}").write_text(rows if suffix == "csv" else lines, encoding="utf-8")
    assert [(row.text, row.label) for row in read_file(tmp_path, "classification").rows] == [
        ("a", "yes"),
        ("b", "no"),
    ]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([], "without data files"),
        (["train.csv", "train.parquet"], "holds .csv and .parquet files: name the one to read"),
        (["en/train.csv", "de/train.csv"], "more than one folder holds data files (de, en): name the one to read"),
        (["train.csv", "data/train.csv"], "more than one folder holds data files (., data): name the one to read"),
    ],
)
def test_a_folder_of_which_it_is_unclear_what_to_read_is_refused(tmp_path: Path, files: list[str], said: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text,label\na,x\n", encoding="utf-8")
    with pytest.raises(BadFile) as caught:
        read_file(tmp_path, "classification")
    assert said in str(caught.value)


def test_bad_rows_of_a_folder_are_named_by_file_and_line_and_a_split_without_labels_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\na,x\nb,y\n", encoding="utf-8")
    (tmp_path / "test.csv").write_text("text\nc\n", encoding="utf-8")
    found = read_file(tmp_path, "classification")
    assert len(found.rows) == 2
    assert found.notes[1].startswith("test.csv: no column 'label'; it has text")
    (tmp_path / "test.csv").write_text("text,label\nc,\n", encoding="utf-8")
    with pytest.raises(BadFile, match=r"test\.csv: line 2: label is empty"):
        read_file(tmp_path, "classification")


def test_saved_datasets_and_their_splits_are_read_whole(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=NAMES)})
    train = Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, None]}, features=features)
    test = Dataset.from_dict({"text": ["d", "e"], "label": [-1, -1]}, features=features)
    DatasetDict({"train": train.select([1, 0, 2]), "test": test}).save_to_disk(str(tmp_path / "both"))
    found = read_file(tmp_path / "both", "classification")
    assert found.rows == [FileRow("b", "no"), FileRow("a", "yes")]
    assert found.notes == [
        "read from 2 files or splits: train, test",
        "3 rows without a label left out (the first: train: row 3)",
    ]
    assert labels(tmp_path / "both" / "train") == ["no", "yes"]
    next((tmp_path / "both" / "train").glob("*.arrow")).write_bytes(b"")
    with pytest.raises(BadFile, match="not a whole saved dataset"):
        read_file(tmp_path / "both" / "train", "classification")


def workbook(path: Path, **sheets: list[list[object]]) -> Path:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.remove(book.active)
    for title, rows in sheets.items():
        sheet = book.create_sheet(title)
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


@pytest.mark.parametrize(
    "sheets",
    [
        {"a": [["text", "label"], ["hi", 1], ["bye", 2.5]]},
        {"a": [[], ["Text ", "Category", None], ["hi", 1.0, None], [None, None, None], ["bye", 2.5]]},
        {"a": [[None, "text", "label"], [0, "hi", 1], [1, "bye", 2.5]]},
        {"notes": [["made by us"]], "a": [["text", "label"], ["hi", "1"], ["bye", "2.5"]], "empty": []},
    ],
)
def test_the_sheet_that_has_the_columns_is_read(tmp_path: Path, sheets: dict[str, list[list[object]]]) -> None:
    rows = read_file(workbook(tmp_path / "a.xlsx", **sheets), "classification").rows
    assert rows == [FileRow("hi", "1"), FileRow("bye", "2.5")]


@pytest.mark.parametrize(
    ("sheets", "said"),
    [
        ({"a": [["text", "label"], ["hi", "a"], ["x", None], [None, "b"]]}, "2 rows cannot be read: row 3: label is empty; row "
         "4: text is empty"),
        ({"a": [["text", "label"], ["hi", "a", "b"]]}, "row 2: a cell to the right of the header's 2"),
        ({"a": [["text", "label", "label"], ["hi", "a", "b"]]}, "sheet 'a': row 1: column 'label' appears twice"),
        ({"a": [["text", "label"], ["x", "a"]], "b": [["text", "label"], ["y", "b"]]}, "sheets 'a' and 'b' all have"),
        ({"a": [["hi", "a"]]}, "sheet 'a': no column 'text' and no column 'label'; it has hi, a"),
        ({"a": []}, "no rows"),
        ({"a": [["text", "label"]]}, "no rows"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_workbook_is_named(tmp_path: Path, sheets: dict[str, list[list[object]]], said: str) -> None:
    with pytest.raises(BadFile) as caught:
        read_file(workbook(tmp_path / "a.xlsx", **sheets), "classification")
    assert str(caught.value).removeprefix(f"{tmp_path / 'a.xlsx'}: ").startswith(said)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"text,label\nhi,a\n", b"\xd0\xcf\x11\xe0"])
def test_what_is_no_workbook_is_refused(tmp_path: Path, content: bytes) -> None:
    pytest.importorskip("openpyxl")
    (tmp_path / "a.xlsx").write_bytes(content)
    with pytest.raises(BadFile, match=r"not a whole \.xlsx workbook|an Excel 97 workbook"):
        read_file(tmp_path / "a.xlsx", "classification")
