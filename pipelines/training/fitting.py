"""One fit: train a model's trainable weights on a set of rows, epoch by epoch.

Turns tokenised rows into gradient steps and outputs. trainer.py and epoch_search.py open a `Fit` and decide when to stop.

AdamW with warm-up and decay, learning rates that fall from the uppermost layer down (Howard and Ruder 2018), and batches of
similar length. Layers below the first trainable one run once (training/frozen_layers.py), without dropout.
"""

import contextlib
import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.models.encoder import layer_of
from pipelines.training.errors import check_epoch, check_loss
from pipelines.training.tasks.task import Forward, Rows, TrainingTask
from schemas.configuration.training import TrainingSettings
from serving.inference.passes import passes
from serving.process.memory import return_free_memory

LEAST_BATCH, SMALL_BATCH = 4, 16
LEAST_STEPS, MANY_STEPS = 8, 60
EPOCHS, EPOCHS_OF_MANY, MANY_ROWS, MANY_TOKENS = 8, 4, 4000, 75_000
MAX_NORM = 1.0
CHUNK = 16
REMEDY = "lower training.learning_rate, or set training.bf16 = false"
HEAD = "head."
RATES = {"lora": 1e-3, "full": 1e-4, "head": 1e-3}


@dataclass(frozen=True)
class Step:
    """One step: its loss, the learning rates of the uppermost layer and of the head, its number of tokens."""

    loss: float
    learning_rate: float
    head_learning_rate: float
    tokens: int


