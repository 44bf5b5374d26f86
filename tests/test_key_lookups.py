"""Keys that a worker does not know, while the registry hangs: many callers, one thread."""

import asyncio
import threading
from pathlib import Path

import pytest

from schemas.records import NamedKey
from schemas.settings import Settings
from serving.http.access import Keys
from serving.http.asgi import Message, Refused, Request
from serving.http.counters import Counters
from serving.http.guard import LOOKUP_EVERY_S, Guard
from serving.http.keyring import Keyring
from serving.named_keys import make_key

OWN = Keys(api_key="own", secret="s")


class Watched(Keyring):
    """A keyring that counts the threads inside `refresh`."""

    def __init__(self, ends: threading.Event) -> None:
        self.inside = self.most = 0
        self._counting = threading.Lock()

        def hang() -> tuple[list[NamedKey], None]:
            ends.wait(60)
            return [], None

        super().__init__(OWN, hang)

    def refresh(self) -> bool:
        with self._counting:
            self.inside += 1
            self.most = max(self.most, self.inside)
        try:
            return super().refresh()
        finally:
            with self._counting:
                self.inside -= 1


async def nothing() -> Message:
    return {"type": "http.disconnect"}


def test_unknown_keys_hold_one_thread_while_the_registry_hangs_and_are_refused_once_it_answers(tmp_path: Path) -> None:
    ends = threading.Event()
    keyring, counters = Watched(ends), Counters("m", None, tmp_path / "uses.db")
    guard = Guard(Settings(root=tmp_path), OWN.secret, keyring, counters, lookup_s=2 * LOOKUP_EVERY_S)

    async def forged() -> int:
        headers = {b"authorization": f"Bearer {make_key()[1]}".encode()}
        with pytest.raises(Refused) as refused:
            await guard.admit(Request("GET", headers, nothing))
        return refused.value.status

    async def attack() -> list[int]:
        try:  # each caller waits longer than lookups lie apart
            return [status for _ in range(3) for status in await asyncio.gather(*(forged() for _ in range(20)))]
        finally:
            ends.set()
            async with asyncio.timeout(60):
                while await forged() != 401:
                    pass

    assert asyncio.run(attack()) == [503] * 60
    assert keyring.most == 1
