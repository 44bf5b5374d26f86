"""Rounds: claimed once, run, and ended once.

Turns a trigger into the one unfinished round of a model, and a round's news into its record. The scheduler claims, the
round's own process starts, updates and finishes. It deliberately does not know what a round does.

A record is stored as JSON, so that it can grow fields; its state is a column as well, because an index on it makes a second
unfinished round impossible.
"""

import logging

from schemas.artifacts import RoundState

log = logging.getLogger("ratchet.registry")

NEWS = frozenset({"step", "progress", "dataset", "candidate_version", "evaluations", "gate_report", "cut", "detail"})
STARTABLE = frozenset({RoundState.CLAIMED, RoundState.RUNNING})
PROMOTABLE = frozenset({RoundState.RUNNING, RoundState.AWAITING_APPROVAL})
OVERRULABLE = frozenset({RoundState.REJECTED, RoundState.INSUFFICIENT})
