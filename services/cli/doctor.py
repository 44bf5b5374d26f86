"""`ratchet doctor`: check every part of a project and name the way out.

Turns a settings file into a list of checks, which the command line prints. checks/preflight.py makes those that need no running
part. It repairs nothing.
"""

import json
import os
import shutil
import stat
import urllib.error
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from schemas.redact import redacted
from schemas.settings import Settings


@dataclass(frozen=True)
class Check:
    """The verdict on one part: ok, warn or FAIL."""

    part: str
    verdict: str
    sentence: str


def examine(config: Path) -> list[Check]:
    """Return every check; one that raises is a FAIL with the error's message, without passwords."""
    from services.projects import open_project
    from services.supervisor.writable_folders import settle

    try:
        settings = open_project(config)
    except (OSError, ValueError) as error:
        return [Check("settings", "FAIL", redacted(str(error)))]
    settle(settings, os.environ)
    checks = [Check("settings", "ok", str(config)), *_preflight(settings)]
    broken = {check.part for check in checks if check.verdict == "FAIL"}
    parts: dict[str, Callable[[Settings], Check]] = {
        "registry": _registry,
        "clock": _clock,
        "evidence": _evidence,
        "artefacts": _artefacts,
        "feature store": _feature_store,
        "disk": _disk,
        "codecs": check_codecs,
        "broker": check_broker,
        "ingestion": check_ingestion,
        "serving": _serving,
        **({"mlflow": _mlflow} if settings.training.mlflow_uri else {}),
    }
    needs = {
        "serving": {"keys", "addresses"},
        "registry": {"addresses"},
        "broker": {"addresses", "kafka"},
        "clock": {"registry"},
        "evidence": {"registry", "policy", "data"},
        "ingestion": {"registry"},
    }
    for part, look in parts.items():
        if part in broken or needs.get(part, set()) & broken:
            continue  # reported already
        try:
            checks.append(look(settings))
            if part == "registry" and checks[-1].verdict == "FAIL":
                broken.add(part)
        except Exception as error:
            first = str(error).splitlines()[0] if str(error) else ""
            checks.append(Check(part, "FAIL", redacted(f"{type(error).__name__}: {first}")))
    return checks


def _preflight(settings: Settings) -> list[Check]:
    """Return a FAIL for each problem that `up` would refuse, and an ok for each part without one."""
    from pipelines.models.base_files import installed_base
    from services.checks.preflight import CHECKS, problems

    fine: dict[str, Callable[[Settings], Check]] = {"keys": _keys, "triggers": _triggers, "data": _data}
    names = {
        "base model": str(settings.model.base_model or installed_base(settings.model.task)),
        "policy": settings.gates.policy,
    }
    checks = []
    for part in CHECKS:
        wrong = problems(settings, part)
        checks += [Check(part, "FAIL", redacted(sentence)) for sentence in wrong]
        if not wrong and part in fine:
            checks.append(fine[part](settings))
        elif not wrong and part in names:
            checks.append(Check(part, "ok", names[part]))
    return checks


def _keys(settings: Settings) -> Check:
    path = settings.path(settings.access.keys)
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        return Check("keys", "warn", f"other users can read {path.name}: chmod 600 {path}")
    return Check("keys", "ok", str(path))


def _data(settings: Settings) -> Check:
    from services.checks.data_summary import health

    return Check("data", *health(settings))


def _triggers(settings: Settings) -> Check:
    from services.cli.status import triggers_line

    return Check("triggers", "ok", triggers_line(settings.triggers))


def _registry(settings: Settings) -> Check:
    from serving.artifacts import ArtifactStore
    from serving.registry.registry import Registry, RegistryUnavailable
    from serving.registry.safeguards.marker import RegistryLost, check

    try:
        with closing(Registry(settings.registry_url, settings.model.name)) as registry:
            check(registry, ArtifactStore(settings.location(settings.artifacts.url)))
            champion, wrong = registry.champion(), registry.verify_audit()
    except (RegistryLost, RegistryUnavailable) as error:
        return Check("registry", "FAIL", str(error))
    if wrong:
        return Check("registry", "FAIL", f"the audit log is broken: {wrong[0]}")
    return Check(
        "registry", "ok", f"champion {champion.model_version if champion else 'none yet: ratchet up trains one'}"
    )


def _clock(settings: Settings) -> Check:
    from services.cli.status import clock_line
    from serving.registry.registry import Registry

    with closing(Registry(settings.registry_url, settings.model.name)) as registry:
        ahead_s = registry.seconds_ahead()
    if ahead_s:
        return Check("clock", "warn", clock_line(ahead_s))
    return Check("clock", "ok", "the registry holds no time ahead of this clock")


def _evidence(settings: Settings) -> Check:
    from services.checks.evidence import outlook
    from serving.registry.registry import Registry

    with closing(Registry(settings.registry_url, settings.model.name)) as registry:
        lines, out_of_reach = outlook(settings, registry)
    return Check("evidence", "warn" if out_of_reach else "ok", "; ".join(lines))


def _artefacts(settings: Settings) -> Check:
    from serving.artifacts import open_store

    files, root = open_store(settings.location(settings.artifacts.url))
    files.makedirs(root, exist_ok=True)
    with files.open(f"{root}/.doctor", "w", encoding="utf-8") as file:
        file.write("ok")
    files.rm(f"{root}/.doctor")
    return _sums(settings, root)


