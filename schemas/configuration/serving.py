"""The settings of the inference API: address, workers, limits and outbox."""

import re
from typing import Literal

from pydantic import Field, field_validator

from schemas.setting_groups import Group


class ServingSettings(Group):
    """The inference API."""

    host: str = Field("127.0.0.1", description="address of the inference API")
    port: int = Field(3000, ge=1, le=65535, description="port of the inference API")
    workers: int = Field(2, ge=1, description="worker processes")
    threads: int | None = Field(
        None, ge=1, description="ONNX Runtime threads of each worker. Unset: cores / workers, at least 1"
    )
    artifact: Literal["auto", "fp32"] = Field(
        "auto",
        description="artefact that a round proposes: auto, the fastest that matches the full-precision model within the "
        "policy's margins; fp32, always full precision",
    )
    max_batch: int = Field(16, ge=1, description="maximum texts in one turn of the batcher")
    max_queue: int = Field(2048, ge=1, description="maximum texts that wait in one worker; beyond it requests get 503")
    timeout_s: float = Field(
        10.0, gt=0, description="maximum seconds that a request waits for its batch before it gets 503"
    )
    max_items: int = Field(256, ge=1, description="maximum texts in one request")
    max_text_chars: int = Field(20_000, ge=1, description="maximum characters of one text")
    max_body_bytes: int = Field(
        4_000_000,
        ge=1024,
        description="maximum bytes of a request body after decompression; feedback has a lower limit (docs/security.md)",
    )
    max_connections: int = Field(
        1000,
        ge=10,
        description="maximum open connections of one worker; beyond it a new one closes the connection that was silent longest",
    )
    keep_alive_s: float = Field(
        75.0,
        gt=0,
        description="seconds that an idle connection stays open; keep it above your load balancer's idle time-out",
    )
    cors_origins: tuple[str, ...] = Field(
        (),
        description='origins whose browser pages may call, such as ["https://app.example"], or ["*"] for all. In the '
        "environment: separated by commas",
    )
    poll_seconds: float = Field(0.5, gt=0, description="seconds between two checks for a new champion")
    outbox: str = Field("state/outbox", description="folder of events that are not yet published")
    outbox_max_bytes: int = Field(
        1_000_000_000,
        ge=1_000_000,
        description="maximum bytes of a worker's outbox; beyond it prediction events are dropped and counted",
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
