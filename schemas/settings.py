"""Every setting of Ratchet in one frozen tree, and the one function that loads it.

`load_settings` turns the text of a `ratchet.toml` and an environment into `Settings`; each process calls it once at
start and passes parts down. It deliberately reads no file and no environment by itself.

A key is overridden by `RATCHET_<GROUP>__<KEY>`. Unknown keys and bad values are refused by name.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from schemas import toml_file
from schemas.targets import Task

FILE = "ratchet.toml"
PREFIX = "RATCHET_"
STATE = "state"


class SettingsError(ValueError):
    """A setting is unknown or has a bad value; the message names it."""


class Group(BaseModel):
    """One table of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class ModelSettings(Group):
    """What is served, and from which pretrained weights."""

    name: str = Field(
        "model",
        pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$",
        description="in every topic, key and metric label: one project is one model",
    )
    task: Task = Field(
        "classification",
        description="what the model answers: one label, labels in plural (multilabel), a number (regression), text (generation)",
    )
    base_model: str | None = Field(
        None,
        description="folder or hub name of the pretrained encoder or, for generation, causal language model (also a GGUF "
        "file); unset: the all-MiniLM-L6-v2, or the SmolLM2-135M-Instruct, that is installed",
    )
    max_length: int = Field(
        128, ge=8, le=8192, description="tokens; longer texts are truncated, and longer prompts of generation"
    )
    max_new_tokens: int = Field(
        128, ge=1, le=8192, description="generation: tokens of an answer, at most; longer completions are truncated"
    )


class DatasetSettings(Group):
    """Which rows train, and which judge."""

    seed: str = Field("data/seed.csv", description="labelled rows that the first champion is trained on")
    reference: str | None = Field(
        None, description="curated rows that judge and calibrate, never train; unset: a share of the seed is set aside"
    )
    text_column: str | None = Field(
        None, description="column that holds the text, in every file of rows; unset: found by its name"
    )
    label_column: str | None = Field(
        None, description="column that holds the label, labels, target or completion; unset: found by its name"
    )
    calibration_share: float = Field(
        0.33, gt=0, lt=1, description="share of the reference rows that fits the calibration and does not judge"
    )
    validation_share: float = Field(
        0.15, gt=0, lt=0.5, description="share of the training rows kept for early stopping"
    )
    max_rows_per_person: int | None = Field(
        50, ge=1, description="rows one person can contribute to a round, newest first; unset: no cap"
    )
    domain: tuple[str, ...] = Field(
        (), description="further labelled rows that train: files like the seed, or Hugging Face dataset folders"
    )
    split_by: Literal["text", "time", "person"] = Field(
        "text", description="what validates: a keyed share of the texts, of the people, or the newest feedback"
    )
    min_chars: int = Field(2, ge=1, description="letters and digits that a text must have to train")
    language: str | None = Field(
        None,
        pattern="^[a-z]{2}$",
        description="ISO 639-1 code; texts surely of another language don't train; unset: any",
    )
    names: bool = Field(
        True, description="replace names and places before training, where spaCy (extra `ner`) is installed"
    )
    balance: Literal["none", "weights", "cap"] = Field(
        "none", description="weights: rare labels weigh more; cap: 5 times the median label's rows at most"
    )
    replay: float | None = Field(
        1.0,
        ge=0,
        description="older feedback beside each newer row, beyond 10,000 if training starts from the base; unset: all",
    )
    quarantine: bool = Field(True, description="leave out people whose labels contradict everybody else's")
    audit_rate: float = Field(0.02, ge=0, le=1, description="share of predictions marked for labelling by a keyed hash")


class KafkaSettings(Group):
    """The broker."""

    bootstrap_servers: str | None = Field(
        None, description="host:port,... of a Kafka cluster; unset: the embedded broker, on a free port of this machine"
    )
    partitions: int = Field(2, ge=1, description="per topic, when we create it")
    replication_factor: int = Field(1, ge=1, description="per topic, when we create it; 3 on a real cluster")
    publish_timeout_s: float = Field(3.0, gt=0, description="seconds before a publish is refused")


class FeatureStoreSettings(Group):
    """Event log and Feast."""

    event_log: str = Field("state/events", description="folder or s3:// address of the two Delta tables")
    config: str = Field("feature_store.yaml", description="Feast's own configuration")
    batch_rows: int = Field(2000, ge=1, description="rows at which a micro-batch is committed")
    batch_seconds: float = Field(0.5, gt=0, description="seconds after which a micro-batch is committed")
    compact_every: int = Field(50, ge=2, description="commits between compactions and checkpoints of the log")
    orphan_hours: float = Field(
        168.0, gt=0, description="hours that feedback waits for its prediction before it becomes a dead letter"
    )
    metrics_port: int | None = Field(
        None, ge=1, le=65535, description="where the consumer answers Prometheus on every interface; unset: off"
    )


