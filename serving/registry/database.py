"""The registry's connections: short transactions on SQLite or Postgres, and the schema brought up to date.

Turns a URL into transactions and a driver's errors into `RegistryUnavailable`. Each noun of the registry is constructed
with one `Database`, which knows nothing of what the tables mean.

Writes are serialised: SQLite by BEGIN IMMEDIATE, Postgres by a transaction-scoped advisory lock per model. They are
few and short, and their decisions (which version is champion, which process runs the round) need one order.
"""

import hashlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc

from schemas.events import utc_now

BUSY_SECONDS = 10.0
CONNECT_SECONDS = 5
STATEMENT_MILLISECONDS = 15_000  # longer than the wait for a lock, so that the lock's own error comes first
RESTORE = "restore the registry from its newest backup, or accept a new one with `ratchet up --new-registry`"
MIGRATIONS = Path(__file__).parent / "migrations"

# Alembic keeps its context in module globals: one migration at a time in a process.
_one_migration = threading.Lock()


class RegistryUnavailable(ConnectionError):
    """The database cannot be reached, is locked for too long, is damaged or has no tables yet: try again later."""


class UnknownSchema(RuntimeError):
    """The database was migrated by a later Ratchet than this one."""


class Database:
    """One model's database. Thread-safe; one per process, made after any fork.

    Args:
        url: sqlite:///FILE (its folder is created) or postgresql+psycopg://...
        model_name: every row read or written is this model's.
        clock: returns the time now, in aware UTC; it may be set back or ahead at any moment.
        busy_s: seconds to wait for a lock, a connection or the server's answer.

    Raises:
        ValueError: `url` is neither of these.
        RegistryUnavailable: the SQLite file's folder cannot be created.

    """

    def __init__(
        self, url: str, model_name: str, *, clock: Callable[[], datetime] = utc_now, busy_s: float = BUSY_SECONDS
    ) -> None:
        self.model_name = model_name
        self.clock = clock
        parsed = _parse(url)
        self._sqlite = parsed.get_backend_name() == "sqlite"
        self._file = Path(str(parsed.database)).absolute() if self._sqlite else None
        self._inode: int | None = None
        self._creating = False
        self._engine = _sqlite_engine(parsed, busy_s) if self._sqlite else _postgres_engine(parsed, busy_s)

    @property
    def is_postgres(self) -> bool:
        """Whether the database is Postgres, which has roles, and not SQLite."""
        return not self._sqlite

    def close(self) -> None:
        """Close every connection of the pool."""
        self._engine.dispose()

    def migrate(self) -> None:
        """Migrate the schema to the newest version. Several processes may call this at once; all wait for the first.

        Raises:
            RegistryUnavailable: the database cannot be reached.
            UnknownSchema: the database is at a revision that this code does not have.

        """
        # A process that only reads the registry never loads alembic.
        from alembic import command
        from alembic.config import Config
        from alembic.util import CommandError

        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        with _one_migration:
            self._creating = True
            try:
                with self.write("migrations") as connection:
                    config.attributes["connection"] = connection
                    command.upgrade(config, "head")
            except CommandError as error:
                raise UnknownSchema(
                    f"this Ratchet does not know the registry's schema: {error}; upgrade Ratchet"
                ) from error
            finally:
                self._creating = False

    def exists(self) -> bool:
        """Return whether `migrate` has ever created the tables. Raises RegistryUnavailable."""
        if self._file is not None and not self._file.exists():
            return False
        with self.read() as connection:
            return sa.inspect(connection).has_table("promotions")

    def upgrade(self) -> None:
        """Migrate a schema that is older than this code; leave a missing or newer one. Raises RegistryUnavailable."""
        if not self.exists():
            return
        with self.read() as connection:
            revision = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
        newest = max(path.stem for path in (MIGRATIONS / "versions").glob("[0-9]*.py"))
        if revision is not None and str(revision) < newest:
            self.migrate()

    def _check_file(self) -> None:
        """Refuse a SQLite file that is missing, which SQLite would create; connect again to one that was replaced."""
        if self._file is None or self._creating:
            return
        try:
            inode = self._file.stat().st_ino
        except FileNotFoundError:
            raise RegistryUnavailable(f"the registry {self._file} is missing: {RESTORE}") from None
        except OSError as error:
            raise RegistryUnavailable(f"the registry cannot be used: {error}") from error
        if self._inode not in (None, inode):  # open connections would go on in the deleted file
            self._engine.dispose()
        self._inode = inode

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """Yield a connection to read from. Raises RegistryUnavailable."""
        self._check_file()
        with _driver_errors_named(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self, lock: str | None = None) -> Iterator[sa.Connection]:
        """Yield a transaction that no other writer of this model (or of `lock`) overlaps; any exception rolls it back.

        Raises:
            RegistryUnavailable: the database cannot be reached or is locked for too long.

        """
        self._check_file()
        with self._reopened(), _driver_errors_named(), self._engine.connect() as connection, connection.begin():
            if self._sqlite:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            else:
                key = hashlib.sha256((lock or f"model {self.model_name}").encode()).digest()[:8]
                query = sa.text("SELECT pg_advisory_xact_lock(:key)")
                connection.execute(query, {"key": int.from_bytes(key, signed=True)})
            yield connection

    @contextmanager
    def _reopened(self) -> Iterator[None]:
        """Drop the connections after a write on a read-only file: SQLite would never write with them, even once it may."""
        try:
            yield
        except RegistryUnavailable as error:
            if "readonly" in str(error):
                self._engine.dispose()
            raise

    def mine(self, table: sa.Table) -> sa.ColumnElement[bool]:
        """Return the condition that a row is this model's."""
        return table.c.model_name == self.model_name

    def next_number(self, connection: sa.Connection, table: sa.Table, column: str) -> int:
        """Return the number after the highest of this model's rows: it orders them independently of the clock."""
        highest = connection.execute(sa.select(sa.func.max(table.c[column])).where(self.mine(table))).scalar()
        return 1 if highest is None else int(highest) + 1

    def upsert(self, connection: sa.Connection, table: sa.Table, row: dict[str, object]) -> None:
        """Replace a row by primary key: two statements that both databases know, safe because writers queue."""
        keyed = sa.and_(*(column == row[column.name] for column in table.primary_key))
        connection.execute(table.delete().where(keyed))
        connection.execute(table.insert().values(row))

    def now(self) -> str:
        """Return the time now, as `iso` text."""
        return iso(self.clock())


