"""Facts of a base model, read without loading it: architecture, size, context, languages and licence.

Turns a folder, a GGUF file or an entry of known_bases.py into `BaseFacts`. base_files.py refuses by them what cannot fit;
model_selection/ estimates costs from them. It reads config.json, the headers of safetensors files and the model card's first
lines, and imports no training framework.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipelines.models.families import DECODERS, context, unsupported
from schemas.targets import Task

CARD = "README.md"
# Names that configurations use for the same number.
_NAMES = {
    "layers": ("num_hidden_layers", "n_layers", "n_layer"),
    "width": ("hidden_size", "dim", "n_embd"),
    "units": ("intermediate_size", "hidden_dim", "n_inner"),
    "heads": ("num_attention_heads", "n_heads", "n_head"),
}


class BadBase(ValueError):
    """The base model's files cannot be read; the message names the file."""


@dataclass(frozen=True)
class BaseFacts:
    """What is known of a base model.

    `config` is its config.json. `parameters` counts all weights, `table` those of the token embeddings. `context` is the most
    tokens it reads; None without a limit. `languages` and `licence` are as its card gives them; empty if it does not.
    `source` says where the facts come from, `path` where the files are; None if they are not on this machine.
    """

    name: str
    config: Mapping[str, Any]
    parameters: int
    context: int | None
    languages: tuple[str, ...]
    licence: str
    source: str
    path: Path | None = None
    note: str = ""

    @property
    def kind(self) -> str:
        """Return its `model_type`."""
        return str(self.config.get("model_type"))

    @property
    def is_decoder(self) -> bool:
        """Return whether it is a causal language model."""
        return self.kind in DECODERS

    def number(self, name: str) -> int:
        """Return "layers", "width", "units" or "heads", whatever its configuration calls them; 0 if it has none."""
        value = next((self.config[key] for key in _NAMES[name] if self.config.get(key)), 0)
        return int(value) or (4 * self.number("width") if name == "units" else 0)

    @property
    def table(self) -> int:
        """Return the number of weights in the table of token embeddings."""
        return int(self.config.get("vocab_size", 0)) * self.number("width")

    def refusal(self, task: Task) -> str | None:
        """Return why it cannot be trained for `task` at all; None if it can."""
        return unsupported(self.config, task)


def read_config(folder: Path) -> dict[str, Any]:
    """Return a base model's config.json. Raises BadBase."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadBase(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise BadBase(f"{path}: expected an object")
    return config


def facts_of(path: Path, name: str | None = None) -> BaseFacts:
    """Return the facts of a base model's folder or GGUF file. Raises BadBase."""
    if path.is_file():
        return _facts_of_gguf(path, name or path.stem)
    config, card = read_config(path), _card(path)
    languages = card.get("language") or ()
    return BaseFacts(
        name=name or path.name,
        config=config,
        parameters=sum(_weights_in(file) for file in sorted(path.glob("*.safetensors"))),
        context=context(config),
        languages=(languages,) if isinstance(languages, str) else tuple(map(str, languages)),
        licence=str(card.get("license") or ""),
        source="its folder",
        path=path,
    )


def _weights_in(file: Path) -> int:
    """Return the number of weights that a safetensors file's header lists."""
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if length > file.stat().st_size:
                raise BadBase(f"{file} is cut short: copy it again")
            header = json.loads(opened.read(length))
    except (OSError, ValueError) as error:
        raise BadBase(f"{file} cannot be read: {error}") from error
    return sum(math.prod(tensor["shape"]) for key, tensor in header.items() if key != "__metadata__")


def _card(folder: Path) -> dict[str, Any]:
    """Return the YAML lines that open the model card; none if there is no card or it has none."""
    try:
        parts = (folder / CARD).read_text(encoding="utf-8", errors="replace").split("---\n", 2)
        opening = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    except (OSError, yaml.YAMLError):
        return {}
    return opening if isinstance(opening, dict) else {}


def _facts_of_gguf(path: Path, name: str) -> BaseFacts:
    """Return the facts in a GGUF file's metadata. Raises BadBase."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        fields = {
            key: field.contents() for key, field in reader.fields.items() if not key.startswith("tokenizer.ggml.")
        }
    except (OSError, ValueError) as error:
        raise BadBase(f"{path} cannot be read: {error}") from error
    kind = str(fields.get("general.architecture"))
    keys = {
        "num_hidden_layers": "block_count",
        "hidden_size": "embedding_length",
        "intermediate_size": "feed_forward_length",
        "num_attention_heads": "attention.head_count",
        "num_key_value_heads": "attention.head_count_kv",
        "max_position_embeddings": "context_length",
        "vocab_size": "vocab_size",
    }
    config = {"model_type": kind} | {
        ours: fields[f"{kind}.{key}"] for ours, key in keys.items() if f"{kind}.{key}" in fields
    }
    parameters = sum(int(tensor.n_elements) for tensor in reader.tensors)
    languages = fields.get("general.languages") or ()
    return BaseFacts(
        name=name,
        config=config,
        parameters=parameters,
        context=context(config),
        languages=tuple(map(str, languages)),
        licence=str(fields.get("general.license") or ""),
        source="its GGUF file",
        path=path,
    )
