"""CloudEvents in Kafka messages: the structured mode that Ratchet writes, and the binary mode that others may write.

Turns a message's value and headers into the event's JSON. Source: Kafka protocol binding for CloudEvents 1.0.2, section 3.
The feedback consumer calls it for every message. Messages without any of these headers, as releases up to 0.1.0 wrote
them, are events in structured mode.
"""

import json
from collections.abc import Sequence

STRUCTURED = "application/cloudevents+json"
HEADERS = (("content-type", STRUCTURED.encode()),)  # of every event that Ratchet publishes
TRACED = b'{"specversion":"1.0","traceparent":"'  # how an event of a traced request begins
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
ATTRIBUTES = ("specversion", "type", "source", "id", "subject", "time")  # in binary mode, headers with the prefix ce_


def headers_of(event: bytes) -> tuple[tuple[str, bytes], ...]:
    """Return the headers of an event that Ratchet publishes: its mode, and the trace context if it carries one."""
    if not event.startswith(TRACED):
        return HEADERS
    return (*HEADERS, ("traceparent", event[len(TRACED) : event.index(b'"', len(TRACED))]))


class UnreadableMode(ValueError):
    """The message's headers announce a form of CloudEvents that Ratchet does not read."""


def structured(value: bytes, headers: Sequence[tuple[str, bytes | None]]) -> bytes:
    """Return the JSON of the event in a message, without a byte-order mark. Raises UnreadableMode."""
    value = value.removeprefix(BYTE_ORDER_MARK)
    if not headers:
        return value
    given = {name.lower(): _text(content) for name, content in headers if content is not None}
    kind = given.get("content-type", "").partition(";")[0].strip().lower()
    if kind.startswith("application/cloudevents") and kind != STRUCTURED:
        raise UnreadableMode(f"content-type: {kind[:64]}: expected {STRUCTURED}, one event in a message")
    if kind == STRUCTURED or "ce_specversion" not in given:
        return value
    if kind and kind != "application/json" and not kind.endswith("+json"):
        raise UnreadableMode(f"content-type: {kind[:64]}: expected application/json in binary mode")
    attributes = {name: given[f"ce_{name}"] for name in ATTRIBUTES if f"ce_{name}" in given}
    try:
        data = json.loads(value)
    except (ValueError, RecursionError):
        raise UnreadableMode("binary mode: the value is not JSON") from None
    return json.dumps({**attributes, "data": data}).encode()


def _text(content: bytes) -> str:
    return content.decode("utf-8", "replace")
