"""`ratchet feedback erase`: delete a user's events, one prediction or one feedback for good.

Turns ids into the erasure of services/erasure.py, without a confirmation; the audit log records who erased what, and why.
"""

import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import click

from schemas.records import Role
from services.cli.identity import acting
from services.cli.project import as_option, config_option, json_option, opened, reason_option, show

if TYPE_CHECKING:
    from pipelines.feature_store.store import FeatureStore
    from schemas.settings import Settings

REMAINS = (
    "not erased: versions and reports of earlier rounds (the next round trains without these rows), and messages in Kafka until "
    "their retention ends (they are dropped if they are read again)"
)


@click.command(name="erase")
@click.option("--user", help="erase the events of this user (name or pseudonym)")
@click.option("--prediction", help="erase this prediction and all feedback on it")
@click.option("--feedback", "feedback_id", help="erase only the feedback with this feedback_id")
@config_option
@as_option
@reason_option
@json_option
def erase(
    user: str | None,
    prediction: str | None,
    feedback_id: str | None,
    config: Path,
    by: str | None,
    reason: str,
    as_json: bool,
) -> None:
    """Erase a user's events, one prediction or one feedback.

    Excludes them for good, and deletes rows of the event log with their files, events in the outboxes, values of the online
    store, and rows of earlier rounds.
    """
    from pipelines.feature_store.store import FeatureStore
    from services.erasure import Erasure

    if not (user or prediction or feedback_id) or (user and (prediction or feedback_id)):
        raise click.UsageError("erase needs --user alone, or --prediction, --feedback or both")
    with opened(config) as (settings, registry):
        registry.migrate()
        actor = acting(settings, registry, by, Role.ADMIN)
        features = FeatureStore(settings)
        erasure = Erasure(settings, registry, features, actor=actor, reason=reason)
        if user:
            done = erasure.user(_pseudonyms(settings, user))
        elif feedback_id:
            done = erasure.feedback(*_feedback(settings, features, feedback_id, prediction))
        else:
            done = erasure.prediction(_uuid(prediction or ""))
    counts = f"{done.predictions} predictions and {done.feedback} feedback in the event log"
    lines = [f"erased: {counts}, {done.outbox} events in outboxes, {done.round_rows} rows of earlier rounds", REMAINS]
    show(done.as_dict(), as_json, lines)


def _pseudonyms(settings: "Settings", user: str) -> list[str]:
    from serving.http import access
    from serving.http.feedback_values import is_pseudonym

    secret = access.read_keys(settings.path(settings.access.keys)).secret
    return [access.pseudonym(secret, user), *([user] if is_pseudonym(user) else [])]


def _feedback(settings: "Settings", features: "FeatureStore", given: str, prediction: str | None) -> tuple[str, str]:
    """Return prediction id and feedback id of one feedback. Raises ClickException unless there is exactly one."""
    import pyarrow.compute as pc

    from serving.http.access import read_keys
    from serving.http.feedback_values import feedback_uuid

    stored = feedback_uuid(lambda: read_keys(settings.path(settings.access.keys)).secret, given)
    rows = features.log_rows("feedback")
    rows = rows.filter(pc.equal(rows["feedback_id"], stored))
    predictions = sorted({_uuid(prediction)} if prediction else set(rows["prediction_id"].to_pylist()))
    if len(predictions) != 1:
        hint = "add --prediction ID" if predictions else "see `ratchet feedback export`"
        raise click.ClickException(f"--feedback {given}: {len(predictions)} predictions have such feedback: {hint}")
    return predictions[0], stored


def _uuid(given: str) -> str:
    try:
        return str(uuid.UUID(given))
    except ValueError:
        raise click.UsageError(f"--prediction {given}: expected the UUID that /predict returned") from None
