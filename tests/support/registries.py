"""An empty registry for each test, on SQLite and, marked, on Postgres; and what one fills it with.

The tests of registry*.py name these fixtures as their own. Nothing here stands in for the registry.
"""

import contextlib
import os
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
import sqlalchemy as sa

from schemas.records import RoundRecord
from schemas.reports import GateReport, Verdict
from serving.registry.registry import Registry
from tests.support.manifests import manifest

START = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


class Clock:
    """A wall clock and a monotonic one. Time passes on both when told to; the wall clock alone can be set."""

    def __init__(self) -> None:
        self.now = START
        self.elapsed = 0.0

    def __call__(self) -> datetime:
        return self.now

    def monotonic(self) -> float:
        return self.elapsed

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        self.elapsed += seconds

    def set(self, by: timedelta) -> None:
        self.now += by


@contextlib.contextmanager
def postgres_schema() -> Iterator[str]:
    """A registry URL whose tables are in a fresh schema."""
    address = os.environ.get("RATCHET_TEST_POSTGRES")
    if not address:
        pytest.skip("RATCHET_TEST_POSTGRES is not set")
    schema = f"ratchet_{uuid.uuid4().hex}"
    with psycopg.connect(address.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}".encode())
        try:
            yield f"{address}?options={quote(f'-c search_path={schema}')}"
        finally:
            connection.execute(f"DROP SCHEMA {schema} CASCADE".encode())


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/state/100 %/registry.db"
        return
    with postgres_schema() as address:
        yield address


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(url: str, clock: Clock) -> Iterator[Registry]:
    with contextlib.closing(Registry(url, "m", clock=clock, monotonic=clock.monotonic)) as opened:
        opened.migrate()
        yield opened


def gate_report(verdict: Verdict, *, bootstrap: bool = False) -> GateReport:
    return GateReport(verdict=verdict, results=[], policy_sha256="0" * 64, look=1, bootstrap=bootstrap)


def add_versions(registry: Registry, *names: str) -> None:
    for name in names:
        registry.register_version(manifest(name, model_name=registry.model_name), f"digest of {name}", servable=True)


def begin(registry: Registry, *, cut: dict[str, int] | None = None) -> RoundRecord:
    record = registry.claim_round(reason="test", cut=cut or {}, token=None)
    assert record is not None
    return registry.start_round(record.round_id)


def statement(url: str, text: str, **values: object) -> None:
    """What somebody with access to the database could do behind the registry's back."""
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text(text), values)
    engine.dispose()
