"""Warm start: the champion's weights, to continue training from or to distil from.

Turns a version's directory into a `WarmStart`, or raises the reason why the round cannot use it. candidates.py opens it; the
tasks use it. The caller has fetched and verified the directory; only safetensors files inside it are read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.models.encoder import NORM
from schemas.configuration.training import TrainingSettings
from schemas.targets import Task
from serving.model_directory import read_manifest

ADAPTER, WEIGHTS, HEAD = "adapter", "model.safetensors", "head.safetensors"


class CannotContinue(ValueError):
    """The round cannot start or learn from the champion's weights; the message says why."""


@dataclass(frozen=True)
class WarmStart:
    """A version trained on this round's base model.

    `labels` names its outputs, in order; `untaught` are those without a training row so far.
    """

    directory: Path
    version: str
    labels: list[str]
    untaught: frozenset[str] = frozenset()

    def knows(self, label: str) -> bool:
        """Return whether it was trained on rows with this label."""
        return label in self.labels and label not in self.untaught

    @property
    def is_whole(self) -> bool:
        """Return whether the version holds all weights instead of an adapter."""
        return (self.directory / WEIGHTS).is_file()

    def apply(self, model: Any, settings: TrainingSettings) -> Any:
        """Return `model`, a copy of the base model, with this version's trainable adapter or with all of its weights."""
        if self.is_whole:
            model.load_state_dict(self.tensors(WEIGHTS))
            model.requires_grad_(True).embeddings.requires_grad_(False)
            return model
        from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

        config = LoraConfig.from_pretrained(self.directory / ADAPTER)
        config.inference_mode, config.lora_dropout = False, settings.lora_dropout
        config.base_model_name_or_path = None
        adapted = get_peft_model(model, config)
        set_peft_model_state_dict(adapted, self.tensors(f"{ADAPTER}/adapter_model.safetensors"))
        return adapted

    def tensors(self, name: str) -> Mapping[str, Any]:
        """Return the torch tensors in one of the version's files, by name."""
        from safetensors.torch import load_file

        tensors: Mapping[str, Any] = load_file(self.directory / name)
        return tensors


def open_warm_start(directory: Path, task: Task, base_sha256: str, settings: TrainingSettings) -> WarmStart:
    """Return the champion in a verified directory, ready for training.

    Raises CannotContinue if task, base model, embedding length or kind of weights do not match the round's.
    """
    manifest = read_manifest(directory)
    champion = WarmStart(directory, manifest.model_version, manifest.labels, frozenset(manifest.untaught_labels))
    if manifest.task != task:
        raise CannotContinue(f"{champion.version} was trained for {manifest.task}, this round is for {task}")
    if manifest.base_model_sha256 != base_sha256:
        raise CannotContinue(f"{champion.version} was trained on another base model ({manifest.base_model})")
    if manifest.kind == "tfidf":
        raise CannotContinue(
            f"{champion.version} is TF-IDF with a linear model, which has no weights of the base model"
        )
    if not champion.is_whole and not (directory / ADAPTER / "adapter_model.safetensors").is_file():
        raise CannotContinue(f"{champion.version} holds neither an adapter nor model weights")
    if (directory / HEAD).is_file() and _norm(directory) != str(NORM):
        raise CannotContinue(f"{champion.version} has a head for embeddings of another length")
    if settings.start == "champion" and champion.is_whole != (settings.method == "full"):
        kind = "all weights" if champion.is_whole else "an adapter"
        raise CannotContinue(f"{champion.version} holds {kind}, and training.method is {settings.method}")
    return champion


def _norm(directory: Path) -> str | None:
    from safetensors import safe_open

    with safe_open(directory / HEAD, "numpy") as file:
        return (file.metadata() or {}).get("norm")
