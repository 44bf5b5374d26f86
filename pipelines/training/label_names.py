"""What a label is called says what it means: its words are one more row of it.

Turns the labels of rows into rows; trainer.py adds them to what trains. Worth most where rows are few (docs/lab-notes.md).
It deliberately invents nothing for a label that no row has.
"""

import re
from collections.abc import Sequence

from pipelines.dataset.examples import Example
from schemas.targets import LABELLED, Task, canonical, labels_of

PARTS = re.compile(r"[\W_]+|(?<=[a-z])(?=[A-Z])")


def words(label: str) -> str:
    """`card_arrival` and `CardArrival` -> `card arrival`."""
    return " ".join(part.lower() for part in PARTS.split(label) if part)


def label_rows(task: Task, examples: Sequence[Example]) -> list[Example]:
    """A row for each label of these rows, its words being the text; none for tasks without labels."""
    if task not in LABELLED:
        return []
    labels = sorted({label for example in examples for label in labels_of(task, example.label)})
    named = ((words(label), label) for label in labels)
    return [
        Example(text=text, label=canonical(task, [label] if task == "multilabel" else label), source="seed")
        for text, label in named
        if text
    ]
