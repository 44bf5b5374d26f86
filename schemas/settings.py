"""Settings: one frozen tree, and the function that loads it.

`load_settings` turns the text of a `ratchet.toml` and an environment into `Settings`; each process calls it once at start
and passes parts down. It reads no file and no environment by itself.

`RATCHET_<GROUP>__<KEY>` overrides a key. Unknown keys and bad values are refused by name.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self
from urllib.parse import quote

from pydantic import Field, ValidationError, model_validator

from schemas import toml_file
from schemas.configuration.console import ConsoleSettings
from schemas.configuration.kafka import KafkaSettings
from schemas.configuration.observability import ObservabilitySettings
from schemas.configuration.serving import ServingSettings
from schemas.configuration.training import TrainingSettings
from schemas.setting_groups import (
    AccessSettings,
    ArtifactSettings,
    DatasetSettings,
    FeatureStoreSettings,
    GateSettings,
    Group,
    ModelSettings,
    RegistrySettings,
    TriggerSettings,
)

FILE = "ratchet.toml"
PREFIX = "RATCHET_"
STATE = "state"
_SECRET = re.compile("password|passwd|secret|jaas|token|bearer")
_OF_KEY = re.compile("key|ssl")
# `ratchet init` writes these settings; docs/settings.md lists all.
BASIC = frozenset(
    {
        "model.name",
        "model.task",
        "model.base_model",
        "dataset.seed",
        "dataset.reference",
        "dataset.domain",
        "dataset.max_rows_per_person",
        "kafka.bootstrap_servers",
        "kafka.replication_factor",
        "kafka.security_protocol",
        "registry.url",
        "artifacts.url",
        "triggers.min_feedback",
        "triggers.max_age",
        "triggers.cron",
        "training.method",
        "training.start",
        "gates.approval",
        "serving.host",
        "serving.port",
        "serving.workers",
    }
)


class SettingsError(ValueError):
    """A setting is unknown or has a bad value; the message names it."""


class Settings(Group):
    """All settings. `root` is the folder of ratchet.toml; relative paths start there.

    `state` replaces the folder `state/` below `root` if the environment sets RATCHET_STATE. `root` may then be read-only.
    """

    model: ModelSettings = ModelSettings()
    dataset: DatasetSettings = DatasetSettings()
    kafka: KafkaSettings = KafkaSettings()
    feature_store: FeatureStoreSettings = FeatureStoreSettings()
    registry: RegistrySettings = RegistrySettings()
    artifacts: ArtifactSettings = ArtifactSettings()
    triggers: TriggerSettings = TriggerSettings()
    training: TrainingSettings = TrainingSettings()
    gates: GateSettings = GateSettings()
    serving: ServingSettings = ServingSettings()
    console: ConsoleSettings = ConsoleSettings()
    access: AccessSettings = AccessSettings()
    observability: ObservabilitySettings = ObservabilitySettings()
    root: Path = Field(default=Path(), exclude=True)
    state: Path | None = Field(default=None, exclude=True)

    @model_validator(mode="after")
    def _balance_needs_one_label(self) -> Self:
        if self.dataset.balance != "none" and self.model.task != "classification":
            raise ValueError(
                f"dataset.balance = {self.dataset.balance!r}: works with classification alone, and model.task is "
                f'{self.model.task!r}; use "none"'
            )
        return self

    @model_validator(mode="after")
    def _student_needs_an_encoder(self) -> Self:
        if self.training.makes_student and self.model.task == "generation":
            raise ValueError(
                "training.student_layers, student_heads, student_feed_forward: generation has no student; remove them"
            )
        return self

    def path(self, value: str) -> Path:
        """Return an absolute path: relative ones start at `root`, or at `state` instead of `state/` if that is set."""
        parts = Path(value).parts
        if self.state is not None and parts[:1] == (STATE,):
            return (self.root / self.state).absolute().joinpath(*parts[1:])
        return (self.root / value).absolute()

    def location(self, value: str) -> str:
        """Return a URL unchanged, a path as an absolute path."""
        return value if "://" in value else str(self.path(value))

    @property
    def serving_registry_url(self) -> str:
        """The registry's URL for serving: with a user of fewer rights, if `registry.serving_url` names one."""
        return self.registry.serving_url or self.registry_url

    @property
    def registry_url(self) -> str:
        """Return the registry's URL, a relative SQLite path made absolute."""
        return self.database_url(self.registry.url)

    @property
    def mlflow_uri(self) -> str | None:
        """Return MLflow's address, a relative SQLite path made absolute; None if unset."""
        return self.database_url(self.training.mlflow_uri) if self.training.mlflow_uri else None

    def database_url(self, url: str) -> str:
        """Return a SQLAlchemy URL, a relative SQLite path made absolute and percent-encoded."""
        prefix = "sqlite:///"
        relative = url.removeprefix(prefix)
        if not url.startswith(prefix) or relative.startswith("/"):
            return url
        first, _, rest = relative.partition("/")
        folder, inside = (self.path(STATE), rest) if first == STATE else (self.root.absolute(), relative)
        return f"{prefix}{quote(str(folder))}/{inside}"

    @property
    def stream_name(self) -> str:
        """Return what the names of this project's topics and consumer groups begin with."""
        return f"{self.kafka.topic_prefix}{self.model.name}"

    @property
    def embedded_broker(self) -> bool:
        """Whether the broker is the embedded one, which keeps messages in memory alone."""
        return self.kafka.bootstrap_servers is None


