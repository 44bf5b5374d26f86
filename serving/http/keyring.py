"""The keyring of a worker: who may call, by the project's own key and by the named keys of the registry.

Turns an Authorization header into a `Person`. A thread reads the registry's keys every two seconds, so a revoked key is refused
within seconds, without a restart. A key that is new is read when it is first used: see guard.py. The newest copy is kept in a
file, hashes alone, so that a worker that starts while the registry is down still knows its callers.
"""

import hmac
import logging
import threading
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from pydantic import AwareDatetime, ValidationError

from schemas.events import Frozen, utc_now
from schemas.records import NamedKey, Person, Role
from serving.atomic_write import atomic_write
from serving.http.access import Keys, bearer
from serving.named_keys import key_id_of, person_of

log = logging.getLogger("ratchet.keys")

EVERY_S = 2.0
# RATCHET_API_KEY is what apps were given before there were named keys. It opens the API's routes and decides nothing.
MACHINE = Person(name="machine", roles=(Role.PREDICT, Role.FEEDBACK), key_id="keys.env")


class KeyCopy(Frozen):
    """What the registry says of keys and prediction ids, as last read."""

    keys: tuple[NamedKey, ...] = ()
    signed_since: AwareDatetime | None = None


class Keyring:
    """The keys that one worker knows.

    Args:
        project: the keys of keys.env.
        read: reads the registry; may raise ConnectionError. None: only the project's own key is known.
        file: keeps the newest copy; None: no file.
        api_key: reads RATCHET_API_KEY from keys.env again; may raise OSError. None: it stays as it is.
        clock: returns the time now, in aware UTC.

    """

    def __init__(
        self,
        project: Keys,
        read: Callable[[], tuple[Sequence[NamedKey], datetime | None]] | None = None,
        file: Path | None = None,
        *,
        api_key: Callable[[], str] | None = None,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._api_key = project.api_key.encode()
        self._read = read
        self._read_api_key = api_key
        self._file = file
        self._clock = clock
        self._reading = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="keyring", daemon=True)
        self._copy = KeyCopy()
        self._by_id: dict[str, NamedKey] = {}

    @property
    def signed_since(self) -> datetime | None:
        """The time before which prediction ids carry no checksum; None if all of them do."""
        return self._copy.signed_since

    def identify(self, authorization: bytes) -> Person | None:
        """Return who sends an Authorization header; None for a missing, unknown, revoked or expired key."""
        key = bearer(authorization)
        if hmac.compare_digest(key, self._api_key):
            return MACHINE
        return person_of(self._by_id, key.decode("latin-1"), self._clock())

    def may_be_new(self, authorization: bytes) -> bool:
        """Return whether a header carries a named key that this worker has never heard of."""
        key_id = key_id_of(bearer(authorization).decode("latin-1"))
        return self._read is not None and key_id is not None and key_id not in self._by_id

    def start(self) -> None:
        """Read the registry, or the file if it cannot be reached; then follow the registry."""
        if self._read is None:
            return
        if not self.refresh() and self._file is not None and self._file.exists():
            self._take_stored(self._file)
        self._thread.start()

    def close(self) -> None:
        """Stop following the registry."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(5)

    def refresh(self) -> bool:
        """Read the registry once; return False if it cannot be reached, which leaves the keys as they were."""
        assert self._read is not None
        with self._reading:  # an earlier read never replaces a later one
            try:
                keys, signed_since = self._read()
            except ConnectionError as error:
                log.debug("keys stay as last read: %s", error)  # the live model's loop warns of the same outage
                return False
            copy = KeyCopy(keys=tuple(keys), signed_since=signed_since)
            if copy != self._copy:
                self._take(copy)
                self._store(copy)
        return True

    def refresh_api_key(self) -> None:
        """Read the project's own key again. One that is missing for now stays as it was."""
        if self._read_api_key is not None:
            try:
                self._api_key = self._read_api_key().encode()
            except OSError as error:
                log.debug("the API key stays as it was: %s", error)

    def _take(self, copy: KeyCopy) -> None:
        self._by_id = {key.key_id: key for key in copy.keys}  # one reference is replaced: no request sees half
        self._copy = copy

    def _store(self, copy: KeyCopy) -> None:
        if self._file is not None:
            try:
                atomic_write(self._file, copy.model_dump_json(), mode=0o600)
            except OSError as error:  # only needed by a start without the registry
                log.warning("cannot keep a copy of the keys: %s", error)

    def _take_stored(self, file: Path) -> None:
        try:
            self._take(KeyCopy.model_validate_json(file.read_bytes()))
        except (OSError, ValidationError) as error:
            log.warning("the copy of the keys cannot be read: %s", error)
        else:
            log.info("the registry cannot be read: its keys are those of %s", file.name)

    def _run(self) -> None:
        while not self._stop.wait(EVERY_S):
            try:
                self.refresh_api_key()
                self.refresh()
            except Exception:
                log.exception("reading the keys failed, the earlier ones stay")
