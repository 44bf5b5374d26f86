"""Convert chat, Alpaca and exported feedback files to tables with one column of texts and one of targets.

Rows that are no examples are left out with a note; rows that should be but cannot be read are problems. dataset/files.py calls
it.
"""

import json
from collections.abc import Sequence
from dataclasses import replace

from pipelines.files.columns import Layout
from pipelines.files.conversations import BadConversation, prompt_and_completion, turns
from pipelines.files.records import Record, Table, brief, counted
from schemas.targets import COLUMNS, Task


def plain(table: Table, layout: Layout, task: Task) -> tuple[Table, Layout]:
    """Return the table with one column of texts and one of targets, and the layout that names them."""
    match layout.kind:
        case "alpaca":
            return _alpaca(table, layout), replace(layout, kind="columns")
        case "feedback":
            return _feedback(table, task), Layout("text", COLUMNS[task], frozenset({"text", COLUMNS[task]}))
        case "chat":
            return _chat(table, layout), Layout("text", COLUMNS[task], frozenset({"text", COLUMNS[task]}))
    if task == "generation" and any(isinstance(record.values.get(layout.text), list) for record in table.records):
        return _chat(table, layout), Layout("text", COLUMNS[task], frozenset({"text", COLUMNS[task]}))
    return table, layout


def _alpaca(table: Table, layout: Layout) -> Table:
    """Append each row's input to its instruction."""
    inputs = layout.used - {layout.text, layout.target}
    records = []
    for record in table.records:
        parts = [record.values.get(layout.text), *(record.values.get(column) for column in inputs)]
        texts = [part for part in parts if isinstance(part, str) and part.strip()]
        readable = all(part is None or isinstance(part, str) for part in parts)
        joined = {**record.values, layout.text: "\n\n".join(texts)} if readable else record.values
        records.append(Record(record.where, joined))
    return replace(table, records=records)


def _chat(table: Table, layout: Layout) -> Table:
    """Convert messages to prompt and completion. A system message is prepended to the prompt unless all rows share it."""
    read: list[tuple[Record, str, str, str]] = []
    problems = list(table.problems)
    for record in table.records:
        messages = record.values.get(layout.text)
        if messages is None and all(value is None for value in record.values.values()):
            continue
        try:
            pairs = [("user", messages)] if isinstance(messages, str) and messages.strip() else turns(messages)
            if layout.target != layout.text:
                answer = record.values.get(layout.target)
                pairs += [("assistant", answer)] if isinstance(answer, str) else turns(answer)
            read.append((record, *prompt_and_completion(pairs)))
        except BadConversation as error:
            problems.append(f"{record.where}: {layout.text}: {error}")
    systems = {system for _, system, _, _ in read}
    notes = list(table.notes)
    shared = systems.pop() if len(systems) == 1 else None
    if shared:
        notes.append(f"the system message {brief(shared)!r} of every row is left out, because served prompts have none")
    records = []
    for record, system, prompt, completion in read:
        text = prompt if shared is not None or not system else f"{system}\n\n{prompt}"
        others = {key: value for key, value in record.values.items() if key not in layout.used}
        records.append(Record(record.where, {**others, "text": text, COLUMNS["generation"]: completion}))
    return replace(table, records=records, problems=problems, notes=notes)


def _feedback(table: Table, task: Task) -> Table:
    """Return the corrections in a file of `ratchet feedback export`, with the metadata of their predictions."""
    records, others, textless = [], 0, 0
    for record in table.records:
        if record.values.get("kind") != "correction":
            others += 1
        elif not record.values.get("text"):
            textless += 1
        else:
            target = {"text": record.values["text"], COLUMNS[task]: record.values.get("value")}
            records.append(Record(record.where, {**_metadata(record.values.get("metadata")), **target}))
    notes = [f"read as exported feedback: {counted(len(records))} with a correction"]
    notes += (
        [f"{counted(others)} of other kinds (rating, score, comment) left out: they name no target"] if others else []
    )
    notes += [f"{counted(textless)} without a text left out: their prediction is not stored"] if textless else []
    return replace(table, records=records, notes=[*table.notes, *notes])


def _metadata(value: object) -> dict[str, object]:
    if isinstance(value, str):
        try:
            value = json.loads(value or "{}")
        except ValueError:
            return {}
    return {str(key): each for key, each in value.items()} if isinstance(value, dict) else {}


def one_hot(table: Table) -> Sequence[str]:
    """Return the columns with values 0 and 1 only, which suggest one column per label."""
    cells = {column: {str(record.values.get(column)) for record in table.records} for column in table.columns}
    return [c for c, values in cells.items() if values and values <= {"0", "1", "0.0", "1.0"}]
