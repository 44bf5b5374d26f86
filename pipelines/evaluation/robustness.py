"""Robustness: does a harmless edit change the answer?

Turns texts into edited ones that mean the same, and a runtime's answers to both into counts.
gates/evidence_and_facts.py calls `count_flips` on candidate and champion. It deliberately knows no true labels: an
answer that holds may be wrong.

Edits follow Ribeiro et al. (2020, CheckList): invariance tests. They depend on the text alone, so that every round asks
the same.
"""

import hashlib
import random
import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from schemas.reports import Robustness
from serving.inference.encoder_runtime import Runtime

WORDS_A_TYPO = 8


def typo(text: str) -> str:
    """Two neighbouring letters swapped, inside one of every eight words of four letters or more; one at least."""
    draw = random.Random(hashlib.sha256(text.encode()).digest())  # noqa: S311 - the same each time, no secret
    words = [match for match in re.finditer(r"[^\W\d_]{4,}", text) if len(set(match.group()[1:-1])) > 1]
    letters = list(text)
    for match in draw.sample(words, min(len(words), 1 + len(words) // WORDS_A_TYPO)):
        inside = range(match.start() + 1, match.end() - 2)
        at = draw.choice([n for n in inside if letters[n] != letters[n + 1]])
        letters[at], letters[at + 1] = letters[at + 1], letters[at]
    return "".join(letters)


def case(text: str) -> str:
    """In small letters; in capitals if it was."""
    return text.lower() if text != text.lower() else text.upper()


def white_space(text: str) -> str:
    """Doubled between words, and added at both ends."""
    return f"  {'  '.join(text.split())} \n"


def padding(text: str) -> str:
    """Dots before and after."""
    return f"... {text} ..."


EDITS = {"typo": typo, "case": case, "white space": white_space, "padding": padding}


def chosen_rows(texts: Sequence[str], most: int) -> NDArray[np.int64]:
    """Numbers of at most so many rows, the same whatever their order."""
    ordered = sorted(range(len(texts)), key=lambda n: hashlib.sha256(texts[n].encode()).digest())
    return np.array(ordered[:most], dtype=np.int64)


def count_flips(
    runtime: Runtime,
    texts: Sequence[str],
    outputs: NDArray[np.float64],
    alike: Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.bool_]],
) -> dict[str, Robustness]:
    """Kind of edit -> how many of the texts' answers it changes.

    Args:
        runtime: the model.
        texts: n of them.
        outputs: what it says of each, [n, k].
        alike: on which rows two outputs are the same answer.

    """
    if not texts:
        return {}
    before = runtime.encode(texts)
    edited = {kind: [edit(text) for text in texts] for kind, edit in EDITS.items()}
    # What the tokenizer does not see (an uncased model sees no case) need not run.
    seen = {
        kind: [n for n, tokens in enumerate(runtime.encode(found)) if tokens != before[n]]
        for kind, found in edited.items()
    }
    after = runtime.probabilities([edited[kind][n] for kind, rows in seen.items() for n in rows])
    result, start = {}, 0
    for kind, rows in seen.items():
        same = alike(outputs[rows], after[start : start + len(rows)])
        result[kind] = Robustness(edited=len(texts), flipped=int((~same).sum()))
        start += len(rows)
    return result
