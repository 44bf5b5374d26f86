"""The decoder runtime: one loaded model version that generates text, token by token, with log-probabilities.

Loads a verified directory into an immutable `DecoderRuntime` on torch and transformers. Only text_generator.py imports them
beside it, so an encoder's Bento carries neither. live.py swaps it, generation_queue.py runs it, evaluation scores with it;
training shares the prompts and the token log-probabilities. It knows no registry, queue or HTTP.

Weights are bfloat16 where the processor multiplies in it, which
halves the memory read for each token; elsewhere the same weights run in float32.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from schemas.manifests import Golden, ModelManifest, SequenceCalibration
from serving.inference import calibration
from serving.inference.golden import GoldenMismatch
from serving.inference.normalise import normaliser_of
from serving.inference.text_generator import BATCH, TextGenerator, right_aligned
from serving.model_directory import verify

MODEL = "model"  # folder of a version, in the format of save_pretrained
GOLDEN_TOKENS = 16


class DecoderRuntime(TextGenerator):
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
            UnknownNormaliser: its texts cannot be normalised as in training.

        """
        self.manifest: ModelManifest = verify(directory, digest)
        self.digest = digest
        torch.set_num_threads(threads)
        logging.disable_progress_bar()
        tokenizer: Any = AutoTokenizer.from_pretrained(directory / MODEL, local_files_only=True)
        model: Any = AutoModelForCausalLM.from_pretrained(
            directory / MODEL,
            dtype=compute_dtype() if self.manifest.artifact == "bf16" else torch.float32,
            use_safetensors=True,
            local_files_only=True,
        ).eval()
        manifest = self.manifest
        super().__init__(
            tokenizer, with_one_head(model), manifest.max_length, manifest.max_new_tokens, normaliser_of(manifest)
        )
        self._check_golden()

    @property
    def version(self) -> str:
        """Return the model version's name."""
        return self.manifest.model_version

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


def with_one_head(model: Any) -> Any:
    """Return `model`, changed in place: its head, the product with the vocabulary, takes contiguous states.

    torch multiplies a slice of the states, one row of the batch after another, each with a copy of frozen weights of its own:
    1.8 GB for 32 rows of SmolLM2. Their gradient, if they train, asks for one product of all rows, as contiguous states do.
    """
    model.get_output_embeddings().register_forward_pre_hook(_contiguous)
    return model


def _contiguous(_: Any, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    return (inputs[0].contiguous(),)


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
