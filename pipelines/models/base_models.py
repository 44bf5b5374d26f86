"""The base model of a project: a decoder for generation, an encoder for every other task.

Turns the settings of a model into the pretrained model, its path or its name. Rounds, `ratchet dataset` and `ratchet doctor`
call it.
"""

from pathlib import Path

from pipelines.models.base_files import refuse_unfit
from pipelines.models.decoder import Decoder, decoder_path
from pipelines.models.encoder import Encoder, base_model_path
from schemas.setting_groups import ModelSettings

Base = Encoder | Decoder


def open_base(model: ModelSettings) -> Base:
    """Return the loaded base model. Raises BaseModelMissing, or BaseModelUnfit before anything is loaded."""
    path = base_path(model)
    refuse_unfit(path, model)
    if model.task == "generation":
        return Decoder(path, model.max_length, model.max_new_tokens)
    return Encoder(path, model.max_length)


def base_path(model: ModelSettings) -> Path:
    """Return the base model's folder or GGUF file. Raises BaseModelMissing."""
    return (decoder_path if model.task == "generation" else base_model_path)(model.base_model)


def base_name(model: ModelSettings) -> str:
    """Return the base model's name for the manifest: the one in the settings, or the default model's."""
    return model.base_model or ("SmolLM2-135M-Instruct" if model.task == "generation" else "all-MiniLM-L6-v2")
