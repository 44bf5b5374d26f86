"""National identity and tax numbers, by the countries that issue them.

Turns a text into the same text with `<NATIONAL_ID>`. anonymise.py calls it on texts with digits. To spare order numbers, it
replaces only numbers with letters or separators, with valid check digits, or after a naming word. Nine bare digits (Dutch BSN,
Canadian SIN) need the word.

Sources of shapes and check digits: the issuing authorities' published rules, as collected in python-stdnum's documentation.
"""

import re
from collections.abc import Callable, Sequence

PLACEHOLDER = "<NATIONAL_ID>"

_SHAPES = {
    "us_ssn": r"(?!000|666)\d{3}(?P<dash>[- ])(?!00)\d\d(?P=dash)(?!0000)\d{4}",
    "gb_nino": r"[A-Z]{2} ?(?:\d{6}|\d\d \d\d \d\d) ?[A-DFMPT]",
    "fr_nir": r"[1-478] ?\d\d ?(?:0[1-9]|1[0-2]|[2-9]\d) ?(?:\d\d|2[AB]) ?\d{3} ?\d{3} ?\d\d",
    "es_dni": r"(?:\d{8}|[XYZxyz]-?\d{7})[- ]?[A-Za-z]",
    "it_cf": r"[A-Za-z]{6}\d\d[A-EHLMPRSTa-ehlmprst]\d\d[A-Za-z]\d{3}[A-Za-z]",
    "se_pnr": r"(?:19|20)?\d\d(?:0[1-9]|1[0-2])(?:[0-2]\d|3[01]|[6-8]\d|9[01])[-+]\d{4}",
    "dk_cpr": r"(?:0[1-9]|[12]\d|3[01])(?:0[1-9]|1[0-2])\d\d-\d{4}",
    "fi_hetu": r"(?:0[1-9]|[12]\d|3[01])(?:0[1-9]|1[0-2])\d\d[-+A-FU-Y]\d{3}[0-9A-FHJ-NPR-Y]",
    "no_or_pl": r"\d{6} ?\d{5}",
    "be_nrn": r"\d\d\.(?:0\d|1[0-2])\.(?:[0-2]\d|3[01])[-.]\d{3}[-.]\d\d",
    "ch_ahv": r"756(?P<dot>[. ]?)\d{4}(?P=dot)\d{4}(?P=dot)\d\d",
    "de_svnr": r"\d\d ?(?:0[1-9]|[12]\d|3[01])(?:0[1-9]|1[0-2])\d\d ?[A-Z] ?\d{3}",
    "br_cpf": r"\d{3}\.\d{3}\.\d{3}-\d\d",
    "mx_curp": r"[A-Z]{4}\d{6}[HM][A-Z]{5}[0-9A-Z]\d",
    "in_pan": r"[A-Z]{3}[ABCFGHJLPT][A-Z]\d{4}[A-Z]",
    "kr_rrn": r"\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])-[1-8]\d{6}",
    "cn_ric": r"[1-9]\d{5}(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx]",
}
_SHAPED = re.compile("(?<![\\w.+-])(?:" + "|".join(f"(?P<{k}>{s})" for k, s in _SHAPES.items()) + r")(?![\w]|[-.]\d)")

# A naming word, followed closely by a number of six to eighteen characters.
_NAMED = re.compile(
    r"""(?ix)
    \b(?:s\.?s\.?n\.?|social\ (?:security|insurance)|national\ (?:insurance|id\w*)|identity\ (?:card|number)|tax\ (?:id|file)\w*
      |passport|sozialversicherung\w*|rentenversicherung\w*|steuer-?\ ?id\w*|personalausweis\w*|bsn|burgerservicenummer
      |sofinummer|s[ée]curit[ée]\ sociale|s[ée]cu|nir|insee|dni|nie|nif|nuss|seguridad\ social|codice\ fiscale
      |c\.?f\.?|personnummer|f[øo]dselsnummer|cpr|henkil[öo]tunnus|hetu|pesel|cpf|curp
      |aadhaar|avs|ahv|sin|tfn|n\.?i\.?\ number|nino)\b
    (?:[\s:=#.]|\b(?:number|no|nr|nummer|num[ée]ro|n[úu]mero|numero|is|ist|est|es|[èe]|[äa]r|er|on|my|mein\w*|mon|mi|il|mio|mijn|de|du|it)\b){0,8}
    (?P<number>[A-Z]{0,2}\d(?:[ .-]?[A-Z\d]){5,17}+)(?!\w)
    """
)
_ENOUGH_DIGITS = 6


