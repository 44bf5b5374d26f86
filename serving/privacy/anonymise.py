"""Anonymisation by patterns: typed placeholders replace what identifies a person.

Turns a text into the same text with `<EMAIL>`, `<PHONE>`, `<CARD>`, `<IBAN>`, `<IP>`, `<CREDENTIALS>`, `<NATIONAL_ID>`
(national_ids.py). Serving calls it before the model and before any event; the dataset build calls it on files. Names and
addresses are not recognised. Order numbers, dates and amounts stay: cards and IBANs must pass their check digits, IPv6
addresses must parse, and bare digits are a phone number only after a word such as "call".

The time is linear in the text's length, for hostile texts too: every repeat is bounded, or possessive (`++`) and anchored at the
start of its run.
"""

import re
from collections.abc import Callable
from ipaddress import AddressValueError, IPv6Address

from serving.privacy.national_ids import replace_national_ids

PASSES = 4

_DIGIT = re.compile(r"\d")
# A cheap filter: every card, IBAN and phone number has six digits close to one another; most texts do not.
_MANY_DIGITS = re.compile(r"\d(?:[ \u00a0\u202f\u2011()./-]{0,4}\d){5}")
_LETTERS_DIGIT = re.compile(r"[A-Za-z]{5}\d")
_CREDENTIALS = re.compile(r"(?<=://)(?:(?![^\s/?#@]*<[A-Z_]{2,11}>)[^\s/?#@]++@)++")
_EMAIL = re.compile(
    r"""(?:"[^"\n@<>]{1,64}"|(?<!ATOM)ATOM++)@(DOMAIN)(?:ATOM*+@DOMAIN)*+""".replace(
        "DOMAIN", r"[^\W_][\w-]*+(?:\.[\w-]++)++"
    ).replace("ATOM", r"[\w.%+&'~-]")
)
_IPV4 = re.compile(
    r"(?<![\w.])(?:::(?:[Ff]{4}:)?)?(?:(?:25[0-5]|2[0-4]\d|[01]?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|[01]?\d?\d)(?!\w|\.\d)"
)
_IPV6 = re.compile(r"(?<![\w.])[0-9A-Fa-f:]{2,}+")
_IBAN = re.compile(r"(?<!\w)[A-Za-z]{2}\d\d(?:[ \u00a0-]?[A-Za-z0-9]){11,30}+")
_CARD = re.compile(
    r"(?<!\w)(?!(?<=^\d\.)\d{5})(?!(?<=\D\d\.)\d{5})"  # 3.4111111111111111 is a number
    r"(?:[2-6]\d{3}(?:([ \u00a0.-])(?:\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?|\d{6}\1\d{4,5})|\d{9,15})"
    r"|1800\d{11}|(?:5[0678]|6\d|06)\d{10})(?!\w)"
)
_PHONE = re.compile(
    r"""
    (?:
        \+[1-9](?:\)?GAP?\(?GAP?\d){8,14}                                # international: +44 (0)20 7946 0958
      | \((?!(?:19|20)\d\d\))\d{2,5}\)GAP?\d(?:GAP?\d){5,9}              # an area in brackets: (020) 7946 0958
      | (?<![\w+])(?<!\d[.:/-])
        (?!\d{1,2}([./-])\d{1,2}\1(?:19|20)\d\d(?!\d))                   # a date is not a phone number
        (?:
            00[1-9](?:\)?GAP?\(?GAP?\d){9,14}                            # international: 0049 30 12345678
          | 0[1-9](?:\d{8,9}|(?=\d{0,6}GAP\d)(?:GAP?\d){7,10})           # national: 020 7946 0958, 02079460958
          | (?:1GAP)?[2-9]\d\dGAP[2-9]\d\dGAP\d{4}                       # North America: 212-555-0123
        )
    )
    (?:\ ?(?:x|ext\.?)\ ?\d{1,6}+)?
    (?!\w|[.:/-]\d)
    """.replace("GAP", "[ \u00a0\u202f\u2011./-]").replace("[ ", r"[\ "),
    re.VERBOSE,
)