def batch_size(rows: int, settings: TrainingSettings) -> int:
    """Return the rows in each step; fewer for a small set, which would otherwise take too few steps."""
    return min(settings.batch_size, max(LEAST_BATCH, min(SMALL_BATCH, rows // LEAST_STEPS), rows // MANY_STEPS))


def epochs_of(rows: int, tokens: int, settings: TrainingSettings) -> int:
    """Return the most epochs over this number of rows with so many tokens in all; many of either need fewer."""
    if settings.epochs is not None:
        return settings.epochs
    return EPOCHS if rows < MANY_ROWS and tokens < MANY_TOKENS else EPOCHS_OF_MANY


class Fit:
    """Fit a model in place. Inside the `with` its frozen layers are left out; after it, the model is whole again."""

    def __init__(
        self, task: TrainingTask, model: Any, rows: Rows, numbers: Sequence[int], settings: TrainingSettings
    ) -> None:
        """Prepare a fit.

        Args:
            task: the task of the rows.
            model: made by `task.start`.
            rows: all rows.
            numbers: numbers of the training rows among them.
            settings: the recipe; the learning rate decays over its epochs.

        """
        self._task, self._model, self._rows, self._numbers = task, model, rows, list(numbers)
        self._settings = settings
        self._batch = batch_size(len(self._numbers), settings)
        self._draw = random.Random(settings.seed)  # noqa: S311 - the order of batches is no secret
        self._stack = contextlib.ExitStack()
        self._trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.steps = -(-len(self._numbers) // self._batch)  # in each epoch
        self.optimizer = torch.optim.AdamW(_groups(self._trained, settings))
        self._first_loss = 0.0
        tokens = int(rows.inputs.lengths[self._numbers].sum())
        self._step, self._planned = 0, self.steps * epochs_of(len(self._numbers), tokens, settings)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, schedule(self._planned, settings))

    def __enter__(self) -> Self:
        self._forward = self._stack.enter_context(self._rows.inputs.feeding(self._model))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._model.eval()
        self._stack.close()

    def epoch(self, watch: Callable[[Step], None] = lambda _: None) -> float:
        """Return the mean training loss of one pass over the rows. Raises TrainingDiverged."""
        self._model.train(self._settings.base_dropout)
        for name, module in self._model.named_modules():
            if "lora_dropout" in name:
                module.train()
        total = 0.0
        for rows in batches(self._numbers, self._rows.inputs.lengths, self._batch, self._draw):
            batch = self._rows.batch(rows)
            losses = self._task.losses(self._forward(rows), batch, self._settings)
            loss = (losses * batch.weights).sum() / batch.weights.sum()
            value = float(loss.detach())
            rates = self._schedule.get_last_lr()
            self._step += 1
            self._first_loss = value if self._step == 1 else self._first_loss
            check_loss(value, "training loss", self._step, self._planned, max(rates), REMEDY)
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._trained.values(), MAX_NORM)
            self.optimizer.step()
            self._schedule.step()
            watch(Step(value, max(rates[:-1], default=0.0), rates[-1], int(self._rows.inputs.lengths[rows].sum())))
            total += value * len(rows)
        return_free_memory()  # batches of many lengths leave gaps: gigabytes after some epochs of long texts
        mean = total / len(self._numbers)
        peak = max(group["initial_lr"] for group in self.optimizer.param_groups)
        check_epoch(mean, self._first_loss, -(-self._step // self.steps), peak, REMEDY)
        return mean

    def outputs(self, rows: Sequence[int]) -> NDArray[Any]:
        """Return what the task keeps of the outputs [len(rows), ...] for any rows, in their order."""
        self._model.eval()
        kept: NDArray[Any] = outputs_of(self._task, self._forward, self._rows, rows)
        return kept

    def snapshot(self) -> dict[str, torch.Tensor]:
        """Return a copy of the trainable weights."""
        return {name: p.detach().clone() for name, p in self._trained.items()}

    @torch.no_grad()  # type: ignore[untyped-decorator]  # torch is not followed
    def restore(self, snapshot: dict[str, torch.Tensor]) -> None:
        """Set the trainable weights to those of a snapshot."""
        for name, weights in snapshot.items():
            self._trained[name].copy_(weights)


def batches(
    rows: Sequence[int], lengths: Sequence[int] | NDArray[np.int64], size: int, draw: random.Random
) -> list[list[int]]:
    """Return batches of similar length in random order: rows shuffled, sorted by length within chunks, then cut."""
    order, step = list(rows), size * CHUNK
    draw.shuffle(order)
    chunks = [sorted(order[n : n + step], key=lambda row: lengths[row]) for n in range(0, len(order), step)]
    cut = [chunk[n : n + size] for chunk in chunks for n in range(0, len(chunk), size)]
    draw.shuffle(cut)
    return cut


@torch.no_grad()  # type: ignore[untyped-decorator]  # torch is not followed
def outputs_of(task: TrainingTask, forward: Forward, rows: Rows, numbers: Sequence[int]) -> NDArray[Any]:
    """Return what the task keeps of a model's outputs [len(numbers), ...] for the rows with these numbers."""
    lengths = rows.inputs.lengths[list(numbers)]
    order = np.argsort(lengths, kind="stable")
    kept = []
    for start, end in passes(lengths[order]):
        batch = [numbers[n] for n in order[start:end]]
        kept.append(task.kept(forward(batch), torch.from_numpy(rows.targets[batch])))
    return np.asarray(np.concatenate(kept)[np.argsort(order)])


def schedule(steps: int, settings: TrainingSettings) -> Callable[[int], float]:
    """Return the function from a step to its factor on the learning rate: it rises in the warm-up, then falls to 0 or stays."""
    warm = max(1, int(steps * settings.warmup_share))

    def factor(step: int) -> float:
        left = max(0.0, (steps - step) / max(1, steps - warm))
        falling = {"linear": left, "cosine": (1 - math.cos(math.pi * min(1.0, left))) / 2, "constant": 1.0}
        return min((step + 1) / warm, falling[settings.schedule])

    return factor


def _groups(trained: dict[str, torch.Tensor], settings: TrainingSettings) -> list[dict[str, Any]]:
    """Return parameters grouped by learning rate and weight decay, the head last: lower layers learn more slowly."""
    rate = settings.learning_rate or RATES[settings.method]
    layers = {name: layer_of(name) for name in trained if not name.startswith(HEAD)}
    top = max((layer for layer in layers.values() if layer is not None), default=0)
    groups: dict[tuple[float, float], list[torch.Tensor]] = defaultdict(list)
    for name, layer in layers.items():
        depth = top - (-1 if layer is None else layer)
        decay = settings.weight_decay if trained[name].ndim > 1 else 0.0  # none for biases and norms
        groups[rate * settings.layer_decay**depth, decay].append(trained[name])
    below: list[dict[str, Any]] = [
        {"params": weights, "lr": lr, "weight_decay": decay} for (lr, decay), weights in groups.items()
    ]
    head = [p for name, p in trained.items() if name.startswith(HEAD)]
    return [*below, {"params": head, "lr": settings.head_learning_rate, "weight_decay": 0.0}]
