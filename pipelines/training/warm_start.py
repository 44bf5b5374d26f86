"""The champion as training sees it: weights to go on from, and a teacher.

Turns a version's directory into a `Champion`, or into the reason why a round cannot go on from it. candidates.py opens it, the
tasks use it. It deliberately knows no registry and no store: whoever opens it has fetched and verified the directory.

Nothing of it is believed to be anywhere else: files are read from this directory alone, as safetensors alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.models.encoder import NORM
from schemas.settings import TrainingSettings
from schemas.targets import Task as TaskName
from serving.model_directory import read_manifest

ADAPTER, WEIGHTS, HEAD = "adapter", "model.safetensors", "head.safetensors"


class CannotContinue(ValueError):
    """This round's weights cannot start from, or learn from, that champion's; the message says why."""


@dataclass(frozen=True)
class Champion:
    """A version whose weights are relative to this round's base model.

    `labels` are its outputs, in order; those of them that no row has taught yet are `untaught`.
    """

    directory: Path
    version: str
    labels: list[str]
    untaught: frozenset[str] = frozenset()

    def knows(self, label: str) -> bool:
        """Whether rows have taught it this label."""
        return label in self.labels and label not in self.untaught

    @property
    def is_whole(self) -> bool:
        """Whether it holds all weights instead of an adapter."""
        return (self.directory / WEIGHTS).is_file()

    def apply(self, model: Any, settings: TrainingSettings) -> Any:
        """A copy of the base model with this version's adapter, to be trained on, or with its own weights."""
        if self.is_whole:
            model.load_state_dict(self.tensors(WEIGHTS))
            model.requires_grad_(True).embeddings.requires_grad_(False)
            return model
        from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

        config = LoraConfig.from_pretrained(self.directory / ADAPTER)
        config.inference_mode, config.lora_dropout = False, settings.lora_dropout
        config.base_model_name_or_path = None  # where the base model lay is of no interest
        adapted = get_peft_model(model, config)
        set_peft_model_state_dict(adapted, self.tensors(f"{ADAPTER}/adapter_model.safetensors"))
        return adapted

    def tensors(self, name: str) -> Mapping[str, Any]:
        """The torch tensors of one of its files."""
        from safetensors.torch import load_file

        found: Mapping[str, Any] = load_file(self.directory / name)
        return found


def open_champion(directory: Path, task: TaskName, base_sha256: str, settings: TrainingSettings) -> Champion:
    """The champion in a verified directory. Raises CannotContinue."""
    manifest = read_manifest(directory)
    champion = Champion(directory, manifest.model_version, manifest.labels, frozenset(manifest.untaught_labels))
    if manifest.task != task:
        raise CannotContinue(f"{champion.version} was trained for {manifest.task}, this round is for {task}")
    if manifest.base_model_sha256 != base_sha256:
        raise CannotContinue(f"{champion.version} was trained on another base model ({manifest.base_model})")
    if not champion.is_whole and not (directory / ADAPTER / "adapter_model.safetensors").is_file():
        raise CannotContinue(f"{champion.version} holds neither an adapter nor weights")
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
