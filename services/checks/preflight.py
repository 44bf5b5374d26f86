"""Preflight: every problem of a project that shows before anything is started.

Turns settings into problems, one line each, for `ratchet init`, `doctor` and `up`. It reads files and loads no model; all of it
takes a second or two.
"""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from schemas.settings import Settings

READ_WHOLE_BYTES = 2_000_000  # of a larger labelled file only the first byte is read
_FEAST_PARTS = ("project", "provider", "registry", "offline_store", "online_store")


def problems(settings: Settings, *parts: str) -> list[str]:
    """Return the problems of these parts of a project, one line each with the way out; of all parts if none is named."""
    return [sentence for part in parts or CHECKS for sentence in CHECKS[part](settings)]


def refuse_broken(settings: Settings, *parts: str) -> None:
    """Raise BrokenProject if one of these parts has a problem; check all parts if none is named."""
    if lines := problems(settings, *parts):
        raise BrokenProject(lines)


class BrokenProject(ValueError):
    """A project cannot run as it is; `problems` holds one line each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def keys(settings: Settings) -> Iterator[str]:
    """Yield the problem of keys.env, if any."""
    from serving.http.access import read_keys
    from serving.keys_file import KeysMissing

    try:
        read_keys(settings.path(settings.access.keys))
    except KeysMissing as error:
        yield str(error)


def triggers(settings: Settings) -> Iterator[str]:
    """Yield triggers that are not supported yet, and a crontab that does not parse."""
    from pipelines.triggers import refuse_unbuilt
    from schemas.settings import SettingsError

    try:
        refuse_unbuilt(settings.triggers)
    except SettingsError as error:
        yield str(error)
    if settings.triggers.cron is not None:
        from services.scheduling.crontab import crontab

        try:
            crontab(settings.triggers.cron)
        except SettingsError as error:
            yield str(error)


def policy(settings: Settings) -> Iterator[str]:
    """Yield the problem of policy.toml, before training rather than after it."""
    from pipelines.gates.policy import BadPolicy, load_policy

    try:
        load_policy(settings.path(settings.gates.policy).read_bytes())
    except OSError as error:
        yield f"gates.policy = {settings.gates.policy!r}: {error.strerror} ({error.filename})"
    except BadPolicy as error:
        yield str(error)


def data(settings: Settings) -> Iterator[str]:
    """Yield labelled files that are missing, unreadable or without usable rows, and a reference within the seed."""
    files = [("dataset.seed", settings.dataset.seed), ("dataset.reference", settings.dataset.reference)]
    files += [
        ("gates.must_pass", settings.gates.must_pass),
        *(("dataset.domain", path) for path in settings.dataset.domain),
    ]
    texts: dict[str, set[str]] = {}
    for name, value in files:
        if value is not None:
            try:
                texts[name] = _texts(settings.path(value), settings)
            except (OSError, ValueError) as error:
                reason = f"{error.strerror} ({error.filename})" if isinstance(error, OSError) else str(error)
                yield f"{name} = {value!r}: {reason}"
    from services.checks.data_summary import DataError, check_reference

    try:
        check_reference(texts.get("dataset.seed", set()), texts.get("dataset.reference", set()))
    except DataError as error:
        yield str(error)


def _texts(path: Path, settings: Settings) -> set[str]:
    """Return the texts of a labelled file; none of a folder or a large file. Raises OSError or BadFile."""
    if path.is_dir():
        return set()
    with path.open("rb") as file:
        if not file.read(1):
            raise ValueError(f"{path} is empty")
    if path.stat().st_size > READ_WHOLE_BYTES:
        return set()
    from pipelines.dataset.files import read_rows
    from pipelines.dataset.project_dataset import columns_of

    return {row.text for row in read_rows(path, settings.model.task, columns_of(settings))}


def feature_store(settings: Settings) -> Iterator[str]:
    """Yield problems of feature_store.yaml that show without loading Feast."""
    import yaml

    name = settings.feature_store.config
    try:
        config = yaml.safe_load(settings.path(name).read_text(encoding="utf-8-sig"))
    except OSError as error:
        yield f"feature_store.config = {name!r}: {error.strerror} ({error.filename})"
        return
    except UnicodeDecodeError:
        yield f"{name} is not UTF-8: save it as UTF-8"
        return
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        yield f"{name}{where} is not YAML: {getattr(error, 'problem', None) or 'it holds characters that YAML forbids'}"
        return
    if not isinstance(config, dict):
        yield f"{name}: expected the keys {', '.join(_FEAST_PARTS)}"
        return
    if missing := [part for part in _FEAST_PARTS if part not in config]:
        yield f"{name} lacks {', '.join(missing)}"
    registry = config.get("registry")
    if registry is not None and not (isinstance(registry, dict) and isinstance(registry.get("path"), str)):
        yield f"{name}: registry needs a table with path"


def base_model(settings: Settings) -> Iterator[str]:
    """Yield why the base model is not available or cannot be trained as the settings say, if so."""
    from pipelines.models.base_files import base_problem, student_problem

    if problem := base_problem(settings.model) or student_problem(settings.model, settings.training):
        yield problem


def addresses(settings: Settings) -> Iterator[str]:
    """Yield invalid addresses of serving and the registry."""
    try:
        socket.getaddrinfo(settings.serving.host, settings.serving.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no host name"
        yield f"serving.host = {settings.serving.host!r}: {reason}; use 127.0.0.1, or 0.0.0.0 for every interface"
    from serving.registry.database import check_url

    try:
        check_url(settings.registry_url)
    except ValueError as error:
        yield str(error)


def kafka(settings: Settings) -> Iterator[str]:
    """Yield secrets of Kafka that are missing, files that do not fit, and a codec that is not installed."""
    if settings.kafka.security_protocol == "PLAINTEXT" and settings.kafka.compression == "none":
        return
    from serving.messaging.connection import Broker, has_codec
    from serving.messaging.security import BadSecurity

    try:
        Broker.of(settings, "embedded").security.options()
    except BadSecurity as error:
        yield str(error)
    if not has_codec(codec := settings.kafka.compression):
        yield f'kafka.compression = "{codec}": its library is not installed; use "gzip" or "none"'


CHECKS: dict[str, Callable[[Settings], Iterator[str]]] = {
    "keys": keys,
    "triggers": triggers,
    "policy": policy,
    "data": data,
    "feature store": feature_store,
    "base model": base_model,
    "addresses": addresses,
    "kafka": kafka,
}