def replace_national_ids(text: str) -> str:
    """Return the text with a placeholder for each national identity number."""
    return _NAMED.sub(_named, _SHAPED.sub(_shaped, text))


def _shaped(match: re.Match[str]) -> str:
    country = next(name for name in _SHAPES if match[name])
    check = _CHECKS.get(country)
    return PLACEHOLDER if check is None or check(re.sub(r"[^0-9A-Z]", "", match[0].upper())) else match[0]


def _named(match: re.Match[str]) -> str:
    number = match["number"]
    if sum(c.isdecimal() for c in number) < _ENOUGH_DIGITS:
        return match[0]
    return match[0][: match.start("number") - match.start()] + PLACEHOLDER


def _weighted(digits: str, weights: Sequence[int]) -> int:
    return sum(int(d) * w for d, w in zip(digits, weights, strict=False))


def _luhn(digits: str) -> bool:
    doubled = [int(d) * 2 - 9 * (int(d) > 4) for d in digits[-2::-2]]
    return (sum(doubled) + sum(map(int, digits[::-2]))) % 10 == 0


def _nir(number: str) -> bool:
    digits = number[:13].replace("2A", "19").replace("2B", "18")
    return digits.isdecimal() and 97 - int(digits) % 97 == int(number[13:])


def _dni(number: str) -> bool:
    digits = number[:-1].translate(str.maketrans("XYZ", "012"))
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(digits) % 23] == number[-1]


def _hetu(number: str) -> bool:
    digits = number[:6] + number[-4:-1]
    return "0123456789ABCDEFHJKLMNPRSTUVWXY"[int(digits) % 31] == number[-1]


def _fnr(number: str) -> bool:
    first = _weighted(number, (3, 7, 6, 1, 8, 9, 4, 5, 2, 1))
    return first % 11 == 0 and _weighted(number, (5, 4, 3, 2, 7, 6, 5, 4, 3, 2, 1)) % 11 == 0


def _pesel(number: str) -> bool:
    month, day = int(number[2:4]) % 20, int(number[4:6])
    return 1 <= month <= 12 and 1 <= day <= 31 and _weighted(number, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1)) % 10 == 0


def _nrn(number: str) -> bool:
    return any(97 - int(century + number[:9]) % 97 == int(number[9:]) for century in ("", "2"))


def _ahv(number: str) -> bool:
    return _weighted(number, (1, 3) * 6 + (1,)) % 10 == 0


def _cpf(number: str) -> bool:
    first = _weighted(number, range(10, 1, -1)) * 10 % 11 % 10
    second = _weighted(number, range(11, 1, -1)) * 10 % 11 % 10
    return number[9:] == f"{first}{second}"


def _ric(number: str) -> bool:
    return "10X98765432"[_weighted(number, [2**n % 11 for n in range(17, 0, -1)]) % 11] == number[-1]


_CHECKS: dict[str, Callable[[str], bool]] = {
    "fr_nir": _nir,
    "es_dni": _dni,
    "se_pnr": lambda number: _luhn(number[-10:]),
    "fi_hetu": _hetu,
    "no_or_pl": lambda number: _fnr(number) or _pesel(number),
    "be_nrn": _nrn,
    "ch_ahv": _ahv,
    "br_cpf": _cpf,
    "cn_ric": _ric,
}
