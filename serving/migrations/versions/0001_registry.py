"""The first schema of the registry."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

UNFINISHED = "state IN ('claimed', 'running', 'awaiting approval')"


def _name(length: int = 64) -> sa.Column[str]:
    return sa.Column("model_name", sa.String(length), primary_key=True)


def upgrade() -> None:
    """Create every table."""
    op.create_table(
        "versions",
        sa.Column("model_version", sa.String(128), primary_key=True),
        sa.Column("model_name", sa.String(64), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("parent_version", sa.String(128)),
        sa.Column("round_id", sa.String(64), nullable=False),
        sa.Column("created_at", sa.String(40), nullable=False),
        sa.Column("servable", sa.Boolean, nullable=False),
        sa.Column("approved_by", sa.String(128)),
    )
    op.create_index("ix_versions_model_name", "versions", ["model_name"])
    op.create_table(
        "promotions",
        _name(),
        sa.Column("generation", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("model_version", sa.String(128), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("promoted_at", sa.String(40), nullable=False),
        sa.Column("round_id", sa.String(64)),
        sa.Column("actor", sa.String(128), nullable=False),
    )
    op.create_table(
        "rounds",
        sa.Column("round_id", sa.String(64), primary_key=True),
        sa.Column("model_name", sa.String(64), nullable=False),
        sa.Column("state", sa.String(32), nullable=False),
        sa.Column("created_at", sa.String(40), nullable=False),
        sa.Column("record", sa.Text, nullable=False),
    )
    op.create_index(
        "one_unfinished_round",
        "rounds",
        ["model_name"],
        unique=True,
        sqlite_where=sa.text(UNFINISHED),
        postgresql_where=sa.text(UNFINISHED),
    )
    op.create_table(
        "leases",
        _name(),
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("holder", sa.String(128)),
        sa.Column("token", sa.Integer, nullable=False),
        sa.Column("expires_at", sa.String(40), nullable=False),
    )
    op.create_table(
        "heartbeats",
        _name(),
        sa.Column("host", sa.String(128), primary_key=True),
        sa.Column("worker", sa.String(32), primary_key=True),
        sa.Column("model_version", sa.String(128)),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("seen_at", sa.String(40), nullable=False),
    )
    op.create_table(
        "positions",
        _name(),
        sa.Column("partition", sa.String(128), primary_key=True),
        sa.Column("last_offset", sa.Integer, nullable=False),
    )
    op.create_table(
        "labels",
        _name(),
        sa.Column("name", sa.String(256), primary_key=True),
        sa.Column("place", sa.Integer, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("merged_into", sa.String(256)),
    )
    op.create_table(
        "sides",
        _name(),
        sa.Column("cluster", sa.String(64), primary_key=True),
        sa.Column("side", sa.String(16), nullable=False),
    )
    op.create_table(
        "audit",
        _name(),
        sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("at", sa.String(40), nullable=False),
        sa.Column("actor", sa.String(128), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.UniqueConstraint("model_name", "hash", name="one_link"),
    )
