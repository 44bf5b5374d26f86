"""What the embedded broker's memory costs: a whole `ratchet up` under load, whose broker is restarted at a low limit.

Turns PREDICTIONS predictions over HTTP into the broker's highest resident memory, the requests that failed, and the events that
the log lost or counts twice.
"""

import threading
import time
from pathlib import Path

from services.supervisor.broker_memory import resident_bytes
from tests.bench.report import Figure
from tests.support.running_up import RunningUp, Traffic, stored_ids, tiny_project, until

PREDICTIONS, LIMIT_MB = 100_000, 40
CALLERS, ITEMS = 4, 32


def memory_figures(folder: Path) -> list[Figure]:
    """Load `up` until PREDICTIONS are answered, then stop it and compare what was answered with the log."""
    settings = tiny_project(folder / "p", folder, kafka={"broker_memory_mb": LIMIT_MB})
    up = RunningUp(settings)
    up.start()
    up.ready()
    peaks, done = [0.0], threading.Event()

    def look() -> None:
        while not done.wait(0.1):
            peaks.append((resident_bytes(up.pid("broker")) or 0) / 1e6)

    threading.Thread(target=look, daemon=True).start()
    traffic = Traffic(up, callers=CALLERS, items=ITEMS, pause_s=0.0)
    began = time.monotonic()
    try:
        with traffic.running():
            until(lambda: len(traffic.predicted) >= PREDICTIONS, 900, 0.5)
        took = time.monotonic() - began
        stored = until(lambda: up.status().get("not_yet_stored") == 0, 120, 1)
    finally:
        done.set()
        up.stop()
    restarts = [line for _, line in up.lines if "kafka.broker_memory_mb" in line]
    gap = max(traffic.longest_gap(kind, began, began + took) for kind in ("predict", "feedback"))
    predictions, feedback, effective = stored_ids(settings)
    print(f"  {len(traffic.predicted):,} predictions and {len(traffic.accepted):,} feedback in {took:.0f} s")
    print(f"  statuses {dict(traffic.statuses)}; everything stored {stored or -1:.0f} s after the last")
    print(f"  rows that the log has twice: {_twice(predictions)} predictions, {_twice(feedback)} feedback")
    for line in restarts:
        print(f"  {line}")
    lost = len(traffic.accepted - feedback.keys()) + len(traffic.predicted - predictions.keys())
    failed = sum(n for status, n in traffic.statuses.items() if status not in ("predict 200", "feedback 202"))
    n = len(traffic.predicted)
    most = 3.0 * LIMIT_MB  # it grows on while events wait, and APART_S after a restart
    return [
        Figure(figure="MB of the broker at most", value=max(peaks), op="<=", target=most, n=n, baseline=LIMIT_MB),
        Figure(figure="restarts of the broker for its memory", value=len(restarts), op=">=", target=1, n=n),
        Figure(figure="events lost over these restarts", value=lost, op="<=", target=0, n=n + len(traffic.accepted)),
        Figure(figure="feedback counted twice", value=_extra(effective), op="<=", target=0, n=len(effective)),
        Figure(figure="requests failed", value=failed, op="<=", target=0, n=traffic.statuses.total()),
        Figure(figure="longest seconds without an answer", value=gap, op="<=", target=1, n=len(traffic.answered)),
    ]


def _twice(rows: "dict[str, int]") -> int:
    return sum(n > 1 for n in rows.values())


def _extra(ids: list[str]) -> int:
    return len(ids) - len(set(ids))
