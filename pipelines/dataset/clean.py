"""Normalise texts, and drop rows that are empty, too short, too long, in another language or outside the taxonomy.

ftfy repairs mojibake and Unicode. A repaired text is anonymised again: `bob&#64;example.org` is an address only afterwards.
A text longer than the base model can read is dropped. One that is truncated to `model.max_length` is kept, because serving
truncates it in the same way. build.py normalises the reference with `tidy` too.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from pipelines.dataset.examples import Drops, Example
from schemas.targets import Task, labels_of
from serving.privacy.anonymise import anonymise

PASSES = 4
SURE = 0.9  # probability from which another language is accepted
ENOUGH = 24  # characters; shorter texts pass for any language

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]+")
_SURROGATE = re.compile("[\ud800-\udfff]")
_BOILERPLATE = re.compile(
    r"^[ \t>]*(?:sent from my \w[\w ]{0,30}\.?|(?:get|download) outlook for \w+.{0,40}|-- ?|"
    r"(?:this (?:e-?mail|message) (?:and any attachments )?(?:is|are|may be) confidential)\b.*|"
    r"(?:click here to )?unsubscribe\b.{0,60})[ \t]*$",
    re.IGNORECASE | re.MULTILINE,
)
_WORD = re.compile(r"[^\W_]")


@dataclass(frozen=True)
class Tokens:
    """Token counts of a base model: texts -> tokens of each, and the longest text that it reads."""

    count: Callable[[Sequence[str]], list[int]]
    limit: int


def tidy(text: str) -> str:
    """Return the text in NFC, mojibake repaired, control and invisible characters removed, white space collapsed. Idempotent."""
    if text.isascii() and "&" not in text:
        return " ".join(_CONTROL.sub(" ", text).split())
    import ftfy

    first = text
    for _ in range(PASSES):
        before = text
        fixed = ftfy.fix_text(_SURROGATE.sub("\ufffd", text), uncurl_quotes=False)
        text = " ".join(_INVISIBLE.sub("", _CONTROL.sub(" ", fixed)).split())
        if text == before:
            break
    return anonymise(text) if text != first else text


def clean(
    examples: Iterable[Example],
    labels: set[str],
    drops: Drops,
    *,
    task: Task,
    min_chars: int,
    language: str | None = None,
    tokens: Tokens | None = None,
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
        tokens: token counts of the base model; None: no limit.
        names: texts -> texts without names and places; None: keep them.

    """
    rows = []
    for example in examples:
        without = _BOILERPLATE.sub("", example.text)
        text = tidy(without)
        if not text:
            drops.add("boilerplate" if tidy(example.text) else "empty", tidy(example.text))
        else:
            rows.append(example if text == example.text else replace(example, text=text))
    rows = drops.keep(rows, lambda e: len(_WORD.findall(e.text[: 8 * min_chars])) >= min_chars, "too short")
    rows = drops.keep(rows, lambda e: labels.issuperset(labels_of(task, e.label)), "label not in the taxonomy")
    if tokens is not None:
        # a token has at least one character
        long = sorted({e.text for e in rows if len(e.text) > tokens.limit - 2})
        too_long = {text for text, n in zip(long, tokens.count(long), strict=True) if n > tokens.limit}
        rows = drops.keep(rows, lambda e: e.text not in too_long, "too long for the base model")
    if language is not None:
        rows = drops.keep(rows, lambda e: is_language(e.text, language), "wrong language")
    if names is not None:
        texts = names([e.text for e in rows])
        rows = [e if e.text == text else replace(e, text=text) for e, text in zip(rows, texts, strict=True)]
    return rows


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
