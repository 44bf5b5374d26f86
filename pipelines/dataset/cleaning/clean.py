"""Normalise texts, and drop rows that are empty, too short, in another language or outside the taxonomy.

serving/inference/normalise.py has the normalisation, which serving applies to every text too. A text longer than the model
reads is kept, and cut as serving cuts it. build.py normalises the reference in the same way.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from itertools import islice
from typing import Any

from pipelines.dataset.examples import FROM_FILES, Drops, Example
from schemas.targets import Task, labels_of
from serving.inference.normalise import tidy, without_boilerplate

SURE = 0.9  # probability from which another language is accepted
ENOUGH = 24  # characters; shorter texts pass for any language

_WORD = re.compile(r"[^\W_]")


def clean(
    examples: Iterable[Example],
    labels: set[str],
    drops: Drops,
    *,
    task: Task,
    min_chars: int,
    language: str | None = None,
    names: Callable[[list[str]], list[str]] | None = None,
) -> list[Example]:
    """Return the usable examples with normalised texts.

    Args:
        examples: in any order.
        labels: the taxonomy.
        drops: counts every row left out.
        task: the task.
        min_chars: letters and digits that a text must have.
        language: ISO 639-1 code of the accepted language; None: any.
        names: texts -> texts without names and places; None: keep them.

    """
    rows = []
    for example in examples:
        text = tidy(without_boilerplate(example.text))
        if not text and example.source in FROM_FILES:
            text = tidy(example.text)  # as `normalise` does: "Unsubscribe me" may be what somebody wants
        if not text:
            drops.add("boilerplate" if tidy(example.text) else "empty", tidy(example.text))
        else:
            rows.append(example if text == example.text else replace(example, text=text))
    rows = drops.keep(rows, lambda e: _has_letters(e.text, min_chars), "too short")
    rows = drops.keep(rows, lambda e: labels.issuperset(labels_of(task, e.label)), "label not in the taxonomy")
    if language is not None:
        rows = drops.keep(rows, lambda e: is_language(e.text, language), "wrong language")
    if names is not None:
        texts = names([e.text for e in rows])
        rows = [e if e.text == text else replace(e, text=text) for e, text in zip(rows, texts, strict=True)]
    return rows


def _has_letters(text: str, count: int) -> bool:
    """Return whether a text has so many letters and digits; it is read no further than that."""
    return sum(1 for _ in islice(_WORD.finditer(text), count)) == count


def is_language(text: str, language: str) -> bool:
    """Return False only if another language is nearly certain (langid: Lui and Baldwin 2012)."""
    if len(text) < ENOUGH:
        return True
    detected, probability = _identifier().classify(text)
    return bool(detected == language or probability < SURE)


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
