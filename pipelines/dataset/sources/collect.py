"""Turn rows of files and feedback into examples with a source, a weight and a person.

A correction or confirmation gives a target, a thumbs-up a weak one. A thumbs-down gives a complementary label, or set of
labels, that the text does not have (Ishida et al. 2017). For numbers and generated texts it gives nothing to train on, nor
do scores and comments. build.py calls it first.
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
REVIEWER = "reviewer"  # column of a file with the name of who labelled a row; the name is not stored


def from_files(rows: Iterable[FileRow], source: str) -> list[Example]:
    """Return one example a row; its source is "reviewer" if the row names one, else `source`."""
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
    """Return one example for each feedback that gives a target or rejects one; count the rest in `drops`."""
    examples = []
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
            case "unchallenged", _:
                source, label, weight = "unchallenged", row.predicted_label, 1.0
            case "rating", "down" if task in LABELLED:
                source, label, weight = "rejection", row.predicted_label, RATING_WEIGHT
            case kind, _:
                drops.add(UNTAUGHT.get(kind, f"{kind}: no label"), row.text)
                continue
        examples.append(
            Example(
                text=row.text,
                label=label,
                source=source,
                person=row.user,
                weight=weight,
                order=row.time.astimezone(UTC).isoformat(),
                metadata=row.metadata,
            )
        )
    return examples
