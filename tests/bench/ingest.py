"""Benchmark of ingestion: `make bench-ingest` prints each figure and writes bench-ingest.json.

`python -m tests.bench.ingest PART…` measures some parts (throughput, growth, read, memory, kills, anonymise) and keeps the
others' figures from the file. It judges nothing.
"""

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from serving.process.crash_points import CONSUMER_POINTS
from tests.bench.ingest_anonymise import anonymise_figures
from tests.bench.ingest_growth import growth_figures, read_figures
from tests.bench.ingest_memory import memory_figures
from tests.bench.ingest_throughput import throughput_figures
from tests.bench.report import Figure, measure_parts
from tests.support.crashes import killed_at
from tests.support.kafka_tools import own_broker

NAME = "ingest"
KILLS = 20
AT_ONCE = 12  # they mostly wait for the group to miss its dead member


def kill_figures(folder: Path) -> list[Figure]:
    """Every named point, KILLS times: runs after which every event was there exactly once."""
    whole, slowest = 0, 0.0
    with own_broker() as broker, ThreadPoolExecutor(AT_ONCE) as pool:
        runs = [
            pool.submit(killed_at, point, folder / f"{point}-{n}", broker.address, f"k{n}-{i}")
            for n in range(KILLS)
            for i, point in enumerate(CONSUMER_POINTS)
        ]
        for number, run in enumerate(runs, 1):
            try:
                slowest = max(slowest, run.result())
                whole += 1
            except Exception as error:
                print(f"  {type(error).__name__}: {error}")
            if number % len(CONSUMER_POINTS) == 0:
                print(f"  kills: {whole} of {number} whole, the slowest {slowest:.0f} s", flush=True)
    total = KILLS * len(CONSUMER_POINTS)
    figure = f"kill -9 at {len(CONSUMER_POINTS)} points, every event exactly once: share of runs"
    return [
        Figure(figure="named kill points", value=len(CONSUMER_POINTS), op=">=", target=8, n=len(CONSUMER_POINTS)),
        Figure(figure=figure, value=whole / total, op=">=", target=1.0, n=total),
    ]


PARTS: dict[str, Callable[[Path], list[Figure]]] = {
    "throughput": throughput_figures,
    "growth": growth_figures,
    "read": read_figures,
    "memory": memory_figures,
    "kills": kill_figures,
    "anonymise": anonymise_figures,
}


def main() -> None:
    warnings.simplefilter("ignore")  # what libraries think of one another
    measure_parts(NAME, PARTS)


if __name__ == "__main__":
    main()
