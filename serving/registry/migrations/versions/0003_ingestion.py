"""Ingestion: what the feedback consumer counted or has trouble with, and the project's id."""

import sqlalchemy as sa
from alembic import op

revision = "0003_ingestion"
down_revision = "0002_exclusions"


def upgrade() -> None:
    """Create the two tables."""
    op.create_table(
        "ingestion",
        sa.Column("model_name", sa.Text, primary_key=True),
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("subject", sa.Text, primary_key=True),
        sa.Column("count", sa.BigInteger, nullable=False),
        sa.Column("last_offset", sa.BigInteger),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("noted_at", sa.Text, nullable=False),
    )
    op.create_table(
        "projects",
        sa.Column("model_name", sa.Text, primary_key=True),
        sa.Column("project_id", sa.Text, nullable=False),
    )
