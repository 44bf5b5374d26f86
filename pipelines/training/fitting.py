"""One fit: a model's adapters and head on a given set of rows, epoch by epoch.

Turns tokenised rows into gradient steps and outputs. trainer.py opens a `Fit`, asks for epochs, and decides when to stop. It
deliberately decides nothing, no validation, no choice of model; and it knows no task but by its `Task`.

AdamW with warm-up and linear decay; batches of similar length; the base model's own dropout stays off, because the layers
below the adapters are run only once (lower_layers.py).
"""

import contextlib
import random
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.training.tasks import Rows, Task
from schemas.settings import TrainingSettings

LEAST_STEPS = 8
LEAST_BATCH = 4
MAX_NORM = 1.0
CHUNK = 16
HEAD = "head."


def batch_size(rows: int, settings: TrainingSettings) -> int:
    """Rows a step: smaller for a small set, which would otherwise see a handful of steps only."""
    return min(settings.batch_size, max(LEAST_BATCH, rows // LEAST_STEPS))


class Fit:
    """Fits a model in place. Inside the `with`, what does not change is set aside; after it, the model is whole again."""

    def __init__(self, task: Task, model: Any, rows: Rows, own: Sequence[int], settings: TrainingSettings) -> None:
        """Prepare.

        Args:
            task: what it answers.
            model: as `task.start` made it.
            rows: all rows; `own` numbers those that train.
            own: numbers of rows.
            settings: the recipe's; the rate decays over `settings.epochs` epochs.

        """
        self._task, self._model, self._rows, self._own = task, model, rows, list(own)
        self._smoothing = settings.label_smoothing
        self._batch = batch_size(len(self._own), settings)
        self._draw = random.Random(settings.seed)  # noqa: S311 - the order of batches is no secret
        self._stack = contextlib.ExitStack()
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self._trained = [p for _, p in trained]
        self._optimizer = torch.optim.AdamW(
            [
                {
                    "params": [p for name, p in trained if not name.startswith(HEAD)],
                    "lr": settings.learning_rate,
                    "weight_decay": settings.weight_decay,
                },
                {
                    "params": [p for name, p in trained if name.startswith(HEAD)],
                    "lr": settings.head_learning_rate,
                    "weight_decay": 0.0,
                },
            ]
        )
        steps = -(-len(self._own) // self._batch) * settings.epochs
        warm = max(1, int(steps * settings.warmup_share))
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda step: min((step + 1) / warm, max(0.0, (steps - step) / max(1, steps - warm)))
        )

    def __enter__(self) -> Self:
        self._forward = self._stack.enter_context(self._rows.inputs.feeding(self._model))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._model.eval()
        self._stack.close()

    def epoch(self) -> float:
        """One pass over the rows; the mean training loss."""
        self._model.eval()
        for name, module in self._model.named_modules():
            if "lora_dropout" in name:
                module.train()
        total = 0.0
        for batch in self._batches():
            weights = torch.from_numpy(self._rows.weights[batch])
            targets, rejects = torch.from_numpy(self._rows.targets[batch]), torch.from_numpy(self._rows.rejects[batch])
            losses = self._task.losses(self._forward(batch), targets, rejects, self._smoothing)
            loss = (losses * weights).sum() / weights.sum()
            self._optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._trained, MAX_NORM)
            self._optimizer.step()
            self._schedule.step()
            total += float(loss.detach()) * len(batch)
        return total / len(self._own)

    @torch.no_grad()  # type: ignore[untyped-decorator]  # torch is not followed
    def outputs(self, rows: Sequence[int], size: int = 32) -> NDArray[Any]:
        """What the task keeps of the outputs [len(rows), ...] of any rows, in their order."""
        self._model.eval()
        order = sorted(range(len(rows)), key=lambda n: self._rows.inputs.lengths[rows[n]])
        kept = []
        for start in range(0, len(order), size):
            batch = [rows[n] for n in order[start : start + size]]
            kept.append(self._task.kept(self._forward(batch), torch.from_numpy(self._rows.targets[batch])))
        return np.asarray(np.concatenate(kept)[np.argsort(order)])

    def _batches(self) -> list[list[int]]:
        """Batches of similar length in random order: rows are shuffled, sorted within chunks, cut."""
        order, lengths = self._own.copy(), self._rows.inputs.lengths
        self._draw.shuffle(order)
        step = self._batch * CHUNK
        chunks = [sorted(order[n : n + step], key=lambda row: lengths[row]) for n in range(0, len(order), step)]
        batches = [chunk[n : n + self._batch] for chunk in chunks for n in range(0, len(chunk), self._batch)]
        self._draw.shuffle(batches)
        return batches
