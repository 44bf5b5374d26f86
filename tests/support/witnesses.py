"""Who says that ingestion is stuck, and how many seconds after it was: `ratchet up`, `status`, `doctor` and serving's /metrics.

Turns a running `up` and the moment of a fault into seconds and lines. Each witness is asked by itself, as a person or a
monitoring system would ask it.
"""

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx

from tests.support.fakes import REPOSITORY
from tests.support.running_up import RunningUp

EVERY_S = 0.5


@dataclass(frozen=True)
class Statement:
    """What a witness said, and when it was asked, in seconds after the fault; and when it was last asked without an answer.

    On a busy machine an answer takes long. Then a fault is known to show late only if a late question had no answer.
    """

    seconds: float
    line: str
    silent_until: float


class Witnesses:
    """Asks the four until each has said that ingestion is stuck, or until `patience_s` is over."""

    def __init__(self, up: RunningUp, patience_s: float = 120.0) -> None:
        self._up, self._patience_s = up, patience_s
        self._config = str(up.settings.root / "ratchet.toml")

    def question_all(self, since: float) -> dict[str, Statement | None]:
        """Return each witness's statement on a fault that began at a time of `time.monotonic()`; None if it said nothing."""
        ask: dict[str, Callable[[], str | None]] = {
            "up": lambda: self._up.shown("stuck for", since) or self._up.shown("has not reported", since),
            "status": self._status,
            "doctor": self._doctor,
            "/metrics": self._metrics,
        }
        given: dict[str, Statement | None] = dict.fromkeys(ask)

        def question(witness: str) -> None:
            silent_until = 0.0
            while (asked := time.monotonic()) - since < self._patience_s:
                if (line := ask[witness]()) is not None:
                    given[witness] = Statement(asked - since, line, silent_until)
                    return
                silent_until = asked - since
                time.sleep(EVERY_S)

        threads = [threading.Thread(target=question, args=(witness,)) for witness in ask]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return given

    def silent(self) -> bool:
        """Return whether status and /metrics say that nothing is wrong."""
        return self._status() is None and self._metrics() is None

    def _status(self) -> str | None:
        now = json.loads(self._output("status") or "{}").get("ingestion", {}).get("now", [])
        return "; ".join(now) or None

    def _doctor(self) -> str | None:
        checks = json.loads(self._output("doctor") or "[]")
        return next((c["sentence"] for c in checks if (c["part"], c["verdict"]) == ("ingestion", "FAIL")), None)

    def _metrics(self) -> str | None:
        text = httpx.get(f"{self._up.url}/metrics", trust_env=False, timeout=30).text
        stuck = re.search(r"^ratchet_ingestion_stuck\{.*\} ([0-9.]+)$", text, re.MULTILINE)
        if stuck is None or float(stuck[1]) == 0:
            return None
        return "; ".join(re.findall(r"^(ratchet_ingestion_next_offset\{.*)$", text, re.MULTILINE))

    def _output(self, command: str) -> str:
        arguments = [sys.executable, "-m", "services.cli", command, "--json", "-c", self._config]
        return subprocess.run(
            arguments, cwd=REPOSITORY, capture_output=True, encoding="utf-8", timeout=120, check=False
        ).stdout
