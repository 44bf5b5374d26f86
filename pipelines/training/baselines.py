"""Baselines of a round: linear models whose regularisation is chosen on the round's own rows.

`choose_c` chooses the regularisation of a logistic regression by cross-validation. `fit_tfidf` fits TF-IDF; `TfidfRival` tells
whether it beats what training has found. trainer.py and evaluation/evaluators.py call them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.dataset.examples import Example
from pipelines.models.encoder import Encoder
from pipelines.models.probe import PROBE_C, Features, Probe
from pipelines.models.tfidf import Ngrams, TfidfModel, count_ngrams
from pipelines.training.tasks.encoder_task import EncoderTask
from schemas.configuration.training import TrainingSettings

PROBE_CS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # on embeddings of length 20
TFIDF_CS = (0.3, 1.0, 3.0, 10.0, 30.0)  # on features of length 1.4
FOLDS, SEARCH_ROWS = 3, 1500  # that choose C
RIVAL_FOLDS = (
    5  # that compare the baselines: TF-IDF needs more rows than a probe, and two halves would favour the probe
)

Losses = NDArray[np.float64]


def choose_c(task: EncoderTask, features: Features, examples: Sequence[Example], cs: Sequence[float]) -> float:
    """Return the smallest C whose cross-validated loss is at most a standard error above the best (Breiman et al. 1984).

    `task` has labels: a ridge regression chooses its own regularisation. Features [n, width] are of the examples, `cs` ascend.
    """
    if len(examples) < 2 * FOLDS:
        return cs[len(cs) // 2]
    losses = cross_validated(task, features, examples, cs, FOLDS)
    best = min(losses, key=lambda loss: float(loss.mean()))
    return next(c for c, loss in zip(cs, losses, strict=True) if not beats(best, loss))


def cross_validated(
    task: EncoderTask, features: Features, examples: Sequence[Example], cs: Sequence[float], folds: int
) -> list[Losses]:
    """Return the losses [m] of held-out rows for each C.

    At most SEARCH_ROWS of the n rows are used, evenly spaced by target, so that each fold has about every label.
    """
    targets = task.targets(examples)
    order = np.array(sorted(range(len(examples)), key=lambda n: (targets[n].tolist(), examples[n].text)))
    order = order[np.unique(np.linspace(0, len(order) - 1, min(len(order), SEARCH_ROWS)).astype(np.int64))]
    features, targets, examples = features[order], targets[order], [examples[n] for n in order]
    outputs, numbers = np.zeros((len(cs), len(order), len(task.labels) or 1)), np.arange(len(order))
    for fold in range(folds):
        kept, held = np.flatnonzero(numbers % folds != fold), np.flatnonzero(numbers % folds == fold)
        for n, probe in enumerate(task.probes(features[kept], [examples[row] for row in kept], cs)):
            outputs[n, held] = (probe.outputs(features[held]) - task.shift) / task.scale
    weights = np.array([example.weight for example in examples])
    return [weights * task.row_losses(one, targets) for one in outputs]


def beats(ours: Losses, theirs: Losses) -> bool:
    """Return whether losses [n] are below others of the same rows by more than a standard error."""
    gain = theirs - ours
    return bool(gain.mean() > standard_error(gain))


def standard_error(differences: Losses) -> float:
    """Return the standard error of the mean of differences [n]."""
    return float(differences.std() / np.sqrt(len(differences)))


def with_chosen_c(task: Any, base: Any, examples: Sequence[Example], settings: TrainingSettings) -> TrainingSettings:
    """Return the settings with `probe_c` set: as it is, or the C that these rows choose."""
    if settings.probe_c is not None or not isinstance(task, EncoderTask) or not task.labels:
        return settings
    assert isinstance(base, Encoder)
    chosen = choose_c(task, base.embed([e.text for e in examples]), examples, PROBE_CS)
    return settings.model_copy(update={"probe_c": chosen})


def fit_chosen_probe(
    task: EncoderTask, base: Encoder, examples: Sequence[Example], settings: TrainingSettings
) -> Probe:
    """Return the probe of these rows: the baseline of a round."""
    settings = with_chosen_c(task, base, examples, settings)
    return task.probe(base.embed([e.text for e in examples]), examples, settings)


@dataclass(frozen=True)
class TfidfRival:
    """TF-IDF on the rows of a round.

    Args:
        task: of an encoder.
        examples: n rows.

    """

    task: EncoderTask
    examples: Sequence[Example]

    @cached_property
    def ngrams(self) -> Ngrams:
        """Return the n-grams of the rows."""
        return count_ngrams([e.text for e in self.examples], len(self.task.labels) or 1)

    @cached_property
    def features(self) -> Features:
        """Return the features [n, v] of the rows."""
        return self.ngrams.features([e.text for e in self.examples])

    @cached_property
    def c(self) -> float:
        """Return the inverse regularisation that the rows choose."""
        return choose_c(self.task, self.features, self.examples, TFIDF_CS) if self.task.labels else 1.0

    def held_out(self, splits: Sequence[tuple[list[int], list[int]]]) -> NDArray[np.float64]:
        """Return the outputs of held-out rows as the task has them in training: splits of row numbers -> [held, k]."""
        parts = []
        for trained, held in splits:
            [head] = self.task.probes(self.features[trained], [self.examples[n] for n in trained], [self.c])
            parts.append(head.outputs(self.features[held]))
        return np.asarray((np.concatenate(parts) - self.task.shift) / self.task.scale)

    def beats_probe(self, base: Encoder, settings: TrainingSettings) -> bool:
        """Return whether its cross-validated loss is below the probe's, `settings.probe_c` being chosen."""
        if not self.ngrams.vocabulary.names:
            return False
        embeddings = base.embed([e.text for e in self.examples])
        probe = cross_validated(self.task, embeddings, self.examples, [settings.probe_c or PROBE_C], RIVAL_FOLDS)[0]
        tfidf = cross_validated(self.task, self.features, self.examples, [self.c], RIVAL_FOLDS)[0]
        return bool(tfidf.mean() < probe.mean())

    def fit(self) -> TfidfModel | None:
        """Return the model of all rows; None if their texts have no n-gram in common."""
        if not self.ngrams.vocabulary.names:
            return None
        [head] = self.task.probes(self.features, self.examples, [self.c])
        return TfidfModel(self.ngrams, head)
