"""The registry's tables, as SQLAlchemy Core sees them.

Used by registry.py alone; migrations/versions creates them, and a test holds the two equal. Times are ISO 8601 text in
UTC, so that SQLite and Postgres keep the same value and order.
"""

from sqlalchemy import Boolean, Column, Index, Integer, MetaData, String, Table, Text, UniqueConstraint, text

metadata = MetaData()

UNFINISHED = "state IN ('claimed', 'running', 'awaiting approval')"

versions = Table(
    "versions",
    metadata,
    Column("model_version", String(128), primary_key=True),
    Column("model_name", String(64), nullable=False, index=True),
    Column("digest", String(64), nullable=False),
    Column("parent_version", String(128)),
    Column("round_id", String(64), nullable=False),
    Column("created_at", String(40), nullable=False),
    Column("servable", Boolean, nullable=False),
    Column("approved_by", String(128)),
)

# The champion is the row of the highest generation: history and pointer are one table, and the primary key makes two
# promotions to the same generation impossible.
promotions = Table(
    "promotions",
    metadata,
    Column("model_name", String(64), primary_key=True),
    Column("generation", Integer, primary_key=True, autoincrement=False),
    Column("model_version", String(128), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("promoted_at", String(40), nullable=False),
    Column("round_id", String(64)),
    Column("actor", String(128), nullable=False),
)

rounds = Table(
    "rounds",
    metadata,
    Column("round_id", String(64), primary_key=True),
    Column("model_name", String(64), nullable=False),
    Column("state", String(32), nullable=False),
    Column("created_at", String(40), nullable=False),
    Column("record", Text, nullable=False),
    Index(
        "one_unfinished_round",
        "model_name",
        unique=True,
        sqlite_where=text(UNFINISHED),
        postgresql_where=text(UNFINISHED),
    ),
)

leases = Table(
    "leases",
    metadata,
    Column("model_name", String(64), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("holder", String(128)),
    Column("token", Integer, nullable=False),
    Column("expires_at", String(40), nullable=False),
)

heartbeats = Table(
    "heartbeats",
    metadata,
    Column("model_name", String(64), primary_key=True),
    Column("host", String(128), primary_key=True),
    Column("worker", String(32), primary_key=True),
    Column("model_version", String(128)),
    Column("generation", Integer, nullable=False),
    Column("error", Text),
    Column("seen_at", String(40), nullable=False),
)

positions = Table(
    "positions",
    metadata,
    Column("model_name", String(64), primary_key=True),
    Column("partition", String(128), primary_key=True),
    Column("last_offset", Integer, nullable=False),
)

labels = Table(
    "labels",
    metadata,
    Column("model_name", String(64), primary_key=True),
    Column("name", String(256), primary_key=True),
    Column("place", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("merged_into", String(256)),
)

sides = Table(
    "sides",
    metadata,
    Column("model_name", String(64), primary_key=True),
    Column("cluster", String(64), primary_key=True),
    Column("side", String(16), nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("model_name", String(64), primary_key=True),
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    Column("at", String(40), nullable=False),
    Column("actor", String(128), nullable=False),
    Column("action", String(64), nullable=False),
    Column("detail", Text, nullable=False),
    Column("hash", String(64), nullable=False),
    UniqueConstraint("model_name", "hash", name="one_link"),
)
