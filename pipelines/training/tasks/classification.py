"""Classification: one of k labels, by softmax.

A `TrainingTask` for texts of which exactly one label is true. Made by tasks.py; knows no round.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch.nn import functional

from pipelines.calibration.maps import fit_temperature, row_nll
from pipelines.dataset.examples import Example
from pipelines.metrics import point
from pipelines.models.encoder import TextModel
from pipelines.models.probe import Probe, fit_probe
from pipelines.training.tasks.encoder_task import EncoderTask, not_this
from pipelines.training.tasks.task import Batch, Held
from pipelines.training.warm_start import WarmStart
from schemas.settings import TrainingSettings


@dataclass(frozen=True)
class Classification(EncoderTask):
    """Outputs are logits [n, k] in the order of `labels`, targets their numbers [n]."""

    labels: Sequence[str]
    name: Literal["classification"] = "classification"
    calibration: Literal["softmax"] = "softmax"

    def targets(self, examples: Sequence[Example]) -> NDArray[Any]:
        """Number of each label [n]."""
        index = {label: n for n, label in enumerate(self.labels)}
        return np.array([index[e.label] for e in examples], dtype=np.int64)

    def probe(self, embeddings: NDArray[np.float32], examples: Sequence[Example], settings: TrainingSettings) -> Probe:
        """Multinomial logistic regression."""
        weights = [e.weight for e in examples]
        return fit_probe(embeddings, [e.label for e in examples], self.labels, c=settings.probe_c, weights=weights)

    def first_head(
        self, embeddings: NDArray[np.float32], examples: Sequence[Example], settings: TrainingSettings
    ) -> Probe:
        """Prototypes: each label's row is the mean embedding of its own rows at length 1, zero if it has none.

        A probe leaves the encoder little to learn, because it fits the rows by itself; prototypes fit only what lies together.
        """
        members = np.zeros((len(self.labels), len(examples)))
        members[self.targets(examples), np.arange(len(examples))] = [e.weight for e in examples]
        sums = members @ embeddings
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        return Probe(sums / np.maximum(lengths, 1e-9), np.zeros(len(self.labels)))

    def losses(self, outputs: torch.Tensor, batch: Batch, settings: TrainingSettings) -> torch.Tensor:
        """Cross-entropy [b]; of a rejection, that of "not this label" (negative learning: Kim et al. 2019).

        Where a teacher is right its probabilities count too (focal distillation with alpha = 0: Yan et al. 2021, against negative
        flips), among the labels that it knows.
        """
        targets, rejects = batch.targets, batch.rejects
        losses: torch.Tensor = functional.cross_entropy(
            outputs, targets, reduction="none", label_smoothing=settings.label_smoothing
        )
        if rejects.any():
            wrong = functional.cross_entropy(outputs[rejects], targets[rejects], reduction="none")
            losses = losses.index_put((rejects,), not_this(wrong))
        if batch.teacher is not None:
            known = ~batch.teacher.isnan().any(dim=0)
            says = batch.teacher.nan_to_num(nan=-torch.inf)
            right = (says.argmax(dim=1) == targets) & ~rejects
            away = functional.kl_div(
                outputs[:, known].log_softmax(dim=1), says[:, known].softmax(dim=1), reduction="none"
            ).sum(dim=1)
            losses = losses + settings.focal_distillation * right * away
        return losses

    def settle(self, model: TextModel, held: Held, champion: WarmStart) -> None:
        """Lower the biases of labels that the champion did not know (bias correction: Wu et al. 2019, the shift alone).

        A new label has all of its rows, an old one a few that were replayed, so that the new one is said too often whatever
        the rows weigh (Byrd and Lipton 2019). The shift is the one that suits held-out rows best, each by its weight; a normal
        prior of deviation 1 keeps it small where they are few.
        """
        new = np.array([not champion.knows(label) for label in self.labels])

        def loss(found: NDArray[np.float64]) -> float:
            shifted = (held.kept - found[0] * new) / np.exp(found[1])
            losses = held.weights * row_nll(shifted, held.targets)
            return float(losses.mean() + found[0] ** 2 / (2 * len(losses)))

        if new.any() and not new.all():
            shift = minimize(loss, np.zeros(2), method="Nelder-Mead").x[0]
            with torch.no_grad():
                model.head.bias -= torch.from_numpy(shift * new).to(model.head.bias.dtype)

    def row_losses(self, kept: NDArray[Any], targets: NDArray[Any]) -> NDArray[np.float64]:
        """NLL [n] after the temperature that suits these rows best."""
        return row_nll(kept / fit_temperature(kept, targets), targets)

    def metrics(self, kept: NDArray[Any], targets: NDArray[Any]) -> dict[str, float]:
        """Accuracy and its kin."""
        return point.classification(targets, kept.argmax(axis=1))
