"""Refusals: each error that people can cause becomes a status and one sentence, on a page or in the API.

Turns exceptions of actions, registry and inference API into answers. What is not listed is a fault of ours: the log gets the
trace, the caller a sentence without it.
"""

import logging

from services.console.actions import BadInput
from services.console.guard import TooLong
from services.console.oidc import OidcRefused
from services.console.pages.try_it import ServingDown
from services.console.people import Forbidden
from services.console.sign_in import TooManyTries
from services.console.visit import CsrfRefused
from services.rounds.prune import Pruned
from serving.artifacts import ArtifactMissing, ArtifactStoreUnavailable
from serving.messaging.connection import BrokerRefused, BrokerUnavailable
from serving.model_directory import ArtifactDamaged
from serving.registry.labelling.queue import BadQueueLabel, QueueClosed, UnknownItem
from serving.registry.labels import BadLabel
from serving.registry.registry import (
    ChampionMoved,
    DecidedAlready,
    NeedsOverrule,
    NeverServed,
    NoReason,
    NotServable,
    RegistryUnavailable,
    RoundOver,
)

log = logging.getLogger("ratchet.console")

# The first class that an error is an instance of decides.
STATUSES: list[tuple[type[Exception], int]] = [
    (TooManyTries, 429),
    (Forbidden, 403),
    (OidcRefused, 403),
    (CsrfRefused, 403),
    (TooLong, 413),
    (BadInput, 422),
    (NoReason, 422),
    (BadQueueLabel, 422),
    (BadLabel, 422),
    (QueueClosed, 409),
    (RoundOver, 409),
    (ChampionMoved, 409),
    (NeedsOverrule, 409),
    (DecidedAlready, 409),
    (NeverServed, 409),
    (NotServable, 409),
    (Pruned, 409),
    (UnknownItem, 404),
    (ArtifactMissing, 404),
    (KeyError, 404),
    (ArtifactDamaged, 502),
    (ServingDown, 502),
    (RegistryUnavailable, 503),
    (BrokerUnavailable, 503),
    (BrokerRefused, 503),
    (ArtifactStoreUnavailable, 503),
]
TITLES = {
    403: "This is not yours to do",
    404: "Nothing is here",
    409: "Too late, or too early",
    413: "Too long",
    422: "Something is missing",
    429: "Too fast",
    502: "The model does not answer",
    503: "Out of reach for now",
}


def refusal(error: Exception) -> tuple[int, str]:
    """Return the status and sentence of an error; 500 and a plain sentence for a fault of ours."""
    for kind, status in STATUSES:
        if isinstance(error, kind):
            text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
            return status, text.splitlines()[0] if text else TITLES.get(status, "refused")
    log.error("a request failed", exc_info=error)
    return 500, "Something went wrong here; state/logs/console.log has the trace."
