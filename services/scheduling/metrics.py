"""The scheduler's Prometheus metrics: ticks, rounds by state, and the verdicts of the latest judged round.

Turns the registry's rounds into gauges of one process, in a separate Prometheus registry. training_scheduler.py updates them
after each tick; the rounds are read every READ_SECONDS.
"""

import time
from collections import Counter as Count
from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge

from schemas.records import RoundRecord, RoundState
from schemas.reports import Verdict

READ_SECONDS = 15.0
OUTCOMES = {Verdict.PASS: 1.0, Verdict.FAIL: 0.0, Verdict.INSUFFICIENT: -1.0}


class SchedulerMetrics:
    """Metrics of one scheduler, labelled by model.

    Args:
        model: the project's model.
        rounds: reads the registry's rounds. Raises ConnectionError.
        monotonic: seconds.

    """

    def __init__(
        self, model: str, rounds: Callable[[], Sequence[RoundRecord]], monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.registry = CollectorRegistry()
        self._model, self._read, self._monotonic = model, rounds, monotonic
        self._read_at = float("-inf")

        def gauge(name: str, help_text: str, *labels: str) -> Gauge:
            return Gauge(name, help_text, ["model", *labels], registry=self.registry)

        self._ticks = Counter("ratchet_ticks", "ticks of the scheduler", ["model"], registry=self.registry).labels(
            model
        )
        self._ticked = gauge("ratchet_tick_timestamp_seconds", "Unix time of the last tick").labels(model)
        self._rounds = gauge("ratchet_rounds", "rounds by state", "state")
        self._verdicts = gauge(
            "ratchet_gate",
            "latest judged round, `all` and each gate: 1 passed, 0 failed, -1 insufficient evidence",
            "gate",
        )
        self._seconds = gauge("ratchet_round_seconds", "seconds of the latest round that ended").labels(model)

    def ticked(self) -> None:
        """Count a tick, and show the rounds if they were not read lately. An unreachable registry changes nothing."""
        self._ticks.inc()
        self._ticked.set_to_current_time()
        if self._monotonic() - self._read_at < READ_SECONDS:
            return
        try:
            rounds = self._read()
        except ConnectionError:
            return
        self._read_at = self._monotonic()
        self.show(rounds)

    def show(self, rounds: Sequence[RoundRecord]) -> None:
        """Set the gauges to these rounds."""
        states = Count(record.state for record in rounds)
        for state in RoundState:
            self._rounds.labels(self._model, state.value).set(states[state])
        ended = [record for record in rounds if record.finished_at and record.started_at]
        if ended:
            last = max(ended, key=lambda record: record.created_at)
            assert last.finished_at is not None
            assert last.started_at is not None
            self._seconds.set((last.finished_at - last.started_at).total_seconds())
        judged = [record for record in rounds if record.gate_report is not None]
        if judged:
            report = max(judged, key=lambda record: record.created_at).gate_report
            assert report is not None
            self._verdicts.clear()
            self._verdicts.labels(self._model, "all").set(OUTCOMES[report.verdict])
            for result in report.results:
                self._verdicts.labels(self._model, result.gate).set(OUTCOMES[result.verdict])