class RegistrySettings(Group):
    """The registry: versions, champion, rounds, audit."""

    url: str = Field(
        "sqlite:///state/registry.db", description="SQLAlchemy URL; postgresql+psycopg://... in production"
    )


class ArtifactSettings(Group):
    """Model versions on disk."""

    url: str = Field("state/artifacts", description="folder, or an fsspec address such as s3://bucket/prefix")
    cache: str = Field("state/cache", description="local folder of fetched versions; may be deleted at any time")
    keep_versions: int = Field(
        20,
        ge=1,
        description="newest versions that stay although they never served; versions that served always stay",
    )


class TriggerSettings(Group):
    """When a round starts by itself. Whichever fires first."""

    min_feedback: int = Field(
        200, ge=1, description="distinct labelled feedback, agreeing or not, stored since the last round's cut"
    )
    max_age: float | None = Field(
        None, gt=0, description="hours since the last round, if there is any feedback; unset: off"
    )
    drift: float | None = Field(None, gt=0, lt=1, description="not built yet; must stay unset")
    cron: str | None = Field(None, description="five-field crontab, in UTC, at which a round is due; unset: off")
    tick_seconds: float = Field(2.0, gt=0, description="seconds between looks of the scheduler")
    stale_after_s: float = Field(
        120.0, gt=0, description="seconds without a heartbeat after which a round counts as dead"
    )
    max_attempts: int = Field(3, ge=1, description="times a dead round is resumed before it is marked failed")


class TrainingSettings(Group):
    """How a round trains."""

    method: Literal["lora", "head", "full"] = Field(
        "lora",
        description="what learns: adapters and head, a regularised head on the frozen base model, or all layers",
    )
    start: Literal["base", "champion"] = Field(
        "base",
        description="where a round's weights start; champion: its adapter and head go on, replay is held to its share",
    )
    seed: int = Field(13, description="of everything random")
    epochs: int | None = Field(
        None, ge=0, description="at most; 0: the probe alone; unset: 8, from 4,000 rows or a champion on 4"
    )
    patience: int = Field(
        2, ge=1, description="epochs without a better validation loss before stopping; from a champion all are run"
    )
    refit_below: int | None = Field(
        1000,
        ge=0,
        description="rows below which all rows, those of validation too, train once more for as many epochs as were best; "
        "from there on the best checkpoint is kept; unset: always once more, unless the round starts from the champion",
    )
    batch_size: int = Field(32, ge=1, description="rows a step, at most: a small set is cut smaller")
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="peak rate of all but the head; unset: 1e-3 for lora, 1e-4 for full, 0.3 of that from a champion",
    )
    head_learning_rate: float = Field(1e-3, gt=0, description="peak rate of the head")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="factor on the rate for each layer further down from the uppermost"
    )
    weight_decay: float = Field(0.01, ge=0, description="AdamW's, on matrices but the head's")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="probability that a training row's target gives away")
    warmup_share: float = Field(0.1, ge=0, lt=1, description="share of the steps over which the rate rises")
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="how the rate falls after that")
    base_dropout: bool = Field(
        True, description="the base model's own dropout while training, in the layers that change and those above"
    )
    focal_distillation: float = Field(
        0.0,
        ge=0,
        description="weight of staying with the champion's probabilities where it is right, against negative flips; 0: off",
    )
    adapted_layers: int | None = Field(
        None,
        ge=1,
        description="uppermost layers that carry adapters; unset: all of an encoder, the upper half of a language model",
    )
    lora_rank: int | None = Field(None, ge=1, description="r; unset: 16 in an encoder, 8 in a language model")
    lora_alpha: int | None = Field(None, ge=1, description="scale is alpha / r; unset: 2 r")
    lora_dropout: float = Field(0.05, ge=0, lt=1, description="on adapter inputs")
    lora_targets: Literal["query-value", "attention", "all"] | None = Field(
        None,
        description="matrices that carry adapters: some of attention, all of it, or those after it too; unset: all, "
        "in a language model query-value",
    )
    label_names: bool = Field(
        True, description="a label's own words are one more row of it: card_arrival, card arrival"
    )
    bf16: bool | None = Field(
        None, description="train in bfloat16, weights staying in float32; unset: where the processor computes in it"
    )
    probe_c: float = Field(
        0.075, gt=0, description="inverse regularisation of the logistic probe, on embeddings of length 20"
    )
    student_layers: int | None = Field(
        None,
        ge=1,
        description="layers of a distilled student that competes to be served; unset: all, and no student unless it is narrower",
    )
    student_heads: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of each layer's attention heads that a student keeps: those that matter most",
    )
    student_feed_forward: float = Field(
        1.0, gt=0, le=1, description="share of each layer's feed-forward units that a student keeps, likewise"
    )
    student_epochs: int = Field(6, ge=1, description="of distillation; minutes for thousands of texts on two cores")
    nice: int = Field(10, ge=0, le=19, description="how far a round yields to serving on the same machine")
    threads: int | None = Field(None, ge=1, description="of torch; unset: all cores")
    reserve_mb: int = Field(
        256, ge=0, description="megabytes of disk that a round leaves free, so that feedback can be stored; 0: none"
    )
    mlflow_uri: str | None = Field(
        None, description="MLflow tracking server or database to log rounds to (extra `mlflow`); unset: none"
    )

    @property
    def makes_student(self) -> bool:
        """Whether a round distils a student: a shape other than the full model's is asked for."""
        return self.student_layers is not None or min(self.student_heads, self.student_feed_forward) < 1


