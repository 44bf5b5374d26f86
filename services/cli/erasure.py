"""`ratchet feedback erase`: one person, one prediction or one feedback, taken out for good.

Turns a name into the erasure of services/erasure.py. cli/feedback.py adds the command. It deliberately asks nobody: the audit log
says who erased what, and why.
"""

import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import click

from services.cli.project import by_option, config_option, json_option, opened, reason_option, show

if TYPE_CHECKING:
    from pipelines.feature_store.store import FeatureStore
    from schemas.settings import Settings

REMAINS = (
    "what remains: versions and reports of earlier rounds (the next round trains without these rows), and messages that Kafka"
    " keeps until its retention; replayed or read again, they are left out"
)


@click.command(name="erase")
@click.option("--user", help="this user, as the app names them (or by their pseudonym): what they wrote and said")
@click.option("--prediction", help="this prediction and all that was said of it")
@click.option("--feedback", "feedback_id", help="this feedback alone, by the feedback_id that was answered")
@config_option
@by_option
@reason_option
@json_option
def erase(
    user: str | None, prediction: str | None, feedback_id: str | None, config: Path, by: str, reason: str, as_json: bool
) -> None:
    """Delete what one user said, one prediction or one feedback, and keep it from coming back.

    Deleted are rows of the event log with their files, events in the outboxes, what the online store knows, and the rows that
    earlier rounds wrote down.
    """
    from pipelines.feature_store.store import FeatureStore
    from services.erasure import Erasure

    if not (user or prediction or feedback_id) or (user and (prediction or feedback_id)):
        raise click.UsageError("name --user, or --prediction and/or --feedback")
    with opened(config) as (settings, registry):
        registry.migrate()
        features = FeatureStore(settings)
        erasure = Erasure(settings, registry, features, actor=by, reason=reason)
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
    """The ids of the one feedback that is meant. Raises ClickException unless there is exactly one."""
    import pyarrow.compute as pc

    from serving.http.access import read_keys
    from serving.http.feedback_values import feedback_uuid

    stored = feedback_uuid(lambda: read_keys(settings.path(settings.access.keys)).secret, given)
    rows = features.log_rows("feedback")
    rows = rows.filter(pc.equal(rows["feedback_id"], stored))
    found = sorted({_uuid(prediction)} if prediction else set(rows["prediction_id"].to_pylist()))
    if len(found) != 1:
        hint = "add --prediction ID" if found else "see `ratchet feedback export`"
        raise click.ClickException(f"--feedback {given}: {len(found)} predictions have such feedback: {hint}")
    return found[0], stored


def _uuid(given: str) -> str:
    try:
        return str(uuid.UUID(given))
    except ValueError:
        raise click.UsageError(f"--prediction {given}: expected the UUID that /predict answered") from None