def iso(moment: datetime) -> str:
    """Return an aware time as text of one width in UTC, so that text order is time order."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def values(row: "sa.Row[Any]") -> dict[str, Any]:
    """Return a row as column name -> value."""
    return dict(row._mapping)


def check_url(url: str) -> None:
    """Raise ValueError unless the registry supports the database of `url`. Connects to nothing."""
    _parse(url)


def _parse(url: str) -> sa.URL:
    try:
        parsed = sa.make_url(url)
    except exc.ArgumentError as error:
        raise ValueError(
            "registry.url must be a database URL: use sqlite:///FILE or postgresql+psycopg://..."
        ) from error
    if parsed.drivername not in ("sqlite", "postgresql+psycopg"):
        raise ValueError(f"registry.url: {parsed.drivername} is not supported; use sqlite or postgresql+psycopg")
    if parsed.drivername == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise ValueError("registry.url: a SQLite registry needs a file, because several processes share it")
    return parsed


def _sqlite_engine(url: sa.URL, busy_s: float) -> sa.Engine:
    assert url.database is not None
    try:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RegistryUnavailable(f"the registry's folder cannot be created: {error}") from error
    engine = sa.create_engine(url, connect_args={"timeout": busy_s})
    sa.event.listen(engine, "connect", lambda connection, _: _prepare_sqlite(connection, busy_s))
    return engine


def _postgres_engine(url: sa.URL, busy_s: float) -> sa.Engine:
    bounds = f"-c statement_timeout={STATEMENT_MILLISECONDS} -c lock_timeout={int(busy_s * 1000)}"
    connect_args = {
        "connect_timeout": CONNECT_SECONDS,
        "tcp_user_timeout": int(busy_s * 1000),  # a peer that vanished is an error, not an endless wait
        "keepalives_idle": max(1, int(busy_s)),  # also when it vanished before it answered a query
        "keepalives_interval": max(1, int(busy_s / 2)),
        "options": f"{url.query.get('options', '')} {bounds}".strip(),
    }
    # A pooled connection may be older than the server's last restart: pre_ping tests it first.
    return sa.create_engine(url, connect_args=connect_args, pool_pre_ping=True, pool_timeout=busy_s)


def _prepare_sqlite(connection: Any, busy_s: float) -> None:
    # `Database.write` begins transactions itself (BEGIN IMMEDIATE), so that two writers queue instead of failing half-way.
    connection.isolation_level = None
    _use_wal(connection, busy_s)
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")


def _use_wal(connection: Any, busy_s: float) -> None:
    """Switch to WAL. SQLite does not always honour its busy timeout for this switch, so this loop waits."""
    deadline = time.monotonic() + busy_s
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


@contextmanager
def _driver_errors_named() -> Iterator[None]:
    try:
        yield
    except (exc.IntegrityError, exc.DataError):
        raise  # a bug here: waiting does not help
    except exc.DBAPIError as error:
        raise RegistryUnavailable(f"the registry cannot be used: {error.orig}") from error
    except (exc.TimeoutError, sqlite3.Error) as error:
        raise RegistryUnavailable(f"the registry cannot be used: {error}") from error
