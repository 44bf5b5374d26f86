"""Classification: the training task with exactly one of k labels for each text, by softmax."""

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
from pipelines.models.probe import Features, Probe, fit_path
from pipelines.training.tasks.encoder_task import EncoderTask, not_this
from pipelines.training.tasks.task import Batch, HeldOut
from pipelines.training.warm_start import WarmStart
from schemas.configuration.training import TrainingSettings


@dataclass(frozen=True)
class Classification(EncoderTask):
    """Outputs are logits [n, k] in the order of `labels`, targets label numbers [n]."""

    labels: Sequence[str]
    name: Literal["classification"] = "classification"

    def targets(self, examples: Sequence[Example]) -> NDArray[Any]:
        """Return the label number [n] of each example."""
        index = {label: n for n, label in enumerate(self.labels)}
        return np.array([index[e.label] for e in examples], dtype=np.int64)

    def probes(self, features: Features, examples: Sequence[Example], cs: Sequence[float]) -> list[Probe]:
        """Return a multinomial logistic regression for each C."""
        weights = [e.weight for e in examples]
        return fit_path(features, [e.label for e in examples], self.labels, cs=cs, weights=weights)

    def first_head(
        self, embeddings: NDArray[np.float32], examples: Sequence[Example], settings: TrainingSettings
    ) -> Probe:
        """Return prototypes: each label's weights are the mean embedding of its rows, scaled to length 1, or zero without rows.

        A probe fits the rows so well that it leaves the encoder little to learn; prototypes leave more.
        """
        members = np.zeros((len(self.labels), len(examples)))
        members[self.targets(examples), np.arange(len(examples))] = [e.weight for e in examples]
        sums = members @ embeddings
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        return Probe(sums / np.maximum(lengths, 1e-9), np.zeros(len(self.labels)))

    def losses(self, outputs: torch.Tensor, batch: Batch, settings: TrainingSettings) -> torch.Tensor:
        """Return the cross-entropy [b]; for a rejected target, that of "not this label" (negative learning: Kim et al. 2019).

        Where the teacher is correct, add focal distillation over the labels it knows, against negative flips (Yan et al. 2021,
        alpha = 0).
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
            teacher = batch.teacher.nan_to_num(nan=-torch.inf)
            correct = (teacher.argmax(dim=1) == targets) & ~rejects
            divergence = functional.kl_div(
                outputs[:, known].log_softmax(dim=1), teacher[:, known].softmax(dim=1), reduction="none"
            ).sum(dim=1)
            losses = losses + settings.focal_distillation * correct * divergence
        return losses

    def settle(self, model: TextModel, held: HeldOut, champion: WarmStart) -> None:
        """Lower the biases of labels that the champion did not know (bias correction: Wu et al. 2019, the shift alone).

        New labels train on all their rows, old ones on a few replayed rows. So the model over-predicts new labels, and row
        weights do not prevent it (Byrd and Lipton 2019). The shift minimises the weighted NLL of the held-out rows; a normal
        prior with standard deviation 1 keeps it small where rows are few.
        """
        new = np.array([not champion.knows(label) for label in self.labels])

        def loss(shift_and_log_t: NDArray[np.float64]) -> float:
            shift, log_t = shift_and_log_t
            losses = held.weights * row_nll((held.kept - shift * new) / np.exp(log_t), held.targets)
            return float(losses.mean() + shift**2 / (2 * len(losses)))

        if new.any() and not new.all():
            shift = minimize(loss, np.zeros(2), method="Nelder-Mead").x[0]
            with torch.no_grad():
                model.head.bias -= torch.from_numpy(shift * new).to(model.head.bias.dtype)

    def row_losses(self, kept: NDArray[Any], targets: NDArray[Any]) -> NDArray[np.float64]:
        """Return the NLL [n] after the best temperature for these rows."""
        return row_nll(kept / fit_temperature(kept, targets), targets)

    def metrics(self, kept: NDArray[Any], targets: NDArray[Any]) -> dict[str, float]:
        """Return accuracy, precision, recall and F1 scores."""
        return point.classification(targets, kept.argmax(axis=1))
