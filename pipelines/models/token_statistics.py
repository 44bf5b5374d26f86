"""Token statistics: how a base model's tokenizer reads a project's texts, before anything is trained.

Turns texts and the base model's tokenizer into lengths, the share of unknown tokens and tokens a word. `ratchet init` chooses
`model.max_length` by them; `init` and `doctor` print their warnings. It loads no model and no training framework.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pipelines.models.base_files import base_folder
from schemas.setting_groups import ModelSettings
from serving.inference.normalise import normalise

SAMPLE = 5000  # texts tokenised, evenly spaced
CHARS_A_TOKEN, ROUGH_LIMIT = (
    4,
    2048,
)  # where no tokenizer can be read, as of a GGUF file; most tokens that are then chosen
LEAST_LENGTH, STEP = 128, 32  # shortest `max_length` that is chosen, and its unit
COVERED = 99  # percentile of lengths that the chosen length covers
MUCH_CUT, MUCH_UNKNOWN, MANY_PIECES = 0.05, 0.02, 3.0  # from which a warning is printed
# Families whose positions begin after the padding's.
SHIFTED = ("roberta", "xlm-roberta", "camembert")


@dataclass(frozen=True)
class TokenStatistics:
    """Lengths [n] of texts in tokens, the share of tokens unknown to the base model, tokens a word, and the base's limit."""

    lengths: NDArray[np.int64]
    unknown_share: float
    tokens_per_word: float
    limit: int

    @property
    def max_length(self) -> int:
        """Return the `model.max_length` that covers COVERED % of the texts, within the base model's limit.

        A longer limit costs nothing where texts are short, so it is never below LEAST_LENGTH.
        """
        return min(self.limit, covering(self.lengths))

    def cut_share(self, length: int) -> float:
        """Return the share of texts with more than `length` tokens."""
        return float((self.lengths > length).mean())

    def summary(self) -> str:
        """Return a line on lengths."""
        half, most, longest = np.percentile(self.lengths, [50, COVERED, 100])
        return (
            f"tokens: median {half:.0f}, {COVERED} % of the texts below {most:.0f}, longest {longest:.0f}; the base model reads "
            f"{self.limit}; {self.tokens_per_word:.1f} tokens a word, {self.unknown_share:.1%} unknown"
        )

    def warnings(self, length: int) -> list[str]:
        """Return what a base model loses of these texts, one line each with the way out."""
        lines = []
        cut = self.cut_share(length)
        if cut >= MUCH_CUT:
            lines.append(self._cut_line(cut, length))
        if self.unknown_share >= MUCH_UNKNOWN:
            lines.append(
                f"{self.unknown_share:.0%} of the tokens are unknown to the base model, most likely another language's: set "
                "model.base_model to a multilingual encoder, such as paraphrase-multilingual-MiniLM-L12-v2; until then TF-IDF "
                "will likely serve"
            )
        elif self.tokens_per_word >= MANY_PIECES:
            lines.append(
                f"a word has {self.tokens_per_word:.1f} tokens, because the base model's vocabulary is of another language or "
                "field: a base model of the texts' language reads more of them, and faster"
            )
        return lines

    def _cut_line(self, cut: float, length: int) -> str:
        lost = f"{cut:.0%} of the texts have more than {length} tokens, and the model does not read the rest"
        if length < self.limit:
            return f"{lost}: raise model.max_length, up to {self.limit} (covering {COVERED} % takes {self.max_length})"
        return (
            f"{lost}; no more fit into the base model: set model.base_model to one with a longer context, of "
            f"{STEP * int(np.ceil(np.percentile(self.lengths, COVERED) / STEP))} tokens or more, or shorten the texts"
        )


def covering(lengths: NDArray[np.int64]) -> int:
    """Return the length that covers COVERED % of these, in steps of STEP, LEAST_LENGTH or more."""
    return max(LEAST_LENGTH, STEP * int(np.ceil(float(np.percentile(lengths, COVERED)) / STEP)))


def rough_lengths(texts: Sequence[str]) -> NDArray[np.int64]:
    """Return about how many tokens each text has."""
    return np.array([-(-len(text) // CHARS_A_TOKEN) for text in texts], dtype=np.int64)


def cut_warning(lengths: NDArray[np.int64], limit: int, what: str, setting: str, *, about: bool) -> list[str]:
    """Return a line if many of the texts called `what` are longer than `setting` allows."""
    cut = float((lengths > limit).mean())
    if cut < MUCH_CUT:
        return []
    counted = f" (counted as {CHARS_A_TOKEN} characters each)" if about else ""
    return [
        f"{'about ' * about}{cut:.0%} of the {what} have more than {limit} tokens{counted}, and the rest is cut: raise "
        f"{setting} (covering {COVERED} % takes {covering(lengths)})"
    ]


def token_statistics(texts: Sequence[str], model: ModelSettings) -> TokenStatistics | None:
    """Return the statistics of texts under the settings' base model; None if no tokenizer can be read on this machine."""
    folder = base_folder(model)
    if folder is None or not texts or not (folder / "tokenizer.json").is_file():
        return None
    sample = [normalise(texts[n]) for n in np.linspace(0, len(texts) - 1, min(len(texts), SAMPLE)).astype(int).tolist()]
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception:  # of no class of its own; opening the base model reports it
        return None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    unknown = tokenizer.token_to_id(_unknown_token(folder))
    lengths, tokens, unknowns = [], 0, 0
    for encoding in tokenizer.encode_batch_fast(sample):
        of_text = np.array(encoding.ids)[np.array(encoding.special_tokens_mask) == 0]
        lengths.append(len(encoding.ids))
        tokens += len(of_text)
        unknowns += int((of_text == unknown).sum()) if unknown is not None else 0
    words = sum(len(text.split()) for text in sample)
    return TokenStatistics(np.array(lengths), unknowns / max(1, tokens), tokens / max(1, words), _limit(folder))


def _unknown_token(folder: Path) -> str:
    token = _read(folder / "tokenizer_config.json").get("unk_token", "[UNK]")
    return str(token["content"] if isinstance(token, dict) else token)


def _limit(folder: Path) -> int:
    """Return the most tokens that the base model reads."""
    config, tokenizer = _read(folder / "config.json"), _read(folder / "tokenizer_config.json")
    positions = int(config.get("max_position_embeddings", 512)) - 2 * (config.get("model_type") in SHIFTED)
    return min(positions, int(tokenizer.get("model_max_length", positions)), 8192)


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content
