"""Looks: the ledger of evidence spent, and the rows on which each champion was judged.

Rounds that were judged before have no row here yet, so they are entered from their records: their looks count.
"""

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005_looks"
down_revision = "0004_queue"
JUDGED = ("rejected", "insufficient evidence", "promoted")


def upgrade() -> None:
    """Create the two tables, and enter the looks of earlier rounds."""
    looks = op.create_table(
        "looks",
        sa.Column("model_name", sa.Text, primary_key=True),
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("round_id", sa.Text, nullable=False),
        sa.Column("champion", sa.Text, nullable=False),
        sa.Column("candidate", sa.Text, nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("fresh_rows", sa.BigInteger, nullable=False),
        sa.Column("rows_sha256", sa.Text, nullable=False),
        sa.Column("alpha", sa.Float, nullable=False),
        sa.Column("p", sa.Float),
        sa.Column("verdict", sa.Text),
        sa.Column("at", sa.Text, nullable=False),
        sa.UniqueConstraint("model_name", "round_id", "champion", name="one_look_by_round"),
        sa.UniqueConstraint("model_name", "champion", "number", name="one_place_among_looks"),
    )
    op.create_table(
        "looked_rows",
        sa.Column("model_name", sa.Text, primary_key=True),
        sa.Column("champion", sa.Text, primary_key=True),
        sa.Column("row_key", sa.Text, primary_key=True),
    )
    query = sa.text("SELECT model_name, round_id, record FROM rounds ORDER BY model_name, sequence")
    counts: dict[str, int] = {}
    numbers: dict[tuple[str, str], int] = {}
    for model, round_id, text in op.get_bind().execute(query).all():
        entry = _look(json.loads(text))
        if entry is not None:
            key = model, entry["champion"]
            counts[model], numbers[key] = counts.get(model, 0) + 1, numbers.get(key, 0) + 1
            places = {"sequence": counts[model], "number": numbers[key]}
            op.bulk_insert(looks, [{"model_name": model, "round_id": round_id, **places, **entry}])


def _look(record: dict[str, Any]) -> dict[str, Any] | None:
    """Return the look of a judged round with a champion, as far as its record tells; None of any other round."""
    report, champion = record.get("gate_report"), record.get("champion_version")
    if not report or report.get("bootstrap") or not champion or record["state"] not in JUDGED:
        return None
    dataset, look = record.get("dataset") or {}, max(1, int(report.get("look") or 1))
    alpha = float(report.get("policy", {}).get("superiority", {}).get("alpha", 0.05))
    rows = int(dataset.get("reference_rows", 0))
    return {
        "champion": champion,
        "candidate": record.get("candidate_version") or "",
        "rows": rows,
        "fresh_rows": rows if look == 1 else 0,
        "rows_sha256": dataset.get("reference_sha256", ""),
        "alpha": alpha / (look * (look + 1)),  # as it was spent then
        "p": None,
        "verdict": report["verdict"],
        "at": record.get("finished_at") or record["created_at"],
    }
