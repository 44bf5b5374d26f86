"""N-grams of a text: what a TF-IDF model reads instead of a base model's tokens.

Turns a text into the ids of its word and character n-grams. The same functions count n-grams in training
(pipelines/models/tfidf.py) and in serving (text_inputs.py), so both read the same text.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

VOCABULARY = "vocabulary.json"
WORD, CHARACTER = "w", "c"  # first character of an n-gram's name
WORDS, CHARACTERS = (1, 2), (1, 4)  # shortest and longest n-gram of each kind
_WORD = re.compile(r"\w+")


def ngrams(text: str) -> Iterator[str]:
    """Yield the names of a text's n-grams: one or two words, and one to four characters within a word and its borders.

    Characters serve languages without spaces, misspellings and inflections (Wang and Manning 2012; McNamee and Mayfield 2004).
    """
    folded = text.casefold()
    words = _WORD.findall(folded)
    for n in range(WORDS[0], WORDS[1] + 1):
        for start in range(len(words) - n + 1):
            yield WORD + " ".join(words[start : start + n])
    for word in folded.split():
        bordered = f" {word} "
        for n in range(CHARACTERS[0], CHARACTERS[1] + 1):
            for start in range(len(bordered) - n + 1):
                yield CHARACTER + bordered[start : start + n]


class Vocabulary:
    """The n-grams that a model knows, each with its id; others are ignored."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self._ids = {name: n for n, name in enumerate(names)}

    @classmethod
    def open(cls, directory: Path) -> "Vocabulary":
        """Return the vocabulary in a version's directory."""
        return cls(json.loads((directory / VOCABULARY).read_text(encoding="utf-8")))

    def save(self, directory: Path) -> None:
        """Write the vocabulary into a version's directory."""
        (directory / VOCABULARY).write_text(json.dumps(self.names, ensure_ascii=False), encoding="utf-8")

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text's known n-grams, as often as each occurs."""
        ids = self._ids
        return [ids[name] for name in ngrams(text) if name in ids]
