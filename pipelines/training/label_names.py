"""Label names as training rows: the words of a label's name are one more text with that label.

trainer.py adds these rows to the training rows. They help most where rows are few (docs/lab-notes.md).
"""

import re
from collections.abc import Sequence

from pipelines.dataset.examples import Example
from schemas.targets import LABELLED, Task, canonical, labels_of

PARTS = re.compile(r"[\W_]+|(?<=[a-z])(?=[A-Z])")


def words(label: str) -> str:
    """Return the words of a label's name: `card_arrival` and `CardArrival` give `card arrival`."""
    return " ".join(part.lower() for part in PARTS.split(label) if part)


def label_rows(task: Task, examples: Sequence[Example]) -> list[Example]:
    """Return a row for each label that occurs in `examples`, its name's words as the text; none for tasks without labels."""
    if task not in LABELLED:
        return []
    labels = sorted({label for example in examples for label in labels_of(task, example.label)})
    named = ((words(label), label) for label in labels)
    return [
        Example(text=text, label=canonical(task, [label] if task == "multilabel" else label), source="seed")
        for text, label in named
        if text
    ]
