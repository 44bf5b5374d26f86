"""Training history: lines for history.jsonl and, while training runs, progress and pace.

trainer.py opens one `Log` for each training. The history is hashed with the version, so it holds no times: the same rows and
seed give the same lines.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from pipelines.training.fitting import Step
from schemas.records import Pace

LINES = 100  # at most so many lines about steps in each phase

History = list[dict[str, float | int | str]]
TrainingProgress = Callable[[float, Pace | None], None]


class Log:
    """Collect the history of one training, phase by phase, and report its progress."""

    def __init__(self, progress: TrainingProgress, clock: Callable[[], float] = time.monotonic) -> None:
        self.history: History = []
        self._progress, self._clock, self._began = progress, clock, clock()
        self._phase, self._from, self._to, self._steps, self._done = "", 0.0, 0.0, 1, 0
        self._tokens, self._phase_began = 0, 0.0

    def begin(self, phase: str, steps: int, until: float) -> None:
        """Begin a phase of at most `steps` steps; at its end the share `until` of the training is done."""
        self._phase, self._from, self._to = phase, self._to, until
        self._steps, self._done, self._tokens, self._phase_began = max(1, steps), 0, 0, self._clock()

    def step(self, step: Step) -> None:
        """Report the progress after a step, and add a line at regular intervals."""
        self._done += 1
        self._tokens += step.tokens
        if self._done % -(-self._steps // LINES) == 0:
            self.line(
                step=self._done,
                loss=step.loss,
                learning_rate=step.learning_rate,
                head_learning_rate=step.head_learning_rate,
                tokens=self._tokens,
            )
        now = self._clock()
        share = self._from + (self._to - self._from) * min(1.0, self._done / self._steps)
        took = now - self._phase_began
        pace = Pace(
            loss=step.loss,
            tokens_per_s=self._tokens / took if took > 0 else None,
            eta_s=(now - self._began) * (1 - share) / share if share > 0 else None,
        )
        self._progress(share, pace)

    def line(self, **fields: Any) -> None:
        """Add a line to the history, without fields that are not finite."""
        kept = {k: v for k, v in fields.items() if not isinstance(v, float) or np.isfinite(v)}
        self.history.append({"phase": self._phase, **kept})
