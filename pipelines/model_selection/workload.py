"""The workload: what a project's data asks of a base model.

Turns rows and a tokenizer into a `Workload`: number of rows, token counts, languages, and how often training passes over them.
cost.py and verdicts.py read it.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.dataset.examples import Example
from pipelines.training.fitting import epochs_of
from pipelines.training.trainer import CROSS_BELOW
from schemas.settings import Settings
from schemas.targets import LABELLED, Task, labels_of

COUNTED = 2000  # texts that are tokenised
LANGUAGE_TEXTS = 200  # texts whose language is detected
SURE, LEAST_SHARE = 0.9, 0.05  # probability from which a language is counted; share from which it matters


@dataclass(frozen=True)
class Workload:
    """What the data asks of a base model.

    `lengths` [n] are token counts of texts or prompts, uncut, and `completions` [n] those of completions, for a sample of the
    rows. `languages` are ISO 639-1 codes. `passes` counts training passes over all rows, `scorings` passes without gradients.
    """

    task: Task
    rows: int
    labels: int
    lengths: NDArray[np.int64]
    completions: NDArray[np.int64]
    languages: tuple[str, ...]
    max_length: int
    max_new_tokens: int
    passes: int
    scorings: int

    def beyond(self, limit: int) -> float:
        """Return the share of the texts with more than `limit` tokens."""
        return float((self.lengths > limit).mean())

    @property
    def cut_lengths(self) -> NDArray[np.int64]:
        """Return the lengths [n] that a model runs: prompts cut to `max_length`, with their completions."""
        return np.minimum(self.lengths, self.max_length) + np.minimum(self.completions, self.max_new_tokens)


def workload_of(
    rows: Sequence[Example],
    settings: Settings,
    count: Callable[[Sequence[str]], list[int]],
    validation_rows: int | None = None,
) -> Workload:
    """Return the workload of training rows.

    Args:
        rows: rows that train and validate; at least one.
        settings: the project's.
        count: texts -> tokens of each.
        validation_rows: how many of them validate; None for the settings' share.

    """
    model = settings.model
    step = -(-len(rows) // COUNTED)
    sample = rows[::step]
    generates = model.task == "generation"
    lengths = np.array(count([row.text for row in sample]))
    tokens = round(len(rows) * float(np.minimum(lengths, model.max_length).mean()))
    passes, scorings = _passes(len(rows), tokens, settings, validation_rows)
    targets = {label for row in rows for label in labels_of(model.task, row.label)} if model.task in LABELLED else set()
    return Workload(
        task=model.task,
        rows=len(rows),
        labels=len(targets),
        lengths=lengths,
        completions=np.array(count([row.label for row in sample]))
        if generates
        else np.zeros(len(sample), dtype=np.int64),
        languages=languages_of([row.text for row in rows[:: -(-len(rows) // LANGUAGE_TEXTS)]]),
        max_length=model.max_length,
        max_new_tokens=model.max_new_tokens,
        passes=passes,
        scorings=scorings,
    )


def _passes(rows: int, tokens: int, settings: Settings, validation_rows: int | None) -> tuple[int, int]:
    """Return the most passes over all rows that a round trains and scores, as trainer.py runs them."""
    training = settings.training
    epochs = epochs_of(rows, tokens, training)
    held = settings.dataset.validation_share if validation_rows is None else validation_rows / rows
    refits = training.refit_below is None or rows < training.refit_below
    if rows < CROSS_BELOW:  # each row trains in one of two folds in each epoch, and is scored in the other
        return epochs + epochs * refits, epochs
    return epochs + epochs * refits, max(1, round(epochs * held))


def languages_of(texts: Sequence[str]) -> tuple[str, ...]:
    """Return the languages of at least LEAST_SHARE of the texts, commonest first (langid: Lui and Baldwin 2012)."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    sure = [code for code, probability in map(identifier.classify, texts) if probability >= SURE]
    return tuple(code for code, n in Counter(sure).most_common() if n >= max(2.0, LEAST_SHARE * len(sure)))
