"""Small real model versions: a tiny encoder with a random head, exported, hashed and with golden outputs.

Turns a name and labels into a directory that serving loads. Tests of serving use it where a whole round would teach nothing.
"""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from schemas.configuration.training import TrainingSettings
from schemas.manifests import Golden, ModelManifest
from serving.artifacts import ArtifactStore
from serving.inference.encoder_runtime import Runtime
from serving.model_directory import read_manifest, write_manifest
from serving.registry.registry import Registry
from tests.support.manifests import manifest

if TYPE_CHECKING:
    from pipelines.models.encoder import Encoder

GOLDEN = ["oven and butter", "a goal for the team", "the bank and the loan of many people"]


def tiny_version(directory: Path, base: Path, name: str, labels: list[str], *, seed: int = 0, model: str = "m") -> Path:
    """Make `directory` a version called `name`."""
    from pipelines.compression import export
    from pipelines.models.encoder import Encoder, TextModel, trainable_copy

    encoder = Encoder(base, 32)
    draw = np.random.default_rng(seed)
    weight, bias = draw.normal(size=(len(labels), encoder.width)), np.zeros(len(labels))
    directory.mkdir(parents=True)
    export.export(
        TextModel(trainable_copy(encoder, TrainingSettings()), encoder.width, weight, bias), encoder, directory
    )
    write_manifest(directory, manifest(name, model_name=model, labels=labels, method="probe"))
    return with_golden(directory, Runtime(directory).probabilities(GOLDEN).tolist())


def tiny_text_version(directory: Path, base: Path, name: str, *, seed: int = 0, model: str = "m") -> Path:
    """Make `directory` a version that writes: a tiny decoder with adapters that say anything, merged."""
    import torch

    from pipelines.models.decoder import Decoder, trainable_copy
    from serving.inference.decoder_runtime import DecoderRuntime

    decoder = Decoder(base, 48, 12, torch.float32)
    adapted = trainable_copy(decoder, TrainingSettings())
    torch.manual_seed(seed)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    directory.mkdir(parents=True)
    text_version(directory, adapted, decoder, name, model)
    return rewritten(directory, golden=DecoderRuntime(directory).golden(GOLDEN[:2], 1e-3))


def text_version(directory: Path, trained: Any, base: Any, name: str, model: str) -> ModelManifest:
    """Make `directory` a version of what a decoder became, without golden answers."""
    from pipelines.models.decoder import save

    filled = manifest(
        name,
        model_name=model,
        task="generation",
        labels=[],
        base_model=base.path.name,
        base_model_sha256=base.sha256,
        max_length=base.max_length,
        max_new_tokens=base.max_new_tokens,
        artifact=save(trained, base, directory),
    )
    return write_manifest(directory, filled)


def with_golden(directory: Path, probabilities: list[list[float]]) -> Path:
    """The same version with these golden outputs, right or wrong."""
    return rewritten(directory, golden=Golden(texts=GOLDEN, probabilities=probabilities))


def rewritten(directory: Path, **changes: Any) -> Path:
    """The same files under a changed manifest."""
    before = read_manifest(directory)
    (directory / "manifest.json").unlink()
    write_manifest(directory, before.model_copy(update=changes))
    return directory


def copied(directory: Path, to: Path, **changes: Any) -> Path:
    """Another version of the same files."""
    shutil.copytree(directory, to)
    return rewritten(to, **changes)


def promote(registry: Registry, store: ArtifactStore, directory: Path) -> int:
    """Register a version and make it the champion; its generation."""
    read = read_manifest(directory)
    champion = registry.champion()
    registry.register_version(read, store.put(directory), servable=True)
    expected = champion.model_version if champion else None
    return registry.promote(read.model_version, expected=expected, token=None, actor="test").generation


def other_base(kind: str, encoder: "Encoder", folder: Path) -> "Encoder":
    """Save an untrained base model of another family, and open it."""
    import torch
    from transformers import AutoConfig, AutoModel

    from pipelines.models.encoder import Encoder

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    if kind == "distilbert":
        sizes = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
    pad = encoder.tokenizer.pad_token_id
    config = AutoConfig.for_model(kind, vocab_size=700, max_position_embeddings=64, pad_token_id=pad, **sizes)
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)
    return Encoder(folder, max_length=32)
