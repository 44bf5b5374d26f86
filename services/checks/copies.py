"""Notice a project folder that is a copy of another one of this machine.

Turns `state/folder.json`, which names the folder that ran last, into a line about the original. `ratchet up` and `ratchet start`
call it first. A folder that was moved, renamed, linked or restored is no copy: its former place is gone, or is itself.
"""

import contextlib
import uuid
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from schemas.settings import Settings
from serving.atomic_write import atomic_write

NOTE = "state/folder.json"


class CopiedProject(ValueError):
    """Two copies of a project would divide its events between them; the message names the way out."""


class _Note(BaseModel):
    model_config = ConfigDict(frozen=True)

    id: str  # the same in a copy, until the copy runs
    file: str  # where this note was written
    folder: str
    broker: str | None
    stream: str
    registry: str


def note_folder(settings: Settings) -> str | None:
    """Record the project's folder as the one that runs; return a line the first time that it is a copy, else None.

    Raises:
        CopiedProject: the original reads the same topics of the same cluster, with a registry of its own.

    """
    path = settings.path(NOTE)
    before = _read(path)
    original = _original(before, path)
    registry = settings.registry_url
    note = _Note(
        id=before.id if before else uuid.uuid4().hex,
        file=str(path.resolve()),
        folder=str(settings.root.resolve()),
        broker=settings.kafka.bootstrap_servers,
        stream=settings.stream_name,
        registry=registry if registry.startswith("sqlite") else registry.rpartition("@")[2],  # no password
    )
    if original and original.registry == note.registry:
        original = None  # one project in two folders, as on two machines
    if original:
        note = note.model_copy(update={"id": uuid.uuid4().hex})
    if original and note.broker is not None and (note.broker, note.stream) == (original.broker, original.stream):
        raise CopiedProject(
            f"this folder is a copy of {original.folder}: both would divide the events of {note.stream}.* on {note.broker} "
            "between them. Set kafka.topic_prefix here, or one registry.url and artifacts.url for both, or remove one"
        )
    if note != before:
        with contextlib.suppress(OSError):  # a folder that is only read can be copied, and nothing is lost by it
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, note.model_dump_json() + "\n")
    if original is None:
        return None
    return (
        f"this folder is a copy of {original.folder}: from now on a project of its own, whose keys open both. Replace them with "
        "`ratchet access keys --renew all`, and set serving.port to run both"
    )


def _original(note: _Note | None, path: Path) -> _Note | None:
    """Return the note of the folder that this one was copied from, if that is still there."""
    if note is None or note.file == str(path.resolve()):
        return None
    other = _read(Path(note.file))
    if other is None or (other.id, other.file) != (note.id, note.file) or path.samefile(note.file):
        return None
    return other


def _read(path: Path) -> _Note | None:
    """Return a note; None if there is none, or it cannot be read: what it guards against is then not noticed."""
    with contextlib.suppress(OSError, ValidationError):
        return _Note.model_validate_json(path.read_bytes())
    return None
