"""Actions: everything that the console changes, one function each, which page and API share.

Turns a person and a form into a change of the registry or the event log, after checking the person's right. The registry writes
the audit log. Errors are those of the registry: app.py turns each into a sentence with a status.
"""

import contextlib
import logging
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from schemas.records import FINAL_STATES, Champion, RoundRecord, RoundState
from services.console.people import Forbidden, Person, Right, require
from services.console.project import Project

if TYPE_CHECKING:
    from schemas.queue import ItemState, LabelResult
    from services.ingestion.feedback_gate import FeedbackGate
    from services.ingestion.replay import Replayed, WaitingLetter
    from serving.messaging.connection import Broker
    from serving.messaging.publisher import Topics
    from serving.registry.decisions import Approval

log = logging.getLogger("ratchet.console")

MAX_REASON = 2000
MOST_LETTERS = 100
POSITION = re.compile(r"[^/\s]{1,200}/\d{1,9}/\d{1,19}", re.ASCII)


class BadInput(ValueError):
    """A field of the request is missing or not valid; the message names it."""


def approve(project: Project, person: Person, round_id: str, *, reason: str, overrule: bool = False) -> "Approval":
    """Approve a round's candidate; it is promoted once enough people have. Raises what `Decisions.approve` raises."""
    _require_reviewer(project, person)
    from services.rounds.announce import announce
    from services.rounds.prune import refuse_pruned

    record = project.registry.round(round_id)
    if record.candidate_version is not None:
        with contextlib.suppress(KeyError):
            refuse_pruned(project.settings, project.registry, record.candidate_version)
    done = project.registry.approve(round_id, actor=person.name, reason=_reason(reason), overrule=overrule)
    if done.champion is not None:
        announce(project.settings, project.registry, done.champion)
    return done


def reject(project: Project, person: Person, round_id: str, *, reason: str) -> RoundRecord:
    """Reject a round's candidate, or end a round that runs. Raises what `Decisions.reject` raises."""
    _require_reviewer(project, person)
    return project.registry.reject(round_id, actor=person.name, reason=_reason(reason))


def stop(project: Project, person: Person, round_id: str, *, reason: str) -> RoundRecord:
    """End a round that is claimed or running; its process ends within seconds. Raises BadInput, UnknownRound, RoundOver."""
    require(person, Right.OPERATE)
    record, why = project.registry.round(round_id), _reason(reason)
    if record.state not in (RoundState.CLAIMED, RoundState.RUNNING):
        raise BadInput(f"round {round_id} is {record.state}: only a round that is claimed or running can be stopped")
    project.registry.finish_round(round_id, RoundState.SKIPPED, detail=f"stopped by {person.name}: {why}")
    project.registry.audit(person.name, "round stop", {"round": round_id, "reason": why})
    return project.registry.round(round_id)


def start(project: Project, person: Person, *, retry_of: str = "", reason: str) -> RoundRecord:
    """Claim a round, which the scheduler then starts within seconds. Raises BadInput while another is unfinished."""
    require(person, Right.OPERATE)
    why = _reason(reason)
    if retry_of and project.registry.round(retry_of).state not in FINAL_STATES:
        raise BadInput(f"round {retry_of} has not ended: stop it before you retry it")
    cut = project.events.positions() if project.registry.champion() else {}
    why_now = f"{'retry' if retry_of else 'started'} by {person.name}: {why}"
    record = project.registry.claim_round(reason=why_now, cut=cut, token=None)
    if record is None:
        unfinished = project.registry.unfinished_round()
        raise BadInput(f"round {unfinished.round_id if unfinished else ''} is unfinished: wait for it, or stop it")
    project.registry.audit(
        person.name, "round start", {"round": record.round_id, "retry_of": retry_of or None, "reason": why}
    )
    return record


def roll_back(project: Project, person: Person, version: str, *, reason: str) -> Champion:
    """Make a version that has served the champion again. Raises what `Decisions.roll_back` raises, or BadInput."""
    _require_reviewer(project, person)
    from services.checks.champion import wrong_files
    from services.rounds.announce import announce
    from services.rounds.prune import refuse_pruned

    registry, live, why = project.registry, project.registry.champion(), _reason(reason)
    if live is None:
        raise BadInput("there is no champion yet: the first round makes one")
    wanted = registry.rollback_target(version, live.model_version)
    refuse_pruned(project.settings, registry, wanted)
    with contextlib.suppress(ConnectionError):  # an unreachable store is no error: workers may have the version cached
        if wrong := wrong_files(project.settings, registry.version(wanted).digest):
            raise BadInput(f"{wanted} cannot be served: {wrong}; choose another version")
    champion = registry.roll_back(to=wanted, expected=live.model_version, actor=person.name, reason=why)
    announce(project.settings, registry, champion)
    return champion


def label(project: Project, person: Person, item_id: str, value: object) -> "LabelResult":
    """Label an item of the queue; the label that suffices ends its round at once. Raises what `Queue.label` raises."""
    require(person, Right.LABEL)
    result = project.registry.queue.label(item_id, value, reviewer=person.name)
    _settle(project)
    return result


def _settle(project: Project) -> None:
    """Bring the settling round to where its labels are. The label is stored: a failure is left to the scheduler's next tick."""
    from services.rounds.announce import announce
    from services.rounds.settling import advance

    settings, registry = project.settings, project.registry
    try:
        advance(settings, registry, token=None, announce=lambda champion: announce(settings, registry, champion))
    except Exception as error:
        log.warning("the settling round waits for the scheduler: %s: %s", type(error).__name__, error)


