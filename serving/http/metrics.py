"""Prometheus metrics of a worker.

api.py, the router, the batcher, the live model and the outbox update them; BentoML's /metrics shows them beside its own. No label
holds what a caller sent: routes are those of the contract, and predicted labels the first MOST_LABELS of the live version.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from schemas.consumer_reports import QUIET_SECONDS, REPORTED, STUCK, places, silence
from schemas.records import Champion, IngestionNote
from serving.inference.loading import Loaded

MOST_LABELS, OTHER = 100, "other"
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
TEXTS = (1, 2, 4, 8, 16, 32, 64)
LOAD_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Prometheus metrics of one worker; created in the worker, never at import. `/metrics` shows the default registry."""

    def __init__(self, model: str, registry: CollectorRegistry = REGISTRY) -> None:
        def counter(name: str, help_text: str, *labels: str) -> Counter:
            return Counter(name, help_text, ["model", *labels], registry=registry)

        def gauge(name: str, help_text: str, mode: Literal["max", "livesum"]) -> Gauge:
            return Gauge(name, help_text, ["model"], registry=registry, multiprocess_mode=mode).labels(model)

        def note(name: str, help_text: str, *labels: str) -> Gauge:
            """Of the registry, which every worker reads: the newest value of any worker is right."""
            labels = ("model", *labels)
            return Gauge(name, help_text, labels, registry=registry, multiprocess_mode="mostrecent")

        def histogram(name: str, help_text: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(name, help_text, ["model"], buckets=buckets, registry=registry).labels(model)

        self._requests = counter("ratchet_requests", "requests answered, by route and status", "route", "status")
        self._request_seconds = Histogram(
            "ratchet_request_seconds",
            "seconds from a request's headers to its answer",
            ["model", "route"],
            registry=registry,
        )
        self._by_status: dict[tuple[str, int], Counter] = {}
        self._by_route: dict[str, Histogram] = {}
        self._calls = histogram("ratchet_batch_texts", "texts in a call of the model", TEXTS)
        self._queue = gauge("ratchet_queue_texts", "texts that waited when the model was last called", "livesum")
        self._confidence = histogram("ratchet_confidence", "calibrated confidence of predictions", SHARES)
        self._predicted = counter("ratchet_predicted_labels", "predictions of a label", "label")
        self._by_label: dict[str, Counter] = {}
        self._swap_seconds = histogram(
            "ratchet_swap_seconds", "seconds to load a version and replace the live one", LOAD_SECONDS
        )
        self._version = Gauge(
            "ratchet_model_version",
            "1 for the live version, 0 for earlier ones",
            ["model", "model_version"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._live_version = ""

        self.predictions = counter("ratchet_predictions", "items answered").labels(model)
        self.feedback = counter("ratchet_feedback", "feedback accepted", "kind")
        seconds = Histogram("ratchet_predict_seconds", "seconds of a predict request", ["model"], registry=registry)
        self.seconds = seconds.labels(model)
        self.generation = gauge("ratchet_generation", "live generation", "max")
        self.waiting = gauge("ratchet_outbox_waiting", "events on disk", "livesum")
        self.tokens = counter("ratchet_written_tokens", "tokens of generated texts").labels(model)
        self.dropped = gauge("ratchet_outbox_dropped", "predictions dropped", "livesum")
        self.stuck = note("ratchet_ingestion_stuck", "consumers that store nothing although they should").labels(model)
        self.next_offset = note("ratchet_ingestion_next_offset", "offset that is stored next", "partition")
        self.ingestion = note("ratchet_ingestion_events", "events lost, passed over or set aside", "kind", "subject")
        self.model, self.registry = model, registry
        self._other = self._predicted.labels(model, OTHER)
        self._begin(OTHER, 404)  # so that a rate over unknown paths has a beginning, and /metrics its size

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count a request by its route, `other` for an unknown path, and its status, 0 if the caller hung up."""
        if (route, status) not in self._by_status:
            self._begin(route, status)
        self._by_status[route, status].inc()
        self._by_route[route].observe(seconds)

    def _begin(self, route: str, status: int) -> None:
        """Show a route and status, which count from 0."""
        self._by_status[route, status] = self._requests.labels(self.model, route, str(status or "gone"))
        self._by_route[route] = self._request_seconds.labels(self.model, route)

    def called(self, texts: int, waiting: int) -> None:
        """Count a call of the model with this many texts, while `waiting` wait."""
        self._calls.observe(texts)
        self._queue.set(waiting)

    def predicted(self, response: Mapping[str, Any], confidence: float) -> None:
        """Count one prediction: its confidence, and its label or labels if it has any."""
        self._confidence.observe(confidence)
        label = response.get("label")
        for name in response.get("labels", ()) if label is None else (label,):
            self._by_label.get(name, self._other).inc()

    def swapped(self, version: Loaded, champion: Champion, seconds: float) -> None:
        """Show the version that became live, after `seconds` of loading; count predictions of its labels from now on."""
        self._swap_seconds.observe(seconds)
        if self._live_version:
            self._version.labels(self.model, self._live_version).set(0)
        self._live_version = champion.model_version
        self._version.labels(self.model, champion.model_version).set(1)
        self.generation.set(champion.generation)
        shown = version.manifest.labels[:MOST_LABELS]
        self._by_label = {label: self._predicted.labels(self.model, label) for label in shown}

    def notes(self, notes: Iterable[IngestionNote]) -> None:
        """Set the gauges of ingestion to the registry's notes; consumers that do not report at all count as one stuck one."""
        stuck, reports = 0, []
        for note in notes:
            age_s = (datetime.now(UTC) - note.noted_at).total_seconds()
            if note.kind == STUCK:
                stuck += age_s <= QUIET_SECONDS  # an older note is of a consumer that was killed
            elif note.kind == REPORTED:
                reports.append((age_s, note.detail))
            else:
                self.ingestion.labels(self.model, note.kind, note.subject).set(note.count)
        for _, detail in sorted(reports, reverse=True):  # the newest report last: partitions move between consumers
            for partition, offset in places(detail).items():
                self.next_offset.labels(self.model, partition).set(offset)
        self.stuck.set(stuck + (silence(reports) is not None))

    def outbox(self, waiting: int, dropped: int) -> None:
        """Set the outbox's gauges to its latest counts."""
        self.waiting.set(waiting)
        self.dropped.set(dropped)
