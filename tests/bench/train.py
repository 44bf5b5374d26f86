"""`make bench-train`: what a training round is worth, and what it costs. `PART=speed,sequential` runs some parts.

Turns Banking77 (RATCHET_BENCH_DATA), drug reviews, pairs of questions and answers, and generated rows into bench-train.json,
rewritten after each part; a run of some parts replaces the figures of those alone. All choices were made on rows of the
training file (docs/lab-notes.md): the test file is read for figures alone.
"""

import importlib
import json
import os
import sys
import time
from pathlib import Path

from tests.bench.report import Figure, write

# In the order of their cost; a part is a module's function that measures.
PARTS = {
    "regression": "tests.bench.train_regression:measure",
    "kinds": "tests.bench.train_kinds:measure",
    "generation": "tests.bench.train_generation:measure",
    "tickets": "tests.bench.train_tickets:measure",
    "speed": "tests.bench.train_speed:measure",
    "advise": "tests.bench.train_advise:measure",
    "rounds": "tests.bench.train_rounds:measure",
    "search": "tests.bench.train_search:measure",
    "sequential": "tests.bench.train_sequential:measure",
    "setfit": "tests.bench.train_setfit:measure",
    "accuracy_few": "tests.bench.train_accuracy:few_rows",
    "accuracy_all": "tests.bench.train_accuracy:all_rows",
    "full_few": "tests.bench.train_accuracy:few_rows_full",
    "full_all": "tests.bench.train_accuracy:all_rows_full",
}
REPORT = Path("bench-train.json")


def main() -> None:
    """Run the parts that PART names, all of them by default."""
    wanted = os.environ["PART"].split(",") if os.environ.get("PART") else list(PARTS)
    if unknown := set(wanted) - PARTS.keys():
        sys.exit(f"PART={','.join(sorted(unknown))}: parts are {', '.join(PARTS)}")
    figures: dict[tuple[str, str, float], Figure] = {}
    if os.environ.get("PART") and REPORT.exists():
        before = [Figure(**row) for row in json.loads(REPORT.read_text(encoding="utf-8"))]
        figures = {(f.figure.split(":")[0], f.figure, f.target): f for f in before}
    for part in wanted:
        print(f"== {part}", flush=True)
        started = time.monotonic()
        module, _, name = PARTS[part].partition(":")
        found: list[Figure] = getattr(importlib.import_module(module), name)()
        own = {figure.figure.split(":")[0] for figure in found}
        figures = {key: figure for key, figure in figures.items() if key[0] not in own}
        figures |= {(figure.figure.split(":")[0], figure.figure, figure.target): figure for figure in found}
        write("train", list(figures.values()))
        print(f"== {part} took {(time.monotonic() - started) / 60:.1f} minutes", flush=True)


if __name__ == "__main__":
    main()
