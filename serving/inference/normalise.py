"""Normalisation of texts: a version reads the same text in training and in serving.

The manifest names the normaliser, so an artefact keeps the one that it was trained with; versions made before normalisers were
recorded have none. The runtimes apply it to every text, and cleaning (clean.py) to every row. It removes signatures and
mail footers, repairs mojibake and Unicode by ftfy, and removes control and invisible characters. A repaired text is anonymised
again: `bob&#64;example.org` is an address only afterwards.

A changed rule is a new entry of NORMALISERS under a new name; the old one stays for versions that name it.
"""

import re
from collections.abc import Callable, Mapping

from schemas.manifests import ModelManifest
from serving.privacy.anonymise import anonymise

Normaliser = Callable[[str], str]

PASSES = 4
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]+")
_SURROGATE = re.compile("[\ud800-\udfff]")
_BOILERPLATE = re.compile(
    r"^[ \t>]*(?:sent from my \w[\w ]{0,30}\.?|(?:get|download) outlook for \w+.{0,40}|-- ?|"
    r"(?:this (?:e-?mail|message) (?:and any attachments )?(?:is|are|may be) confidential)\b.*|"
    r"(?:click here to )?unsubscribe\b.{0,60})[ \t]*$",
    re.IGNORECASE | re.MULTILINE,
)


class UnknownNormaliser(ValueError):
    """The manifest names a normaliser that this release does not have."""


def folded(text: str) -> str:
    """Return the form under which texts that differ only by case and white space are equal."""
    return " ".join(text.casefold().split())


def without_boilerplate(text: str) -> str:
    """Return the text without lines that are a signature or a mail footer."""
    return _BOILERPLATE.sub("", text)


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


def normalise(text: str) -> str:
    """Return a text as models read it: without boilerplate, unless it holds nothing else, and tidied. Idempotent."""
    return tidy(without_boilerplate(text)) or tidy(text)


NORMALISER = "ratchet-text-1"  # of new versions
NORMALISERS: Mapping[str, Normaliser] = {NORMALISER: normalise}


def normaliser_of(manifest: ModelManifest) -> Normaliser:
    """Return the normaliser of a version's texts. Raises UnknownNormaliser."""
    if manifest.normaliser is None:
        return str
    if manifest.normaliser not in NORMALISERS:
        raise UnknownNormaliser(
            f"{manifest.model_version}: `normaliser` is {manifest.normaliser!r}, this release has {', '.join(NORMALISERS)}"
        )
    return NORMALISERS[manifest.normaliser]
