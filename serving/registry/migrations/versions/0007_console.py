"""The console: decisions about people in quarantine, and webhooks."""

import sqlalchemy as sa
from alembic import op

revision = "0007_console"
down_revision = "0006_access"


def upgrade() -> None:
    """Create the two tables, and the indexes that pages of rounds, versions and the audit log need."""
    op.create_table(
        "trust",
        sa.Column("model_name", sa.Text, primary_key=True),
        sa.Column("user", sa.Text, primary_key=True),
        sa.Column("decision", sa.Text, nullable=False),
        sa.Column("decided_by", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("decided_at", sa.Text, nullable=False),
    )
    op.create_table(
        "deliveries",
        sa.Column("model_name", sa.Text, primary_key=True),
        sa.Column("delivery_id", sa.Text, primary_key=True),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("event", sa.Text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("attempts", sa.BigInteger, nullable=False),
        sa.Column("next_at", sa.Text, nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("created_at", sa.Text, nullable=False),
    )
    op.create_index("rounds_by_state", "rounds", ["model_name", "state", "sequence"])
