"""The consumer's Prometheus metrics: events stored and refused, feedback that waits.

Turns micro-batches and live counts into metrics of one process, in a separate Prometheus registry for each consumer. Counters
begin at zero with the process; the event log holds the totals.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from services.ingestion.live_counts import LiveCounts
from services.ingestion.micro_batch import MicroBatch


class ConsumerMetrics:
    """Metrics of one consumer, labelled by model."""

    def __init__(self, model: str) -> None:
        self.registry = CollectorRegistry()
        model_label, here = ["model"], self.registry
        self._model = model
        self._stored = Counter(
            "ratchet_events_stored", "rows committed to the event log", [*model_label, "table"], registry=here
        )
        self._dead = Counter(
            "ratchet_dead_letters", "messages that could not be read or stored", model_label, registry=here
        ).labels(model)
        self._ahead = Counter("ratchet_clocks_ahead", "events from the future", model_label, registry=here).labels(
            model
        )
        self.expired = Counter(
            "ratchet_orphans_expired", "feedback without prediction", model_label, registry=here
        ).labels(model)
        self.failures = Counter(
            "ratchet_store_failures", "times that nothing could be stored", model_label, registry=here
        ).labels(model)
        self.seconds = Histogram(
            "ratchet_batch_seconds", "seconds to store a micro-batch", model_label, registry=here
        ).labels(model)
        self._waiting = Gauge(
            "ratchet_orphans", "feedback waiting for its prediction", model_label, registry=here
        ).labels(model)
        labels = [*model_label, "model_version", "verdict"]
        self._live = Gauge("ratchet_live_feedback", "distinct feedback of the partitions owned", labels, registry=here)

    def count(self, batch: MicroBatch, *, predictions: int, feedback: int) -> None:
        """Count a stored batch."""
        self._stored.labels(self._model, "predictions").inc(predictions)
        self._stored.labels(self._model, "feedback").inc(feedback)
        self._dead.inc(len(batch.bad))
        self._ahead.inc(batch.from_the_future)

    def show(self, live: LiveCounts) -> None:
        """Set the gauges to the live counts."""
        self._waiting.set(live.waiting)
        for (version, verdict), n in live.totals().items():
            self._live.labels(self._model, version, verdict).set(n)

    def serve(self, port: int) -> None:
        """Serve /metrics on `port`. Raises OSError if it is in use."""
        start_http_server(port, registry=self.registry)
