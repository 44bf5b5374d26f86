"""The groups of settings: one frozen model for each table of ratchet.toml.

Each field has a default, bounds and a description with its unit and the meaning of unset. settings.py puts the groups into
one tree and loads it. The large groups are modules of their own, such as configuration/kafka.py and configuration/console.py.
"""

from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

from schemas.targets import Task

LIMIT = r"^[1-9][0-9]{0,11}/(second|minute|hour|day)$"  # a rate or quota: a count within a time


def _optional(field: FieldInfo) -> bool:
    return type(None) in get_args(field.annotation)


class Group(BaseModel):
    """One table of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _empty_text_unsets(cls, values: object) -> object:
        """Turn an empty text into None where a setting may be unset: TOML has no null."""
        if not isinstance(values, dict):
            return values
        fields = cls.model_fields
        unset = [key for key, value in values.items() if value == "" and key in fields and _optional(fields[key])]
        return values | dict.fromkeys(unset)


class ModelSettings(Group):
    """The model: its name, its task and its pretrained base."""

    name: str = Field(
        "model",
        pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$",
        description="name of the model in topics, registry keys and metric labels; a project has one model",
    )
    task: Task = Field(
        "classification",
        description="classification (one label), multilabel (several labels), regression (a number) or generation (text)",
    )
    base_model: str | None = Field(
        None,
        description="folder or hub name of a pretrained encoder; for generation, of a causal language model (a GGUF file "
        "works too). Unset: the installed all-MiniLM-L6-v2, for generation SmolLM2-135M-Instruct",
    )
    max_length: int = Field(
        128, ge=8, le=8192, description="maximum tokens of a text or prompt; longer ones are truncated"
    )
    at_least_one_label: bool | None = Field(
        None,
        description="multilabel: every answer has a label, the likeliest one if none is above its threshold. Unset: if every "
        "calibration row has one",
    )
    max_new_tokens: int = Field(
        128,
        ge=1,
        le=8192,
        description="generation: maximum tokens of an answer; longer training completions are truncated",
    )


class DatasetSettings(Group):
    """The dataset: which rows train, validate and evaluate."""

    seed: str = Field("data/seed.csv", description="file of labelled rows; the first champion trains on it")
    reference: str | None = Field(
        None,
        description="file of curated rows for calibration and gates; they never train. Unset: a share of the seed is held out",
    )
    text_column: str | None = Field(
        None, description="column of the text in every file of rows. Unset: detected by name"
    )
    label_column: str | None = Field(
        None, description="column of the label, labels, target or completion. Unset: detected by name"
    )
    calibration_share: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of the reference set that only fits the calibration; the gates use the rest. Unset: every row does "
        "both, and is judged under a calibration fitted without it",
    )
    validation_share: float = Field(
        0.15, gt=0, lt=0.5, description="share of the training rows held out for early stopping"
    )
    max_rows_per_person: int | None = Field(
        50, ge=1, description="maximum rows of one person in a round; the newest are kept. Unset: no limit"
    )
    domain: tuple[str, ...] = Field(
        (), description="further training rows: files like the seed, or Hugging Face dataset folders"
    )
    split_by: Literal["text", "time", "person"] = Field(
        "text",
        description="how validation rows are chosen: by a keyed hash of the text, by person, or the newest feedback (time)",
    )
    min_chars: int = Field(2, ge=1, description="minimum letters and digits of a training text")
    language: str | None = Field(
        None,
        pattern="^[a-z]{2}$",
        description="ISO 639-1 code; texts clearly in another language are dropped. Unset: every language",
    )
    names: bool = Field(
        True, description="replace names and places in training texts, if spaCy is installed (extra `ner`)"
    )
    balance: Literal["none", "weights", "cap"] = Field(
        "none",
        description="classification: weights gives rare labels a larger loss weight; cap keeps at most 5 times as many rows "
        "of a label as the median label has",
    )
    replay: float | None = Field(
        1.0,
        ge=0,
        description="older feedback rows per newer row. From the base model, the first 10,000 older rows are always kept. "
        "Unset: all",
    )
    unchallenged: float = Field(
        3.0,
        ge=0,
        description="the champion's answers that nobody corrected train too, at most this many for each correction, until "
        "their mix is that of traffic. 0: none",
    )
    quarantine: bool = Field(True, description="drop the rows of people whose labels contradict everybody else's")
    audit_rate: float = Field(
        0.02, ge=0, le=1, description="share of predictions in the audit sample, chosen by a keyed hash"
    )
    audit_days: float = Field(
        14.0,
        gt=0,
        description="days that a text of the audit sample waits for a label. Until then feedback on it does not train; without "
        "a label it trains from then on",
    )
    settled_evidence: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the labels of settled rounds that join the reference set, by a keyed hash; the others train. Such "
        "texts are harder than traffic, because two models disagreed on them",
    )


class FeatureStoreSettings(Group):
    """The event log and Feast."""

    event_log: str = Field("state/events", description="folder or s3:// address of the two Delta tables")
    config: str = Field("feature_store.yaml", description="Feast's configuration file")
    batch_rows: int = Field(2000, ge=1, description="rows after which a micro-batch is committed")
    batch_seconds: float = Field(0.5, gt=0, description="seconds after which a micro-batch is committed")
    compact_every: int = Field(50, ge=2, description="commits between two compactions of the event log")
    orphan_hours: float = Field(
        168.0, gt=0, description="hours that feedback waits for its prediction before it becomes a dead letter"
    )
    metrics_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="port of the consumer's Prometheus metrics on every interface. Unset: see `observability.consumer_port`",
    )


class RegistrySettings(Group):
    """The registry: versions, champion, rounds and audit log."""

    url: str = Field(
        "sqlite:///state/registry.db", description="SQLAlchemy URL; use postgresql+psycopg://... in production"
    )
    serving_url: str | None = Field(
        None,
        description="URL that serving uses instead of registry.url, with the user of `ratchet access database-role`. Unset: "
        "registry.url",
    )
    audit_head_file: str | None = Field(
        None,
        description="file outside this machine's reach, such as a mounted append-only share, to which the audit log's head is "
        "appended. Unset: none",
    )
    audit_head_topic: str | None = Field(
        None, description="Kafka topic to which the audit log's head is published; it must exist. Unset: none"
    )


class ArtifactSettings(Group):
    """The artefact store: files of model versions."""

    url: str = Field("state/artifacts", description="folder, or an fsspec address such as s3://bucket/prefix")
    cache: str = Field("state/cache", description="local folder of downloaded versions; may be deleted at any time")
    keep_versions: int = Field(
        20,
        ge=1,
        description="versions that never served: keep this many of the newest, delete older ones. Versions that served stay",
    )


class TriggerSettings(Group):
    """Triggers: a round starts when the first of them fires."""

    min_feedback: int = Field(
        200, ge=1, description="new labelled feedback since the last round, agreeing or not, that starts a round"
    )
    max_age: float | None = Field(
        None, gt=0, description="hours after the last round at which any new feedback starts a round. Unset: off"
    )
    drift: float | None = Field(None, gt=0, lt=1, description="not implemented; must stay unset")
    cron: str | None = Field(None, description="crontab with five fields, in UTC. Unset: off")
    tick_seconds: float = Field(2.0, gt=0, description="seconds between two checks of the triggers")
    stale_after_s: float = Field(
        120.0, gt=0, description="seconds without a heartbeat after which a round counts as dead"
    )
    max_attempts: int = Field(3, ge=1, description="attempts to finish a dead round before it is marked failed")


class GateSettings(Group):
    """How a candidate is promoted."""

    policy: str = Field("policy.toml", description="file of the gates' thresholds, each with its reason")
    approval: Literal["auto", "manual"] = Field(
        "auto", description="manual: a candidate that passed waits for `ratchet round approve`"
    )
    must_pass: str | None = Field(
        None, description="file of rows that a candidate must answer correctly, every one. Unset: none"
    )
    sets: Literal["lac", "aps"] = Field(
        "lac",
        description="conformal prediction sets: lac gives the smallest sets, aps larger sets with more even coverage",
    )


class AccessSettings(Group):
    """Who may call the API. The secrets are in keys.env."""

    enabled: bool = Field(True, description="check keys and tokens; false only for tests on loopback")
    keys: str = Field("keys.env", description="file with RATCHET_API_KEY and RATCHET_SECRET, mode 0600")
    token_seconds: int = Field(7 * 24 * 3600, ge=1, description="seconds that a prediction's feedback token is valid")
    token_uses: int = Field(
        50,
        ge=1,
        description="maximum uses of a feedback token, counted across the workers of a machine, or of all in Redis",
    )
    unknown_predictions: Literal["refuse", "accept"] = Field(
        "refuse",
        description="feedback by HTTP on a prediction that POST /predict did not make: refuse answers 404; accept answers 202, "
        "for projects whose predictions another producer writes into Kafka",
    )
    rate: str | None = Field(
        None,
        pattern=LIMIT,
        description="maximum requests of one key within a second, minute, hour or day, such as 600/minute; beyond it 429. "
        "`ratchet access add --rate` sets another for one key. Unset: no limit",
    )
    quota: str | None = Field(
        None,
        pattern=LIMIT,
        description="maximum texts that one key may have predicted within a time, such as 1000000/day; beyond it 429. Unset: no "
        "limit",
    )
    counters: str | None = Field(
        None,
        pattern=r"^rediss?://",
        description="Redis that counts rates, quotas and token uses for all workers, such as redis://HOST:6379/0. Unset: each "
        "worker counts requests and texts by itself, so N workers admit up to N times as many",
    )
