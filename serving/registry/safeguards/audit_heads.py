"""Heads of the audit log: its last row's number and hash, kept elsewhere, so that a cut-off tail is noticed.

Turns a registry into a head, text into heads, and heads into the faults that they show. A chain of hashes shows a changed row.
It can't show that its last rows are gone, or that somebody wrote the whole chain again. A copy of the head can, as long as
whoever changes the registry can't change the copy.

A head is one line of JSON, so a file of heads grows by a line, and a Kafka topic of heads is such a file, message by message.
"""

from collections.abc import Iterable, Sequence

from pydantic import AwareDatetime, Field, ValidationError

from schemas.events import Frozen
from serving.registry.registry import Registry


class Head(Frozen):
    """The last row of a model's audit log at some time."""

    model_name: str
    sequence: int = Field(ge=1, description="number of the last row")
    hash: str = Field(pattern="^[0-9a-f]{64}$", description="its SHA-256")
    at: AwareDatetime


class BadHeads(ValueError):
    """A file of heads cannot be read, or holds none of this model."""


def head_of(registry: Registry) -> Head | None:
    """Return the present head; None while the log is empty."""
    sequence, digest, _ = registry.audit_head()
    if digest is None:
        return None
    return Head(model_name=registry.model_name, sequence=sequence, hash=digest, at=registry.database.clock())


def read_heads(lines: Iterable[str], model_name: str) -> list[Head]:
    """Return the heads of a model, one a line; other models' lines are skipped. Raises BadHeads."""
    heads = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                head = Head.model_validate_json(line)
            except ValidationError as error:
                raise BadHeads(f"line {number} is no head of an audit log: {error.errors()[0]['msg']}") from error
            heads += [head] if head.model_name == model_name else []
    if not heads:
        raise BadHeads(f"the file holds no head of {model_name}: nothing can be compared")
    return heads


def faults(registry: Registry, heads: Sequence[Head]) -> list[str]:
    """Return what the heads show: rows that are gone, or were written again; empty if the log still holds each of them."""
    last, _, _ = registry.audit_head()
    wrong = []
    for head in heads:
        stored = registry.audit_hash(head.sequence)
        if stored is None:
            wrong.append(
                f"cut off: the log ends at row {last}, and had row {head.sequence} at {head.at:%Y-%m-%d %H:%M:%S} UTC"
            )
        elif stored != head.hash:
            wrong.append(
                f"row {head.sequence} was written again: it had another hash at {head.at:%Y-%m-%d %H:%M:%S} UTC"
            )
    return [f"audit log of {registry.model_name}: {fault}" for fault in wrong]
