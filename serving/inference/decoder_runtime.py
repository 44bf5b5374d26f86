"""One loaded model version of a task that writes: a text in, an answer out, token by token, with how sure it was.

Loads a verified directory into an immutable `Writer` on torch and transformers, which no other module of serving knows: an
encoder's Bento holds neither. live.py swaps it, generation_queue.py runs it, evaluation scores through it; training shares how
a text becomes a prompt and how likely tokens are. It deliberately knows no registry, queue or HTTP.

Answers are greedy: the same text gets the same answer. Models are kept in bfloat16, half the memory to walk through for each
token, where processors compute in it; elsewhere the same weights run in float32.
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

MODEL = "model"  # folder of a version, as transformers saves one
BATCH = 16
GOLDEN_TOKENS = 16
MOST_CONTEXT = 1 << 20  # tokens, of a model that names no bound


@dataclass(frozen=True)
class Piece:
    """What one token added: its text, empty while a character is not whole or at the end, and its log-probability."""

    text: str
    token: int
    logprob: float


@dataclass(frozen=True)
class Written:
    """An answer, its tokens, the end among them, and their log-probabilities."""

    text: str
    tokens: list[int]
    logprobs: list[float]


class Writer:
    """An immutable causal language model in memory. Safe to call from several threads."""

    labels: tuple[str, ...] = ()

    def __init__(self, directory: Path, digest: str | None = None, *, threads: int = 1) -> None:
        """Load and check a version.

        Args:
            directory: a model version directory.
            digest: its address, checked if given.
            threads: of torch, for the whole process.

        Raises:
            ArtifactDamaged: a hash differs.
            GoldenMismatch: the golden answers differ.

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
        self._context = int(getattr(self.model.config, "max_position_embeddings", MOST_CONTEXT))
        self._check_golden()

    @property
    def version(self) -> str:
        """The model version's name."""
        return self.manifest.model_version

    @property
    def max_length(self) -> int:
        """Tokens of a prompt, at most."""
        return self.manifest.max_length

    @property
    def max_new_tokens(self) -> int:
        """Tokens of an answer, at most."""
        return self.manifest.max_new_tokens

    def encode(self, text: str) -> list[int]:
        """Token ids of the prompt, the text cut to the model's length."""
        return prompts.encode(self.tokenizer, prompts.shortened(self.tokenizer, text, self.max_length))

    def pieces(self, prompt: Sequence[int], most: int | None = None) -> Iterator[Piece]:
        """The answer to token ids as it is written, `most` tokens at most; whoever stops asking stops it."""
        stream = DecodeStream(skip_special_tokens=True)
        for [token], [logprob] in self._steps([prompt], most):
            text = "" if token in self._ends else stream.step(self.tokenizer.backend_tokenizer, token) or ""
            yield Piece(text, token, logprob)
            if token in self._ends:
                return

    @staticmethod
    def whole(pieces: Sequence[Piece]) -> Written:
        """The answer that these are the pieces of."""
        text = "".join(piece.text for piece in pieces)
        return Written(text, [piece.token for piece in pieces], [piece.logprob for piece in pieces])

    def write(
        self, texts: Sequence[str], most: int | None = None, gone: Callable[[], bool] = lambda: False
    ) -> list[Written]:
        """Answers to any number of texts, in batches of similar length; cut short once nobody waits any more."""
        asked = [self.encode(text) for text in texts]
        found: dict[int, Written] = {}
        order = sorted(range(len(asked)), key=lambda n: len(asked[n]))
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            found.update(zip(rows, self._write_batch([asked[n] for n in rows], most, gone), strict=True))
        return [found[n] for n in range(len(asked))]

    def token_logprobs(self, rows: Sequence[Sequence[int]], last: Sequence[int]) -> list[list[float]]:
        """Log-probabilities of the last tokens of each row of token ids, so many of each."""
        found: list[list[float]] = scored(self.model, rows, last)
        return found

    def confidence(self, written: Sequence[Sequence[float]]) -> list[float]:
        """Calibrated probability that people accept an answer, of answers' token log-probabilities."""
        fitted = self.manifest.calibration.sequence or SequenceCalibration()
        return [float(found) for found in calibration.sequence_confidence(fitted, written)]

    def golden(self, texts: Sequence[str], tolerance: float) -> Golden:
        """Golden answers, as this very artefact gives them."""
        written = self.write(texts, GOLDEN_TOKENS)
        return Golden(
            texts=list(texts),
            probabilities=[],
            completions=[one.tokens for one in written],
            logprobs=[one.logprobs for one in written],
            tolerance=tolerance,
        )

    @torch.inference_mode()  # type: ignore[untyped-decorator]  # torch is not followed
    def _steps(self, rows: Sequence[Sequence[int]], most: int | None) -> Iterator[tuple[list[int], list[float]]]:
        """Likeliest next token of each prompt and its log-probability, again and again, as often as may be."""
        bounds = (
            most or self.max_new_tokens,
            self.max_new_tokens,
            self._context - max(map(len, rows)),
        )
        step, mask = right_aligned(rows)
        places = (mask.cumsum(dim=1) - 1).clamp(min=0)
        cache = DynamicCache(config=self.model.config)
        padded = not bool(mask.all())
        for _ in range(min(bounds)):
            logits = self.model(
                input_ids=step,
                attention_mask=mask if padded else None,
                position_ids=places if padded else None,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            logprobs, tokens = logits.float().log_softmax(dim=-1).max(dim=-1)
            yield tokens.tolist(), logprobs.tolist()
            step, places = tokens[:, None], places[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1) if padded else mask

    def _write_batch(self, rows: Sequence[Sequence[int]], most: int | None, gone: Callable[[], bool]) -> list[Written]:
        tokens: list[list[int]] = [[] for _ in rows]
        logprobs: list[list[float]] = [[] for _ in rows]
        writing = set(range(len(rows)))
        for found, said in self._steps(rows, most):
            for n in sorted(writing):
                tokens[n].append(found[n])
                logprobs[n].append(said[n])
                if found[n] in self._ends:
                    writing.discard(n)
            if not writing or gone():
                break
        return [Written(self._text(own), own, said) for own, said in zip(tokens, logprobs, strict=True)]

    def _text(self, tokens: Sequence[int]) -> str:
        """As `pieces` would have given it."""
        stream = DecodeStream(skip_special_tokens=True)
        steps = (stream.step(self.tokenizer.backend_tokenizer, t) for t in tokens if t not in self._ends)
        return "".join(text or "" for text in steps)

    def _check_golden(self) -> None:
        """Each golden token is still (about) the likeliest, and as likely as it was.

        Asked in one pass, with a tolerance: processors differ in how they add, and of two tokens that are as good as
        equally likely the other one may win.
        """
        golden = self.manifest.golden
        for text, tokens, said in zip(golden.texts, golden.completions, golden.logprobs, strict=True):
            with torch.inference_mode():
                logits = last_logits(self.model, [[*self.encode(text), *tokens]], len(tokens))[0]
                logprobs = logits.float().log_softmax(dim=-1)
            given = logprobs[torch.arange(len(tokens)), torch.tensor(tokens)]
            behind = float((logprobs.max(dim=-1).values - given).max())
            moved = float((given - torch.tensor(said)).mean().abs())
            if not max(behind, moved) <= golden.tolerance:
                raise GoldenMismatch(
                    f"{self.version}: golden answers differ by {max(behind, moved):.2g} in log-probability"
                )


def compute_dtype() -> torch.dtype:
    """bfloat16 where the processor multiplies in it, else float32."""
    able = torch.cpu.get_capabilities()
    return torch.bfloat16 if any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")) else torch.float32


def ends(tokenizer: Any, model: Any) -> frozenset[int]:
    """Tokens after which nothing follows."""
    known = model.generation_config.eos_token_id
    return frozenset(
        {
            *([known] if isinstance(known, int) else known or []),
            *([tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []),
        }
    )


def right_aligned(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [b, longest] that end together, zeros before them, and which are none of those."""
    longest = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), longest, dtype=torch.long)
    for n, row in enumerate(rows):
        ids[n, longest - len(row) :] = torch.tensor(list(row))
        mask[n, longest - len(row) :] = 1
    return ids, mask


def last_logits(model: Any, rows: Sequence[Sequence[int]], last: int) -> torch.Tensor:
    """Logits [b, last, vocabulary] before each of the last tokens of rows that end together."""
    ids, mask = right_aligned(rows)
    padded = not bool(mask.all())
    found: torch.Tensor = model(
        input_ids=ids,
        attention_mask=mask if padded else None,
        position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0) if padded else None,
        use_cache=False,
        logits_to_keep=last + 1,
    ).logits
    return found[:, :-1]


@torch.inference_mode()  # type: ignore[untyped-decorator]  # torch is not followed
def scored(model: Any, rows: Sequence[Sequence[int]], last: Sequence[int]) -> list[list[float]]:
    """Log-probabilities of the last tokens of any number of rows, so many of each, in batches of similar length."""
    found: dict[int, list[float]] = {}
    order = sorted(range(len(rows)), key=lambda n: len(rows[n]))
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        said = token_logprobs(model, [rows[n] for n in batch], [last[n] for n in batch]).tolist()
        found.update({n: row[len(row) - last[n] :] for n, row in zip(batch, said, strict=True)})
    return [found[n] for n in range(len(rows))]


def token_logprobs(model: Any, rows: Sequence[Sequence[int]], last: Sequence[int]) -> torch.Tensor:
    """Log-probabilities [b, k] of the last tokens of each row, so many of each, zeros before them; k is the most.

    Only these tokens' logits become full precision: of a large vocabulary they are most of the memory.
    """
    most = max(last)
    ids, _ = right_aligned([list(row[len(row) - n :]) for row, n in zip(rows, last, strict=True)])
    own = torch.arange(most)[None, :] >= most - torch.tensor(list(last))[:, None]
    logits = last_logits(model, rows, most)[own].float()
    said = -functional.cross_entropy(logits, ids[own], reduction="none")
    return torch.zeros(len(rows), most).masked_scatter(own, said)
