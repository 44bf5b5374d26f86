"""Notes of ingestion: events that were lost or passed over, and trouble that lasts, by kind and subject.

Turns what the feedback consumer notices into rows that other processes show. A subject is '<topic>/<partition>', a topic or a
process. The consumer writes them; `ratchet status`, `ratchet doctor` and serving's /metrics read them.
"""

import uuid
from collections.abc import Mapping
from datetime import datetime

import sqlalchemy as sa

from schemas.records import IngestionNote
from serving.registry import tables as t
from serving.registry.database import Database, values


class IngestionNotes:
    """The notes of one model, its project's id, and since when its prediction ids can be checked."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def count_ingestion(self, kind: str, subject: str, count: int, *, offset: int | None, detail: str) -> None:
        """Add to a count. `offset` and `detail` replace those of the last time."""
        with self._database.write() as connection:
            mine = self._mine(kind) & (t.ingestion.c.subject == subject)
            before = connection.execute(sa.select(t.ingestion.c.count).where(mine)).scalar() or 0
            self._put(connection, kind, subject, before + count, offset, detail)

    def show_ingestion(self, kind: str, details: Mapping[str, str], *, prefix: str = "") -> None:
        """Replace the notes of a kind whose subject begins with `prefix`: subject -> detail. Without details there are none."""
        with self._database.write() as connection:
            old = self._mine(kind) & t.ingestion.c.subject.startswith(prefix, autoescape=True)
            connection.execute(t.ingestion.delete().where(old))
            for subject, detail in details.items():
                self._put(connection, kind, subject, 1, None, detail)

    def ingestion(self) -> list[IngestionNote]:
        """Return the notes by kind and subject."""
        query = sa.select(t.ingestion).where(self._database.mine(t.ingestion))
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(t.ingestion.c.kind, t.ingestion.c.subject))
            return [IngestionNote.model_validate(values(row)) for row in rows]

    def project_id(self) -> str:
        """Return the project's id, which is drawn at the first call: it moves with the registry, not with a folder."""
        with self._database.write() as connection:
            query = sa.select(t.projects.c.project_id).where(self._database.mine(t.projects))
            known = connection.execute(query).scalar()
            if known is None:
                known = uuid.uuid4().hex
                row = {"model_name": self._database.model_name, "project_id": known}
                connection.execute(t.projects.insert().values(row))
            return str(known)

    def signed_since(self) -> datetime | None:
        """Return the time before which prediction ids carry no checksum; None if all of them do.

        A migration wrote it for the models of its time. What the checksum is for is in serving/http/prediction_ids.py.
        """
        query = sa.select(t.signed_ids.c.since).where(self._database.mine(t.signed_ids))
        with self._database.read() as connection:
            since = connection.execute(query).scalar()
        return None if since is None else datetime.fromisoformat(since)

    def _mine(self, kind: str) -> sa.ColumnElement[bool]:
        return self._database.mine(t.ingestion) & (t.ingestion.c.kind == kind)

    def _put(
        self, connection: sa.Connection, kind: str, subject: str, count: int, offset: int | None, detail: str
    ) -> None:
        row: dict[str, object] = {
            "model_name": self._database.model_name,
            "kind": kind,
            "subject": subject,
            "count": count,
            "last_offset": offset,
            "detail": detail,
            "noted_at": self._database.now(),
        }
        self._database.upsert(connection, t.ingestion, row)