def _sums(settings: Settings, root: str) -> Check:
    """Verify the checksums of the champion's files and of earlier champions'."""
    from services.checks.champion import damaged, unservable
    from serving.registry.registry import Registry, RegistryUnavailable

    try:
        with closing(Registry(settings.registry_url, settings.model.name)) as registry:
            wrong, stops = damaged(settings, registry), unservable(settings, registry)
    except RegistryUnavailable:
        return Check("artefacts", "warn", f"{root} can be written; not compared, because the registry cannot be read")
    if stops:
        return Check("artefacts", "FAIL", stops)
    if wrong:
        return Check("artefacts", "FAIL", f"damaged: {'; '.join(wrong)}: put them back from a backup")
    return Check("artefacts", "ok", f"{root}: the files of every version that served match their checksums")


def _feature_store(settings: Settings) -> Check:
    from pipelines.feature_store.store import FeatureStore

    return Check("feature store", "ok", f"stored: {FeatureStore(settings).stored_events()}")


def _disk(settings: Settings) -> Check:
    free = shutil.disk_usage(_existing(settings.path("state"))).free / 2**30
    return Check("disk", "ok" if free > 2 else "warn", f"{free:.1f} GiB free")


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())


def check_broker(settings: Settings) -> Check:
    """Check the connection to the broker, the rights and the topics."""
    from services.checks.topics import refusal
    from services.projects import broker_of
    from serving.messaging.connection import BrokerUnavailable
    from serving.messaging.publisher import Topics, topic_ids
    from serving.messaging.rights import missing_rights
    from serving.messaging.topic_checks import topic_faults
    from serving.registry.registry import Registry

    broker = broker_of(settings)
    if broker is None:
        return Check("broker", "warn", "embedded, and not running: `ratchet up` starts it")
    topics = Topics.of(settings.stream_name)
    wanted = topics.names()
    try:
        missing = sorted(set(wanted) - topic_ids(broker, wanted, timeout_s=3).keys())
        if missing:
            return Check("broker", "warn", f"{broker} lacks {', '.join(missing)}: `ratchet up` makes them")
        if settings.embedded_broker:
            return Check("broker", "ok", f"{broker}: {len(wanted)} topics")
        if lines := missing_rights(broker, topics, timeout_s=3):
            return Check("broker", "FAIL", "; ".join(lines))
        with closing(Registry(settings.registry_url, settings.model.name)) as registry:
            if reason := refusal(settings, registry, broker, topics):
                return Check("broker", "FAIL", reason)
        faults = topic_faults(broker, topics, timeout_s=3)
    except BrokerUnavailable as error:
        return Check("broker", "FAIL", str(error))
    if faults:
        return Check("broker", "warn", "; ".join(f"{topic} {fault}" for topic, fault in faults.items()))
    secured = "" if broker.security.protocol == "PLAINTEXT" else f" over {broker.security.protocol}"
    return Check("broker", "ok", f"{broker}: {len(wanted)} topics{secured}")


def check_codecs(_settings: Settings) -> Check:
    """Check that messages of every codec can be read."""
    from serving.messaging.decompression import CODECS, missing_codecs

    if missing := missing_codecs():
        return Check("codecs", "FAIL", f"cannot read messages compressed with {', '.join(missing)}: run make install")
    return Check("codecs", "ok", f"{', '.join(CODECS.values())}: messages compressed with any of them are read")


def check_ingestion(settings: Settings) -> Check:
    """Report what the consumers have noted: lost, passed over or waiting messages."""
    from datetime import UTC, datetime

    from services.ingestion.troubles import counted, lasting
    from services.projects import running_up
    from serving.registry.glance import glance

    notes = glance(settings.registry_url, settings.model.name).ingestion
    if wrong := lasting(notes, datetime.now(UTC), up=running_up(settings) is not None):
        return Check("ingestion", "FAIL", "; ".join(wrong))
    if counts := counted(notes):
        return Check("ingestion", "warn", "; ".join(counts))
    return Check("ingestion", "ok", "no message was lost, passed over or set aside")


def _serving(settings: Settings) -> Check:
    from services.projects import running_up
    from services.supervisor.own_address import fetch, url_of
    from serving.http.access import read_keys

    up = running_up(settings)
    url = up["serving"] if up else url_of(settings.serving.host, settings.serving.port)
    key = read_keys(settings.path(settings.access.keys)).api_key
    try:
        served = json.loads(fetch(f"{url}/model", timeout_s=5, headers={"Authorization": f"Bearer {key}"}))
    except urllib.error.HTTPError as error:
        return Check("serving", "FAIL", f"{url} answers {error.code}: check whether another program uses serving.port")
    except (OSError, ValueError) as error:
        return Check("serving", "FAIL" if up else "warn", f"{url} does not answer: {getattr(error, 'reason', error)}")
    return _compared(settings, url, served)


def _mlflow(settings: Settings) -> Check:
    from pipelines.report.mlflow_tracking import look

    return Check("mlflow", "ok", look(settings))


def _compared(settings: Settings, url: str, served: dict[str, object]) -> Check:
    from serving.registry.registry import Registry, RegistryUnavailable

    if served.get("name") != settings.model.name:
        return Check("serving", "FAIL", f"{url} serves {served.get('name')}, another project: set serving.port")
    champion = None
    with suppress(RegistryUnavailable), closing(Registry(settings.registry_url, settings.model.name)) as registry:
        champion = registry.champion()
    if champion and served.get("model_version") != champion.model_version:
        behind = f"serves {served.get('model_version')}, the champion is {champion.model_version}"
        return Check("serving", "warn", f"{url} {behind}: see state/logs/serving.log if it stays so")
    return Check("serving", "ok", f"{url} serves {served.get('model_version')}")
