"""Collection: rows of files and feedback become examples with a source, a weight and a person.

Turns FileRow and FeedbackRow into Example; build.py calls it first. It deliberately cleans nothing.

A correction or confirmation is a label; a thumbs-up is a weak label; a thumbs-down says which label it is not (a
complementary label: Ishida et al. 2017). Scores are for regression, comments are for people.
"""

from collections.abc import Iterable
from datetime import UTC

from pipelines.dataset.examples import Drops, Example
from pipelines.dataset.files import FileRow
from pipelines.features import FeedbackRow

RATING_WEIGHT = 0.5
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


def from_feedback(feedback: Iterable[FeedbackRow], drops: Drops) -> list[Example]:
    """Feedback that says what a text is or is not."""
    found = []
    for row in feedback:
        match row.kind, row.value:
            case "correction", str(value):
                source = "confirmation" if value == row.predicted_label else "correction"
                label, weight = value, 1.0
            case "rating", "up":
                source, label, weight = "rating", row.predicted_label, RATING_WEIGHT
            case "rating", "down":
                source, label, weight = "rejection", row.predicted_label, RATING_WEIGHT
            case kind, _:
                drops.add(
                    {"comment": "comment: for people", "score": "score: for regression"}.get(kind, f"{kind}: no label"),
                    row.text,
                )
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
