"""`ratchet doctor`: look at every part, and say what to do.

Turns a settings file into a list of checks. The command line prints them. It deliberately repairs nothing.
"""

import json
import shutil
import stat
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from schemas.settings import Settings


@dataclass(frozen=True)
class Check:
    """One part's health: ok, warn or FAIL."""

    part: str
    verdict: str
    sentence: str


def examine(config: Path) -> list[Check]:
    """Every check that can be made; what raises is a FAIL with the error's own words."""
    from services.projects import open_project

    try:
        settings = open_project(config)
    except (OSError, ValueError) as error:
        return [Check("settings", "FAIL", str(error))]
    checks = [Check("settings", "ok", str(config))]
    parts: dict[str, Callable[[Settings], Check]] = {
        "keys": _keys,
        "registry": _registry,
        "clock": _clock,
        "artefacts": _artefacts,
        "base model": _base_model,
        "feature store": _feature_store,
        "disk": _disk,
        "broker": _broker,
        "serving": _serving,
        **({"mlflow": _mlflow} if settings.training.mlflow_uri else {}),
    }
    for part, look in parts.items():
        try:
            checks.append(look(settings))
        except Exception as error:
            checks.append(
                Check(part, "FAIL", f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
            )
    return checks


def _keys(settings: Settings) -> Check:
    from serving.access import read_keys

    path = settings.path(settings.access.keys)
    read_keys(path)
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        return Check("keys", "warn", f"{path.name} can be read by others: chmod 600 {path}")
    return Check("keys", "ok", str(path))


def _registry(settings: Settings) -> Check:
    from serving.registry import Registry

    registry = Registry(settings.registry_url, settings.model.name)
    try:
        champion, wrong = registry.champion(), registry.verify_audit()
    finally:
        registry.close()
    if wrong:
        return Check("registry", "FAIL", f"the audit log is broken: {wrong[0]}")
    return Check(
        "registry", "ok", f"champion {champion.model_version if champion else 'none yet: ratchet up trains one'}"
    )


def _clock(settings: Settings) -> Check:
    from services.status import clock_line
    from serving.registry import Registry

    registry = Registry(settings.registry_url, settings.model.name)
    try:
        ahead_s = registry.seconds_ahead()
    finally:
        registry.close()
    if ahead_s:
        return Check("clock", "warn", clock_line(ahead_s))
    return Check("clock", "ok", "the registry holds no time ahead of this clock")


def _artefacts(settings: Settings) -> Check:
    import fsspec

    files, root = fsspec.core.url_to_fs(settings.location(settings.artifacts.url))
    files.makedirs(root, exist_ok=True)
    with files.open(f"{root}/.doctor", "w", encoding="utf-8") as file:
        file.write("ok")
    files.rm(f"{root}/.doctor")
    return Check("artefacts", "ok", root)


def _base_model(settings: Settings) -> Check:
    from pipelines.training.bases import base_path

    path = base_path(settings.model)
    if path.is_file():  # GGUF, tokenizer and all
        return Check("base model", "ok", str(path))
    missing = [name for name in ("config.json", "tokenizer.json") if not (path / name).exists()]
    if missing or not list(path.glob("*.safetensors")):
        return Check("base model", "FAIL", f"{path} lacks {', '.join(missing) or '*.safetensors'}")
    return Check("base model", "ok", str(path))


def _feature_store(settings: Settings) -> Check:
    from pipelines.features import FeatureStore

    return Check("feature store", "ok", f"stored: {FeatureStore(settings).stored_events()}")


def _disk(settings: Settings) -> Check:
    free = shutil.disk_usage(settings.root).free / 2**30
    return Check("disk", "ok" if free > 2 else "warn", f"{free:.1f} GiB free")


def _broker(settings: Settings) -> Check:
    from services.projects import running_up
    from serving.broker import Topics, topic_ids

    address = settings.kafka.bootstrap_servers or (running_up(settings) or {}).get("broker")
    if not address:
        return Check("broker", "warn", "embedded, and not up: `ratchet up` starts it")
    wanted = Topics.of(settings.model.name).names()
    missing = sorted(set(wanted) - topic_ids(address, wanted, timeout_s=3).keys())
    if missing:
        return Check("broker", "warn", f"{address} lacks {', '.join(missing)}: `ratchet up` makes them")
    return Check("broker", "ok", f"{address}: {len(wanted)} topics")


def _serving(settings: Settings) -> Check:
    from services.projects import running_up
    from serving.access import read_keys

    up = running_up(settings)
    url = up["serving"] if up else f"http://{settings.serving.host}:{settings.serving.port}"
    key = read_keys(settings.path(settings.access.keys)).api_key
    request = urllib.request.Request(f"{url}/model", headers={"Authorization": f"Bearer {key}"})  # noqa: S310 - our own
    try:
        with urllib.request.urlopen(request, timeout=5) as response:  # noqa: S310 - our own address
            served = json.loads(response.read())
    except urllib.error.HTTPError as error:
        return Check("serving", "FAIL", f"{url} answers {error.code}: is another program on serving.port?")
    except (OSError, ValueError) as error:
        return Check("serving", "FAIL" if up else "warn", f"{url} does not answer: {error}")
    return _compared(settings, url, served)


def _mlflow(settings: Settings) -> Check:
    from pipelines.tracking import look

    return Check("mlflow", "ok", look(settings))


def _compared(settings: Settings, url: str, served: dict[str, object]) -> Check:
    from serving.registry import Registry

    if served.get("name") != settings.model.name:
        return Check("serving", "FAIL", f"{url} serves {served.get('name')}, another project: set serving.port")
    registry = Registry(settings.registry_url, settings.model.name)
    try:
        champion = registry.champion()
    finally:
        registry.close()
    if champion and served.get("model_version") != champion.model_version:
        behind = f"serves {served.get('model_version')}, the champion is {champion.model_version}"
        return Check("serving", "warn", f"{url} {behind}: see state/logs/serving.log if it stays so")
    return Check("serving", "ok", f"{url} serves {served.get('model_version')}")
