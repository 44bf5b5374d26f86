"""Generation: texts and the answers that should follow them, learned token by token by a decoder.

Turns examples into rows of tokens that end together, and what a decoder says of them into losses. trainer.py trains it as any
task; decoder.py knows the model. It deliberately generates nothing: how likely the given answers are is what it minimises, and
what chooses the number of epochs.

A model's outputs are the negative log-likelihoods [b, k] of the tokens of each row's answer, zeros before it, where k is the
longest answer's length, and a row's target is its own.
A thumbs-down does not say what the answer should have been: it teaches nothing.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.dataset import formats
from pipelines.dataset.examples import Example
from pipelines.models.decoder import Decoder, trainable_copy
from pipelines.models.encoder import shared_copy
from pipelines.training.tasks.task import Batch, Rows
from pipelines.training.tasks.token_rows import TokenRows
from pipelines.training.warm_start import Champion
from schemas.settings import TrainingSettings
from serving.inference import prompts
from serving.inference.decoder_runtime import DecoderRuntime, ends


def encoded(base: Decoder | DecoderRuntime, text: str, completion: str) -> tuple[list[int], int]:
    """Token ids of prompt and answer, cut to what the base takes, and how many are the answer's; the last is its end."""
    prompt = prompts.prompt_of(base.tokenizer, prompts.shortened(base.tokenizer, text, base.max_length))
    found = formats.generation(prompt, completion, base.tokenizer)
    before = found["labels"].count(formats.IGNORED)
    answer = found["input_ids"][before:]
    last = ends(base.tokenizer, base.model)
    # a chat template goes on after the end, where nothing is generated any more
    length = next((n for n, token in enumerate(answer, start=1) if token in last), len(answer))
    answer = answer[: min(length, base.max_new_tokens)]
    return [*found["input_ids"][:before], *answer], len(answer)


class Generation:
    """The task of a round whose model writes."""

    name: Literal["generation"] = "generation"
    calibration: Literal["sequence"] = "sequence"
    learns_rejections = False

    def rows(
        self, base: Decoder, examples: Sequence[Example], settings: TrainingSettings, champion: Champion | None = None
    ) -> Rows:
        """Tokenised rows of examples in their order; nobody teaches."""
        pairs = [encoded(base, example.text, example.label) for example in examples]
        answers = [answer for _, answer in pairs]
        return Rows(
            TokenRows([ids for ids, _ in pairs], answers),
            np.array(answers, dtype=np.int64),
            np.array([example.weight for example in examples], dtype=np.float32),
            np.zeros(len(examples), dtype=bool),
        )

    def start(
        self, base: Decoder, examples: Sequence[Example], settings: TrainingSettings, champion: Champion | None = None
    ) -> Any:
        """The base model, with adapters that change nothing yet, or a champion's."""
        torch.manual_seed(settings.seed)
        return trainable_copy(base, settings) if champion is None else champion.apply(shared_copy(base.model), settings)

    def losses(self, outputs: torch.Tensor, batch: Batch, settings: TrainingSettings) -> torch.Tensor:
        """Training loss [b]: a row's tokens over the batch's mean number of them, so that each token weighs the same."""
        return outputs.sum(dim=1) / batch.targets.float().mean()

    def kept(self, outputs: torch.Tensor, targets: torch.Tensor) -> NDArray[Any]:
        """The negative log-likelihood [b] of each answer."""
        return np.asarray(outputs.sum(dim=1).numpy())

    def row_losses(self, kept: NDArray[Any], targets: NDArray[Any]) -> NDArray[np.float64]:
        """[n], whose mean is the NLL of a token."""
        return np.asarray(kept / targets.mean(), dtype=np.float64)

    def metrics(self, kept: NDArray[Any], targets: NDArray[Any]) -> dict[str, float]:
        """The perplexity of a token."""
        return {"perplexity": float(np.exp(kept.sum() / targets.sum()))}

    def settle(self, *_: object) -> None:
        """Nothing to do: there are no labels."""

    def finish(self, model: Any) -> None:
        """Nothing to do: an answer has no unit."""
