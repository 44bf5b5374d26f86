"""Counters of callers: requests and texts of a key within a time, and uses of a feedback token.

Turns a caller and a limit into permission or the seconds to wait. guard.py calls it. With `access.counters`, a Redis counts for
all workers of all machines. Without, each worker counts requests and texts by itself, and the workers of one machine count token
uses together in a file.

A counter that cannot be reached stops nobody: this worker then counts by itself, and says so. Windows are `limits`' sliding
window counters: the count of the window before is weighted by its share that the last `window` seconds still cover.
"""

import asyncio
import contextlib
import hashlib
import logging
import math
import sqlite3
import threading
import time
from pathlib import Path

from limits import RateLimitItem, parse
from limits.aio import storage as shared_storage
from limits.aio.strategies import SlidingWindowCounterRateLimiter as SharedLimiter
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

log = logging.getLogger("ratchet.counters")

REDIS_TIMEOUT_S = 0.25
REPEAT_S, RETRY_S = 30.0, 5.0
BUSY_S = 0.25
CLEAR_EVERY = 1000  # uses after which expired tokens are deleted
_TABLE = "CREATE TABLE IF NOT EXISTS uses (token BLOB PRIMARY KEY, uses INTEGER NOT NULL, expires INTEGER NOT NULL)"
_USE = "INSERT INTO uses VALUES (?, 1, ?) ON CONFLICT (token) DO UPDATE SET uses = uses + 1 RETURNING uses"  # one statement


class Counters:
    """The counters of one worker.

    Args:
        model_name: keeps the projects of a shared Redis apart.
        redis: address of a Redis; None: count here.
        file: SQLite file that counts token uses for the workers of this machine.

    """

    def __init__(self, model_name: str, redis: str | None, file: Path) -> None:
        self._prefix = f"ratchet:{model_name}"
        self._own = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._redis = _redis_storage(redis) if redis else None
        self._shared = SharedLimiter(self._redis) if self._redis else None
        self._tokens = TokenUses(file)
        self._warned_at = self._retry_at = float("-inf")

    async def wait_s(self, kind: str, caller: str, limit: str, amount: int = 1) -> int | None:
        """Return None after counting `amount` for a caller, or the seconds to wait if that would pass the limit.

        Args:
            kind: what is counted: "requests" or "texts".
            caller: id of the caller's name or key.
            limit: such as 600/minute.
            amount: more than the whole limit is never admitted.

        """
        item, key = parse(limit), (self._prefix, kind, caller)
        if self._shared is not None and self._reachable():
            try:
                if await self._shared.hit(item, *key, cost=amount):
                    return None
                return _until((await self._shared.get_window_stats(item, *key)).reset_time, item)
            except Exception as error:  # the client's errors are its own, and none of them may stop a request
                self._warn(error)
        if self._own.hit(item, *key, cost=amount):
            return None
        return _until(self._own.get_window_stats(item, *key).reset_time, item)

    async def token_uses(self, token: str, expires: int) -> int:
        """Return how often a verified token has been used, this use included; `expires` is its Unix second."""
        digest = hashlib.sha256(token.encode()).digest()[:16]
        if self._redis is not None and self._reachable():
            try:
                lifetime = max(1, expires - int(time.time()))
                return await self._redis.incr(f"{self._prefix}:token:{digest.hex()}", lifetime)
            except Exception as error:
                self._warn(error)
        return await asyncio.to_thread(self._tokens.use, digest, expires)

    def close(self) -> None:
        """Close the file."""
        self._tokens.close()

    def _reachable(self) -> bool:
        return time.monotonic() >= self._retry_at

    def _warn(self, error: Exception) -> None:
        self._retry_at = time.monotonic() + RETRY_S  # until then no request waits for a Redis that does not answer
        if time.monotonic() - self._warned_at > REPEAT_S:
            self._warned_at = time.monotonic()
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            log.warning("access.counters cannot be reached, this worker counts by itself: %s", reason)


class TokenUses:
    """Uses of feedback tokens, in a SQLite file that the workers of one machine share; in memory if it cannot be used.

    A crash may lose the last counts, which costs nothing but a few uses more: so nothing is synced to disk.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None
        self._memory: dict[bytes, int] = {}
        self._uses = 0

    def use(self, token: bytes, expires: int) -> int:
        """Count a use of a token and return the number of its uses. Blocks for up to BUSY_S."""
        with self._lock:
            try:
                database = self._database or self._open()
                with database:
                    self._clear(database)
                    [(uses,)] = database.execute(_USE, (token, expires)).fetchall()
                    return int(uses)
            except (sqlite3.Error, OSError) as error:
                log.warning("token uses are counted in this worker alone: %s", error)
                self._close()
                return self._use_in_memory(token)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._close()

    def _open(self) -> sqlite3.Connection:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(self._file, timeout=BUSY_S, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=OFF")
        self._database.execute(_TABLE)
        return self._database

    def _close(self) -> None:
        if self._database is not None:
            with contextlib.suppress(sqlite3.Error):
                self._database.close()
            self._database = None

    def _clear(self, database: sqlite3.Connection) -> None:
        if self._uses % CLEAR_EVERY == 0:
            database.execute("DELETE FROM uses WHERE expires < ?", (int(time.time()),))
        self._uses += 1

    def _use_in_memory(self, token: bytes) -> int:
        if len(self._memory) >= 100_000:
            self._memory.clear()
        self._memory[token] = self._memory.get(token, 0) + 1
        return self._memory[token]


def _redis_storage(address: str) -> shared_storage.RedisStorage:
    return shared_storage.RedisStorage(
        f"async+{address}",
        implementation="redispy",
        socket_timeout=REDIS_TIMEOUT_S,
        socket_connect_timeout=REDIS_TIMEOUT_S,
    )


def _until(reset_time: float, item: RateLimitItem) -> int:
    """Return whole seconds until a window gives room, at least 1."""
    return max(1, min(item.get_expiry(), math.ceil(reset_time - time.time())))
