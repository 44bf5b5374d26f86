"""The live model: a reference to the runtime that serves, and a loop that follows the registry's champion.

Turns the registry's champion into a verified, loaded runtime and replaces the reference. Each serving worker runs one. It
polls the registry instead of trusting messages, so a lost message does no harm. If a version cannot be loaded, the error is
reported and the old runtime continues.

The previous version stays loaded, so a rollback is immediate. Versions are identified by digest, so the same content is never
loaded twice.
"""

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from schemas.labels import LabelMap
from schemas.records import Champion
from serving.artifacts import ArtifactStore
from serving.atomic_write import atomic_write
from serving.inference.loading import Loaded, open_version
from serving.process.memory import keep_blocks_apart, return_free_memory
from serving.registry.registry import Registry
from serving.registry.safeguards.marker import check

log = logging.getLogger("ratchet.live")

HEARTBEAT_SECONDS, REPEAT_SECONDS = 5.0, 30.0


class LiveModel:
    """The model version that this worker serves, kept equal to the registry's champion."""

    def __init__(
        self, registry: Registry, store: ArtifactStore, cache: Path, *, threads: int, poll_seconds: float
    ) -> None:
        self._registry = registry
        self._store = store
        self._cache = cache
        self._threads = threads
        self._poll_seconds = poll_seconds
        self._last_good = cache / f"last-good-{registry.model_name}.json"
        self._live: tuple[Loaded, Champion] | None = None
        self._previous: Loaded | None = None
        self.labels = LabelMap()
        self._error: str | None = None
        self._refused: str | None = None  # digest
        self._tries = 0
        self._try_at = self._beat_at = 0.0
        self._last_warning = ("", 0.0)
        self.on_beat: Callable[[], None] | None = None  # called after each heartbeat; may raise ConnectionError
        self.on_swap: Callable[[Loaded, Champion, float], None] | None = None  # called with the seconds of loading
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="live", daemon=True)

    def start(self) -> None:
        """Load the champion, or the last good version from the cache; then start to follow the registry."""
        keep_blocks_apart()
        self.follow()
        if self._live is None and self._last_good.exists():
            self._serve_last_good()
        self._thread.start()

    def close(self) -> None:
        """Stop following the registry and wait for the thread."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(5)

    def current(self) -> tuple[Loaded, int] | None:
        """Return the live runtime and its generation, None if nothing is loaded."""
        return (self._live[0], self._live[1].generation) if self._live else None

    def champion(self) -> Champion | None:
        """Return the champion that this worker serves; the registry may name a newer one for a moment."""
        return self._live[1] if self._live else None

    def refresh_labels(self) -> LabelMap:
        """Read the taxonomy again and return it. Blocks: never call it on an event loop. Raises ConnectionError."""
        self.labels = self._registry.label_map()
        return self.labels

    def follow(self) -> None:
        """Read the registry once: swap to its champion if it changed, and send a heartbeat if one is due."""
        try:
            champion = self._registry.champion()
            if champion and (self._live is None or champion.generation != self._live[1].generation):
                self._swap(champion)
            if time.monotonic() > self._beat_at:
                self.refresh_labels()
                self._beat()
                if self.on_beat is not None:
                    self.on_beat()
        except ConnectionError as error:
            self._warn(f"cannot read the registry, the live version continues: {error}")

    def _warn(self, line: str) -> None:
        """Log a line, unless it is the last one and that was less than REPEAT_SECONDS ago: it is read twice a second."""
        last, at = self._last_warning
        if line != last or time.monotonic() - at > REPEAT_SECONDS:
            self._last_warning = (line, time.monotonic())
            log.warning("%s", line)

    def _run(self) -> None:
        while not self._stop.wait(self._poll_seconds):
            try:
                self.follow()
            except Exception:
                log.exception("following the registry failed, the live version continues")

    def _swap(self, champion: Champion) -> None:
        if champion.digest != self._refused:
            self._tries, self._try_at = 0, 0.0
        if time.monotonic() < self._try_at:
            return
        started = time.monotonic()
        try:
            check(self._registry, self._store)
            runtime = self._warm(champion.digest) or self._load(champion)
        except Exception as error:  # also ONNX Runtime's, the tokenizer's, and too little memory
            self._refused = champion.digest
            self._tries += 1
            self._try_at = time.monotonic() + min(60.0, 2.0**self._tries)
            self._error = f"{champion.model_version}: {str(error) or type(error).__name__}"
            consequence = (
                "the live version continues" if self._live else "no other version is loaded: nothing is served"
            )
            log.error("refused %s; %s", self._error, consequence)
        else:
            if self._live is not None and self._live[0] is not runtime:
                self._previous = self._live[0]
            self._live = (runtime, champion)  # the swap replaces one reference
            if self.on_swap is not None:
                self.on_swap(runtime, champion, time.monotonic() - started)
            self._error, self._refused = None, None
            log.info("serving %s, generation %d", champion.model_version, champion.generation)
            self._remember(champion)
            return_free_memory()
        self._beat()

    def _warm(self, digest: str) -> Loaded | None:
        """Return the live or the previous runtime if it has this digest."""
        loaded = [self._live[0] if self._live else None, self._previous]
        return next((runtime for runtime in loaded if runtime and runtime.digest == digest), None)

    def _load(self, champion: Champion) -> Loaded:
        """Fetch, verify and load a version while the live one serves. Raises what the loading libraries raise."""
        directory = self._store.fetch(champion.digest, self._cache)
        return open_version(directory, champion.digest, threads=self._threads)

    def _beat(self) -> None:
        self._beat_at = time.monotonic() + HEARTBEAT_SECONDS
        version, generation = (self._live[1].model_version, self._live[1].generation) if self._live else (None, 0)
        self._registry.heartbeat(
            str(os.getpid()), socket.gethostname(), model_version=version, generation=generation, error=self._error
        )

    def _remember(self, champion: Champion) -> None:
        try:
            atomic_write(self._last_good, champion.model_dump_json())
        except OSError as error:  # only needed by a start without the registry
            log.warning("cannot record the last good version: %s", error)

    def _serve_last_good(self) -> None:
        started = time.monotonic()
        try:
            champion = Champion.model_validate(json.loads(self._last_good.read_text(encoding="utf-8")))
            runtime = open_version(self._cache / champion.digest, champion.digest, threads=self._threads)
        except Exception as error:
            log.warning("the last good version cannot be served: %s", error)
        else:
            self._live = (runtime, champion)
            if self.on_swap is not None:
                self.on_swap(runtime, champion, time.monotonic() - started)
            log.info("the champion cannot be read or loaded: serving the last good version %s", champion.model_version)
