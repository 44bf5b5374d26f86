"""The labelling queue: texts to be labelled, and the labels that people gave."""

import sqlalchemy as sa
from alembic import op

revision = "0004_queue"
down_revision = "0003_ingestion"


def upgrade() -> None:
    """Create the two tables."""
    op.create_table(
        "queue_items",
        sa.Column("model_name", sa.Text, primary_key=True),
        sa.Column("item_id", sa.Text, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("round_id", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("task", sa.Text, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("metadata", sa.Text, nullable=False),
        sa.Column("answer_1", sa.Text),
        sa.Column("answer_2", sa.Text),
        sa.Column("candidate_first", sa.Boolean),
        sa.Column("draw", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("label", sa.Text),
        sa.Column("leased_to", sa.Text),
        sa.Column("leased_until", sa.Text),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.Column("expires_at", sa.Text),
        sa.Column("decided_at", sa.Text),
        sa.UniqueConstraint("model_name", "kind", "round_id", "key", name="one_item_a_text"),
    )
    op.create_index("queue_by_draw", "queue_items", ["model_name", "state", "kind", "draw"])
    op.create_table(
        "queue_votes",
        sa.Column("model_name", sa.Text, primary_key=True),
        sa.Column("item_id", sa.Text, primary_key=True),
        sa.Column("reviewer", sa.Text, primary_key=True),
        sa.Column("label", sa.Text),
        sa.Column("unsure", sa.Boolean, nullable=False),
        sa.Column("voted_at", sa.Text, nullable=False),
        sa.ForeignKeyConstraint(
            ["model_name", "item_id"], ["queue_items.model_name", "queue_items.item_id"], name="of_a_known_item"
        ),
    )
