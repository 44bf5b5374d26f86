"""Access: people with named keys, one state for each version, approvals by several people, and checkable prediction ids.

The state of an existing version follows from the promotions and rounds that the registry holds.
"""

import json
from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

revision = "0006_access"
down_revision = "0005_looks"

BY_ROUND = {"awaiting approval": "awaiting approval", "rejected": "rejected"}


def upgrade() -> None:
    """Create the tables and the column, and fill in what is known of existing projects."""
    op.create_table(
        "people",
        sa.Column("model_name", sa.Text, primary_key=True),
        sa.Column("key_id", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("roles", sa.Text, nullable=False),
        sa.Column("key_hash", sa.Text, nullable=False),
        sa.Column("rate", sa.Text),
        sa.Column("quota", sa.Text),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.Column("expires_at", sa.Text),
        sa.Column("revoked_at", sa.Text),
    )
    op.create_table(
        "approvals",
        sa.Column("model_name", sa.Text, primary_key=True),
        sa.Column("round_id", sa.Text, primary_key=True),
        sa.Column("person", sa.Text, primary_key=True),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("approved_at", sa.Text, nullable=False),
    )
    op.create_table(
        "signed_ids",
        sa.Column("model_name", sa.Text, primary_key=True),
        sa.Column("since", sa.Text, nullable=False),
    )
    op.add_column("versions", sa.Column("state", sa.Text, nullable=False, server_default="candidate"))
    connection = op.get_bind()
    now = datetime.now(UTC).isoformat(timespec="microseconds")
    for model_name in connection.execute(sa.text("SELECT DISTINCT model_name FROM versions")).scalars().all():
        connection.execute(
            sa.text("INSERT INTO signed_ids (model_name, since) VALUES (:model_name, :since)"),
            {"model_name": model_name, "since": now},
        )
        for version, state in _states(connection, model_name).items():
            update = "UPDATE versions SET state = :state WHERE model_name = :model_name AND model_version = :version"
            connection.execute(sa.text(update), {"state": state, "model_name": model_name, "version": version})


def _states(connection: sa.Connection, model_name: str) -> dict[str, str]:
    """Return the state of each version that a round ended or a promotion named."""
    mine = {"model_name": model_name}
    states: dict[str, str] = {}
    rounds = sa.text("SELECT state, record FROM rounds WHERE model_name = :model_name ORDER BY sequence")
    for state, record in connection.execute(rounds, mine).all():
        version = json.loads(record).get("candidate_version")
        if version and state in BY_ROUND:
            states[version] = BY_ROUND[state]
    promotions = sa.text("SELECT model_version FROM promotions WHERE model_name = :model_name ORDER BY generation")
    served: list[str] = []
    for version in connection.execute(promotions, mine).scalars().all():
        if served and served[-1] != version:
            # A version that had served before came back: the one between was rolled back.
            states[served[-1]] = "rolled back" if version in served else "retired"
        states[version] = "champion"
        served.append(version)
    return states