def skip(project: Project, person: Person, item_id: str, *, unsure: bool) -> "ItemState":
    """Pass an item of the queue on. Raises what `Queue.skip` raises."""
    require(person, Right.LABEL)
    return project.registry.queue.skip(item_id, reviewer=person.name, unsure=unsure)


def add_label(project: Project, person: Person, name: str) -> str:
    """Add a label to the taxonomy, so that people can give it before a model knows it. Raises BadInput."""
    require(person, Right.DECIDE)
    from schemas.targets import LABELLED, label_name

    if project.settings.model.task not in LABELLED:
        raise BadInput(f"{project.settings.model.task} has no labels")
    try:
        wanted = label_name(name)
    except ValueError as error:
        raise BadInput(f"label: {error}") from error
    project.registry.take_up_labels([wanted], actor=person.name)
    return wanted


def decide_quarantine(
    project: Project, person: Person, users: Sequence[str], *, decision: str, reason: str
) -> list[str]:
    """Release people from quarantine, or reject all they say; the next dataset follows it. Raises BadInput."""
    require(person, Right.OPERATE)
    chosen = [user for user in dict.fromkeys(users) if user]
    if not chosen:
        raise BadInput("people: choose at least one")
    if decision not in ("released", "rejected", "undecided"):
        raise BadInput(f"decision: expected released, rejected or undecided, got {decision!r}")
    project.registry.trust.decide(chosen, decision, actor=person.name, reason=_reason(reason))
    return chosen


def replay(project: Project, person: Person) -> "Replayed":
    """Publish the dead letters that can be read now again. Raises BadInput without a broker, BrokerUnavailable."""
    require(person, Right.OPERATE)
    from services.ingestion.replay import replay as publish_again
    from services.ingestion.replay import settled_letters

    broker, topics, gate, timeout_s = _for_replay(project)
    done = publish_again(broker, topics, gate, timeout_s=timeout_s, settled=settled_letters(project.registry))
    project.registry.audit(person.name, "dead letters replay", done.as_dict())
    return done


def replay_letter(project: Project, person: Person, position: str) -> None:
    """Publish one dead letter again. Raises BadInput if it is still bad, KeyError if it does not wait, BrokerUnavailable."""
    require(person, Right.OPERATE)
    from services.ingestion.replay import REPLAY_ONE, replay_one

    broker, topics, gate, timeout_s = _for_replay(project)
    done = replay_one(broker, topics, gate, _position(position), timeout_s=timeout_s)
    if done.still_bad:
        raise BadInput("it cannot be read yet: mend the cause that it names first, or remove it")
    project.registry.audit(person.name, REPLAY_ONE, {"position": position, **done.as_dict()})


def remove_letter(project: Project, person: Person, position: str, *, reason: str) -> None:
    """Leave one dead letter out of the list and of every replay; its topic keeps the bytes until retention deletes them."""
    require(person, Right.OPERATE)
    from services.ingestion.replay import REMOVE_ONE

    project.registry.audit(person.name, REMOVE_ONE, {"position": _position(position), "reason": _reason(reason)})


def waiting_letters(project: Project) -> "list[WaitingLetter]":
    """Return the dead letters that wait, at most MOST_LETTERS. Raises BadInput without a broker, BrokerUnavailable."""
    from services.ingestion.replay import settled_letters
    from services.ingestion.replay import waiting_letters as waiting
    from serving.messaging.publisher import Topics

    topics = Topics.of(project.settings.stream_name)
    return waiting(_broker(project), topics, settled_letters(project.registry), MOST_LETTERS)


def _for_replay(project: Project) -> "tuple[Broker, Topics, FeedbackGate, float]":
    from services.ingestion.feedback_gate import FeedbackGate
    from serving.messaging.publisher import Topics

    settings = project.settings
    timeout_s = max(10.0, settings.kafka.publish_timeout_s)
    return _broker(project), Topics.of(settings.stream_name), FeedbackGate(settings, project.registry), timeout_s


def _broker(project: Project) -> "Broker":
    from services.projects import broker_of

    broker = broker_of(project.settings)
    if broker is None:
        raise BadInput("no broker is running: start `ratchet up`, or set kafka.bootstrap_servers")
    return broker


def _position(position: str) -> str:
    if not POSITION.fullmatch(position):
        raise BadInput("position: expected TOPIC_ID/PARTITION/OFFSET, as the list shows it")
    return position


def _require_reviewer(project: Project, person: Person) -> None:
    """Raise Forbidden unless the person may decide; the operator may until the first reviewer is registered."""
    require(person, Right.DECIDE)
    if person.is_operator and (reviewers := project.registry.people.reviewers()):
        names = ", ".join(sorted({reviewer.name for reviewer in reviewers}))
        raise Forbidden(f"a reviewer has to decide this ({names}): sign in with a reviewer's key")


def _reason(reason: str) -> str:
    stripped = reason.strip()
    if not stripped:
        raise BadInput("reason: write why, for the audit log")
    if len(stripped) > MAX_REASON:
        raise BadInput(f"reason: {len(stripped)} characters, at most {MAX_REASON}")
    return stripped
