"""Prometheus metrics of a worker.

api.py and the outbox update them; BentoML's /metrics shows them beside its own.
"""

from prometheus_client import Counter, Gauge, Histogram


class Metrics:
    """Prometheus metrics of one worker; created in the worker, never at import."""

    def __init__(self, model: str) -> None:
        self.predictions = Counter("ratchet_predictions", "items answered", ["model"]).labels(model)
        self.feedback = Counter("ratchet_feedback", "feedback accepted", ["model", "kind"])
        self.seconds = Histogram("ratchet_predict_seconds", "seconds of a predict request", ["model"]).labels(model)
        mode = {"multiprocess_mode": "max"}
        self.generation = Gauge("ratchet_generation", "live generation", ["model"], **mode).labels(model)  # type: ignore[arg-type]  # a Literal
        self.waiting = Gauge("ratchet_outbox_waiting", "events on disk", ["model"], multiprocess_mode="livesum").labels(
            model
        )
        self.tokens = Counter("ratchet_written_tokens", "tokens of generated texts", ["model"]).labels(model)
        self.dropped = Gauge(
            "ratchet_outbox_dropped", "predictions dropped", ["model"], multiprocess_mode="livesum"
        ).labels(model)
        self.model = model

    def outbox(self, waiting: int, dropped: int) -> None:
        """Set the outbox's gauges to its latest counts."""
        self.waiting.set(waiting)
        self.dropped.set(dropped)
