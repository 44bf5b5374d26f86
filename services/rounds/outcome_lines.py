"""The outcome of an ended round: one line, and one for each gate that stopped it.

Turns a round's record into lines, which `ratchet round run` prints, also for `ratchet up`. `ratchet round show` prints the whole
report.
"""

from schemas.records import RoundRecord, RoundState
from schemas.reports import Verdict

LONGEST = 160  # characters of a gate's sentence


def ended(record: RoundRecord) -> list[str]:
    """Return the round's outcome, a line for each gate that stopped it, and the command that shows more."""
    results = record.gate_report.results if record.gate_report else []
    stopped = [result for result in results if result.blocking and result.verdict is not Verdict.PASS]
    if not stopped:
        return [f"round {record.round_id}: {record.state}. {record.detail}"]
    count = f"{len(stopped)} of {len(results)} gates" if len(stopped) > 1 else f"the gate {stopped[0].gate}"
    lines = [f"round {record.round_id}: {record.state}, stopped by {count}"]
    lines += [f"  {result.gate:<14} {result.verdict}: {_short(result.sentence)}" for result in stopped]
    lines += [f"  {line}" for line in (record.gate_report.advice if record.gate_report else [])]
    if record.settling is not None and record.state is RoundState.SETTLING:
        lines.append(f"  labels settle it ({record.settling.line}): ratchet queue next")
    return [*lines, f"  more: ratchet round show {record.round_id}"]


def _short(sentence: str) -> str:
    first = " ".join(sentence.split())
    return first if len(first) <= LONGEST else f"{first[: LONGEST - 3].rstrip()}..."
