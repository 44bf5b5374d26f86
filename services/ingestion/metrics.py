"""The consumer's Prometheus metrics: events stored and refused, feedback that waits.

Turns micro-batches and live counts into metrics of one process, in a separate Prometheus registry for each consumer. Counters
begin at zero with the process; the event log holds the totals.
"""

import math

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from schemas.settings import Settings
from services.ingestion.live_counts import LiveCounts
from services.ingestion.micro_batch import MicroBatch
from serving.process.metrics_endpoint import EVERY_INTERFACE, serve_metrics


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
        self.troubles = Counter(
            "ratchet_ingestion_troubles", "events lost, passed over or set aside, by kind", ["kind"], registry=here
        )
        self.stuck = Gauge(
            "ratchet_ingestion_stuck_seconds",
            "seconds without progress; 0 while there is any",
            model_label,
            registry=here,
        ).labels(model)
        self.seconds = Histogram(
            "ratchet_batch_seconds", "seconds to store a micro-batch", model_label, registry=here
        ).labels(model)
        self._waiting = Gauge(
            "ratchet_orphans", "feedback waiting for its prediction", model_label, registry=here
        ).labels(model)
        labels = [*model_label, "model_version", "verdict"]
        self._live = Gauge("ratchet_live_feedback", "distinct feedback of the partitions owned", labels, registry=here)
        self.lag = Gauge("ratchet_consumer_lag", "messages not stored yet", model_label, registry=here).labels(model)
        self._agreement = Gauge(
            "ratchet_feedback_agreement",
            "share of judging feedback that agrees, with its 95 % interval; feedback is no fair sample of traffic",
            [*model_label, "model_version", "bound"],
            registry=here,
        )

    def serve(self, settings: Settings) -> None:
        """Serve /metrics on the port that the settings name, if they name one."""
        port = settings.feature_store.metrics_port
        if port is not None:
            serve_metrics(self.registry, port, host=EVERY_INTERFACE, tried=1)
        elif settings.observability.consumer_port:
            serve_metrics(self.registry, settings.observability.consumer_port)

    def count(self, batch: MicroBatch, *, predictions: int, feedback: int) -> None:
        """Count a stored batch."""
        self._stored.labels(self._model, "predictions").inc(predictions)
        self._stored.labels(self._model, "feedback").inc(feedback)
        self._dead.inc(len(batch.bad))
        self._ahead.inc(batch.from_the_future)

    def show(self, live: LiveCounts) -> None:
        """Set the gauges to the live counts."""
        self._waiting.set(live.waiting)
        totals = live.totals()
        for (version, verdict), n in totals.items():
            self._live.labels(self._model, version, verdict).set(n)
        for version in {version for version, _ in totals}:
            agreed, judged = totals[version, "agreed"], totals[version, "agreed"] + totals[version, "disagreed"]
            if judged:
                low, high = wilson(agreed, judged)
                for bound, value in (("estimate", agreed / judged), ("low", low), ("high", high)):
                    self._agreement.labels(self._model, version, bound).set(value)


def wilson(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Return the score interval of a share (Wilson 1927); `z` 1.96 is 95 %."""
    centre = (hits + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(hits * (n - hits) / n + z * z / 4)
    return max(0.0, centre - half), min(1.0, centre + half)
