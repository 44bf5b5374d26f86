"""The registry's tables, as SQLAlchemy Core sees them.

The registry's modules select from them, migrations/versions creates them, and a test compares the two. Times are ISO 8601
text in UTC of one width, so that both databases keep the same value and sort it alike.
"""

import sqlalchemy as sa
from sqlalchemy import Column, Table, Text

metadata = sa.MetaData()

UNFINISHED = "state IN ('claimed', 'running', 'awaiting approval')"
BY_A_ROUND = "round_id IS NOT NULL"

versions = Table(
    "versions",
    metadata,
    Column("model_name", Text, primary_key=True),
    Column("model_version", Text, primary_key=True),
    Column("sequence", sa.BigInteger, nullable=False),
    Column("digest", Text, nullable=False),
    Column("parent_version", Text),
    Column("round_id", Text, nullable=False),
    Column("created_at", Text, nullable=False),
    Column("servable", sa.Boolean, nullable=False),
    Column("approved_by", Text),
    Column("state", Text, nullable=False, server_default="candidate"),
    sa.UniqueConstraint("model_name", "sequence", name="one_place_in_versions"),
)

# The champion is the row of the highest generation: history and pointer are one table. Its primary key makes two
# promotions to one generation impossible, its index two promotions by one round, its foreign key an unknown champion.
promotions = Table(
    "promotions",
    metadata,
    Column("model_name", Text, primary_key=True),
    Column("generation", sa.BigInteger, primary_key=True, autoincrement=False),
    Column("model_version", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("promoted_at", Text, nullable=False),
    Column("round_id", Text),
    Column("actor", Text, nullable=False),
    sa.ForeignKeyConstraint(
        ["model_name", "model_version"], ["versions.model_name", "versions.model_version"], name="a_known_version"
    ),
    sa.Index(
        "one_promotion_by_round",
        "model_name",
        "round_id",
        unique=True,
        sqlite_where=sa.text(BY_A_ROUND),
        postgresql_where=sa.text(BY_A_ROUND),
    ),
)

rounds = Table(
    "rounds",
    metadata,
    Column("round_id", Text, primary_key=True),
    Column("model_name", Text, nullable=False),
    Column("sequence", sa.BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("record", Text, nullable=False),
    sa.UniqueConstraint("model_name", "sequence", name="one_place_in_rounds"),
    sa.Index("rounds_by_state", "model_name", "state", "sequence"),
    sa.Index(
        "one_unfinished_round",
        "model_name",
        unique=True,
        sqlite_where=sa.text(UNFINISHED),
        postgresql_where=sa.text(UNFINISHED),
    ),
)

leases = Table(
    "leases",
    metadata,
    Column("model_name", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("holder", Text),
    Column("token", sa.BigInteger, nullable=False),
    Column("expires_at", Text, nullable=False),
)

heartbeats = Table(
    "heartbeats",
    metadata,
    Column("model_name", Text, primary_key=True),
    Column("host", Text, primary_key=True),
    Column("worker", Text, primary_key=True),
    Column("model_version", Text),
    Column("generation", sa.BigInteger, nullable=False),
    Column("error", Text),
    Column("seen_at", Text, nullable=False),
)

positions = Table(
    "positions",
    metadata,
    Column("model_name", Text, primary_key=True),
    Column("partition", Text, primary_key=True),
    Column("last_offset", sa.BigInteger, nullable=False),
)

# What the feedback consumer counted or has trouble with, by the kinds of ingestion.py.
ingestion = Table(
    "ingestion",
    metadata,
    Column("model_name", Text, primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("subject", Text, primary_key=True),
    Column("count", sa.BigInteger, nullable=False),
    Column("last_offset", sa.BigInteger),
    Column("detail", Text, nullable=False),
    Column("noted_at", Text, nullable=False),
)

projects = Table(
    "projects",
    metadata,
    Column("model_name", Text, primary_key=True),
    Column("project_id", Text, nullable=False),
)

labels = Table(
    "labels",
    metadata,
    Column("model_name", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("place", sa.BigInteger, nullable=False),
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

# The ledger of evidence: each judgement against a champion, and the rows on which it was judged so far.
looks = Table(
    "looks",
    metadata,
    Column("model_name", Text, primary_key=True),
    Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    Column("round_id", Text, nullable=False),
    Column("champion", Text, nullable=False),
    Column("candidate", Text, nullable=False),
    Column("number", sa.BigInteger, nullable=False),
    Column("rows", sa.BigInteger, nullable=False),
    Column("fresh_rows", sa.BigInteger, nullable=False),
    Column("rows_sha256", Text, nullable=False),
    Column("alpha", sa.Float, nullable=False),
    Column("p", sa.Float),
    Column("verdict", Text),
    Column("at", Text, nullable=False),
    sa.UniqueConstraint("model_name", "round_id", "champion", name="one_look_by_round"),
    sa.UniqueConstraint("model_name", "champion", "number", name="one_place_among_looks"),
)

looked_rows = Table(
    "looked_rows",
    metadata,
    Column("model_name", Text, primary_key=True),
    Column("champion", Text, primary_key=True),
    Column("row_key", Text, primary_key=True),
)

exclusions = Table(
    "exclusions",
    metadata,
    Column("model_name", Text, primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("subject", Text, primary_key=True),
    Column("excluded_at", Text, nullable=False),
)

# Keys of people and apps, each as a hash. A rotated person has two rows until the earlier key expires.
people = Table(
    "people",
    metadata,
    Column("model_name", Text, primary_key=True),
    Column("key_id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("roles", Text, nullable=False),
    Column("key_hash", Text, nullable=False),
    Column("rate", Text),
    Column("quota", Text),
    Column("created_at", Text, nullable=False),
    Column("expires_at", Text),
    Column("revoked_at", Text),
)

# Who approved a round's candidate. Its primary key counts each person once.
approvals = Table(
    "approvals",
    metadata,
    Column("model_name", Text, primary_key=True),
    Column("round_id", Text, primary_key=True),
    Column("person", Text, primary_key=True),
    Column("reason", Text, nullable=False),
    Column("approved_at", Text, nullable=False),
)

# When prediction ids began to carry a checksum: earlier ids cannot be checked. A model made later has no row.
signed_ids = Table(
    "signed_ids",
    metadata,
    Column("model_name", Text, primary_key=True),
    Column("since", Text, nullable=False),
)

# One item a text and round; audit items have the round "". `answer_1` and `answer_2` are in the order in which they are shown.
queue_items = Table(
    "queue_items",
    metadata,
    Column("model_name", Text, primary_key=True),
    Column("item_id", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("round_id", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("task", Text, nullable=False),
    Column("text", Text, nullable=False),
    Column("metadata", Text, nullable=False),
    Column("answer_1", Text),
    Column("answer_2", Text),
    Column("candidate_first", sa.Boolean),
    Column("draw", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("label", Text),
    Column("leased_to", Text),
    Column("leased_until", Text),
    Column("created_at", Text, nullable=False),
    Column("expires_at", Text),
    Column("decided_at", Text),
    sa.UniqueConstraint("model_name", "kind", "round_id", "key", name="one_item_a_text"),
    sa.Index("queue_by_draw", "model_name", "state", "kind", "draw"),
)

# One vote a person and item. A skipped item has no label.
queue_votes = Table(
    "queue_votes",
    metadata,
    Column("model_name", Text, primary_key=True),
    Column("item_id", Text, primary_key=True),
    Column("reviewer", Text, primary_key=True),
    Column("label", Text),
    Column("unsure", sa.Boolean, nullable=False),
    Column("voted_at", Text, nullable=False),
    sa.ForeignKeyConstraint(
        ["model_name", "item_id"], ["queue_items.model_name", "queue_items.item_id"], name="of_a_known_item"
    ),
)

audit = Table(
    "audit",
    metadata,
    Column("model_name", Text, primary_key=True),
    Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    Column("at", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("previous", Text, nullable=False),
    Column("hash", Text, nullable=False),
)

# What a reviewer decided about people who give feedback: released from quarantine, or rejected.
trust = Table(
    "trust",
    metadata,
    Column("model_name", Text, primary_key=True),
    Column("user", Text, primary_key=True),
    Column("decision", Text, nullable=False),
    Column("decided_by", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("decided_at", Text, nullable=False),
)

# Webhooks: one row an event and receiver.
deliveries = Table(
    "deliveries",
    metadata,
    Column("model_name", Text, primary_key=True),
    Column("delivery_id", Text, primary_key=True),
    Column("url", Text, nullable=False),
    Column("event", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("attempts", sa.BigInteger, nullable=False),
    Column("next_at", Text, nullable=False),
    Column("error", Text),
    Column("created_at", Text, nullable=False),
)
