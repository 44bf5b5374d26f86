"""Well-known public base models: their published facts, so that advice needs no download.

Turns names on the Hugging Face hub into `BaseFacts`. Sizes of layers are those of each model's config.json, parameters, context,
languages and licence those of its card, both at the address in `source`. A test builds every configuration without weights and
compares its size with `parameters`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.models.base_facts import BaseFacts
from pipelines.models.families import DECODERS, context
from schemas.targets import Task

HUB = "https://huggingface.co/"


def known_bases(task: Task) -> Iterator[BaseFacts]:
    """Yield the known base models of a task's kind, smallest first."""
    for name, (parameters, languages, licence, config, note) in sorted(_TABLE.items(), key=lambda row: row[1][0]):
        if (config["model_type"] in DECODERS) == (task == "generation"):
            yield BaseFacts(
                name=name,
                config=config,
                parameters=parameters,
                context=context(config),
                languages=tuple(languages.split()),
                licence=licence,
                source=HUB + name,
                note=note,
            )


def _bert(kind: str, layers: int, width: int, vocabulary: int, **more: Any) -> dict[str, Any]:
    """Return the configuration of an encoder with BERT's names and proportions."""
    sizes = {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": 12,
        "intermediate_size": 4 * width,
        "vocab_size": vocabulary,
        "max_position_embeddings": 512,
    }
    return {"model_type": kind} | sizes | more


def _llama(
    kind: str, layers: int, width: int, units: int, heads: tuple[int, int], vocabulary: int, **more: Any
) -> dict[str, Any]:
    """Return the configuration of a decoder with Llama's names; `heads` are those of queries and of keys."""
    sizes = {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "intermediate_size": units,
        "vocab_size": vocabulary,
        "tie_word_embeddings": True,
    }
    return {"model_type": kind} | sizes | more


_OFFSET = {"max_position_embeddings": 514, "pad_token_id": 1, "type_vocab_size": 1}
_DEBERTA = {
    "relative_attention": True,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "type_vocab_size": 0,
}
_MODERNBERT = {
    "intermediate_size": 1152,
    "max_position_embeddings": 8192,
    "pad_token_id": 50283,
    "bos_token_id": 50281,
    "eos_token_id": 50282,
    "cls_token_id": 50281,
    "sep_token_id": 50282,
}
_DISTILBERT = {
    "model_type": "distilbert",
    "n_layers": 6,
    "dim": 768,
    "n_heads": 12,
    "hidden_dim": 3072,
    "vocab_size": 30522,
    "max_position_embeddings": 512,
}
_GPT2 = {"model_type": "gpt2", "n_layer": 12, "n_embd": 768, "n_head": 12, "n_positions": 1024, "vocab_size": 50257}
_SENTENCES = "trained to embed sentences, so few rows suffice"
# name -> parameters, languages, licence, configuration, note
_TABLE: Mapping[str, tuple[int, str, str, Mapping[str, Any], str]] = {
    "sentence-transformers/all-MiniLM-L6-v2": (
        22_700_000,
        "en",
        "apache-2.0",
        _bert("bert", 6, 384, 30522),
        _SENTENCES,
    ),
    "sentence-transformers/all-mpnet-base-v2": (
        109_000_000,
        "en",
        "apache-2.0",
        _bert("mpnet", 12, 768, 30527, max_position_embeddings=514, pad_token_id=1),
        _SENTENCES,
    ),
    "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2": (
        118_000_000,
        "multilingual",
        "apache-2.0",
        _bert("bert", 12, 384, 250037),
        f"50 languages; {_SENTENCES}",
    ),
    "intfloat/multilingual-e5-small": (
        118_000_000,
        "multilingual",
        "mit",
        _bert("bert", 12, 384, 250037),
        f"94 languages; {_SENTENCES}",
    ),
    "distilbert/distilbert-base-uncased": (66_000_000, "en", "apache-2.0", _DISTILBERT, ""),
    "FacebookAI/roberta-base": (125_000_000, "en", "mit", _bert("roberta", 12, 768, 50265, **_OFFSET), ""),
    "almanach/camembert-base": (111_000_000, "fr", "mit", _bert("camembert", 12, 768, 32005, **_OFFSET), ""),
    "microsoft/deberta-v3-small": (141_000_000, "en", "mit", _bert("deberta-v2", 6, 768, 128100, **_DEBERTA), ""),
    "microsoft/deberta-v3-base": (184_000_000, "en", "mit", _bert("deberta-v2", 12, 768, 128100, **_DEBERTA), ""),
    "answerdotai/ModernBERT-base": (
        149_000_000,
        "en",
        "apache-2.0",
        _bert("modernbert", 22, 768, 50368, **_MODERNBERT),
        "reads long texts",
    ),
    "google-bert/bert-base-multilingual-cased": (
        178_000_000,
        "multilingual",
        "apache-2.0",
        _bert("bert", 12, 768, 119547),
        "104 languages",
    ),
    "FacebookAI/xlm-roberta-base": (
        278_000_000,
        "multilingual",
        "mit",
        _bert("xlm-roberta", 12, 768, 250002, **_OFFSET),
        "100 languages",
    ),
    "openai-community/gpt2": (124_000_000, "en", "mit", _GPT2, "not trained to follow instructions"),
    "HuggingFaceTB/SmolLM2-135M-Instruct": (
        135_000_000,
        "en",
        "apache-2.0",
        _llama("llama", 30, 576, 1536, (9, 3), 49152, max_position_embeddings=8192),
        "",
    ),
    "HuggingFaceTB/SmolLM2-360M-Instruct": (
        362_000_000,
        "en",
        "apache-2.0",
        _llama("llama", 32, 960, 2560, (15, 5), 49152, max_position_embeddings=8192),
        "",
    ),
    "Qwen/Qwen2.5-0.5B-Instruct": (
        494_000_000,
        "multilingual",
        "apache-2.0",
        _llama("qwen2", 24, 896, 4864, (14, 2), 151936, max_position_embeddings=32768),
        "over 29 languages",
    ),
    "Qwen/Qwen3-0.6B": (
        596_000_000,
        "multilingual",
        "apache-2.0",
        _llama("qwen3", 28, 1024, 3072, (16, 8), 151936, max_position_embeddings=40960, head_dim=128),
        "over 100 languages",
    ),
}
