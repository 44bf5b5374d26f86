"""The settings of observability: logs, traces, and the metrics of background processes."""

from typing import Literal

from pydantic import Field

from schemas.setting_groups import Group


class ObservabilitySettings(Group):
    """Logs, traces and metrics. Serving's metrics are at its own address, below /metrics."""

    log_format: Literal["line", "json"] = Field(
        "line", description="format of log records: line, for people; json, one object a line, for log collectors"
    )
    traces: str | None = Field(
        None,
        pattern=r"^https?://",
        description="OpenTelemetry collector that gets traces by OTLP over HTTP, such as http://127.0.0.1:4318/v1/traces. Unset: "
        "no traces",
    )
    trace_share: float = Field(
        0.01,
        ge=0,
        le=1,
        description="share of the requests that begin a trace. Requests with a sampled `traceparent` header continue theirs",
    )
    consumer_port: int = Field(
        9101,
        ge=0,
        le=65535,
        description="port of the consumer's Prometheus metrics on 127.0.0.1, or the next free one of ten; the log names it. "
        "0: off. `feature_store.metrics_port` replaces it, on every interface",
    )
    scheduler_port: int = Field(
        9121,
        ge=0,
        le=65535,
        description="port of the scheduler's Prometheus metrics on 127.0.0.1, or the next free one of ten. 0: off",
    )
