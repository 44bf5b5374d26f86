"""The recommendation: one sentence on what to do with a round, what happens next, and who decided.

Turns a round's record, and its rows of the audit log, into sentences. The review page and the API show them. It weighs no
evidence of its own: the gates did, and the sentence follows their verdict.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from schemas.records import AuditRow, RoundRecord, RoundState
from schemas.reports import GateReport, Verdict

DECISIONS = ("round approve", "round reject", "promote", "round stop")


@dataclass(frozen=True)
class Advice:
    """What to do with a round. `tone` colours it: good, bad, ask or none."""

    sentence: str
    next_step: str
    tone: str


def advise(record: RoundRecord, champion: str | None) -> Advice:
    """Return the recommendation for a round, given the version that is live now."""
    name, live = record.candidate_version or "the candidate", champion or "no version"
    stale = record.champion_version != champion
    match record.state:
        case RoundState.AWAITING_APPROVAL if stale:
            return Advice(
                f"Reject: {name} was judged against {record.champion_version or 'none'}, and {live} is live now.",
                "Reject it, then start another round, which compares with the live version.",
                "bad",
            )
        case RoundState.AWAITING_APPROVAL:
            passed = (
                "labels settled what the reference set left open" if record.settling else "every blocking gate passed"
            )
            return Advice(
                f"Approve: {passed}{_against(record)}.",
                "Approve to promote it: every worker follows within seconds, and no request fails. Reject to keep the champion.",
                "good",
            )
        case RoundState.PROMOTED:
            serves = (
                f"{name} is live." if champion == record.candidate_version else f"{name} served; {live} is live now."
            )
            return Advice(
                f"Nothing to do: {serves}", "Roll back on its version's page if production says otherwise.", "good"
            )
        case RoundState.REJECTED | RoundState.INSUFFICIENT:
            return _not_promoted(record, stale)
        case RoundState.FAILED:
            return Advice(
                f"Look at the log: the round failed. {record.detail or ''}".strip(),
                "Mend the cause and retry; its feedback counts towards the next round.",
                "bad",
            )
        case RoundState.SKIPPED:
            return Advice(
                f"Nothing to do: {record.detail or 'the round was skipped'}.",
                "The next round starts when it is due.",
                "none",
            )
    if record.state.value == "settling":
        return Advice(
            "Label: the reference set leaves this round open, and labels on disagreements settle it.",
            "Open the queue; the round decides itself as soon as the labels suffice.",
            "ask",
        )
    if record.state.value == "superseded":
        why = (record.detail or "the champion moved before it was decided").removesuffix(".")
        return Advice(f"Nothing to do: {why}.", "The next round compares its candidate with the live version.", "none")
    return Advice("Wait: the round is running.", "Its report appears here when the gates have judged it.", "none")


def _not_promoted(record: RoundRecord, stale: bool) -> Advice:
    report = record.gate_report
    if report is None:
        return Advice(
            f"Nothing to do: {record.detail or 'the round was ended'}.",
            "Start another round when you are ready.",
            "none",
        )
    if record.settling and record.settling.wins is not None:
        return _settled(record, stale)
    failed, short = _names(report, Verdict.FAIL), _names(report, Verdict.INSUFFICIENT)
    if failed:
        sentence = f"Keep the champion: {_list(failed)} failed."
        step = "Read the gate's sentence. A person with the role review may overrule it, with a reason."
    elif short:
        sentence = f"Keep the champion: the evidence does not suffice for {_list(short)}."
        step = _rows_step(report)
    else:
        sentence = f"Keep the champion: {record.detail or 'the candidate was rejected'}."
        step = "The candidate had passed its gates; it can be approved against the rejection."
    if stale:
        step = "It was judged against a version that is not live any more: start another round."
    return Advice(sentence, step, "bad" if failed else "ask")


def _settled(record: RoundRecord, stale: bool) -> Advice:
    """Return the advice where labels decided: the gates' lack of evidence is not the last word then."""
    plan = record.settling
    assert plan is not None
    count = f"{plan.wins} favour the candidate, {plan.losses} the champion"
    worse = record.state is RoundState.REJECTED
    shown = "show that the candidate is worse" if worse else "do not show that the candidate is better"
    step = "More feedback trains the next candidate." + ("" if worse else " More labels on this one would hardly help.")
    if stale:
        step = "It was judged against a version that is not live any more: start another round."
    return Advice(f"Keep the champion: {plan.labels} labels {shown} ({count}).", step, "bad" if worse else "ask")


def _rows_step(report: GateReport) -> str:
    needed = [g.needed for g in report.results if g.blocking and g.verdict is Verdict.INSUFFICIENT and g.needed]
    if not needed:
        return (
            "More feedback may make the next candidate clearer; more reference rows would make its judgement sharper."
        )
    return f"About {max(needed):,} reference rows would settle it; labels from the queue count as well."


def _against(record: RoundRecord) -> str:
    return f", against {record.champion_version}" if record.champion_version else ", and there is no champion yet"


def _names(report: GateReport, verdict: Verdict) -> list[str]:
    return [g.gate.replace("_", " ") for g in report.results if g.blocking and g.verdict is verdict]


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def decisions(rows: Sequence[AuditRow]) -> list[tuple[AuditRow, str]]:
    """Return who decided what about a round, oldest first, from its rows of the audit log."""
    decided = []
    for row in sorted(rows, key=lambda row: row.sequence):
        if row.action not in DECISIONS:
            continue
        reason = row.detail.get("reason")
        overruled = row.detail.get("overruled")
        what = {
            "promote": f"promoted it as generation {row.detail.get('generation')}",
            "round approve": f"approved it{f' against the verdict {overruled}' if overruled else ''}",
            "round reject": "rejected it",
            "round stop": "stopped the round",
        }[row.action]
        decided.append((row, what + (f": {reason}" if reason else "")))
    return decided
