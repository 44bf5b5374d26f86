"""What every benchmark leaves behind: a table for people and `bench-NAME.json` for programs.

Turns figures into both. Each `make bench-NAME` runs `tests/bench/NAME.py`, which calls `write` once it has measured, or
after each part. It deliberately judges nothing: a figure that falls short is written down like any other.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured number beside what was asked of it.

    `value` is None where nothing could be measured; `baseline` is the same measure of the alternative, in the same run.
    """

    figure: str
    value: float | None
    op: Literal[">=", "<="]
    target: float
    n: int
    interval: tuple[float, float] | None = None
    baseline: float | None = None
    goal: bool = False

    @property
    def reached(self) -> bool:
        """Whether the value is on the right side of the target."""
        if self.value is None:
            return False
        return self.value >= self.target if self.op == ">=" else self.value <= self.target


def measure_parts(name: str, parts: Mapping[str, Callable[[Path], list[Figure]]]) -> None:
    """Measure the parts that the command line names, or all, and write after each. Named ones keep the others' figures."""
    wanted, kept = sys.argv[1:], Path(f"bench-{name}.json")
    figures: dict[str, Figure] = {}
    if wanted and kept.exists():
        figures = {found["figure"]: Figure(**found) for found in json.loads(kept.read_text(encoding="utf-8"))}
    for part in wanted or parts:
        print(f"{part}:", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            figures |= {figure.figure: figure for figure in parts[part](Path(folder))}
        write(name, list(figures.values()))


def write(name: str, figures: Sequence[Figure], folder: Path = Path()) -> None:
    """Write bench-`name`.json and print the table."""
    path = folder / f"bench-{name}.json"
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps([asdict(figure) for figure in figures], indent=2) + "\n", encoding="utf-8")
    beside.rename(path)
    table = Table(title=f"bench-{name}")
    for column in ("figure", "value", "asked", "baseline", "n", ""):
        table.add_column(column, justify="left" if column in ("figure", "") else "right")
    for row in figures:
        interval = "" if row.interval is None else f" [{row.interval[0]:.4g}, {row.interval[1]:.4g}]"
        value = "-" if row.value is None else f"{row.value:.4g}{interval}"
        baseline = "" if row.baseline is None else f"{row.baseline:.4g}"
        verdict = "reached" if row.reached else "not reached"
        asked = f"{row.op} {row.target:g}" + (" (goal)" if row.goal else "")
        table.add_row(row.figure, value, asked, baseline, f"{row.n:,}", verdict)
    Console().print(table)
