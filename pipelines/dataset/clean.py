"""Cleaning: texts repaired, and left out where nothing can be learnt from them.

Turns examples into fewer examples with tidy texts; build.py tidies the reference with it too. It deliberately judges no label
but one that the taxonomy lacks.

Mojibake and Unicode are repaired by ftfy. What a repair brings to light passes the anonymiser again: `bob&#64;example.org` is
an address only afterwards. A text longer than the base model can read is left out; one that is merely cut to
`model.max_length` is kept, because serving cuts it in the same way.
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
SURE = 0.9  # probability at which another language is believed
ENOUGH = 24  # characters; shorter texts are of any language

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
    """How a base model counts: texts -> tokens of each, and the most that it can read."""

    count: Callable[[Sequence[str]], list[int]]
    limit: int


def tidy(text: str) -> str:
    """The text with mojibake repaired, in NFC, without control and invisible characters, white space collapsed. Idempotent."""
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
    """Tidy the texts and leave out what does not help.

    Args:
        examples: in any order.
        labels: the taxonomy.
        drops: told of every row left out.
        task: what labels are.
        min_chars: letters and digits that a text must have.
        language: ISO 639-1 code of the only language wanted; None: any.
        tokens: the base model's; None: no limit.
        names: texts -> texts without names and places; None: that tier is not installed.

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
        # no token is shorter than a character
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
    """False only where another language is next to certain (langid: Lui and Baldwin 2012)."""
    if len(text) < ENOUGH:
        return True
    found, probability = _identifier().classify(text)
    return bool(found == language or probability < SURE)


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
