"""The first schema of the registry.

Alembic runs it once per database. A migration is history: it repeats the tables of its time and imports nothing of Ratchet.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

UNFINISHED = sa.text("state IN ('claimed', 'running', 'awaiting approval')")
BY_A_ROUND = sa.text("round_id IS NOT NULL")


def upgrade() -> None:
    """Create every table."""
    _versions_and_promotions()
    _rounds()
    _liveness()
    _taxonomy_and_sides()
    _audit()


def _key(name: str, kind: type[sa.Text | sa.BigInteger] = sa.Text) -> "sa.Column[object]":
    return sa.Column(name, kind, primary_key=True, autoincrement=False)


def _required(name: str, kind: type[sa.Text | sa.BigInteger | sa.Boolean] = sa.Text) -> "sa.Column[object]":
    return sa.Column(name, kind, nullable=False)


def _versions_and_promotions() -> None:
    op.create_table(
        "versions",
        _key("model_name"),
        _key("model_version"),
        _required("sequence", sa.BigInteger),
        _required("digest"),
        sa.Column("parent_version", sa.Text),
        _required("round_id"),
        _required("created_at"),
        _required("servable", sa.Boolean),
        sa.Column("approved_by", sa.Text),
        sa.UniqueConstraint("model_name", "sequence", name="one_place_in_versions"),
    )
    op.create_table(
        "promotions",
        _key("model_name"),
        _key("generation", sa.BigInteger),
        _required("model_version"),
        _required("digest"),
        _required("promoted_at"),
        sa.Column("round_id", sa.Text),
        _required("actor"),
        sa.ForeignKeyConstraint(
            ["model_name", "model_version"], ["versions.model_name", "versions.model_version"], name="a_known_version"
        ),
    )
    columns = ["model_name", "round_id"]
    op.create_index(
        "one_promotion_by_round",
        "promotions",
        columns,
        unique=True,
        sqlite_where=BY_A_ROUND,
        postgresql_where=BY_A_ROUND,
    )


def _rounds() -> None:
    op.create_table(
        "rounds",
        _key("round_id"),
        _required("model_name"),
        _required("sequence", sa.BigInteger),
        _required("state"),
        _required("record"),
        sa.UniqueConstraint("model_name", "sequence", name="one_place_in_rounds"),
    )
    op.create_index(
        "one_unfinished_round",
        "rounds",
        ["model_name"],
        unique=True,
        sqlite_where=UNFINISHED,
        postgresql_where=UNFINISHED,
    )


def _liveness() -> None:
    op.create_table(
        "leases",
        _key("model_name"),
        _key("name"),
        sa.Column("holder", sa.Text),
        _required("token", sa.BigInteger),
        _required("expires_at"),
    )
    op.create_table(
        "heartbeats",
        _key("model_name"),
        _key("host"),
        _key("worker"),
        sa.Column("model_version", sa.Text),
        _required("generation", sa.BigInteger),
        sa.Column("error", sa.Text),
        _required("seen_at"),
    )
    op.create_table("positions", _key("model_name"), _key("partition"), _required("last_offset", sa.BigInteger))


def _taxonomy_and_sides() -> None:
    op.create_table(
        "labels",
        _key("model_name"),
        _key("name"),
        _required("place", sa.BigInteger),
        _required("state"),
        sa.Column("merged_into", sa.Text),
    )
    op.create_table("sides", _key("model_name"), _key("cluster"), _required("side"))


def _audit() -> None:
    op.create_table(
        "audit",
        _key("model_name"),
        _key("sequence", sa.BigInteger),
        _required("at"),
        _required("actor"),
        _required("action"),
        _required("detail"),
        _required("previous"),
        _required("hash"),
    )
