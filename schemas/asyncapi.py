"""The AsyncAPI document: all that a producer or a reader of the topics must know, in any language.

Turns the event models into AsyncAPI 3.0, with keys, headers, size limits, the meaning of `value`, and the headers of dead
letters. export.py writes it to schemas/json/. A test runs a Java producer that is written from it.
"""

from typing import Any

from pydantic import BaseModel

from schemas import cloudevents
from schemas.events import (
    MAX_EVENT_BYTES,
    MAX_HEADER_BYTES,
    MAX_ID_CHARS,
    MAX_LABELS,
    MAX_USER_CHARS,
    FeedbackReceived,
    ModelPromoted,
    PredictionMade,
)

EVENTS: dict[str, type[BaseModel]] = {
    "predictions": PredictionMade,
    "feedback": FeedbackReceived,
    "promotions": ModelPromoted,
}
KEYS = {
    "predictions": "data.prediction_id, UTF-8",
    "feedback": "data.prediction_id, UTF-8: feedback on one prediction keeps its order",
    "promotions": "data.model_name, UTF-8",
}
WRITERS = {
    "predictions": "Ratchet's serving. Others may write predictions of models that the registry knows.",
    "feedback": "Ratchet's serving and any app: both are checked by the rules of POST /feedback.",
    "promotions": "Ratchet's scheduler and command line.",
}
DESCRIPTION = f"""Predictions, feedback and promotions as CloudEvents 1.0 in Kafka.

Structured mode: the value is the whole event as JSON in UTF-8, and the header content-type is {cloudevents.STRUCTURED}.
Ratchet writes this mode. Events without the header are read as structured too.
Binary mode: the value is `data` alone, content-type is application/json, and the headers
{", ".join(f"ce_{name}" for name in cloudevents.ATTRIBUTES)} hold the attributes as UTF-8.
Batches (application/cloudevents-batch+json) and other formats become dead letters.

Size: a value has at most {MAX_EVENT_BYTES:,} bytes, key and headers {MAX_HEADER_BYTES:,} bytes more, unless max.message.bytes
of the topic is smaller. Compression: any codec that the topic accepts. Transactions: only committed messages are read.
Delivery: send with acks=all. An event that is sent twice counts once.
Unknown fields are ignored. A message that breaks a rule goes to the topic of dead letters and stops nothing.
"""
USER = f"""data.user is the person as the app knows them, 1 to {MAX_USER_CHARS} characters. It is stored as a pseudonym:
HMAC-SHA-256 under the project's secret, 32 hex digits, the same for POST /feedback and for this topic. Only Ratchet's serving
writes pseudonyms into events; its source, ratchet/{{model}}/serving, is reserved for it. A source of your own may be any URI,
such as https://example.org/app."""
VALUES = f"""data.value by data.kind:
- correction, classification: a label of the taxonomy, as text (numbers and booleans become text)
- correction, multilabel: a list of labels, {MAX_LABELS} at most; an empty list means that no label applies
- correction, regression: a finite number
- correction, generation: the right text, at most serving.max_text_chars characters
- rating: "up" or "down", about the answer that was shown
- score: a number from 0 to 1
- comment: a text of at least one character, at most serving.max_text_chars
- retract: the feedback_id to withdraw
A correction equal to the answer confirms it. Texts are anonymised before they are stored. A retired or unknown label is
refused."""
RETRACT = f"""A retraction is an event of kind retract with a feedback_id of its own. It withdraws the feedback of the same
prediction_id and the same user (absent for both, if anonymous) whose feedback_id is data.value, whether it comes before or
after it. It cannot be withdrawn. To correct a correction, send another: of one user's feedback of one kind on one prediction
the latest by time counts. Ids have at most {MAX_ID_CHARS} characters."""
LETTER_HEADERS = {
    "ratchet-topic": "the topic that the message came from",
    "ratchet-partition": "its partition, as decimal text",
    "ratchet-offset": "its offset, as decimal text",
    "ratchet-position": "<topic id>/<partition>/<offset>: unique, also if a topic is created again",
    "ratchet-reason": "why it was not stored: the field and the rule",
    "ratchet-tombstone": "1 if the message had no value; the dead letter's value is empty then",
    "ratchet-bytes": "the length of the original value, if the dead letter holds only its beginning",
    "ratchet-cut": "which of headers, key and value were cut so that the dead letter fits its topic",
    "ratchet-null-headers": "the names of original headers without a value; in the dead letter they are empty",
    "ratchet-undecoded-records": "the number of records that could not be decoded; the value is their bytes",
}


def asyncapi_document() -> dict[str, object]:
    """Return the AsyncAPI 3.0 document."""
    channels = {topic: _channel(topic) | _messages(EVENTS[topic].__name__) for topic in EVENTS}
    channels["dead_letters"] = _channel("feedback.dlq") | _messages("DeadLetter")
    messages = {model.__name__: _event(topic, model) for topic, model in EVENTS.items()}
    messages["DeadLetter"] = _dead_letter()
    sent = {"action": "receive", "channel": {"$ref": "#/channels/feedback"}, "summary": "feedback from apps"}
    return {
        "asyncapi": "3.0.0",
        "id": "urn:ratchet:events",
        "info": {"title": "Ratchet", "version": "1", "description": DESCRIPTION},
        "defaultContentType": cloudevents.STRUCTURED,
        "channels": channels,
        "operations": {"receiveFeedback": sent},
        "components": {"messages": messages},
    }


def _channel(topic: str) -> dict[str, Any]:
    return {
        "address": "{prefix}{model}." + topic,
        "parameters": {
            "prefix": {"description": "kafka.topic_prefix of the project, empty by default"},
            "model": {"description": "model.name of the project"},
        },
        "bindings": {"kafka": {"bindingVersion": "0.5.0"}},
        **({"description": f"Written by: {WRITERS[topic]}"} if topic in WRITERS else {}),
    }


def _messages(name: str) -> dict[str, Any]:
    return {"messages": {name: {"$ref": f"#/components/messages/{name}"}}}


def _event(topic: str, model: type[BaseModel]) -> dict[str, Any]:
    described = {"description": "\n\n".join((VALUES, USER, RETRACT))} if model is FeedbackReceived else {}
    modes = [
        _headers({"content-type": {"const": cloudevents.STRUCTURED}}, []),
        _headers(
            {
                "content-type": {"const": "application/json"},
                **{f"ce_{name}": _text() for name in cloudevents.ATTRIBUTES},
            },
            ["ce_specversion", "ce_type", "ce_source", "ce_subject"],
        ),
    ]
    return {
        **described,
        "contentType": cloudevents.STRUCTURED,
        "headers": {"oneOf": modes},
        "bindings": {"kafka": {"bindingVersion": "0.5.0", "key": _text(KEYS[topic])}},
        "payload": {
            "schemaFormat": "application/schema+json;version=draft-2020-12",
            "schema": {"$ref": f"{model.__name__}.json"},
        },
    }


def _dead_letter() -> dict[str, Any]:
    return {
        "description": "A message that could not be read or stored: its key, its value, its headers, and the headers below. "
        "It holds what its sender wrote. `ratchet feedback replay --dlq` reads the topic again.",
        "headers": _headers(
            {name: _text(meaning) for name, meaning in LETTER_HEADERS.items()}, list(LETTER_HEADERS)[:5]
        ),
        "bindings": {"kafka": {"bindingVersion": "0.5.0", "key": _text("the key of the original message")}},
        "payload": {"description": "the original bytes"},
    }


def _headers(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, **({"required": required} if required else {})}


def _text(description: str = "") -> dict[str, str]:
    return {"type": "string", **({"description": description} if description else {})}
