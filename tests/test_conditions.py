"""Every command and process in the conditions that servers give: it works, keeps its files private and stops on SIGTERM."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from pipelines.feature_store.store import FeatureStore
from schemas.records import FINAL_STATES, RoundState
from schemas.settings import load_settings
from serving.http.access import read_keys
from serving.registry.registry import Registry
from tests.support.conditions import Conditions
from tests.support.disks import filled, small_disk
from tests.support.fakes import free_port, toy_rows, wait_until, write_rows
from tests.support.running_up import Traffic, stored_ids

pytestmark = pytest.mark.long
PARTS = ("serving", "consumer", "scheduler", "console")
READING = [
    "status", "doctor", "evidence", "round list", "round show latest", "model list", "labels list", "queue status",
    "queue list", "access list", "audit list", "audit verify", "dataset build", "prune --dry-run",
    "feedback export --out {}/f.csv", "dataset export --out {}/d.jsonl",
]  # fmt: skip


class Site:
    """A project whose setup and processes run under some conditions; `url` and `key` are those of its API."""

    def __init__(self, conditions: Conditions, config: Path, logs: Path) -> None:
        self.conditions, self.config, self.logs = conditions, config, logs
        self.settings = load_settings(config.read_bytes(), conditions.environment, root=config.parent)
        self.url = f"http://127.0.0.1:{self.settings.serving.port}"
        self.key = read_keys(config.parent / "keys.env").api_key
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def log(self, part: str) -> str:
        """Return what a part has printed."""
        return (self.logs / f"{part}.log").read_text(encoding="utf-8")

    def start(self, *parts: str) -> None:
        """Start parts and wait until all are ready."""
        for part in parts:
            self._processes[part] = self.conditions.start(self.logs / f"{part}.log", "start", part, "-c", self.config)
        for part in parts:
            wait_until(lambda part=part: self._ready(part) or self._ended(part), timeout_s=600)  # type: ignore[misc]
            assert not self._ended(part), self.log(part)

    def stop(self) -> dict[str, int]:
        """Send SIGTERM to every part and return their exit statuses."""
        for process in self._processes.values():
            process.send_signal(signal.SIGTERM)
        statuses = {part: process.wait(300) for part, process in self._processes.items()}
        self._processes = {}
        return statuses

    def _ended(self, part: str) -> bool:
        return self._processes[part].poll() is not None

    def _ready(self, part: str) -> bool:
        if part in ("consumer", "scheduler"):
            return "ready" in self.log(part)
        port = self.settings.serving.port if part == "serving" else self.settings.console.port
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False).status_code in (200, 404)
        return False


@contextlib.contextmanager
def conditions_of(name: str, folder: Path, broker: str) -> Iterator[Conditions]:
    """Yield one of two sets of conditions: nothing where a process expects something, or something unusable."""
    variables = {
        "RATCHET_KAFKA__BOOTSTRAP_SERVERS": broker,
        "RATCHET_SERVING__PORT": str(free_port()),
        "RATCHET_CONSOLE__PORT": str(free_port()),
        "RATCHET_MODEL__MAX_LENGTH": "32",
        "RATCHET_TRIGGERS__MIN_FEEDBACK": "90",
        "RATCHET_TRIGGERS__TICK_SECONDS": "0.5",
        "RATCHET_TRAINING__EPOCHS": "1",
        "RATCHET_TRAINING__THREADS": "1",
        "RATCHET_TRAINING__NICE": "0",
    }
    if name == "nothing is there":
        yield Conditions.of(folder / "elsewhere", "000", TMPDIR=str(folder / "missing"), **variables)
        return
    with small_disk(folder / "small", 64) as mounted, filled(folder / "small"):
        assert mounted
        full = {"TMPDIR": str(folder / "small"), "HOME": str(folder / "small"), "PYTHONSAFEPATH": "1"}
        yield Conditions.of(folder / "elsewhere", "077", **full, **variables)


@pytest.fixture(scope="module", params=[os.environ.get("RATCHET_TEST_CONDITIONS", "nothing is there")])
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, embedded_broker: str, tiny_base: Path
) -> Iterator[Site]:
    """A project of a name that is not ASCII, reached by a link, set up and running by its commands."""
    folder = tmp_path_factory.mktemp("conditions")
    with conditions_of(request.param, folder, embedded_broker) as conditions:
        files: list[str | Path] = ["--seed", write_rows(folder / "seed.csv", toy_rows(6, seed=1))]
        files += ["--reference", write_rows(folder / "reference.csv", toy_rows(300, seed=2))]
        real = folder / "größe 表 shop"
        name = f"m-{os.urandom(4).hex()}"
        done = conditions.run("init", real, *files, "--base-model", tiny_base, "--name", name)
        assert done.returncode == 0, done.stderr
        policy = real / "policy.toml"  # 300 rows are too few for the default gate of calibration
        text = policy.read_text(encoding="utf-8")
        policy.write_text(text.replace("ece_floor = 0.02", "ece_floor = 0.12"), encoding="utf-8")
        (folder / "link").symlink_to(real, target_is_directory=True)
        config = folder / "link/ratchet.toml"
        for step in ("migrate", "bootstrap"):
            done = conditions.run(step, "-c", config)
            assert done.returncode == 0, done.stderr
        logs = folder / "logs"
        logs.mkdir()
        running = Site(conditions, config, logs)
        try:
            running.start(*PARTS)
            yield running
        finally:
            running.stop()


def test_a_round_is_promoted_and_every_event_is_stored(site: Site) -> None:
    began = datetime.now(UTC) - timedelta(seconds=1)
    traffic = Traffic(site, callers=2, pause_s=0.02)
    with traffic.running():
        wait_until(lambda: len(traffic.accepted) >= 150, timeout_s=900)
    with contextlib.closing(Registry(site.settings.registry_url, site.settings.model.name)) as registry:
        wait_until(lambda: len(registry.rounds()) > 1 and registry.rounds()[0].state in FINAL_STATES, timeout_s=900)
        record = registry.rounds()[0]
    assert record.state is RoundState.PROMOTED, record.detail
    assert set(traffic.statuses) == {"predict 200", "feedback 202"}
    assert traffic.accepted <= stored_ids(site.settings)[1].keys()
    times = FeatureStore(site.settings).log_rows("feedback")["event_timestamp"].to_pylist()
    assert began <= min(times)
    assert max(times) <= datetime.now(UTC)


def test_every_command_that_reads_works(site: Site, tmp_path: Path) -> None:
    def ran(words: str) -> str | None:
        done = site.conditions.run(*words.format(tmp_path).split(), "-c", site.config)
        if done.returncode == 0 and b"Traceback" not in done.stderr:
            return None
        return f"{words}: {done.returncode}: {(done.stdout + done.stderr).decode()}"

    with ThreadPoolExecutor(2) as pool:
        assert [failed for failed in pool.map(ran, READING) if failed] == []


def test_files_are_private_whatever_the_umask(site: Site) -> None:
    open_to_others = [
        str(path)
        for path in site.config.parent.resolve().rglob("*")
        if not path.is_symlink() and path.stat().st_mode & 0o077
    ]
    assert open_to_others == []


def test_every_process_stops_on_sigterm_with_everything_stored(site: Site) -> None:
    traffic = Traffic(site, callers=1, pause_s=0.0)
    with traffic.running():
        wait_until(lambda: len(traffic.accepted) >= 20, timeout_s=300)
    assert all(status in (0, -signal.SIGTERM) for status in site.stop().values())
    assert not [part for part in PARTS if "Traceback" in site.log(part)]
    site.start("consumer")  # what serving published last
    wait_until(lambda: traffic.accepted <= stored_ids(site.settings)[1].keys(), timeout_s=300)
    assert max(stored_ids(site.settings)[1].values()) == 1
