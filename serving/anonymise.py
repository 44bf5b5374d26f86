"""The fast tier of anonymisation: typed placeholders for what identifies a person.

Turns a text into the same text with `<EMAIL>`, `<PHONE>`, `<CARD>`, `<IBAN>`, `<IP>`, `<CREDENTIALS>`. Serving calls it
once, before the model and before any event; the dataset calls it on files. It deliberately knows no names or places.

Every pattern is linear: bounded repeats, no nested ones, so that a hostile text costs no more than its length.
"""

import re
from collections.abc import Callable

_CREDENTIALS = re.compile(r"(?<=://)[^\s/@:]{1,128}:[^\s/@]{1,128}@")
_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}(?![\w-])")
_IPV4 = re.compile(r"(?<![\w.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\d.]*\d)")
_IPV6 = re.compile(r"(?<![\w:])(?:[0-9a-fA-F]{1,4}:){7}[0-9a-fA-F]{1,4}(?![\w:])")
_IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)")
_CARD = re.compile(r"(?<![\w.-])\d(?:[ -]?\d){12,18}(?![\w-])")
_PHONE = re.compile(
    r"(?<![\w.+-])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?|\(\d{2,5}\)[ .-]?|0)\d{1,4}(?:[ .-]?\d{2,4}){2,4}(?![\w-])"
)


def anonymise(text: str) -> str:
    """The text with placeholders. Idempotent."""
    if "@" in text:
        text = _CREDENTIALS.sub("<CREDENTIALS>@", text)
        text = _EMAIL.sub("<EMAIL>", text)
    if any(character.isdigit() for character in text):
        text = _checked(_IBAN, "<IBAN>", _iban_is_valid, text)
        text = _checked(_CARD, "<CARD>", _luhn_is_valid, text)
        text = _IPV6.sub("<IP>", _IPV4.sub("<IP>", text))
        text = _checked(_PHONE, "<PHONE>", _phone_is_likely, text)
    return text


def _checked(pattern: re.Pattern[str], placeholder: str, valid: Callable[[str], bool], text: str) -> str:
    return pattern.sub(lambda match: placeholder if valid(match[0]) else match[0], text)


def _iban_is_valid(candidate: str) -> bool:
    """Remainder 1 modulo 97 (ISO 13616)."""
    compact = candidate.replace(" ", "")
    return 15 <= len(compact) <= 34 and int("".join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % 97 == 1


def _luhn_is_valid(candidate: str) -> bool:
    """The check digit of ISO/IEC 7812."""
    digits = [int(c) for c in reversed(candidate) if c.isdigit()]
    doubled = [d * 2 - 9 * (d > 4) for d in digits[1::2]]
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0


def _phone_is_likely(candidate: str) -> bool:
    return 9 <= sum(c.isdigit() for c in candidate) <= 15
