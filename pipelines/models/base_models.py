"""The base model of a project: an encoder, or a decoder where the task writes.

Turns the settings of a model into the pretrained one that rounds start from, and into where it lies. Rounds, `ratchet dataset`
and `ratchet doctor` ask here, so that only this module knows which task takes which kind.
"""

from pathlib import Path

from pipelines.models.decoder import Decoder, decoder_path
from pipelines.models.encoder import Encoder, base_model_path
from schemas.setting_groups import ModelSettings

Base = Encoder | Decoder


def open_base(model: ModelSettings) -> Base:
    """The base model, loaded. Raises BaseModelMissing."""
    path = base_path(model)
    if model.task == "generation":
        return Decoder(path, model.max_length, model.max_new_tokens)
    return Encoder(path, model.max_length)


def base_path(model: ModelSettings) -> Path:
    """Its folder, or its GGUF file. Raises BaseModelMissing."""
    return (decoder_path if model.task == "generation" else base_model_path)(model.base_model)


def base_name(model: ModelSettings) -> str:
    """What a manifest calls it: as it is set, or the one that is installed."""
    return model.base_model or ("SmolLM2-135M-Instruct" if model.task == "generation" else "all-MiniLM-L6-v2")
