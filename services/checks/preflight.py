"""Preflight: everything that can be known to be wrong before anything is started.

Turns settings into problems, one line each. `ratchet init`, `doctor` and `up` share it. It reads files, loads no model and
starts nothing; all of it takes a second or two.
"""

import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from schemas.settings import Settings

READ_WHOLE_BYTES = 2_000_000  # a larger file is opened, and read by the round alone
_SERVER = re.compile(r"(?:[\w.-]+|\[[0-9a-fA-F:.]+\])(?::\d{1,5})?")
_FEAST_PARTS = ("project", "provider", "registry", "offline_store", "online_store")


def problems(settings: Settings, *parts: str) -> list[str]:
    """Return what is wrong and the way out, one line each, with these parts of a project; with all if none is named."""
    return [sentence for part in parts or CHECKS for sentence in CHECKS[part](settings)]


def refuse_broken(settings: Settings, *parts: str) -> None:
    """Raise BrokenProject if one of these parts (all, if none is named) has a problem."""
    if found := problems(settings, *parts):
        raise BrokenProject(found)


class BrokenProject(ValueError):
    """A project cannot run as it is; `problems` holds one line each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def keys(settings: Settings) -> Iterator[str]:
    """Yield what is wrong with keys.env."""
    from serving.http.access import KeysMissing, read_keys

    try:
        read_keys(settings.path(settings.access.keys))
    except KeysMissing as error:
        yield str(error)


def triggers(settings: Settings) -> Iterator[str]:
    """Yield triggers that are not built, or whose crontab does not parse."""
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
    """Yield what is wrong with policy.toml, which a round would otherwise read only after training."""
    from pipelines.gates.policy import BadPolicy, load_policy

    try:
        load_policy(settings.path(settings.gates.policy).read_bytes())
    except OSError as error:
        yield f"gates.policy = {settings.gates.policy!r}: {error.strerror} ({error.filename})"
    except BadPolicy as error:
        yield str(error)


def data(settings: Settings) -> Iterator[str]:
    """Yield labelled files that are gone, cannot be read or hold no usable rows, and a reference that is the seed."""
    named = [("dataset.seed", settings.dataset.seed), ("dataset.reference", settings.dataset.reference)]
    named += [
        ("gates.must_pass", settings.gates.must_pass),
        *(("dataset.domain", path) for path in settings.dataset.domain),
    ]
    texts: dict[str, set[str]] = {}
    for name, value in named:
        if value is not None:
            try:
                texts[name] = _texts(settings.path(value), settings)
            except (OSError, ValueError) as error:
                reason = f"{error.strerror} ({error.filename})" if isinstance(error, OSError) else str(error)
                yield f"{name} = {value!r}: {reason}"
    if same_rows(texts.get("dataset.seed"), texts.get("dataset.reference")):
        yield SAME_ROWS


SAME_ROWS = (
    "seed and reference hold the same texts: the reference judges what the seed trained, so it needs rows of its own; "
    "without a reference, a share of the seed is set aside"
)


def same_rows(seed: set[str] | None, reference: set[str] | None) -> bool:
    """Whether every text of the reference stands in the seed, so that nothing is left to judge with."""
    return bool(seed and reference and reference <= seed)


def _texts(path: Path, settings: Settings) -> set[str]:
    """The texts of a labelled file; none of a folder or of one that is large. Raises OSError or BadFile."""
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
    """Yield what is wrong with feature_store.yaml, as far as that can be told without loading Feast."""
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
    """Yield why the base model cannot be had."""
    from pipelines.models.base_files import base_problem

    if problem := base_problem(settings.model):
        yield problem


def addresses(settings: Settings) -> Iterator[str]:
    """Yield addresses that are none: of serving, of the brokers and of the registry."""
    try:
        socket.getaddrinfo(settings.serving.host, settings.serving.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "no name of a machine"
        yield f"serving.host = {settings.serving.host!r}: {reason}; use 127.0.0.1, or 0.0.0.0 for every interface"
    for server in (settings.kafka.bootstrap_servers or "localhost").split(","):
        if not _SERVER.fullmatch(server.strip()):
            yield f"kafka.bootstrap_servers = {server.strip()!r}: expected host:port, several parted by commas"
    from serving.registry.database import check_url

    try:
        check_url(settings.registry_url)
    except ValueError as error:
        yield str(error)


CHECKS: dict[str, Callable[[Settings], Iterator[str]]] = {
    "keys": keys,
    "triggers": triggers,
    "policy": policy,
    "data": data,
    "feature store": feature_store,
    "base model": base_model,
    "addresses": addresses,
}
