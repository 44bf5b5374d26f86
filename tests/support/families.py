"""Tiny base models of every supported family, with random weights and a tokenizer as the family has it.

Their tests train, export and serve them. Vocabularies are listed, not trained, so that tests see the same model each time.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.fakes import tiny_base_model, tiny_causal_model

BERT_LIKE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
ENCODERS: Mapping[str, Mapping[str, Any]] = {
    "bert": BERT_LIKE | {"max_position_embeddings": 64},
    "roberta": BERT_LIKE | {"max_position_embeddings": 66},
    "xlm-roberta": BERT_LIKE | {"max_position_embeddings": 66},
    "camembert": BERT_LIKE | {"max_position_embeddings": 66},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "max_position_embeddings": 64},
    "mpnet": BERT_LIKE | {"max_position_embeddings": 66},
    "deberta-v2": BERT_LIKE
    | {
        "max_position_embeddings": 64,
        "relative_attention": True,
        "position_buckets": 16,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "type_vocab_size": 0,
    },
    # Three layers: the first and the third attend to all tokens, the second to its neighbours alone.
    "modernbert": BERT_LIKE
    | {
        "num_hidden_layers": 3,
        "max_position_embeddings": 64,
        "local_attention": 8,
        "global_attn_every_n_layers": 2,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "cls_token_id": 2,
        "sep_token_id": 3,
    },
}
LLAMA_LIKE = BERT_LIKE | {"num_key_value_heads": 1, "max_position_embeddings": 256, "initializer_range": 0.3}
DECODERS: Mapping[str, Mapping[str, Any]] = {
    "llama": LLAMA_LIKE,
    "mistral": LLAMA_LIKE | {"head_dim": 16, "sliding_window": 16},
    "qwen2": LLAMA_LIKE,
    "qwen3": LLAMA_LIKE | {"head_dim": 16},
    "smollm3": LLAMA_LIKE,
    "gemma2": LLAMA_LIKE | {"head_dim": 16, "sliding_window": 16},
    "phi3": LLAMA_LIKE,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256, "initializer_range": 0.3},
    "gpt_neox": BERT_LIKE | {"max_position_embeddings": 256, "initializer_range": 0.3},
}
# Their padding token has the id 1, and positions are numbered from 2.
PADDING_SECOND = ("roberta", "xlm-roberta", "camembert", "mpnet")
# Letters of five scripts: a base model of many languages has a piece for each.
SCRIPTS = (
    "abcdefghijklmnopqrstuvwxyz0123456789äöüßéèçñ.,!?íάέίόήύώαβγδεζηθικλμνξοπρστυφχψωςабвгдежзийклмнопрстуфхцчшщыьэюя"
    "你好我要退款订单还没有到请问天气今很شحنةطلب"
)


def encoder_base(kind: str, folder: Path) -> Path:
    """Save an encoder of a family in `folder`, with a tokenizer of many scripts if its padding token has the id 1."""
    import torch
    from transformers import AutoConfig, AutoModel

    tokenizer = many_scripts_tokenizer(folder) if kind in PADDING_SECOND else _listed_words(folder)
    config = AutoConfig.for_model(
        kind, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **ENCODERS[kind]
    )
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    return folder


def decoder_base(kind: str, folder: Path) -> Path:
    """Save a causal language model of a family in `folder`, with a tokenizer of bytes and a chat template."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tiny_causal_model(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **ends, **DECODERS[kind])
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def write_weights(file: Path, shape: list[int]) -> None:
    """Write a safetensors file that lists one matrix of this shape, and holds none of its bytes."""
    header = json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * math.prod(shape)]}}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header)


def _listed_words(folder: Path) -> Any:
    from transformers import AutoTokenizer

    tiny_base_model(folder)
    return AutoTokenizer.from_pretrained(folder)


def many_scripts_tokenizer(folder: Path) -> Any:
    """Save a unigram tokenizer over letters of several scripts, with XLM-R's special tokens; return it."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -3.0) for letter in sorted(set(SCRIPTS))]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=64,
    )
    fast.save_pretrained(folder)
    return fast
