"""The answer rule of a project: what its settings and policy say on how outputs become answers.

round_inputs.py makes one of a round; evaluators.py calibrates by it.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class AnswerRule:
    """The kind of prediction sets and, for multilabel, how labels are chosen.

    `metric` chooses the thresholds (calibration/thresholds.py). `at_least_one` is whether every answer has a label; None: the
    calibration rows decide.
    """

    sets: Literal["lac", "aps"] = "lac"
    metric: str = "micro_f1"
    at_least_one: bool | None = None
