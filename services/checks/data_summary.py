"""Data summary: the contents of a project's labelled files, with errors and warnings, before training.

Turns seed and reference into sentences, which `ratchet init` and `ratchet doctor` print. pipelines/dataset/files.py reads the
rows.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.dataset.files import Columns, FileRow, FileRows, read_file
from pipelines.dataset.forecast import judging_rows
from pipelines.dataset.project_dataset import columns_of
from pipelines.dataset.split import cluster_key
from pipelines.files.label_checks import near_equal, near_equal_note
from pipelines.files.records import brief, counted
from pipelines.gates import power
from pipelines.gates.policy import Policy, load_policy
from pipelines.models.token_statistics import TokenStatistics, cut_warning, rough_lengths, token_statistics
from schemas.setting_groups import ModelSettings
from schemas.settings import Settings
from schemas.targets import LABELLED, Task, labels_of, value_of

_MOST_NAMED = 5

Lengths = NDArray[np.int64]


class DataError(ValueError):
    """Seed and reference cannot train and judge a model; the message gives the reason and the way out."""


@dataclass(frozen=True)
class ProjectData:
    """The rows of a project's seed, and of its reference if it has one."""

    task: Task
    seed_path: Path
    reference_path: Path | None
    seed: FileRows
    reference: FileRows | None
    _tokens: dict[str, TokenStatistics | None] = field(default_factory=dict, repr=False, compare=False)

    @property
    def labels(self) -> set[str]:
        """All labels of both files; empty if the task has none."""
        return {*self.seed_labels, *self.reference_labels}

    @cached_property
    def seed_labels(self) -> Counter[str]:
        """Number of seed rows by label."""
        return _labels(self.task, self.seed)

    @cached_property
    def reference_labels(self) -> Counter[str]:
        """Number of reference rows by label."""
        return _labels(self.task, self.reference)

    @cached_property
    def shared(self) -> set[str]:
        """Keys of the texts that are in both files; these rows judge and never train."""
        return _keys(self.seed) & _keys(self.reference)

    @property
    def rows(self) -> list[FileRow]:
        """Return the rows of both files."""
        return [*self.seed.rows, *(self.reference.rows if self.reference else ())]

    def tokens(self, model: ModelSettings) -> TokenStatistics | None:
        """Return how the base model's tokenizer reads the texts of both files; None if it is not on this machine."""
        return self._measured("texts", [row.text for row in self.rows], model)

    def lengths(self, model: ModelSettings) -> tuple[Lengths, Lengths, bool]:
        """Return the tokens of each text and of each generated answer, and whether they are only estimated."""
        texts, answers = [row.text for row in self.rows], [row.label for row in self.rows]
        measured, written = self._measured("texts", texts, model), self._measured("answers", answers, model)
        if measured is None or written is None:
            return rough_lengths(texts), rough_lengths(answers), True
        return measured.lengths, written.lengths, False

    def _measured(self, what: str, texts: Sequence[str], model: ModelSettings) -> TokenStatistics | None:
        key = f"{what} {model.task} {model.base_model}"
        if key not in self._tokens:
            self._tokens[key] = token_statistics(texts, model)
        return self._tokens[key]


def read_data(seed: Path, reference: Path | None, task: Task, columns: Columns) -> ProjectData:
    """Return the rows of both files. Raises BadFile."""
    rows = read_file(seed, task, columns)
    return ProjectData(task, seed, reference, rows, read_file(reference, task, columns) if reference else None)


def check(data: ProjectData) -> None:
    """Raise DataError unless the seed trains two targets or more and the reference has texts of its own."""
    column = f"{data.seed_path}: column {data.seed.target_column}"
    targets = {row.label for row in data.seed.rows}
    if len(targets) < 2:
        raise DataError(
            f"{column} holds {brief(next(iter(targets)))} alone; training needs at least two different values"
        )
    left = {row.label for row in data.seed.rows if cluster_key("", row.text) not in data.shared}
    if not left:
        raise DataError(
            f"every text of the seed {data.seed_path} is in the reference {data.reference_path} too, whose rows never "
            "train: leave the reference out, or give it other rows"
        )
    if len(left) < 2:
        raise DataError(
            f"{column} holds {brief(next(iter(left)))} alone, apart from the texts that are in the reference "
            "too, whose rows never train; training needs at least two different values"
        )
    if data.reference:
        check_reference(_keys(data.seed), _keys(data.reference))


def check_reference(seed: set[str], reference: set[str]) -> None:
    """Raise DataError if every text (or key of a text) of the reference is in the seed too."""
    if seed and reference and reference <= seed:
        raise DataError(
            "every text of the reference is in the seed too, so no independent row judges what the seed trains: give the "
            "reference other rows, or leave it out and a share of the seed is held out"
        )


