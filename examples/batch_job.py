"""Label a CSV file with Ratchet, and send the file back once people have reviewed it.

    python batch_job.py predict tickets.csv labelled.csv
    python batch_job.py correct labelled.csv --user reviewer-2

`predict` copies every row of a CSV file whose column `text` is not empty, and adds `label`, `confidence` and `prediction_id`.
Reviewers write the right label into a column `correct`; an empty cell says nothing. `correct` sends these. Both may be run again
after a crash: `predict` goes on behind the last complete row, and `correct` stores a correction once until the file is edited.
"""

import argparse
import csv
import sys
import uuid
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from ratchet_client import Client, RequestRefused

BATCH = 64
ADDED = ("label", "confidence", "prediction_id")
ID_CHARS = 36  # of a UUID; a cut row has fewer


def predict(ratchet: Client, source: Path, target: Path) -> int:
    """Append the predictions of the rows that `target` lacks; return how many."""
    done = complete_rows(target)
    with source.open(encoding="utf-8", newline="") as read, target.open("a", encoding="utf-8", newline="") as written:
        rows = csv.DictReader(read)
        if "text" not in (rows.fieldnames or ()):
            raise SystemExit(f"{source}: needs a column `text`, has {', '.join(rows.fieldnames or ()) or 'none'}")
        table = csv.DictWriter(written, [*(rows.fieldnames or ()), *ADDED], extrasaction="ignore")
        if not written.tell():
            table.writeheader()
        count = 0
        written_about = (row for row in rows if (row["text"] or "").strip())  # the service refuses empty texts
        for part in parts(islice(written_about, done, None)):
            for row, found in zip(part, ratchet.predict_many([row["text"] for row in part]), strict=True):
                added = (found.label, f"{found.confidence:.4f}", found.prediction_id)
                table.writerow(row | dict(zip(ADDED, added, strict=True)))
            written.flush()
            count += len(part)
    return count


def complete_rows(target: Path) -> int:
    """Return how many predictions `target` holds, after removing a last row that a crash cut off."""
    if not target.exists() or not target.stat().st_size:
        return 0
    with target.open(encoding="utf-8", newline="") as read:
        table = csv.DictReader(read)
        columns = list(table.fieldnames or ())
        rows = [row for row in table if len(row.get(ADDED[-1]) or "") == ID_CHARS]
    whole = target.with_name(f"{target.name}.partial")
    with whole.open("w", encoding="utf-8", newline="") as written:
        copy = csv.DictWriter(written, columns, extrasaction="ignore")
        copy.writeheader()
        copy.writerows(rows)
    whole.replace(target)
    return len(rows)


def parts(rows: Iterator[dict[str, str]]) -> Iterator[list[dict[str, str]]]:
    """Yield lists of up to BATCH rows."""
    while part := list(islice(rows, BATCH)):
        yield part


def correct(ratchet: Client, reviewed: Path, user: str) -> int:
    """Send the corrections of a reviewed file; return how many were stored. A refused one is printed, and the rest goes on."""
    stored, edition = 0, reviewed.stat().st_mtime_ns
    with reviewed.open(encoding="utf-8", newline="") as read:
        for number, row in enumerate(csv.DictReader(read), start=2):
            label = (row.get("correct") or "").strip()
            if not label:
                continue
            # The same in every run, until the file is edited.
            same = str(uuid.uuid5(uuid.UUID(row["prediction_id"]), f"{user}\0{label}\0{edition}"))
            try:
                ratchet.correct(row["prediction_id"], label, user=user, feedback_id=same)
            except RequestRefused as refused:
                print(f"{reviewed}: row {number}: {refused}", file=sys.stderr)
            else:
                stored += 1
    return stored


def main() -> None:
    """Read the arguments and run one of both steps."""
    parser = argparse.ArgumentParser(description="label a CSV file, or send its corrections")
    steps = parser.add_subparsers(dest="step", required=True)
    first = steps.add_parser("predict")
    first.add_argument("source", type=Path)
    first.add_argument("target", type=Path)
    second = steps.add_parser("correct")
    second.add_argument("reviewed", type=Path)
    second.add_argument("--user", required=True, help="who reviewed the file")
    given = parser.parse_args()
    with Client() as ratchet:
        if given.step == "predict":
            print(f"{given.target}: {predict(ratchet, given.source, given.target)} rows added")
        else:
            print(f"{correct(ratchet, given.reviewed, given.user)} corrections stored")


if __name__ == "__main__":
    main()
