"""The registry's tables, as SQLAlchemy Core sees them.

The registry's modules select from them, migrations/versions creates them, and a test compares the two. Times are ISO 8601
text in UTC of one width, so that both databases keep the same value and sort it alike.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKeyConstraint,
    Index,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData()

UNFINISHED = "state IN ('claimed', 'running', 'awaiting approval')"
BY_A_ROUND = "round_id IS NOT NULL"

versions = Table(
    "versions",
    metadata,
    Column("model_name", Text, primary_key=True),
    Column("model_version", Text, primary_key=True),
    Column("sequence", BigInteger, nullable=False),
    Column("digest", Text, nullable=False),
    Column("parent_version", Text),
    Column("round_id", Text, nullable=False),
    Column("created_at", Text, nullable=False),
    Column("servable", Boolean, nullable=False),
    Column("approved_by", Text),
    UniqueConstraint("model_name", "sequence", name="one_place_in_versions"),
)

# The champion is the row of the highest generation: history and pointer are one table. Its primary key makes two
# promotions to one generation impossible, its index two promotions by one round, its foreign key an unknown champion.
promotions = Table(
    "promotions",
    metadata,
    Column("model_name", Text, primary_key=True),
    Column("generation", BigInteger, primary_key=True, autoincrement=False),
    Column("model_version", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("promoted_at", Text, nullable=False),
    Column("round_id", Text),
    Column("actor", Text, nullable=False),
    ForeignKeyConstraint(
        ["model_name", "model_version"], ["versions.model_name", "versions.model_version"], name="a_known_version"
    ),
    Index(
        "one_promotion_by_round",
        "model_name",
        "round_id",
        unique=True,
        sqlite_where=text(BY_A_ROUND),
        postgresql_where=text(BY_A_ROUND),
    ),
)

rounds = Table(
    "rounds",
    metadata,
    Column("round_id", Text, primary_key=True),
    Column("model_name", Text, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("record", Text, nullable=False),
    UniqueConstraint("model_name", "sequence", name="one_place_in_rounds"),
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
    Column("model_name", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("holder", Text),
    Column("token", BigInteger, nullable=False),
    Column("expires_at", Text, nullable=False),
)

heartbeats = Table(
    "heartbeats",
    metadata,
    Column("model_name", Text, primary_key=True),
    Column("host", Text, primary_key=True),
    Column("worker", Text, primary_key=True),
    Column("model_version", Text),
    Column("generation", BigInteger, nullable=False),
    Column("error", Text),
    Column("seen_at", Text, nullable=False),
)

positions = Table(
    "positions",
    metadata,
    Column("model_name", Text, primary_key=True),
    Column("partition", Text, primary_key=True),
    Column("last_offset", BigInteger, nullable=False),
)

labels = Table(
    "labels",
    metadata,
    Column("model_name", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("place", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("merged_into", Text),
)

sides = Table(
    "sides",
    metadata,
    Column("model_name", Text, primary_key=True),
    Column("cluster", Text, primary_key=True),
    Column("side", Text, nullable=False),
)

exclusions = Table(
    "exclusions",
    metadata,
    Column("model_name", Text, primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("subject", Text, primary_key=True),
    Column("excluded_at", Text, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("model_name", Text, primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("at", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("previous", Text, nullable=False),
    Column("hash", Text, nullable=False),
)
