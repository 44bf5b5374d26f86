"""What somebody changed in the policy since the judgement before: a looser gate must show in the report.

Turns two policies' values into lines. verdict.py calls it.
"""

from collections.abc import Mapping
from typing import Any

from pipelines.gates.policy import Policy


def changes(before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the differences between two policies' `values`, one line each: "superiority.alpha: 0.05 -> 0.2".

    A value that an earlier release did not know counts as its default: nobody changed it.
    """
    lines, defaults = [], Policy().values()
    for gate in sorted(before.keys() | after.keys()):
        new, known = after.get(gate, {}), defaults.get(gate, {})
        old = {**{key: known[key] for key in new if key in known}, **before.get(gate, {})}
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                lines.append(f"{gate}.{key}: {old.get(key, 'absent')} -> {new.get(key, 'absent')}")
    return lines