def load_settings(text: str | bytes, environ: Mapping[str, str], *, root: Path) -> Settings:
    """Return the settings of a TOML text and an environment.

    Args:
        text: the content of ratchet.toml, or its bytes; may be empty.
        environ: variables named RATCHET_<GROUP>__<KEY> override the file; others are ignored.
        root: the folder of relative paths.

    Raises:
        SettingsError: not TOML, an unknown key or a bad value; the message names line or variable, key and value.

    """
    try:
        text = toml_file.decode(text, FILE)
        tree = toml_file.parse(text, FILE)
    except toml_file.NotToml as error:
        raise SettingsError(str(error)) from error
    variables: dict[tuple[str, ...], str] = {}
    for variable, value in environ.items():
        if not variable.startswith(PREFIX):
            continue
        group, separator, key = variable.removeprefix(PREFIX).lower().partition("__")
        if not separator:
            _refuse_single_underscore(variable, group)
            continue
        table = tree.setdefault(group, {})
        if not isinstance(table, dict):
            raise SettingsError(f"{group} = {table!r}: expected a table, because {variable} sets a key of it")
        table[key] = _from_environment(value)
        variables[group, key] = variable
        variables.setdefault((group,), variable)
    _refuse_secrets(tree.get("kafka"), text, variables)
    if unknown := tree.keys() & {"root", "state"}:
        raise SettingsError(f"unknown setting {min(unknown)}")
    try:
        return Settings.model_validate({**tree, "root": root, "state": environ.get(f"{PREFIX}STATE") or None})
    except ValidationError as error:
        errors = error.errors(include_url=False)
        raise SettingsError("; ".join(toml_file.explain(e, Settings, text, FILE, variables) for e in errors)) from error


def _refuse_single_underscore(variable: str, name: str) -> None:
    """Raise SettingsError for a variable such as RATCHET_TRIGGERS_CRON, which lacks the second underscore."""
    for group, field in Settings.model_fields.items():
        key = name.removeprefix(f"{group}_")
        if key != name and key in getattr(field.annotation, "model_fields", {}):
            meant = f"{PREFIX}{group}__{key}".upper()
            raise SettingsError(
                f"{variable} sets nothing: write two underscores between group and key; did you mean {meant}?"
            )


def _refuse_secrets(kafka: object, text: str, variables: Mapping[tuple[str, ...], str]) -> None:
    """Raise SettingsError for a Kafka secret among the settings, without its value."""
    for key in kafka if isinstance(kafka, dict) else ():
        if key in KafkaSettings.model_fields or not (kind := _SECRET.search(key)):
            continue
        name = {"token": "TOKEN", "bearer": "TOKEN"}.get(kind[0], "KEY_PASSWORD" if _OF_KEY.search(key) else "PASSWORD")
        line, variable = toml_file.line_of(text, ("kafka", key)), variables.get(("kafka", key))
        where = f"{variable}: " if variable else f"{FILE} line {line}: " if line else ""
        raise SettingsError(
            f"{where}kafka.{key} is a secret, which is no setting: write {PREFIX}KAFKA_{name}=... into keys.env, or set that "
            "variable in the environment"
        )


def _from_environment(value: str) -> object:
    """Return a number, boolean or null that is written as JSON, else the string itself; None for an empty value."""
    if value == "":
        return None
    try:
        parsed = json.loads(value)
    except ValueError:
        return value
    return parsed if parsed is None or isinstance(parsed, int | float | bool) else value


def render_settings(overrides: Mapping[str, Mapping[str, object]]) -> str:
    """Return a commented ratchet.toml: the basic settings with meaning and default, and every setting of `overrides`.

    Args:
        overrides: {group: {key: value}}; these keys are set, the others are comments.

    """
    lines = [
        "# Ratchet's settings. A commented line shows the default. Relative paths start at this file's folder.",
        "# Any other setting may be added here; Ratchet's docs/settings.md lists all of them.",
        "",
    ]
    for group, model in groups():
        values = overrides.get(group, {})
        keys = [key for key in model.model_fields if f"{group}.{key}" in BASIC or key in values]
        if not keys:
            continue
        lines += [f"# {model.__doc__ or group}", f"[{group}]"]  # python -OO has no docstrings
        for key in keys:
            setting = model.model_fields[key]
            lines.append(f"# {setting.description}")
            if key in values:
                lines.append(f"{key} = {json.dumps(values[key])}")
            elif setting.default is None:
                lines.append(f"# {key} =    (unset)")
            else:
                lines.append(f"# {key} = {json.dumps(setting.default)}")
        lines.append("")
    return "\n".join(lines)


def groups() -> Iterator[tuple[str, type[Group]]]:
    """Yield each group's name and model, in the order of the file."""
    for name, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Group):
            yield name, field.annotation
