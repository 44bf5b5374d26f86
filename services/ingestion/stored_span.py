"""The span of a micro-batch: it links the commit to the traces of the requests whose events it stores."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from opentelemetry.trace import SpanKind

from serving.messaging.publisher import Message
from serving.process import tracing
from serving.process.tracing import HEADER


def stored_span(messages: Sequence[Message]) -> AbstractContextManager[object]:
    """Return a span around the storing of messages, if one is traced; it ends as failed if the block raises."""
    if not tracing.enabled():
        return nullcontext()
    given = [content for message in messages for name, content in message.headers if name == HEADER and content]
    if not given:
        return nullcontext()
    last = {f"{message.topic}/{message.partition}": message.offset for message in messages}
    attributes: dict[str, int | str] = {"messaging.batch.message_count": len(messages), "ratchet.positions": str(last)}
    links = (content.decode("latin-1") for content in given)
    return tracing.span("store events", attributes, links=links, kind=SpanKind.CONSUMER)
