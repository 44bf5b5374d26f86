"""Build gate results: the one place where a `GateResult` is made.

Turns a gate's decision, its numbers and its sentence into a `GateResult`. Every gate calls `gate_result`.
"""

from math import isfinite
from typing import Any

from pipelines.metrics.paired_tests import PairedComparison
from schemas.reports import GateResult, Verdict


def gate_result(
    gate: str,
    passed: bool | Verdict,
    sentence: str,
    *,
    blocking: bool,
    comparison: PairedComparison | None = None,
    **numbers: Any,
) -> GateResult:
    """Return the result of a gate.

    Args:
        gate: name of the gate.
        passed: the verdict; True is PASS, False is FAIL.
        sentence: the reason, for a reviewer.
        blocking: False: the gate only advises.
        comparison: gives `observed`, `n` and `interval`.
        numbers: other fields of `GateResult`.

    """
    if comparison is not None:
        numbers |= {"observed": comparison.observed, "n": comparison.n, "interval": comparison.interval()}
    if not all(map(isfinite, numbers.get("interval") or ())):
        numbers["interval"] = None  # of one row; JSON has no infinity
    verdict = passed if isinstance(passed, Verdict) else Verdict.PASS if passed else Verdict.FAIL
    return GateResult(gate=gate, verdict=verdict, blocking=blocking, sentence=sentence, **numbers)
