"""Generated sentences with something to anonymise, and as many with something that only looks like it.

Turns a Faker locale and a seed into sentences of which it is known what must be replaced. Used by test_anonymise.py with the
TUNED locales, and by the ingestion benchmark with the HELD_OUT ones too and other seeds: patterns were never looked at
against those.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from faker import Faker

TUNED = ("en_US", "en_GB", "de_DE", "fr_FR", "es_ES", "it_IT", "nl_NL")
HELD_OUT = ("sv_SE", "fr_CH")

_FRAMES: dict[str, dict[str, list[str]]] = {
    "en": {
        "<EMAIL>": ["please write to {} about my order", "my address {} bounces, why?", "{} never got a reply"],
        "<PHONE>": ["you can call me on {} after six", "my phone number is {}, thanks", "please reach me at {}."],
        "<CARD>": ["i paid with card {} yesterday", "why was {} charged twice?", "the card {} is blocked"],
        "<IBAN>": ["send the refund to {} please", "my account is {}, is that right?"],
        "<IP>": ["the login came from {} last night", "host {} does not answer"],
        "<CREDENTIALS>": ["the old link https://{}@files.example.com/a still opens"],
        "<NATIONAL_ID>": ["my social security number is {}", "the form wants my national id {} again"],
    },
    "de": {
        "<EMAIL>": ["bitte schreiben Sie an {} zurück", "warum kommt bei {} nichts an?"],
        "<PHONE>": ["rufen Sie mich unter {} an", "meine Telefonnummer ist {}, danke", "Handy: {}"],
        "<CARD>": ["ich habe mit der Karte {} bezahlt", "die Karte {} ist gesperrt"],
        "<IBAN>": ["bitte auf {} erstatten", "mein Konto {} stimmt nicht"],
        "<IP>": ["der Zugriff kam von {} gestern Nacht"],
        "<CREDENTIALS>": ["der Link https://{}@files.example.com/a geht noch"],
        "<NATIONAL_ID>": ["meine Sozialversicherungsnummer ist {}"],
    },
    "fr": {
        "<EMAIL>": ["écrivez à {} s'il vous plaît", "{} ne reçoit rien"],
        "<PHONE>": ["appelez-moi au {} après 18 h", "mon téléphone est le {}, merci"],
        "<CARD>": ["j'ai payé avec la carte {} hier", "la carte {} est bloquée"],
        "<IBAN>": ["remboursez sur {} svp"],
        "<IP>": ["la connexion venait de {} cette nuit"],
        "<CREDENTIALS>": ["le lien https://{}@files.example.com/a marche encore"],
        "<NATIONAL_ID>": ["mon numéro de sécurité sociale est {}"],
    },
    "es": {
        "<EMAIL>": ["escriban a {} por favor"],
        "<PHONE>": ["llámame al {} por la tarde", "mi teléfono es {}, gracias"],
        "<CARD>": ["pagué con la tarjeta {} ayer"],
        "<IBAN>": ["devuelvan el dinero a {} por favor"],
        "<IP>": ["el acceso vino de {} anoche"],
        "<CREDENTIALS>": ["el enlace https://{}@files.example.com/a sigue abierto"],
        "<NATIONAL_ID>": ["mi DNI es {}", "el número {} no es válido?"],
    },
    "it": {
        "<EMAIL>": ["scrivete a {} per favore"],
        "<PHONE>": ["chiamatemi al {} dopo le sei", "il mio cellulare è {}, grazie"],
        "<CARD>": ["ho pagato con la carta {} ieri"],
        "<IBAN>": ["rimborsate su {} per favore"],
        "<IP>": ["l'accesso veniva da {} stanotte"],
        "<CREDENTIALS>": ["il link https://{}@files.example.com/a funziona ancora"],
        "<NATIONAL_ID>": ["il mio codice fiscale è {}", "ecco {} come richiesto"],
    },
    "nl": {
        "<EMAIL>": ["mail naar {} alstublieft"],
        "<PHONE>": ["bel mij op {} na zes uur", "mijn telefoonnummer is {}, bedankt"],
        "<CARD>": ["ik betaalde met kaart {} gisteren"],
        "<IBAN>": ["stort het terug op {} graag"],
        "<IP>": ["de login kwam van {} vannacht"],
        "<CREDENTIALS>": ["de link https://{}@files.example.com/a werkt nog"],
        "<NATIONAL_ID>": ["mijn BSN is {}"],
    },
    "sv": {
        "<EMAIL>": ["skriv till {} tack"],
        "<PHONE>": ["ring mig på {} efter sex", "mitt telefonnummer är {}, tack"],
        "<CARD>": ["jag betalade med kortet {} igår"],
        "<IBAN>": ["betala tillbaka till {} tack"],
        "<IP>": ["inloggningen kom från {} i natt"],
        "<CREDENTIALS>": ["länken https://{}@files.example.com/a fungerar än"],
        "<NATIONAL_ID>": ["mitt personnummer är {}"],
    },
}
_LOOK_ALIKE_FRAMES = [
    "order {} has not come",
    "why does it say {} here?",
    "it was {} last time",
    "{} is what i see",
    "see {}, please",
]


@dataclass(frozen=True)
class Sentence:
    """`expected` is the text with what identifies somebody replaced; equal to `text` for a look-alike."""

    text: str
    expected: str
    kind: str


def sentences(locale: str, seed: int, n: int) -> Iterator[Sentence]:
    """`n` sentences, in turn with something to replace and with something that only looks like it."""
    fake, draw = Faker(locale), random.Random(f"{locale}/{seed}")
    fake.seed_instance(draw.randrange(2**32))
    frames = _FRAMES[locale[:2]]
    secrets = _secrets(fake, draw, locale)
    for number in range(n):
        if number % 2:
            kind, look_alike = _look_alike(draw)
            text = draw.choice(_LOOK_ALIKE_FRAMES).format(look_alike)
            yield Sentence(text, text, kind)
        else:
            placeholder = draw.choice(list(secrets))
            frame = draw.choice(frames[placeholder])
            yield Sentence(frame.format(secrets[placeholder]()), frame.format(placeholder), placeholder)


def _secrets(fake: Faker, draw: random.Random, locale: str) -> dict[str, Callable[[], str]]:
    found: dict[str, Callable[[], str]] = {
        "<EMAIL>": draw.choice([fake.email, fake.ascii_company_email, fake.free_email]),
        "<PHONE>": fake.phone_number,
        "<CARD>": lambda: _grouped(fake.credit_card_number(), draw),
        "<IBAN>": lambda: _grouped(fake.iban(), draw),
        "<IP>": lambda: fake.ipv6() if draw.random() < 0.3 else fake.ipv4(),
        "<CREDENTIALS>": lambda: f"{fake.user_name()}:{fake.password(special_chars=False)}",
        "<NATIONAL_ID>": fake.nif if locale == "es_ES" else fake.ssn,
    }
    return found


def _grouped(number: str, draw: random.Random) -> str:
    """As printed on a card or statement, one time in two."""
    if draw.random() < 0.5 or (number.isdecimal() and len(number) != 16):
        return number
    return " ".join(number[i : i + 4] for i in range(0, len(number), 4))


def _look_alike(draw: random.Random) -> tuple[str, str]:
    def digits(n: int) -> str:
        return "".join(draw.choices("0123456789", k=n))

    year, month, day = draw.randrange(1990, 2030), draw.randrange(1, 13), draw.randrange(1, 29)
    kinds: dict[str, list[str]] = {
        "order number": [
            digits(8),
            digits(10),
            f"ORD-{digits(6)}",
            f"#{digits(7)}",
            f"{year}-{digits(6)}",
            f"A{digits(9)}",
        ],
        "amount": [
            f"{draw.randrange(10**7):,}.{digits(2)} EUR",
            f"{draw.randrange(10**6)},{digits(2)} €",
            f"$ {draw.randrange(10**6):,}",
            f"1 {digits(3)} {digits(3)} kr",
        ],
        "date": [
            f"{year}-{month:02}-{day:02}",
            f"{day:02}.{month:02}.{year}",
            f"{month}/{day}/{year}",
            f"{day:02}-{month:02}-{year} 10:{draw.randrange(10, 60)}",
            f"{year}{month:02}{day:02}",
        ],
        "version": [
            f"v{draw.randrange(9)}.{draw.randrange(20)}.{draw.randrange(99)}",
            f"{draw.randrange(9)}.{digits(2)}.{digits(3)}",
        ],
        "identifier": [
            f"ISBN 978-{digits(1)}-{digits(4)}-{digits(4)}-{digits(1)}",
            f"SKU {digits(5)}-{digits(3)}",
            f"0x{digits(8)}",
        ],
    }
    kind = draw.choice(list(kinds))
    return kind, draw.choice(kinds[kind])


def score(found: list[tuple[Sentence, str]]) -> tuple[float, float, list[tuple[str, str]]]:
    """Recall, precision and what went wrong, of (sentence, what came out).

    Something is found if the sentence is as expected, or holds another placeholder where one was expected; every other
    placeholder is a false alarm.
    """
    hits = misses = alarms = 0
    wrong = []
    for sentence, out in found:
        if sentence.expected == sentence.text:
            alarms += out != sentence.text
        else:
            before, _, after = sentence.expected.partition(sentence.kind)
            middle = out[len(before) : len(out) - len(after)]
            whole = out.startswith(before) and out.endswith(after) and middle.startswith("<") and middle.endswith(">")
            hits += whole
            misses += not whole
            alarms += not whole and out != sentence.text
        if out != sentence.expected:
            wrong.append((sentence.text, out))
    return hits / max(1, hits + misses), hits / max(1, hits + alarms), wrong
