"""Families of base models: which `model_type` of a config.json is supported, and the names of its parts.

Turns a configuration into an `EncoderFamily`, or into the reason why a base model is refused. base_files.py asks before anything
is loaded; encoder.py, frozen_layers.py, packing.py and pruning.py ask where a family's parts are. No training framework is
imported.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from schemas.targets import Task


class UnknownArchitecture(ValueError):
    """The base model's architecture is not supported."""


@dataclass(frozen=True)
class Parts:
    """Names of a layer's modules that pruning slices, and of the attributes that hold its attention module's shape."""

    attention: str
    inner: tuple[str, str, str]  # query, key and value, within the attention module
    merge: str
    widen: str
    narrow: str
    shape: tuple[str, str]  # number of heads, total width of the heads


@dataclass(frozen=True)
class EncoderFamily:
    """Where the parts of one family of encoders are.

    `matrices` may carry LoRA: query and value (Hu et al. 2021, §4.2), the rest of attention, the feed-forward part.
    `layers` is the attribute path of the ModuleList. `packs` tells whether attention and positions can be given from
    outside, as a packed graph needs. With `offset`, positions are numbered from the padding token's id + 1.
    With `tuples`, a layer returns its states as the first of a tuple.
    """

    matrices: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]
    layers: str = "encoder.layer"
    packs: bool = True
    offset: bool = False
    tuples: bool = False
    parts: Parts | None = None


_BERT_PARTS = Parts(
    attention="attention.self",
    inner=("query", "key", "value"),
    merge="attention.output.dense",
    widen="intermediate.dense",
    narrow="output.dense",
    shape=("num_attention_heads", "all_head_size"),
)
_DISTILBERT_PARTS = Parts(
    attention="attention",
    inner=("q_lin", "k_lin", "v_lin"),
    merge="attention.out_lin",
    widen="ffn.lin1",
    narrow="ffn.lin2",
    shape=("n_heads", "dim"),
)
_DENSE = ("intermediate.dense", "output.dense")
_BERT_MATRICES = (("query", "value"), ("key", "attention.output.dense"), _DENSE)
_BERT = EncoderFamily(_BERT_MATRICES, parts=_BERT_PARTS)
_ROBERTA = EncoderFamily(_BERT_MATRICES, parts=_BERT_PARTS, offset=True)
ENCODERS: Mapping[str, EncoderFamily] = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "distilbert": EncoderFamily(
        (("q_lin", "v_lin"), ("k_lin", "out_lin"), ("ffn.lin1", "ffn.lin2")),
        layers="transformer.layer",
        parts=_DISTILBERT_PARTS,
    ),
    "mpnet": EncoderFamily((("attn.q", "attn.v"), ("attn.k", "attn.o"), _DENSE), packs=False, offset=True, tuples=True),
    "deberta-v2": EncoderFamily(
        (("query_proj", "value_proj"), ("key_proj", "attention.output.dense"), _DENSE), packs=False, tuples=True
    ),
    "modernbert": EncoderFamily((("attn.Wqkv",), ("attn.Wo",), ("mlp.Wi", "mlp.Wo")), layers="layers"),
}
DECODERS = ("llama", "mistral", "qwen2", "qwen3", "gpt2", "gpt_neox", "phi3", "gemma2", "smollm3")


def encoder_family(kind: str) -> EncoderFamily:
    """Return the family of encoders with this `model_type`. Raises UnknownArchitecture."""
    if kind not in ENCODERS:
        raise UnknownArchitecture(f"model_type {kind!r} is not supported; choose a base model of type {known(None)}")
    return ENCODERS[kind]


def parts_of(kind: str) -> Parts:
    """Return the modules that pruning slices in a family of encoders. Raises UnknownArchitecture."""
    if kind in ENCODERS and (parts := ENCODERS[kind].parts):
        return parts
    prunable = ", ".join(sorted(name for name, family in ENCODERS.items() if family.parts))
    raise UnknownArchitecture(f"model_type {kind!r}: heads and units can be pruned in {prunable}")


def known(task: Task | None) -> str:
    """Return the supported families of a task as a list for messages."""
    return ", ".join(sorted(DECODERS if task == "generation" else ENCODERS))


def unsupported(config: Mapping[str, Any], task: Task) -> str | None:
    """Return why no model with this config.json can be trained for `task`; None if one can."""
    kind = config.get("model_type")
    families: Any = DECODERS if task == "generation" else ENCODERS
    if "auto_map" in config and kind not in families:
        return "its config.json has auto_map: it needs code of its own, which is never run"
    if kind not in families:
        other = "an encoder" if kind in ENCODERS else "a causal language model" if kind in DECODERS else None
        also = f" ({other})" if other else ""
        return f"model_type {kind!r}{also} is not supported for {task}; supported are {known(task)}"
    if method := (config.get("quantization_config") or {}).get("quant_method"):
        return f"its weights are quantised ({method}): name the model in full precision"
    if kind == "deberta-v2" and config.get("conv_kernel_size"):
        return "DeBERTa with a convolution (conv_kernel_size) is not supported; choose deberta-v3-small or -base"
    return None


def context(config: Mapping[str, Any]) -> int | None:
    """Return the most tokens that a model with this config.json reads; None if it names no limit."""
    positions = config.get("max_position_embeddings") or config.get("n_positions")
    if positions is None:
        return None
    family = ENCODERS.get(str(config.get("model_type")))
    return int(positions) - (int(config.get("pad_token_id") or 0) + 1 if family and family.offset else 0)
