"""Traces by OpenTelemetry: from an HTTP request, over its event in Kafka, to the commit that stores the event, and of rounds.

Off unless `observability.traces` names a collector: then each function here costs a comparison. Context travels as W3C
`traceparent`: in the request's header, in the event (CloudEvents' extension for distributed tracing) and in the message's header.
Spans hold routes, statuses, counts and ids, never a text.

Spans leave by OTLP over HTTP in its JSON form (OpenTelemetry Protocol, version 1), in a thread, from a bounded queue: a collector
that is away costs spans, not requests.
"""

import contextlib
import json
import logging
import random
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence

from opentelemetry import context, trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from schemas.configuration.observability import ObservabilitySettings

log = logging.getLogger("ratchet.tracing")

HEADER = "traceparent"
MOST_LINKS = 128  # of one span; OpenTelemetry's own limit
SEND_SECONDS = 10.0
_propagator = TraceContextTextMapPropagator()
_provider: TracerProvider | None = None
_share = 1.0
# The current span within a trace that is not kept: valid, so that the spans below it are not kept either.
_LEFT_OUT = NonRecordingSpan(SpanContext(trace_id=1, span_id=1, is_remote=False))
_LEFT_OUT_CONTEXT = trace.set_span_in_context(_LEFT_OUT, context.Context())


def start_tracing(
    settings: ObservabilitySettings,
    *,
    service: str,
    model: str,
    share: float = 1.0,
    exporter: SpanExporter | None = None,
) -> None:
    """Trace this process from now on, if the settings name a collector.

    Args:
        settings: with the collector's address.
        service: serving, consumer or round.
        model: the project's model.
        share: of the spans without parent that are kept; those with a sampled parent always are.
        exporter: replaces OTLP.

    """
    global _provider, _share  # one for the process, as the loggers are
    stop_tracing()
    if settings.traces is None:
        return
    resource = Resource.create({"service.name": f"ratchet-{service}", "ratchet.model": model})
    _provider, _share = TracerProvider(resource=resource, sampler=ParentBased(ALWAYS_ON)), share
    _provider.add_span_processor(BatchSpanProcessor(exporter or OtlpJson(settings.traces)))


def enabled() -> bool:
    """Return whether this process traces."""
    return _provider is not None


def stop_tracing() -> None:
    """Send the spans that wait, and stop."""
    global _provider  # noqa: PLW0603
    if _provider is not None:
        _provider.shutdown()
        _provider = None


@contextlib.contextmanager
def span(
    name: str,
    attributes: Mapping[str, str | int] | None = None,
    *,
    parent: str | None = None,
    links: Iterable[str] = (),
    kind: SpanKind = SpanKind.INTERNAL,
) -> Iterator[trace.Span]:
    """Trace a block; an exception marks the span as failed.

    Args:
        name: of the span.
        attributes: ids and counts.
        parent: a `traceparent` whose trace the span continues, "" for a new trace; the current span if None.
        links: a `traceparent` for each other trace that the span belongs to; MOST_LINKS at most.
        kind: OpenTelemetry's kind of span.

    """
    if _provider is None:
        yield trace.INVALID_SPAN
        return
    above = context.get_current() if parent is None else _context_of(parent)
    if not trace.get_current_span(above).get_span_context().is_valid and random.random() >= _share:  # noqa: S311
        # Drawn here: a span that OpenTelemetry's SDK drops costs seven times as much (docs/lab-notes.md).
        token = context.attach(_LEFT_OUT_CONTEXT)
        try:
            yield _LEFT_OUT
        finally:
            context.detach(token)
        return
    linked = [Link(each) for each in map(_span_context, list(links)[:MOST_LINKS]) if each.is_valid]
    tracer = _provider.get_tracer("ratchet")
    with tracer.start_as_current_span(name, above, kind, attributes, linked) as current:
        yield current


def traceparent() -> str | None:
    """Return the current span's context, for an event; None if it is not traced."""
    if _provider is None or not trace.get_current_span().get_span_context().trace_flags.sampled:
        return None
    carrier: dict[str, str] = {}
    _propagator.inject(carrier)
    return carrier.get(HEADER)


def _context_of(given: str) -> context.Context:
    """Return the context of a `traceparent`; an empty one for anything else."""
    return _propagator.extract({HEADER: given}, context.Context()) if given else context.Context()


def _span_context(given: str) -> trace.SpanContext:
    span = trace.get_current_span(_context_of(given))
    return span.get_span_context() if isinstance(span, NonRecordingSpan) else trace.INVALID_SPAN_CONTEXT


class OtlpJson(SpanExporter):
    """Posts spans to a collector as OTLP in JSON."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send the spans; a collector that is away or refuses loses them, with a line in the log."""
        body = json.dumps({"resourceSpans": [_resource_spans(one) for one in spans]}).encode()
        request = urllib.request.Request(self._endpoint, body, {"Content-Type": "application/json"})  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=SEND_SECONDS):  # noqa: S310  # the setting's pattern
                return SpanExportResult.SUCCESS
        except OSError as error:
            log.warning(
                "%d spans are lost, the collector of observability.traces does not take them: %s", len(spans), error
            )
            return SpanExportResult.FAILURE


def _resource_spans(one: ReadableSpan) -> dict[str, object]:
    given = one.get_span_context()
    assert given is not None
    written: dict[str, object] = {
        "traceId": trace.format_trace_id(given.trace_id),
        "spanId": trace.format_span_id(given.span_id),
        "name": one.name,
        "kind": one.kind.value + 1,  # the protocol counts from 1
        "startTimeUnixNano": str(one.start_time),
        "endTimeUnixNano": str(one.end_time),
        "attributes": _attributes(one.attributes),
        "links": [
            {
                "traceId": trace.format_trace_id(link.context.trace_id),
                "spanId": trace.format_span_id(link.context.span_id),
            }
            for link in one.links
        ],
        "events": [
            {"timeUnixNano": str(event.timestamp), "name": event.name, "attributes": _attributes(event.attributes)}
            for event in one.events
        ],
        "status": {"code": one.status.status_code.value},
    }
    if one.parent is not None:
        written["parentSpanId"] = trace.format_span_id(one.parent.span_id)
    scope = {"scope": {"name": "ratchet"}, "spans": [written]}
    return {"resource": {"attributes": _attributes(one.resource.attributes)}, "scopeSpans": [scope]}


def _attributes(given: Mapping[str, AttributeValue] | None) -> list[dict[str, object]]:
    return [{"key": key, "value": _value(value)} for key, value in (given or {}).items()]


def _value(value: AttributeValue) -> dict[str, object]:
    """Return an attribute's value as the protocol writes it: 64-bit integers are texts."""
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    return {"doubleValue": value} if isinstance(value, float) else {"stringValue": str(value)}
