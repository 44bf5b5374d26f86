"""How a round that ended is told: a line, and one for each gate that stopped it.

Turns a round's record into lines. `ratchet round run` prints them, and `ratchet up` through it. The whole report is
`ratchet round show`'s.
"""

from schemas.records import RoundRecord
from schemas.reports import Verdict

LONGEST = 160  # characters of a gate's sentence: the rest is on demand


def ended(record: RoundRecord) -> list[str]:
    """Return what became of a round; a gate that stopped it has a line, and the last line names the command for more."""
    results = record.gate_report.results if record.gate_report else []
    stopped = [result for result in results if result.blocking and result.verdict is not Verdict.PASS]
    if not stopped:
        return [f"round {record.round_id}: {record.state}. {record.detail}"]
    count = f"{len(stopped)} of {len(results)} gates" if len(stopped) > 1 else f"the gate {stopped[0].gate}"
    lines = [f"round {record.round_id}: {record.state}, stopped by {count}"]
    lines += [f"  {result.gate:<14} {result.verdict}: {_short(result.sentence)}" for result in stopped]
    return [*lines, f"  more: ratchet round show {record.round_id}"]


def _short(sentence: str) -> str:
    first = " ".join(sentence.split())
    return first if len(first) <= LONGEST else f"{first[: LONGEST - 3].rstrip()}..."
