"""A round that ended is told in one line, and one for each gate that stopped it."""

from schemas.events import utc_now
from schemas.records import RoundRecord, RoundState
from schemas.reports import GateReport, GateResult, Verdict
from services.rounds.outcome_lines import LONGEST, ended


def _record(*results: GateResult) -> RoundRecord:
    report = GateReport(verdict=Verdict.FAIL, results=list(results), policy_sha256="0" * 64, look=1, bootstrap=False)
    return RoundRecord(
        round_id="01a22372",
        model_name="m",
        state=RoundState.REJECTED,
        reason="test",
        created_at=utc_now(),
        gate_report=report,
        detail="superiority: a sentence",
    )


def _gate(name: str, verdict: Verdict, sentence: str, *, blocking: bool = True) -> GateResult:
    return GateResult(gate=name, verdict=verdict, blocking=blocking, sentence=sentence)


def test_each_gate_that_stopped_a_round_is_one_line_and_the_rest_is_on_demand() -> None:
    long = "worse\nby " + "much " * 100
    lines = ended(
        _record(
            _gate("data", Verdict.PASS, "fine"),
            _gate("superiority", Verdict.FAIL, long),
            _gate("flips", Verdict.FAIL, "many", blocking=False),
            _gate("slices", Verdict.INSUFFICIENT, "few rows"),
        )
    )
    assert lines[0] == "round 01a22372: rejected, stopped by 2 of 4 gates"
    assert lines[1].startswith("  superiority    fail: worse by much")
    assert lines[1].endswith("...") and len(lines[1]) < LONGEST + 40 and "\n" not in lines[1]
    assert lines[2:] == [f"  slices         {Verdict.INSUFFICIENT}: few rows", "  more: ratchet round show 01a22372"]


def test_a_round_that_no_gate_stopped_says_what_became_of_it() -> None:
    assert ended(_record(_gate("data", Verdict.PASS, "fine"))) == ["round 01a22372: rejected. superiority: a sentence"]