def describe(data: ProjectData, settings: Settings, policy: Policy) -> list[str]:
    """Return a line for each file, one on tokens, one on what the reference set can show, and one for each warning."""
    lines = [_file("seed", data.task, data.seed, data.seed_labels)]
    if data.reference:
        lines.append(_file("reference", data.task, data.reference, data.reference_labels))
    if measured := data.tokens(settings.model):
        lines.append(measured.summary())
    if data.task in LABELLED:
        rows = judging_rows(data.seed.rows, data.reference.rows if data.reference else (), settings)
        lines.append(f"evidence: about {power.reference_line(rows, policy, policy.alpha_at(1))}")
    return [*lines, *(f"warning: {warning}" for warning in warnings(data, settings, policy))]


def warnings(data: ProjectData, settings: Settings, policy: Policy) -> list[str]:
    """Return warnings on rows left out, labels that differ, and too few rows that will judge."""
    notes = [f"seed: {note}" for note in data.seed.notes]
    if data.reference:
        notes += [f"reference: {note}" for note in data.reference.notes] + _compared(data)
    measured = data.tokens(settings.model)
    if measured and data.task == "generation":  # the answer needs its part of what the base model reads
        measured = replace(measured, limit=max(1, measured.limit - settings.model.max_new_tokens))
    notes += measured.warnings(settings.model.max_length) if measured else []
    if data.task == "generation":
        texts, answers, about = data.lengths(settings.model)
        if measured is None:
            notes += cut_warning(texts, settings.model.max_length, "prompts", "model.max_length", about=about)
        notes += cut_warning(answers, settings.model.max_new_tokens, "answers", "model.max_new_tokens", about=about)
    return notes + _judging(data, settings, policy)


def health(settings: Settings) -> tuple[str, str]:
    """Return the verdict on a project's files ("ok", "warn" or "FAIL") and its sentence."""
    paths = [settings.path(path) if path else None for path in (settings.dataset.seed, settings.dataset.reference)]
    assert paths[0] is not None
    try:
        data = read_data(paths[0], paths[1], settings.model.task, columns_of(settings))
        check(data)
        policy = load_policy(settings.path(settings.gates.policy).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return "FAIL", str(error)
    odd = warnings(data, settings, policy)
    rows = [
        counted(len(data.seed.rows)),
        *([f"{counted(len(data.reference.rows))} of reference"] if data.reference else []),
    ]
    return ("warn", "; ".join(odd)) if odd else ("ok", " and ".join(rows))


def _file(name: str, task: Task, file: FileRows, labels: Mapping[str, int]) -> str:
    line = f"{name}: {counted(len(file.rows))}, from columns {file.text_column!r} and {file.target_column!r}"
    if task == "regression":
        values = [float(str(value_of(task, row.label))) for row in file.rows]
        return f"{line}; targets from {min(values):g} to {max(values):g}"
    if task not in LABELLED:
        return line
    rarest = sorted(labels.items(), key=lambda pair: (pair[1], pair[0]))[:_MOST_NAMED]
    named = ", ".join(f"{brief(label)} {rows}" for label, rows in rarest)
    return f"{line}; {len(labels)} label{'s' * (len(labels) != 1)}, the rarest: {named}"


def _compared(data: ProjectData) -> list[str]:
    """Return how the two files differ and which texts they share."""
    notes = []
    if data.shared:
        one = len(data.shared) == 1
        shared = "1 text of the seed is" if one else f"{len(data.shared)} texts of the seed are"
        notes.append(
            f"{shared} in the reference too: {'it judges and never trains' if one else 'they judge and never train'}"
        )
    only = [
        ("seed", data.seed_labels, data.reference_labels, "no row judges them"),
        ("reference", data.reference_labels, data.seed_labels, "no row trains them"),
    ]
    for name, here, there, so in only:
        if missing := [f"{brief(label)} ({counted(here[label])})" for label in sorted(here.keys() - there.keys())]:
            more = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
            notes.append(f"labels that only the {name} has: {', '.join(missing[:_MOST_NAMED])}{more}: {so}")
    groups = [group for group in near_equal(sorted(data.labels)) if group not in _groups(data)]
    return notes + [f"seed and reference: {near_equal_note(group)}" for group in groups]


def _groups(data: ProjectData) -> list[list[str]]:
    return [*near_equal(sorted(data.seed_labels)), *near_equal(sorted(data.reference_labels))]


def _judging(data: ProjectData, settings: Settings, policy: Policy) -> list[str]:
    rows, required = judging_rows(data.seed.rows, data.reference.rows if data.reference else (), settings), policy.data
    if rows >= required.min_judge_rows or not required.blocking:
        return []
    more = math.ceil((required.min_judge_rows - rows) / (1 - (settings.dataset.calibration_share or 0.0)))
    return [
        f"about {counted(rows)} will judge candidates; at least {required.min_judge_rows} are required (data.min_judge_rows in "
        f"{settings.gates.policy}), so none can replace the first champion: add about {counted(more)} to the reference"
    ]


def _labels(task: Task, file: FileRows | None) -> Counter[str]:
    return Counter(label for row in (file.rows if file else ()) for label in labels_of(task, row.label))


def _keys(file: FileRows | None) -> set[str]:
    return {cluster_key("", row.text) for row in (file.rows if file else ())}
