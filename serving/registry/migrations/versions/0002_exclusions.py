"""Exclusions: erased users, and rows that a person excluded."""

import sqlalchemy as sa
from alembic import op

revision = "0002_exclusions"
down_revision = "0001"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "exclusions",
        sa.Column("model_name", sa.Text, primary_key=True),
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("subject", sa.Text, primary_key=True),
        sa.Column("excluded_at", sa.Text, nullable=False),
    )