# Bare digits are a phone number after a word that says so, in several European languages.
_CALL = re.compile(
    r"""
    \b(?:phone|telephone|mobile|cell|call|ring|text|fax|whatsapp|sms|tel|tlf|reach|dial|contact
      |telefon\w*|handy\w*|mobil\w*|anruf\w*|rufen|ruf|erreich\w*|r[ée]ponds|appel\w*|t[ée]l[ée]phon\w*|portable|joindre|joignable|natel
      |ll[aá]m\w*|tel[ée]fono|m[oó]vil|chiam\w*|cellulare|bel|bellen|bereik\w*|telefoonnummer|n[aå]s|zadzwo[nń]|ligue|telem[oó]vel)\b
    (?:[\s:=.,]|\b(?:number|no|nr|nummer|num[ée]ro|n[úu]mero|numero|me|us|her|him|back|on|at|is|my|the|by|phone|mobile|under|unter|mich|uns
      |sie|bitte|ist|lautet|moi|nous|au|[àa]|sur|le|est|mi|al|en|el|es|il|mio|[èe]|mij|ons|op|het|mig|oss|p[åa]|[äa]r|av)\b){0,12}
    (?P<number>(?!\d{1,2}([./-])\d{1,2}\2\d{2})(?!(?:19|20)\d\d-\d\d-\d\d)[+(]?\d(?:[\ ()./-]{0,3}\d){6,14}+)(?!\w|[.:,/-]\d)
    """,
    re.VERBOSE | re.IGNORECASE,
)

# Characters of an IBAN by country (ISO 13616 registry).
_IBAN_LENGTHS = {
    word[:2]: int(word[2:])
    for word in """
    AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 EG29 ES24
    FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32
    LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24
    RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30
    """.split()
}
_IBAN_DIGITS = {ord(letter): str(n) for n, letter in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZ", 10)}


def anonymise(text: str) -> str:
    """Return the text with placeholders. Idempotent; linear in the text's length."""
    # A replacement can expose another match beside its placeholder, hence several passes.
    for _ in range(PASSES):
        before, text = text, _once(text)
        if text == before:
            break
    return text


def _once(text: str) -> str:
    if "@" in text:
        text = _CREDENTIALS.sub("<CREDENTIALS>@", text)
        text = _EMAIL.sub(_email, text)
    if _DIGIT.search(text):
        if text.count(".") > 2:
            text = _IPV4.sub("<IP>", text)
        many = _MANY_DIGITS.search(text)
        if many:
            text = _replace(_IBAN, "<IBAN>", _iban_end, text)
        if many or _LETTERS_DIGIT.search(text):
            text = replace_national_ids(text)
        if many:
            text = _replace(_CARD, "<CARD>", _card_end, text)
            text = _CALL.sub(_called, _PHONE.sub("<PHONE>", text))
        if text.count(":") > 1:
            text = _IPV6.sub(_ipv6, text)
    return text


def _replace(pattern: re.Pattern[str], placeholder: str, end: Callable[[re.Match[str]], int | None], text: str) -> str:
    """Replace each match up to `end(match)`; if that is None, search again from the next character."""
    parts, done, position = [], 0, 0
    while match := pattern.search(text, position):
        stop = end(match)
        if stop is None:
            position = match.start() + 1
        else:
            parts += [text[done : match.start()], placeholder]
            done = position = stop
    return "".join([*parts, text[done:]])


def _email(match: re.Match[str]) -> str:
    """Return the placeholder, unless the domain is a number as in "apples@3.50"."""
    number = match[1].replace(".", "").isdecimal() and match[1].count(".") != 3
    return match[0] if number else "<EMAIL>"


def _called(match: re.Match[str]) -> str:
    return match[0][: match.start("number") - match.start()] + "<PHONE>"


def _ipv6(match: re.Match[str]) -> str:
    """Return the placeholder if the whole match is an address. Without a digit it may be C++: `abc::def`."""
    candidate, rest = match[0], ""
    if candidate.endswith(":") and not candidate.endswith("::"):
        candidate, rest = candidate[:-1], ":"
    cut_off = match.string[match.end() : match.end() + 1].isalnum()
    if cut_off or len(candidate) > 39 or candidate.count(":") < 2 or not _DIGIT.search(candidate):
        return match[0]
    try:
        IPv6Address(candidate)
    except AddressValueError:
        return match[0]
    return f"<IP>{rest}"


def _iban_end(match: re.Match[str]) -> int | None:
    """Return the end at the country's length, if a word ends there and the remainder modulo 97 is 1 (ISO 13616)."""
    length = _IBAN_LENGTHS.get(match[0][:2].upper(), 99)
    positions = [n for n, character in enumerate(match[0]) if character.isalnum()][:length]
    end = match.start() + positions[-1] + 1
    if len(positions) < length or re.match(r"\w", match.string[end : end + 1]):
        return None
    compact = "".join(match[0][n] for n in positions).upper()
    number = (compact[4:] + compact[:4]).translate(_IBAN_DIGITS)
    return end if int(number) % 97 == 1 else None


def _card_end(match: re.Match[str]) -> int | None:
    """Return the match's end if the check digit is right (Luhn: ISO/IEC 7812-1, annex B)."""
    digits = [int(character) for character in reversed(match[0]) if character.isdecimal()]
    doubled = [d * 2 - 9 * (d > 4) for d in digits[1::2]]
    return match.end() if (sum(digits[::2]) + sum(doubled)) % 10 == 0 else None
