"""One fit: a classifier's adapters and head on a given set of rows, epoch by epoch.

Turns tokenised rows into gradient steps and logits. trainer.py opens a `Fit`, asks for epochs, and decides when to stop. It
deliberately decides nothing: no validation, no choice of model.

AdamW with warm-up and linear decay; batches of similar length; the base model's own dropout stays off, because the layers
below the adapters are run only once (lower_layers.py).
"""

import contextlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
import torch
from datasets import Dataset as Table
from numpy.typing import NDArray
from torch.nn import functional

from pipelines.dataset.examples import Example
from pipelines.training.lower_layers import LowerStates, starting_from_states
from pipelines.training.model import Classifier, Encoder, first_adapted
from schemas.settings import TrainingSettings

LEAST_STEPS = 8
LEAST_BATCH = 4
MAX_NORM = 1.0
CHUNK = 16
LEAST_OTHER = 1e-4  # probability of all other labels together, of a rejection


@dataclass(frozen=True)
class Rows:
    """n rows ready for training: states below the adapters, label indices [n], weights [n], is it not that label [n]."""

    states: LowerStates
    labels: NDArray[np.int64]
    weights: NDArray[np.float32]
    rejects: NDArray[np.bool_]


def tokenise(encoder: Encoder, examples: Sequence[Example], labels: Sequence[str]) -> Rows:
    """Rows of examples whose labels are all in `labels`."""
    index = {label: n for n, label in enumerate(labels)}
    table = Table.from_dict(
        {
            "text": [example.text for example in examples],
            "label": [index[example.label] for example in examples],
            "weight": [example.weight for example in examples],
        }
    )
    found = encoder.tokenizer(table["text"][:], truncation=True, max_length=encoder.max_length)
    return Rows(
        LowerStates(encoder, found["input_ids"]),
        np.array(table["label"][:], dtype=np.int64),
        np.array(table["weight"][:], dtype=np.float32),
        np.array([example.rejects for example in examples], dtype=bool),
    )


def batch_size(rows: int, settings: TrainingSettings) -> int:
    """Rows a step: smaller for a small set, which would otherwise see a handful of steps only."""
    return min(settings.batch_size, max(LEAST_BATCH, rows // LEAST_STEPS))


class Fit:
    """Fits a classifier in place. Inside the `with`, its lower layers are set aside; after it, it is whole again."""

    def __init__(
        self, model: Classifier, encoder: Encoder, rows: Rows, own: Sequence[int], settings: TrainingSettings
    ) -> None:
        """Prepare.

        Args:
            model: with adapters on its encoder.
            encoder: the base it was made from.
            rows: all rows; `own` numbers those that train.
            own: numbers of rows.
            settings: the recipe's; the rate decays over `settings.epochs` epochs.

        """
        self._model, self._encoder, self._rows, self._own = model, encoder, rows, list(own)
        self._batch = batch_size(len(self._own), settings)
        self._draw = random.Random(settings.seed)  # noqa: S311 - the order of batches is no secret
        self._stack = contextlib.ExitStack()
        self._trained = [p for p in model.parameters() if p.requires_grad]
        head = list(model.head.parameters())
        self._optimizer = torch.optim.AdamW(
            [
                {
                    "params": [p for p in model.encoder.parameters() if p.requires_grad],
                    "lr": settings.learning_rate,
                    "weight_decay": settings.weight_decay,
                },
                {"params": head, "lr": settings.head_learning_rate, "weight_decay": 0.0},
            ]
        )
        steps = -(-len(self._own) // self._batch) * settings.epochs
        warm = max(1, int(steps * settings.warmup_share))
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda step: min((step + 1) / warm, max(0.0, (steps - step) / max(1, steps - warm)))
        )

    def __enter__(self) -> Self:
        base = self._model.encoder.get_base_model()
        self._replay = self._stack.enter_context(starting_from_states(base, first_adapted(self._encoder)))
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
            truth = torch.from_numpy(self._rows.labels[batch])
            losses = _losses(self._forward(batch), truth, torch.from_numpy(self._rows.rejects[batch]))
            loss = (losses * weights).sum() / weights.sum()
            self._optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._trained, MAX_NORM)
            self._optimizer.step()
            self._schedule.step()
            total += float(loss.detach()) * len(batch)
        return total / len(self._own)

    @torch.no_grad()  # type: ignore[untyped-decorator]  # torch is not followed
    def logits(self, rows: Sequence[int], size: int = 32) -> NDArray[np.float64]:
        """Logits [len(rows), k] of any rows, in their order."""
        self._model.eval()
        lengths = self._rows.states.lengths
        order = sorted(range(len(rows)), key=lambda n: lengths[rows[n]])
        result = np.zeros((len(rows), self._model.head.out_features))
        for start in range(0, len(order), size):
            places = order[start : start + size]
            result[places] = self._forward([rows[n] for n in places]).numpy()
        return result

    def _forward(self, rows: list[int]) -> torch.Tensor:
        self._replay.states, mask = self._rows.states.batch(rows)
        # The embeddings are set aside: only the shape of what stands in for token ids matters.
        logits: torch.Tensor = self._model(mask, mask)
        return logits

    def _batches(self) -> list[list[int]]:
        """Batches of similar length in random order: rows are shuffled, sorted within chunks, cut."""
        order, lengths = self._own.copy(), self._rows.states.lengths
        self._draw.shuffle(order)
        step = self._batch * CHUNK
        chunks = [sorted(order[n : n + step], key=lambda row: lengths[row]) for n in range(0, len(order), step)]
        batches = [chunk[n : n + self._batch] for chunk in chunks for n in range(0, len(chunk), self._batch)]
        self._draw.shuffle(batches)
        return batches


def _losses(logits: torch.Tensor, labels: torch.Tensor, rejects: torch.Tensor) -> torch.Tensor:
    """Cross-entropy [n]; of a rejection, the cross-entropy of "not this label" (negative learning: Kim et al. 2019)."""
    losses: torch.Tensor = functional.cross_entropy(logits, labels, reduction="none")
    if rejects.any():
        # bounded: the gradient of -log(1 - p) is not, where the model is certain of the label
        other = torch.log1p(-(-losses[rejects]).exp().clamp(max=1 - LEAST_OTHER))
        losses = losses.index_put((rejects,), -other)
    return losses
