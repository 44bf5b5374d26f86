"""Generation: the training task of a decoder that learns completions of prompts, token by token.

Turns examples into token rows, and a decoder's log-likelihoods into losses. It generates no text: training and the choice of
epochs both use the likelihood of the given completions. Rejected completions are not used, because they do not tell the right
one.

Outputs are the negative log-likelihoods [b, k] of each row's completion tokens, padded with zeros at the start; k is the longest
completion's length. A row's target is its completion's length.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.dataset import formats
from pipelines.dataset.examples import Example
from pipelines.models.decoder import Decoder, trainable_copy
from pipelines.models.dropout import with_fast_dropout
from pipelines.models.encoder import shared_copy
from pipelines.training.tasks.task import Batch, Rows
from pipelines.training.tasks.token_rows import TokenRows
from pipelines.training.warm_start import WarmStart
from schemas.configuration.training import TrainingSettings
from serving.inference import prompts
from serving.inference.text_generator import TextGenerator, ends


def encoded(base: Decoder | TextGenerator, text: str, completion: str) -> tuple[list[int], int]:
    """Return the token ids of prompt and completion, cut to the base model's limits, and the completion's length."""
    prompt = prompts.prompt_of(base.tokenizer, prompts.shortened(base.tokenizer, base.normalise(text), base.max_length))
    example = formats.generation(prompt, completion, base.tokenizer)
    before = example["labels"].count(formats.IGNORED)
    tokens = example["input_ids"][before:]
    last = ends(base.tokenizer, base.model)
    # A chat template may continue after the end token, where generation stops.
    length = next((n for n, token in enumerate(tokens, start=1) if token in last), len(tokens))
    tokens = tokens[: min(length, base.max_new_tokens)]
    return [*example["input_ids"][:before], *tokens], len(tokens)


class Generation:
    """Outputs are negative log-likelihoods [n, k] of tokens, targets completion lengths [n]."""

    name: Literal["generation"] = "generation"
    learns_rejections = False

    def rows(
        self, base: Decoder, examples: Sequence[Example], settings: TrainingSettings, champion: WarmStart | None = None
    ) -> Rows:
        """Return the tokenised rows of `examples`, in their order; a champion is not used as a teacher."""
        pairs = [encoded(base, example.text, example.label) for example in examples]
        lengths = [length for _, length in pairs]
        return Rows(
            TokenRows([ids for ids, _ in pairs], lengths),
            np.array(lengths, dtype=np.int64),
            np.array([example.weight for example in examples], dtype=np.float32),
            np.zeros(len(examples), dtype=bool),
        )

    def start(
        self, base: Decoder, examples: Sequence[Example], settings: TrainingSettings, champion: WarmStart | None = None
    ) -> Any:
        """Return the base model with adapters that change nothing yet, or with the champion's."""
        torch.manual_seed(settings.seed)
        model = (
            trainable_copy(base, settings) if champion is None else champion.apply(shared_copy(base.model), settings)
        )
        return with_fast_dropout(model, attention=False)

    def losses(self, outputs: torch.Tensor, batch: Batch, settings: TrainingSettings) -> torch.Tensor:
        """Return the loss [b]: a row's summed NLL over the batch's mean number of tokens, so that all tokens weigh the same."""
        return outputs.sum(dim=1) / batch.targets.float().mean()

    def kept(self, outputs: torch.Tensor, targets: torch.Tensor) -> NDArray[Any]:
        """Return the negative log-likelihood [b] of each completion."""
        return np.asarray(outputs.sum(dim=1).numpy())

    def row_losses(self, kept: NDArray[Any], targets: NDArray[Any]) -> NDArray[np.float64]:
        """Return losses [n] whose mean is the NLL per token."""
        return np.asarray(kept / targets.mean(), dtype=np.float64)

    def metrics(self, kept: NDArray[Any], targets: NDArray[Any]) -> dict[str, float]:
        """Return the perplexity per token."""
        return {"perplexity": float(np.exp(kept.sum() / targets.sum()))}

    def settle(self, *_: object) -> None:
        """Do nothing: there are no labels."""

    def finish(self, model: Any) -> None:
        """Do nothing: text has no unit."""
