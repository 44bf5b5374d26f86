"""Collection: rows of files and feedback become examples with a source, a weight and a person.

Turns FileRow and FeedbackRow into Example; build.py calls it first. It deliberately cleans nothing.

A correction or confirmation is a target; a thumbs-up is a weak one. A thumbs-down says which label, or which labels together, it
is not (a complementary label: Ishida et al. 2017); of a number it does not say what is wrong. A score rates an answer and
names no target, comments are for people.
"""

from collections.abc import Iterable
from datetime import UTC

from pipelines.dataset.examples import Drops, Example
from pipelines.dataset.files import FileRow
from pipelines.feature_store.store import FeedbackRow
from schemas.targets import LABELLED, BadTarget, Task, canonical

RATING_WEIGHT = 0.5
UNTAUGHT = {
    "comment": "comment: for people",
    "score": "score: names no target",
    "rating": "thumbs-down: does not say what is wrong",
}
REVIEWER = "reviewer"  # the column of a file that says who labelled a row; the name itself is not kept


def from_files(rows: Iterable[FileRow], source: str) -> list[Example]:
    """Rows of files; one that names its reviewer is a reviewer's."""
    return [
        Example(
            text=row.text,
            label=row.label,
            source=REVIEWER if row.metadata.get(REVIEWER) else source,
            metadata={key: value for key, value in row.metadata.items() if key != REVIEWER},
        )
        for row in rows
    ]


def from_feedback(feedback: Iterable[FeedbackRow], drops: Drops, task: Task) -> list[Example]:
    """Feedback that says what a text is or is not."""
    found = []
    for row in feedback:
        match row.kind, row.value:
            case "correction", value:
                try:
                    label = canonical(task, value)
                except BadTarget:
                    drops.add(f"correction: no target of {task}", row.text)
                    continue
                source, weight = "confirmation" if label == row.predicted_label else "correction", 1.0
            case "rating", "up":
                source, label, weight = "rating", row.predicted_label, RATING_WEIGHT
            case "rating", "down" if task in LABELLED:
                source, label, weight = "rejection", row.predicted_label, RATING_WEIGHT
            case kind, _:
                drops.add(UNTAUGHT.get(kind, f"{kind}: no label"), row.text)
                continue
        found.append(
            Example(
                text=row.text,
                label=label,
                source=source,
                person=row.user,
                weight=weight,
                order=row.time.astimezone(UTC).isoformat(),
                metadata=row.metadata,
                audit=row.audit,
            )
        )
    return found
