"""Robustness: does a harmless edit change the prediction?

Turns texts into edited ones with the same meaning, and a runtime's predictions on both into counts. evaluators.py calls
`count_flips`, text_evaluator.py uses the edits. True labels play no part: a stable prediction may be wrong.

The edits are invariance tests after Ribeiro et al. (2020, CheckList). They depend on the text only, so every round makes the
same ones.
"""

import hashlib
import random
import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from schemas.reports import Robustness
from serving.inference.encoder_runtime import Runtime

WORDS_PER_TYPO = 8
MOST_TYPOS = 3  # people misspell a few words of a long text, not one in eight


def typo(text: str) -> str:
    """Swap two neighbouring letters inside one of every eight words of four letters or more; at least one, at most MOST_TYPOS."""
    draw = random.Random(hashlib.sha256(text.encode()).digest())  # noqa: S311 - reproducible, not a secret
    words = [match for match in re.finditer(r"[^\W\d_]{4,}", text) if len(set(match.group()[1:-1])) > 1]
    letters = list(text)
    for match in draw.sample(words, min(len(words), 1 + len(words) // WORDS_PER_TYPO, MOST_TYPOS)):
        inside = range(match.start() + 1, match.end() - 2)
        at = draw.choice([n for n in inside if letters[n] != letters[n + 1]])
        letters[at], letters[at + 1] = letters[at + 1], letters[at]
    return "".join(letters)


def case(text: str) -> str:
    """Return the text in lower case, or in upper case if it already was in lower case."""
    return text.lower() if text != text.lower() else text.upper()


def white_space(text: str) -> str:
    """Double the white space between words, and add some at both ends."""
    return f"  {'  '.join(text.split())} \n"


def padding(text: str) -> str:
    """Add dots before and after the text."""
    return f"... {text} ..."


EDITS = {"typo": typo, "case": case, "white space": white_space, "padding": padding}


def chosen_rows(texts: Sequence[str], most: int) -> NDArray[np.int64]:
    """Return the indices of at most `most` rows, chosen by the hash of their text: their order does not matter."""
    ordered = sorted(range(len(texts)), key=lambda n: hashlib.sha256(texts[n].encode()).digest())
    return np.array(ordered[:most], dtype=np.int64)


def count_flips(
    runtime: Runtime,
    texts: Sequence[str],
    outputs_of: Callable[[Sequence[str]], NDArray[np.float64]],
    same_answer: Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.bool_]],
) -> dict[str, Robustness]:
    """Return, by kind of edit, how many texts the model sees differently, and how many of their predictions change.

    Args:
        runtime: the model.
        texts: n unedited texts.
        outputs_of: returns the model's calibrated outputs for m texts, [m, k].
        same_answer: returns on which rows two outputs [m, k] are the same prediction.

    """
    if not texts:
        return {}
    before = runtime.encode(texts)
    edited = {kind: [edit(text) for text in texts] for kind, edit in EDITS.items()}
    # An edit that leaves the tokens as they are (case, for an uncased model) tests nothing, so it does not count.
    changed = {
        kind: [n for n, tokens in enumerate(runtime.encode(edits)) if tokens != before[n]]
        for kind, edits in edited.items()
    }
    outputs = outputs_of(texts)
    after = outputs_of([edited[kind][n] for kind, rows in changed.items() for n in rows])
    result, start = {}, 0
    for kind, rows in changed.items():
        same = same_answer(outputs[rows], after[start : start + len(rows)])
        result[kind] = Robustness(edited=len(rows), flipped=int((~same).sum()))
        start += len(rows)
    return result
