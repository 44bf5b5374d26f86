"""Multilabel: the training task with none, one or several true labels for each text, one sigmoid per label."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch.nn import functional

from pipelines.dataset.examples import Example
from pipelines.metrics import point
from pipelines.models.probe import Features, Probe, fit_one_vs_rest_path
from pipelines.training.tasks.encoder_task import EncoderTask, not_this
from pipelines.training.tasks.task import Batch
from schemas.configuration.training import TrainingSettings
from schemas.targets import labels_of


@dataclass(frozen=True)
class Multilabel(EncoderTask):
    """Outputs are logits [n, k] in the order of `labels`, targets 0 or 1 [n, k]."""

    labels: Sequence[str]
    name: Literal["multilabel"] = "multilabel"

    def targets(self, examples: Sequence[Example]) -> NDArray[Any]:
        """Return the targets [n, k], 1 where a label is true."""
        index = {label: n for n, label in enumerate(self.labels)}
        targets = np.zeros((len(examples), len(self.labels)), dtype=np.float32)
        for n, example in enumerate(examples):
            targets[n, [index[label] for label in labels_of("multilabel", example.label)]] = 1
        return targets

    def probes(self, features: Features, examples: Sequence[Example], cs: Sequence[float]) -> list[Probe]:
        """Return one logistic regression per label, for each C."""
        weights = [e.weight for e in examples]
        return fit_one_vs_rest_path(features, self.targets(examples), cs=cs, weights=weights)

    def losses(self, outputs: torch.Tensor, batch: Batch, settings: TrainingSettings) -> torch.Tensor:
        """Return the binary cross-entropy [b], summed over labels; for a rejected target, that of "not exactly this set".

        Where the teacher predicts exactly the target, add focal distillation over the labels it knows (classification.py).
        """
        targets, rejects = batch.targets, batch.rejects
        soft = targets * (1 - settings.label_smoothing) + settings.label_smoothing / 2
        losses = _entropy(outputs, soft)
        if rejects.any():
            losses = losses.index_put((rejects,), not_this(_entropy(outputs[rejects], targets[rejects])))
        if batch.teacher is not None:
            known = ~batch.teacher.isnan().any(dim=0)
            teacher = batch.teacher[:, known]
            correct = ((teacher > 0) == (targets[:, known] > 0)).all(dim=1) & ~rejects
            divergence = _entropy(outputs[:, known], teacher.sigmoid()) - _entropy(teacher, teacher.sigmoid())
            losses = losses + settings.focal_distillation * correct * divergence
        return losses

    def row_losses(self, kept: NDArray[Any], targets: NDArray[Any]) -> NDArray[np.float64]:
        """Return the NLL [n] of each row's labels after the best temperature for these rows."""
        best = minimize_scalar(
            lambda log_t: float(_row_nll(kept / np.exp(log_t), targets).mean()),
            bounds=(np.log(0.05), np.log(20)),
            method="bounded",
        )
        return _row_nll(kept / np.exp(best.x), targets)

    def metrics(self, kept: NDArray[Any], targets: NDArray[Any]) -> dict[str, float]:
        """Return F1 scores and subset accuracy; a label is predicted from a probability of 0.5."""
        return point.multilabel(targets > 0, kept > 0)


def _entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the binary cross-entropy [b], summed over the labels of logits and targets [b, k]."""
    losses: torch.Tensor = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(dim=1)
    return losses


def _row_nll(logits: NDArray[Any], targets: NDArray[Any]) -> NDArray[np.float64]:
    """Return the binary NLL [n], summed over the labels of logits and targets [n, k]."""
    return np.asarray((np.logaddexp(0, logits) - targets * logits).sum(axis=1))
