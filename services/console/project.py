"""The project behind the console: settings, registry, keys, artefacts and event log, opened once and shared by requests.

Turns a settings file into a `Project`. Pages, actions and the API read it. The event log is opened at first use, because its
libraries take a second to load.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.settings import Settings
from services.console.throttle import Throttle
from services.projects import running_up
from serving.artifacts import ArtifactStore
from serving.http.access import Keys
from serving.registry.registry import Registry

if TYPE_CHECKING:
    from pipelines.feature_store.event_search import EventSearch


class Kept:
    """Values kept for a few seconds, each computed by one thread at a time."""

    def __init__(self) -> None:
        self._values: dict[str, tuple[object, float, Any]] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, name: str, key: object, seconds: float, now: float, make: Callable[[], Any]) -> Any:
        """Return the value made for `key` within the last `seconds`; else make it."""
        with self._lock:
            one = self._locks.setdefault(name, threading.Lock())
        with one:
            stored = self._values.get(name)
            if stored and stored[0] == key and now - stored[1] <= seconds:
                return stored[2]
            value = make()
            self._values[name] = (key, now, value)
            return value


@dataclass
class Project:
    """One project, as all requests share it."""

    settings: Settings
    config: Path
    registry: Registry
    keys: Keys
    operator_key: str = ""
    kept: Kept = field(default_factory=Kept)
    tries: Throttle = field(default_factory=lambda: Throttle(30, 30, 600))
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _events: "EventSearch | None" = None

    @property
    def store(self) -> ArtifactStore:
        """Return the artefact store."""
        return ArtifactStore(self.settings.location(self.settings.artifacts.url))

    @property
    def events(self) -> "EventSearch":
        """Return the event log, opened at the first call. Raises OSError."""
        with self._lock:
            if self._events is None:
                from pipelines.feature_store.event_search import EventSearch

                self._events = EventSearch(self.settings.location(self.settings.feature_store.event_log))
            return self._events

    def up(self) -> dict[str, Any]:
        """Return the state of the folder's `ratchet up`; {} if it is not running."""
        return running_up(self.settings) or {}

    def serving_url(self) -> str:
        """Return the address of the inference API."""
        address = self.up().get("serving")
        return str(address or f"http://{self.settings.serving.host}:{self.settings.serving.port}")

    def console_url(self) -> str:
        """Return the console's address in a browser."""
        console = self.settings.console
        return console.public_url or f"http://{console.host}:{console.port}"

    def version_folder(self, digest: str) -> Path:
        """Return the verified folder of a version. Raises what `ArtifactStore.fetch` raises."""
        return self.store.fetch(digest, self.settings.path(self.settings.artifacts.cache))
