"""The decoder runtime: one loaded model version that generates text, token by token, with log-probabilities.

Loads a verified directory into an immutable `DecoderRuntime` on torch and transformers. No other module of serving imports
them, so an encoder's Bento carries neither. live.py swaps it, generation_queue.py runs it, evaluation scores with it;
training shares the prompts and the token log-probabilities. It knows no registry, queue or HTTP.

Decoding is greedy: the same text gets the same answer. Weights are bfloat16 where the processor multiplies in it, which
halves the memory read for each token; elsewhere the same weights run in float32.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers.decoders import DecodeStream
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.utils import logging

from schemas.manifests import Golden, ModelManifest, SequenceCalibration
from serving.inference import calibration, prompts
from serving.inference.golden import GoldenMismatch
from serving.model_directory import verify

MODEL = "model"  # folder of a version, in the format of save_pretrained
BATCH = 16
GOLDEN_TOKENS = 16
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


class DecoderRuntime:
    """An immutable causal language model in memory. Safe to call from several threads."""

    labels: tuple[str, ...] = ()

    def __init__(self, directory: Path, digest: str | None = None, *, threads: int = 1) -> None:
        """Load and check a version.

        Args:
            directory: a model version directory.
            digest: the version's digest, checked if given.
            threads: torch's threads, set for the whole process.

        Raises:
            ArtifactDamaged: a hash differs.
            GoldenMismatch: the golden texts differ.

        """
        self.manifest: ModelManifest = verify(directory, digest)
        self.digest = digest
        torch.set_num_threads(threads)
        logging.disable_progress_bar()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(directory / MODEL, local_files_only=True)
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            directory / MODEL,
            dtype=compute_dtype() if self.manifest.artifact == "bf16" else torch.float32,
            use_safetensors=True,
            local_files_only=True,
        ).eval()
        self._ends = ends(self.tokenizer, self.model)
        self._context = int(getattr(self.model.config, "max_position_embeddings", MAX_CONTEXT))
        self._check_golden()

    @property
    def version(self) -> str:
        """Return the model version's name."""
        return self.manifest.model_version

    @property
    def max_length(self) -> int:
        """Return the longest prompt in tokens."""
        return self.manifest.max_length

    @property
    def max_new_tokens(self) -> int:
        """Return the most tokens that one text may have."""
        return self.manifest.max_new_tokens

    def encode(self, text: str) -> list[int]:
        """Return the prompt's token ids; the text is cut to the model's length."""
        return prompts.encode(self.tokenizer, prompts.shortened(self.tokenizer, text, self.max_length))

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

    def token_logprobs(self, rows: Sequence[Sequence[int]], last: Sequence[int]) -> list[list[float]]:
        """Return the log-probabilities of the `last[i]` final tokens of each row of token ids."""
        logprobs: list[list[float]] = scored(self.model, rows, last)
        return logprobs

    def confidence(self, logprobs: Sequence[Sequence[float]]) -> list[float]:
        """Return the calibrated probability that people accept each text, from its tokens' log-probabilities."""
        fitted = self.manifest.calibration.sequence or SequenceCalibration()
        return [float(share) for share in calibration.sequence_confidence(fitted, logprobs)]

    def golden(self, texts: Sequence[str], tolerance: float) -> Golden:
        """Return the golden outputs of this artefact for `texts`."""
        generated = self.generate(texts, GOLDEN_TOKENS)
        return Golden(
            texts=list(texts),
            probabilities=[],
            completions=[one.tokens for one in generated],
            logprobs=[one.logprobs for one in generated],
            tolerance=tolerance,
        )

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
        return [GeneratedText(self._text(ids), ids, row) for ids, row in zip(tokens, logprobs, strict=True)]

    def _text(self, tokens: Sequence[int]) -> str:
        """Return the decoded tokens, the same text that `pieces` yields."""
        stream = DecodeStream(skip_special_tokens=True)
        steps = (stream.step(self.tokenizer.backend_tokenizer, t) for t in tokens if t not in self._ends)
        return "".join(text or "" for text in steps)

    def _check_golden(self) -> None:
        """Raise GoldenMismatch unless each golden token is about the likeliest, and about as likely as recorded.

        One forward pass scores the recorded tokens. Generating them again would fail where two tokens are about equally likely,
        because processors round sums differently.
        """
        golden = self.manifest.golden
        for text, tokens, recorded in zip(golden.texts, golden.completions, golden.logprobs, strict=True):
            with torch.inference_mode():
                logits = last_logits(self.model, [[*self.encode(text), *tokens]], len(tokens))[0]
                logprobs = logits.float().log_softmax(dim=-1)
            given = logprobs[torch.arange(len(tokens)), torch.tensor(tokens)]
            behind = float((logprobs.max(dim=-1).values - given).max())
            moved = float((given - torch.tensor(recorded)).mean().abs())
            if not max(behind, moved) <= golden.tolerance:
                raise GoldenMismatch(
                    f"{self.version}: golden outputs differ by {max(behind, moved):.2g} in log-probability"
                )


def compute_dtype() -> torch.dtype:
    """Return bfloat16 where the processor multiplies in it, else float32."""
    able = torch.cpu.get_capabilities()
    return torch.bfloat16 if any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")) else torch.float32


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


def last_logits(model: Any, rows: Sequence[Sequence[int]], last: int) -> torch.Tensor:
    """Return the logits [b, last, vocabulary] that predict the last tokens of each row."""
    ids, mask = right_aligned(rows)
    padded = not bool(mask.all())
    logits: torch.Tensor = model(
        input_ids=ids,
        attention_mask=mask if padded else None,
        position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0) if padded else None,
        use_cache=False,
        logits_to_keep=last + 1,
    ).logits
    return logits[:, :-1]


@torch.inference_mode()  # type: ignore[untyped-decorator]  # torch is not followed
def scored(model: Any, rows: Sequence[Sequence[int]], last: Sequence[int]) -> list[list[float]]:
    """Return the log-probabilities of the `last[i]` final tokens of each row, run in batches of similar length."""
    logprobs: dict[int, list[float]] = {}
    order = sorted(range(len(rows)), key=lambda n: len(rows[n]))
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        padded = token_logprobs(model, [rows[n] for n in batch], [last[n] for n in batch]).tolist()
        logprobs.update({n: row[len(row) - last[n] :] for n, row in zip(batch, padded, strict=True)})
    return [logprobs[n] for n in range(len(rows))]


def token_logprobs(model: Any, rows: Sequence[Sequence[int]], last: Sequence[int]) -> torch.Tensor:
    """Return the log-probabilities [b, k] of the `last[i]` final tokens of each row, zeros before them; k = max(last).

    Only these tokens' logits are converted to float32: with a large vocabulary they take most of the memory.
    """
    longest = max(last)
    ids, _ = right_aligned([list(row[len(row) - n :]) for row, n in zip(rows, last, strict=True)])
    inside = torch.arange(longest)[None, :] >= longest - torch.tensor(list(last))[:, None]
    logits = last_logits(model, rows, longest)[inside].float()
    logprobs = -functional.cross_entropy(logits, ids[inside], reduction="none")
    return torch.zeros(len(rows), longest).masked_scatter(inside, logprobs)
