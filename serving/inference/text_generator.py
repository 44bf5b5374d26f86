"""Text generation: greedy decoding with a causal language model, token by token, with log-probabilities.

`TextGenerator` turns texts into generated texts. decoder_runtime.py makes one of a model version; evaluation makes one of the
base model, to compare with. Greedy: the same text gets the same answer. It knows no files, registry or queue.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers.decoders import DecodeStream
from transformers import DynamicCache

from serving.inference import prompts

BATCH = 16
MAX_CONTEXT = 1 << 20  # tokens, for a model whose configuration names no limit


@dataclass(frozen=True)
class Piece:
    """One generated token: its text, its id and its log-probability. The text is empty inside a character and at the end."""

    text: str
    token: int
    logprob: float


@dataclass(frozen=True)
class GeneratedText:
    """One generated text, its tokens including the end token, and their log-probabilities."""

    text: str
    tokens: list[int]
    logprobs: list[float]


class TextGenerator:
    """A causal language model with its tokenizer. Safe to call from several threads.

    Args:
        tokenizer: a Hugging Face tokenizer.
        model: a Hugging Face causal language model.
        max_length: most tokens of a prompt.
        max_new_tokens: most tokens of a generated text.
        normalise: applied to every text first.

    """

    def __init__(
        self, tokenizer: Any, model: Any, max_length: int, max_new_tokens: int, normalise: Callable[[str], str]
    ) -> None:
        self.tokenizer, self.model = tokenizer, model
        self.max_length, self.max_new_tokens = max_length, max_new_tokens
        self.normalise = normalise
        self._ends = ends(tokenizer, model)
        self._context = int(getattr(model.config, "max_position_embeddings", MAX_CONTEXT))

    def encode(self, text: str) -> list[int]:
        """Return the prompt's token ids; the text is normalised and cut to the model's length, as in training."""
        text = prompts.shortened(self.tokenizer, self.normalise(text), self.max_length)
        return prompts.encode(self.tokenizer, text)

    def pieces(self, prompt: Sequence[int], max_new_tokens: int | None = None) -> Iterator[Piece]:
        """Yield the generated pieces of a prompt's token ids, `max_new_tokens` at most; closing the iterator stops it."""
        stream = DecodeStream(skip_special_tokens=True)
        for [token], [logprob] in self._steps([prompt], max_new_tokens):
            text = "" if token in self._ends else stream.step(self.tokenizer.backend_tokenizer, token) or ""
            yield Piece(text, token, logprob)
            if token in self._ends:
                return

    @staticmethod
    def joined(pieces: Sequence[Piece]) -> GeneratedText:
        """Return the text that the pieces form."""
        text = "".join(piece.text for piece in pieces)
        return GeneratedText(text, [piece.token for piece in pieces], [piece.logprob for piece in pieces])

    def generate(
        self, texts: Sequence[str], max_new_tokens: int | None = None, cancelled: Callable[[], bool] = lambda: False
    ) -> list[GeneratedText]:
        """Return a generated text for each text, run in batches of similar length.

        Args:
            texts: any number.
            max_new_tokens: tokens of each generated text; None for the version's own limit.
            cancelled: called after every token; True ends the generation early.

        """
        encoded = [self.encode(text) for text in texts]
        generated: dict[int, GeneratedText] = {}
        order = sorted(range(len(texts)), key=lambda n: len(encoded[n]))
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            generated.update(
                zip(rows, self._generate_batch([encoded[n] for n in rows], max_new_tokens, cancelled), strict=True)
            )
        return [generated[n] for n in range(len(texts))]

    @torch.inference_mode()  # type: ignore[untyped-decorator]  # torch is not followed
    def _steps(
        self, rows: Sequence[Sequence[int]], max_new_tokens: int | None
    ) -> Iterator[tuple[list[int], list[float]]]:
        """Yield the likeliest next token of each prompt and its log-probability, until a length limit is reached."""
        bounds = (
            max_new_tokens or self.max_new_tokens,
            self.max_new_tokens,
            self._context - max(map(len, rows)),
        )
        step, mask = right_aligned(rows)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        cache = DynamicCache(config=self.model.config)
        padded = not bool(mask.all())
        for _ in range(min(bounds)):
            logits = self.model(
                input_ids=step,
                attention_mask=mask if padded else None,
                position_ids=positions if padded else None,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            logprobs, tokens = logits.float().log_softmax(dim=-1).max(dim=-1)
            yield tokens.tolist(), logprobs.tolist()
            step, positions = tokens[:, None], positions[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1) if padded else mask

    def _generate_batch(
        self, rows: Sequence[Sequence[int]], max_new_tokens: int | None, cancelled: Callable[[], bool]
    ) -> list[GeneratedText]:
        tokens: list[list[int]] = [[] for _ in rows]
        logprobs: list[list[float]] = [[] for _ in rows]
        unfinished = set(range(len(rows)))
        for next_tokens, next_logprobs in self._steps(rows, max_new_tokens):
            for n in sorted(unfinished):
                tokens[n].append(next_tokens[n])
                logprobs[n].append(next_logprobs[n])
                if next_tokens[n] in self._ends:
                    unfinished.discard(n)
            if not unfinished or cancelled():
                break
        return [GeneratedText(self.decode(ids), ids, row) for ids, row in zip(tokens, logprobs, strict=True)]

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of generated tokens, the same text that `pieces` yields."""
        stream = DecodeStream(skip_special_tokens=True)
        steps = (stream.step(self.tokenizer.backend_tokenizer, t) for t in tokens if t not in self._ends)
        return "".join(text or "" for text in steps)


def ends(tokenizer: Any, model: Any) -> frozenset[int]:
    """Return the ids of the end-of-sequence tokens."""
    known = model.generation_config.eos_token_id
    return frozenset(
        {
            *([known] if isinstance(known, int) else known or []),
            *([tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []),
        }
    )


def right_aligned(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids [b, longest], padded with zeros on the left, and the attention mask of the same shape."""
    longest = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), longest, dtype=torch.long)
    for n, row in enumerate(rows):
        ids[n, longest - len(row) :] = torch.tensor(list(row))
        mask[n, longest - len(row) :] = 1
    return ids, mask