class GateSettings(Group):
    """How a candidate is promoted."""

    policy: str = Field("policy.toml", description="thresholds, each with its reason")
    approval: Literal["auto", "manual"] = Field(
        "auto", description="manual: a passed candidate waits for `ratchet round approve`"
    )
    must_pass: str | None = Field(
        None, description="rows with text and label, as the reference, that a candidate has to get right, every one"
    )
    sets: Literal["lac", "aps"] = Field(
        "lac", description="prediction sets: lac are the smallest; aps are larger and more even from text to text"
    )


class ServingSettings(Group):
    """The inference API."""

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(3000, ge=1, le=65535, description="of the inference API")
    workers: int = Field(2, ge=1, description="processes")
    threads: int | None = Field(
        None, ge=1, description="of ONNX Runtime in each worker; unset: cores / workers, at least 1"
    )
    artifact: Literal["auto", "fp32"] = Field(
        "auto", description="what a round makes to be served; auto: the fastest that may stand in for its fp32 model"
    )
    max_batch: int = Field(
        16, ge=1, description="texts in a turn of the batcher, which sorts them by length and cuts them into calls"
    )
    max_queue: int = Field(2048, ge=1, description="texts waiting in one worker before 503")
    timeout_s: float = Field(10.0, gt=0, description="seconds a request may wait for its batch before 503")
    max_items: int = Field(256, ge=1, description="texts in one request")
    max_text_chars: int = Field(20_000, ge=1, description="characters in one text")
    max_body_bytes: int = Field(
        4_000_000, ge=1024, description="bytes of one request body, unpacked; of feedback less: see docs/security.md"
    )
    max_connections: int = Field(
        1000,
        ge=10,
        description="open connections of one worker; past it, the one that was silent longest is closed for a new one",
    )
    keep_alive_s: float = Field(
        75.0,
        gt=0,
        description="seconds an idle connection stays open; keep it above your load balancer's idle time-out",
    )
    cors_origins: tuple[str, ...] = Field(
        (),
        description='origins whose browser pages may call, such as ["https://app.example"], or ["*"]; none unless set. In '
        "the environment: separated by commas",
    )
    poll_seconds: float = Field(0.5, gt=0, description="seconds between looks at the registry's champion")
    outbox: str = Field("state/outbox", description="folder of events on their way")
    outbox_max_bytes: int = Field(
        1_000_000_000, ge=1_000_000, description="past it predictions are dropped, and counted"
    )

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split_at_commas(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(origin.strip() for origin in value.split(",") if origin.strip())
        return () if value is None else value

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#@\s,]+", origin.lower()):
                raise ValueError(f'{origin!r}: an origin is scheme://host[:port] without a path, or "*"')
        return tuple(origin.lower() for origin in value)


class ConsoleSettings(Group):
    """The review console (comes later)."""

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(3001, ge=1, le=65535, description="of the review console")


class AccessSettings(Group):
    """Who may call. The secrets themselves live in keys.env beside the file."""

    enabled: bool = Field(True, description="false is for tests on loopback only")
    keys: str = Field("keys.env", description="file with RATCHET_API_KEY and RATCHET_SECRET, mode 0600")
    token_seconds: int = Field(7 * 24 * 3600, ge=1, description="life of a prediction's feedback token")
    token_uses: int = Field(50, ge=1, description="feedbacks one token may send, per worker")


class Settings(Group):
    """The whole tree. `root` is the folder that relative paths start from: the one that holds ratchet.toml.

    `state` is where what lies below state/ is kept instead, if the environment sets RATCHET_STATE: root may be read-only then.
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
    root: Path = Field(default=Path(), exclude=True)
    state: Path | None = Field(default=None, exclude=True)

    @model_validator(mode="after")
    def _balances_what_has_one_label(self) -> Self:
        if self.dataset.balance != "none" and self.model.task != "classification":
            raise ValueError(
                f"dataset.balance = {self.dataset.balance!r}: a row of {self.model.task} has not one label"
            )
        return self

    @model_validator(mode="after")
    def _shrinks_what_is_an_encoder(self) -> Self:
        if self.training.makes_student and self.model.task == "generation":
            raise ValueError(
                "training.student_layers, student_heads, student_feed_forward: a model that writes has no student"
            )
        return self

    def path(self, value: str) -> Path:
        """A path setting as an absolute path; relative ones start at `root`, or below state/ at `state` if that is set."""
        parts = Path(value).parts
        if self.state is not None and parts[:1] == (STATE,):
            return (self.root / self.state).absolute().joinpath(*parts[1:])
        return (self.root / value).absolute()

    def location(self, value: str) -> str:
        """A path-or-URL setting: URLs with a scheme as they are, paths as absolute paths."""
        return value if "://" in value else str(self.path(value))

    @property
    def registry_url(self) -> str:
        """The registry's URL with a relative SQLite path made absolute."""
        return self.database_url(self.registry.url)

    @property
    def mlflow_uri(self) -> str | None:
        """MLflow's address with a relative SQLite path made absolute."""
        return self.database_url(self.training.mlflow_uri) if self.training.mlflow_uri else None

    def database_url(self, url: str) -> str:
        """Return a SQLAlchemy URL whose relative SQLite path is absolute and quoted as a URL wants it; others unchanged."""
        prefix = "sqlite:///"
        relative = url.removeprefix(prefix)
        if not url.startswith(prefix) or relative.startswith("/"):
            return url
        first, _, rest = relative.partition("/")
        folder, inside = (self.path(STATE), rest) if first == STATE else (self.root.absolute(), relative)
        return f"{prefix}{quote(str(folder))}/{inside}"

    @property
    def embedded_broker(self) -> bool:
        """Whether the broker is the embedded one, which forgets everything when it stops."""
        return self.kafka.bootstrap_servers is None


def load_settings(text: str | bytes, environ: Mapping[str, str], *, root: Path) -> Settings:
    """Settings from a TOML text and an environment.

    Args:
        text: the content of ratchet.toml, or its bytes; may be empty.
        environ: variables named RATCHET_<GROUP>__<KEY> override the file; others are ignored.
        root: the folder that relative paths start from.

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
            raise SettingsError(f"{group} = {table!r}: expected a table, as {variable} sets a key of it")
        table[key] = _from_environment(value)
        variables[group, key] = variable
        variables.setdefault((group,), variable)
    if unknown := tree.keys() & {"root", "state"}:
        raise SettingsError(f"unknown setting {min(unknown)}")
    try:
        return Settings.model_validate({**tree, "root": root, "state": environ.get(f"{PREFIX}STATE") or None})
    except ValidationError as error:
        found = error.errors(include_url=False)
        raise SettingsError("; ".join(toml_file.explain(e, Settings, text, FILE, variables) for e in found)) from error


def _refuse_single_underscore(variable: str, name: str) -> None:
    """Raise SettingsError for RATCHET_TRIGGERS_CRON, which would be ignored: it lacks an underscore."""
    for group, field in Settings.model_fields.items():
        key = name.removeprefix(f"{group}_")
        if key != name and key in getattr(field.annotation, "model_fields", {}):
            meant = f"{PREFIX}{group}__{key}".upper()
            raise SettingsError(f"{variable} sets nothing: two underscores part group and key; did you mean {meant}?")


def _from_environment(value: str) -> object:
    """Read numbers, booleans and null as JSON; anything else is the string itself. An empty value unsets."""
    if value == "":
        return None
    try:
        parsed = json.loads(value)
    except ValueError:
        return value
    return parsed if parsed is None or isinstance(parsed, int | float | bool) else value


def render_settings(overrides: Mapping[str, Mapping[str, object]]) -> str:
    """A commented ratchet.toml: every setting, its meaning and default; `overrides` ({group: {key: value}}) are set."""
    lines = [
        "# Ratchet's settings. A commented line shows the default. Relative paths start at this file's folder.",
        "",
    ]
    for group, field in Settings.model_fields.items():
        if field.exclude:
            continue
        model = field.annotation
        assert isinstance(model, type) and issubclass(model, Group)
        lines += [f"# {model.__doc__ or group}", f"[{group}]"]  # python -OO has no docstrings
        for key, setting in model.model_fields.items():
            lines.append(f"# {setting.description}")
            chosen = overrides.get(group, {})
            if key in chosen:
                lines.append(f"{key} = {json.dumps(chosen[key])}")
            else:
                default = setting.default
                lines.append(f"# {key} = {json.dumps(default)}" if default is not None else f"# {key} =    (unset)")
        lines.append("")
    return "\n".join(lines)
