"""LoRA fine-tuning: probe first, then adapters with the head warm-started from it, kept only if they help.

Turns a dataset's rows into a trained classifier and its metric history. candidates.py calls `train`. It deliberately
knows no registry and no gates; how a model is fitted once is fitting.py.

Recipe: linear probing then fine-tuning (LP-FT, Kumar et al. 2022). The number of epochs is chosen by NLL on rows that were
not trained on, after each contender's own temperature, and must beat the probe by a standard error. Those are the
validation rows; below CROSS_BELOW rows, where a share of them is too few to tell, it is all rows by cross-validation. Then
the choice is repeated on all rows: a small seed can't spare any.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.calibration import fit_temperature, row_nll
from pipelines.dataset.examples import Example
from pipelines.training.fitting import Fit, Rows, tokenise
from pipelines.training.model import Classifier, Encoder, with_lora
from pipelines.training.probe import Probe, fit_probe
from schemas.settings import TrainingSettings

LEAST_ROWS = 8
CROSS_BELOW = 1000
# Two folds cost as much as one fit on all rows; a seed of a few rows a label can't be halved, and is cheap.
FOLDS, FOLDS_OF_FEW, FEW_ROWS = 2, 4, 100

History = list[dict[str, float | int | str]]
Progress = Callable[[float], None]


@dataclass(frozen=True)
class Trained:
    """A classifier whose encoder carries LoRA adapters, which method won, and what was measured on the way."""

    model: Classifier
    method: str
    history: History


def train(
    encoder: Encoder,
    train_rows: Sequence[Example],
    validation_rows: Sequence[Example],
    labels: Sequence[str],
    settings: TrainingSettings,
    progress: Progress,
    *,
    rejections: Sequence[Example] = (),
) -> Trained:
    """Train a classifier; the same rows in another order give the same one.

    Args:
        encoder: frozen, and left as it is.
        train_rows: rows to learn from; their labels, like those of `validation_rows`, are all in `labels`.
        validation_rows: rows that choose the number of epochs, and train once that is chosen if rows are few.
        labels: one for each output, in order.
        settings: the recipe's.
        progress: called with a share from 0 to 1.
        rejections: rows that say what their label is not; LoRA learns from them, they neither choose nor warm-start.

    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    ordered = [*_sorted(train_rows), *_sorted(validation_rows)]
    if not settings.epochs or len(ordered) < LEAST_ROWS:
        return Trained(_start(encoder, ordered, labels, settings), "probe", [])
    others = _sorted(rejections)
    rows = tokenise(encoder, [*ordered, *others], labels)
    extra = list(range(len(ordered), len(ordered) + len(others)))
    if len(ordered) < CROSS_BELOW or not validation_rows:
        splits = _folds(ordered)
    else:
        splits = [(list(range(len(train_rows))), list(range(len(train_rows), len(ordered))))]
    search = _Search(encoder, ordered, rows, extra, labels, settings)
    epochs, history = search.run(splits, lambda share: progress(share / 2))
    if not epochs:
        return Trained(_start(encoder, ordered, labels, settings), "probe", history)
    model = _start(encoder, ordered, labels, settings)
    with Fit(model, encoder, rows, range(len(ordered) + len(extra)), settings) as fit:
        for epoch in range(1, epochs + 1):
            loss = fit.epoch()
            history.append({"phase": "final", "epoch": epoch, "train_loss": loss})
            progress(0.5 + 0.5 * epoch / epochs)
    return Trained(model, "lora", history)


def probe_logits(
    encoder: Encoder, rows: Sequence[Example], labels: Sequence[str], texts: Sequence[str], settings: TrainingSettings
) -> NDArray[np.float64]:
    """Logits [n, k] of the logistic probe fitted on `rows`: the baseline that a round has to justify itself against."""
    return _probe(encoder, rows, labels, settings).logits(encoder.embed(texts))


class _Search:
    """How many epochs? Answered on rows that were not trained on."""

    def __init__(
        self,
        encoder: Encoder,
        examples: list[Example],
        rows: Rows,
        extra: list[int],
        labels: Sequence[str],
        settings: TrainingSettings,
    ) -> None:
        self._encoder, self._examples, self._rows, self._extra = encoder, examples, rows, extra
        self._labels, self._settings = labels, settings

    def run(self, splits: list[tuple[list[int], list[int]]], progress: Progress) -> tuple[int, History]:
        """The epoch with the lowest held-out NLL and the curve; 0 unless it beats the probe by a standard error."""
        fits = [self._epochs(own, held) for own, held in splits]
        truth = self._rows.labels[[n for _, held in splits for n in held]]
        curve: list[NDArray[np.float64]] = []
        history: History = []
        best = 0
        for epoch in range(self._settings.epochs + 1):
            # Epoch by epoch through all folds, so that all of them stop at the same one.
            logits = np.vstack([next(fit) for fit in fits])
            curve.append(row_nll(logits / fit_temperature(logits, truth), truth))
            history.append({"phase": "search", "epoch": epoch, "held_out_nll": float(curve[-1].mean())})
            progress(epoch / self._settings.epochs)
            if curve[-1].mean() < curve[best].mean():
                best = epoch
            elif epoch - best >= self._settings.patience:
                break
        for fit in fits:
            fit.close()
        gain = curve[0] - curve[best]
        return best if gain.mean() > gain.std() / np.sqrt(len(gain)) else 0, history

    def _epochs(self, own: list[int], held: list[int]) -> Generator[NDArray[np.float64]]:
        """Logits of the held-out rows, before the first epoch and after each."""
        model = _start(self._encoder, [self._examples[n] for n in own], self._labels, self._settings)
        with Fit(model, self._encoder, self._rows, [*own, *self._extra], self._settings) as fit:
            yield fit.logits(held)
            while True:
                fit.epoch()
                yield fit.logits(held)


def _sorted(rows: Sequence[Example]) -> list[Example]:
    return sorted(rows, key=lambda row: (row.text, row.label, row.source))


def _folds(rows: Sequence[Example]) -> list[tuple[list[int], list[int]]]:
    """Splits for cross-validation: every label's rows are dealt out in turn."""
    folds = FOLDS_OF_FEW if len(rows) < FEW_ROWS else FOLDS
    by_label = sorted(range(len(rows)), key=lambda n: (rows[n].label, rows[n].text))
    held = [sorted(by_label[fold::folds]) for fold in range(folds)]
    return [(sorted(set(by_label) - set(fold)), fold) for fold in held]


def _start(encoder: Encoder, rows: Sequence[Example], labels: Sequence[str], settings: TrainingSettings) -> Classifier:
    """The probe on these rows as a classifier: its head, and adapters that change nothing yet."""
    torch.manual_seed(settings.seed)
    probe = _probe(encoder, rows, labels, settings)
    return Classifier(with_lora(encoder, settings), encoder.width, probe.weight, probe.bias)


def _probe(encoder: Encoder, rows: Sequence[Example], labels: Sequence[str], settings: TrainingSettings) -> Probe:
    embeddings = encoder.embed([row.text for row in rows])
    weights = [row.weight for row in rows]
    return fit_probe(embeddings, [row.label for row in rows], labels, c=settings.probe_c, weights=weights)
