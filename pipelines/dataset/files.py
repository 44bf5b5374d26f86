"""Read labelled rows from CSV, JSON, Parquet, Excel or a dataset folder.

pipelines/files/ reads each format into records. This module turns records into rows, and counts those that are bad, left out
or odd. Texts are anonymised by pattern, as served texts are. `ratchet init` and rounds call it.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.files.cells import BadRow, is_label_list, read_cells
from pipelines.files.columns import Layout, find_columns
from pipelines.files.label_checks import is_missing, label_notes
from pipelines.files.layouts import one_hot, plain
from pipelines.files.reading import read_tables
from pipelines.files.records import BadFile, Columns, Table, counted, listed
from schemas.targets import COLUMNS, Task, labels_of
from serving.privacy.anonymise import anonymise

__all__ = ["BadFile", "Columns", "FileRow", "FileRows", "read_file", "read_rows"]
BY_NAME = Columns()


@dataclass(frozen=True)
class FileRow:
    """One labelled text, anonymised; other columns are metadata. `label` is the target's canonical text for any task.

    `where` is the row's place as messages name it, such as "line 12"; "" for a row of no file.
    """

    text: str
    label: str
    metadata: dict[str, str] = field(default_factory=dict)
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class FileRows:
    """The rows of a file, their columns, and notes on what was left out or looks odd."""

    rows: list[FileRow]
    notes: list[str]
    text_column: str = "text"
    target_column: str = "label"


def read_rows(path: Path, task: Task, columns: Columns = BY_NAME) -> list[FileRow]:
    """Return every labelled row of a file; see `read_file`. Raises BadFile."""
    return read_file(path, task, columns).rows


def read_file(path: Path, task: Task, columns: Columns = BY_NAME) -> FileRows:
    """Return every labelled row of a file or dataset folder, and notes on what is odd.

    Rows of empty cells are skipped. Rows whose target is null (JSON, Parquet, class label -1) are left out and counted.

    Args:
        path: .csv, .tsv, .jsonl, .ndjson, .json, .parquet, .xlsx, a folder of `save_to_disk`, or a cloned dataset.
        task: decides the target's column name (schemas.targets.COLUMNS) and form.
        columns: the columns of text and target, if they are not to be detected by name.

    Raises:
        BadFile: the file cannot be read, or has bad rows; the message counts them and lists the first few.

    """
    try:
        tables = read_tables(path, task, columns)
        reading = _Reading(task, columns)
        for name, table in tables.items():
            reading.add(f"{name}: " if name else "", table)
        if len(tables) > 1:
            reading.notes.append(f"read from {len(tables)} files or splits: {', '.join(tables)}")
        return reading.result()
    except OSError as error:
        raise BadFile(f"{path}: {error.strerror or error}") from error
    except BadFile as error:
        raise BadFile(f"{path}: {error}") from error


class _Reading:
    """Rows, notes and problems of the tables that were added so far."""

    def __init__(self, task: Task, columns: Columns) -> None:
        self._task, self._columns = task, columns
        self._rows: list[FileRow] = []
        self._problems: list[str] = []
        self._failures: list[str] = []  # tables without text or target column
        self._unlabelled: list[str] = []
        self._layout: Layout | None = None
        self._has_lists = False
        self.notes: list[str] = []

    def add(self, name: str, table: Table) -> None:
        """Add the rows of a table; `name` begins its messages."""
        if not table.records and table.problems:  # no columns to detect
            self._problems += [name + problem for problem in table.problems]
            return
        try:
            self._layout = find_columns(table.columns, self._task, self._columns)
        except BadFile as error:
            self._failures.append(name + _with_advice(str(error), table, self._task))
            return
        examples, layout = plain(table, self._layout, self._task)
        self._problems += [name + problem for problem in examples.problems]
        self.notes += [name + note for note in examples.notes]
        for record in examples.records:
            try:
                cells = read_cells(record, layout, self._task)
            except BadRow as error:
                self._problems.append(f"{name}{record.where}: {error}")
                continue
            if cells is None:
                continue
            if cells.target is None:
                self._unlabelled.append(name + record.where)
                continue
            self._has_lists = self._has_lists or is_label_list(record.values[layout.target])
            metadata = {key: anonymise(value) for key, value in cells.metadata.items()}
            self._rows.append(FileRow(anonymise(cells.text), cells.target, metadata, name + record.where))

    def result(self) -> FileRows:
        """Return all rows; a split without the target column is left out if another one has it. Raises BadFile."""
        if self._problems:
            raise BadFile(listed(self._problems))
        if self._layout is None:
            raise BadFile(self._failures[0] if self._failures else "no rows")
        self.notes += [f"{failure}: left out" for failure in self._failures]
        if self._unlabelled:
            left_out = f"{counted(len(self._unlabelled))} without a {COLUMNS[self._task]}"
            self.notes.append(f"{left_out} left out (the first: {self._unlabelled[0]})")
        if not self._rows:
            raise BadFile("; ".join(["no rows", *self.notes]))
        return FileRows(self._rows, self.notes + self._odd(), self._layout.text, self._layout.target)

    def _odd(self) -> list[str]:
        counts = Counter(label for row in self._rows for label in labels_of(self._task, row.label))
        notes = label_notes(self._task, counts, lists=self._has_lists)
        generation = self._task == "generation"  # targets are texts too
        if texts := sum(is_missing(row.text) or (generation and is_missing(row.label)) for row in self._rows):
            notes.append(f"{counted(texts)} whose text is a word for a missing value, such as NaN or n/a")
        return notes


def _with_advice(failure: str, table: Table, task: Task) -> str:
    """Return the failure, or how to convert a file with one column per label."""
    hot = one_hot(table) if task == "multilabel" else ()
    if len(hot) < 2:
        return failure
    return (
        f"no column 'labels', but {len(hot)} columns that hold only 0 and 1 ({', '.join(hot[:5])}): write the names of each "
        "row's labels into one column 'labels', separated by '|'"
    )
