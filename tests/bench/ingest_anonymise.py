"""What anonymisation finds and leaves on generated sentences, and what it costs where there is nothing to find.

Locales and seeds that the patterns were tuned on are not these: HELD_OUT locales are reported by themselves too.
"""

import time
from pathlib import Path

from serving.privacy.anonymise import anonymise
from tests.bench.report import Figure
from tests.support.pii_sentences import HELD_OUT, TUNED, Sentence, score, sentences

SENTENCES = 5000
SEED = 20_261


def anonymise_figures(_folder: Path) -> list[Figure]:
    """Recall and precision on SENTENCES with something to find and as many without; texts a second on the latter."""
    each = -(-2 * SENTENCES // len(TUNED + HELD_OUT))
    found = {locale: [(s, anonymise(s.text)) for s in sentences(locale, SEED, each)] for locale in (*TUNED, *HELD_OUT)}
    everything = [pair for pairs in found.values() for pair in pairs]
    held_out = [pair for locale in HELD_OUT for pair in found[locale]]
    recall, precision, wrong = score(everything)
    held_recall, held_precision, _ = score(held_out)
    for text, out in wrong[:10]:
        print(f"  {text!r} -> {out!r}")
    quiet = [s.text for s, out in everything if s.text == s.expected == out] * 4
    words = [_without_digits(s) for s, _ in everything] * 2
    return [
        Figure(figure="anonymisation: recall", value=recall, op=">=", target=0.99, n=len(everything) // 2),
        Figure(figure="anonymisation: precision", value=precision, op=">=", target=0.95, n=len(everything)),
        Figure(
            figure="anonymisation: recall, held-out locales",
            value=held_recall,
            op=">=",
            target=0.99,
            n=len(held_out) // 2,
        ),
        Figure(
            figure="anonymisation: precision, held-out locales",
            value=held_precision,
            op=">=",
            target=0.95,
            n=len(held_out),
        ),
        Figure(
            figure="texts/s on one core, only look-alikes", value=_rate(quiet), op=">=", target=20_000, n=len(quiet)
        ),
        Figure(figure="texts/s on one core, plain texts", value=_rate(words), op=">=", target=20_000, n=len(words)),
    ]


def _without_digits(sentence: Sentence) -> str:
    return "".join(c for c in sentence.expected if not c.isdigit() and c not in "<>@")


def _rate(texts: list[str]) -> float:
    begun = time.process_time()
    for text in texts:
        anonymise(text)
    return len(texts) / (time.process_time() - begun)
