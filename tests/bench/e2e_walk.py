"""A labelled file that the project has never seen, walked through `init`, `up`, feedback and a round, then harmed part by part.

Run by `make e2e`; RATCHET_E2E_DATA names the file (CSV, JSONL or Parquet with text and label), else it is BBC News. Turns
the file into seed (4 rows a label), reference and traffic, and prints a line for each thing that had to be true; exit 1
if one was not. It deliberately uses the commands and the HTTP API that users have.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from pipelines.dataset.files import FileRow, read_rows
from schemas.settings import load_settings
from serving.http.access import read_keys
from tests.support.fakes import free_port, write_rows

REPOSITORY = Path(__file__).parents[2]
SEED_ROWS = 4  # a label
CORRECTIONS = 1500
PEOPLE = 50
CALLERS = 8
PARTS = {"broker": "tansu", "consumer": "services.feedback_consumer", "scheduler": "services.training_scheduler"}


class Walk:
    """One project folder, what runs in it, and what a client of it has counted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        config = folder / "ratchet.toml"
        os.environ["RATCHET_SERVING__PORT"] = str(free_port())
        self.settings = load_settings(config.read_text(encoding="utf-8"), os.environ, root=folder)
        key = read_keys(folder / "keys.env").api_key
        address = f"http://127.0.0.1:{self.settings.serving.port}"
        # No connection is kept: each call may reach another worker, and none breaks with the worker that dies.
        limits = httpx.Limits(max_keepalive_connections=0)
        headers = {"Authorization": f"Bearer {key}"}
        self.client = httpx.Client(base_url=address, headers=headers, timeout=20, limits=limits, trust_env=False)
        self.accepted = {"/predict": 0, "/feedback": 0}
        self.refused = 0
        self.broken: list[str] = []

    def visit(self, n: int, row: FileRow) -> None:
        """Ask, then say what is right."""
        user = f"person-{n % PEOPLE}"
        answer = self._post("/predict", {"items": [{"text": row.text}], "user": user})
        if answer is None:
            return
        said = {"prediction_id": answer[0]["prediction_id"], "kind": "correction", "value": row.label, "user": user}
        self._post("/feedback", said)

    def _post(self, path: str, body: dict[str, object]) -> Any:
        try:
            answer = self.client.post(path, json=body)
        except httpx.HTTPError as error:
            self.broken.append(f"{path}: {error!r}")
            return None
        if answer.status_code == 503 and "Retry-After" in answer.headers:
            self.refused += 1
            return None
        if answer.status_code not in (200, 202):
            self.broken.append(f"{path}: {answer.status_code} {answer.text[:100]}")
            return None
        self.accepted[path] += 1
        return answer.json()

    def visits(self, rows: Sequence[FileRow]) -> tuple[int, int]:
        """Visits from several callers; how many calls broke, and how many were refused with Retry-After."""
        broken, refused = len(self.broken), self.refused
        with ThreadPoolExecutor(CALLERS) as pool:
            list(pool.map(self.visit, range(len(rows)), rows))
        return len(self.broken) - broken, self.refused - refused

    def served(self) -> dict[str, str]:
        """worker -> version, as a dozen calls find them."""
        found = {}
        for _ in range(12):
            try:
                answer = self.client.get("/model")
            except httpx.HTTPError:
                continue
            if answer.status_code == 200:
                found[answer.json()["worker"]] = answer.json()["model_version"]
        return found

    def ratchet(self, *arguments: str) -> Any:
        """A command's --json."""
        done = subprocess.run(
            [*ratchet(arguments[0], *arguments[1:], "-c", self.config), "--json"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            encoding="utf-8",
        )
        if not done.stdout:
            raise SystemExit(f"ratchet {' '.join(arguments)}: {done.stderr}")
        return json.loads(done.stdout)

    @property
    def config(self) -> str:
        """Path of ratchet.toml."""
        return str(self.folder / "ratchet.toml")

    @property
    def state(self) -> Path:
        """What `up` writes once it is ready."""
        return self.folder / "state/up.json"

    def up(self) -> subprocess.Popen[bytes]:
        """`ratchet up`, ready."""
        process = subprocess.Popen(ratchet("up", "-c", self.config), cwd=REPOSITORY, start_new_session=True)
        within(240, lambda: self._ready(process.pid) or process.poll() is not None)
        if process.poll() is not None:
            raise SystemExit(f"`ratchet up` ended with {process.returncode}")
        return process

    def _ready(self, pid: int) -> bool:
        # What a killed `up` wrote may still lie there.
        return self.state.exists() and bool(json.loads(self.state.read_text(encoding="utf-8"))["pid"] == pid)

    def pid(self, part: str) -> int:
        """Process id of a part of `up`."""
        return int(json.loads(self.state.read_text(encoding="utf-8"))["pids"][part])


def ratchet(*arguments: str) -> list[str]:
    """A command line."""
    return [sys.executable, "-m", "services.cli.main", *arguments]


def within(seconds: float, condition: Callable[[], object]) -> float | None:
    """Seconds until the condition held; None if it did not."""
    begun = time.monotonic()
    while time.monotonic() - begun < seconds:
        if condition():
            return time.monotonic() - begun
        time.sleep(0.2)
    return None


def split(rows: Sequence[FileRow]) -> tuple[list[FileRow], list[FileRow], list[FileRow]]:
    """Seed, reference and traffic."""
    shuffled = list(rows)
    random.Random(5).shuffle(shuffled)
    by_label: dict[str, list[FileRow]] = defaultdict(list)
    for row in shuffled:
        by_label[row.label].append(row)
    seed = [row for found in by_label.values() for row in found[:SEED_ROWS]]
    taken = {row.text for row in seed}
    rest = [row for row in shuffled if row.text not in taken]
    size = min(1000, len(rest) // 3)
    return seed, rest[:size], rest[size:]


def bbc() -> list[FileRow]:
    """The demo's articles, where no file is named."""
    from services.demo.articles import bbc_news

    return [FileRow(article.text, article.topic) for article in bbc_news()]


def main() -> None:
    """Walk, and exit 1 if something was not as it must be."""
    wrong: list[str] = []

    def must(condition: bool, sentence: str) -> None:
        print(f"{'ok  ' if condition else 'FAIL'}  {sentence}", flush=True)
        if not condition:
            wrong.append(sentence)

    named = os.environ.get("RATCHET_E2E_DATA")
    seed, reference, traffic = split(read_rows(Path(named), "classification") if named else bbc())
    with project(seed, reference) as walk:
        print(f"{len({row.label for row in seed})} labels, {len(seed)} seed and {len(reference)} reference rows")
        begun = time.monotonic()
        up = walk.up()
        print(f"      the first champion serves after {time.monotonic() - begun:.0f} s")
        try:
            learn(walk, traffic[:CORRECTIONS], must)
            up = harm(walk, up, iter(traffic[CORRECTIONS:] or traffic), must)
        finally:
            if up.poll() is None:
                up.send_signal(signal.SIGTERM)
            must(up.wait(120) == 0, "SIGTERM stops it with exit 0")
        from pipelines.feature_store.store import FeatureStore

        stored, accepted = FeatureStore(walk.settings).stored_events(), walk.accepted
        lost = accepted["/predict"] - stored["predictions"]
        said = f"{accepted['/feedback']} feedback accepted, {stored['feedback']} stored"
        must(accepted["/feedback"] <= stored["feedback"] <= accepted["/feedback"] + len(walk.broken), said)
        must(lost <= CALLERS, f"{accepted['/predict']} predictions answered, {lost} lost with what was killed")
        print(f"      {len(walk.broken)} calls broke")
        for line in walk.broken[:5]:
            print(f"      {line}")
    sys.stdout.flush()
    os._exit(1 if wrong else 0)  # duckdb's binding would report its reference counts


@contextmanager
def project(seed: Sequence[FileRow], reference: Sequence[FileRow]) -> Iterator[Walk]:
    """A folder that `ratchet init` made, with default settings."""
    scratch = Path(tempfile.mkdtemp(prefix="ratchet-e2e-"))
    paths = [write_rows(scratch / f"{name}.csv", [(r.text, r.label) for r in rows])
             for name, rows in (("seed", seed), ("reference", reference))]  # fmt: skip
    command = ratchet("init", str(scratch / "project"), "--seed", str(paths[0]), "--reference", str(paths[1]))
    subprocess.run(command, cwd=REPOSITORY, check=True)
    try:
        yield Walk(scratch / "project")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def learn(walk: Walk, rows: Sequence[FileRow], must: Callable[[bool, str], None]) -> None:
    """Feedback until a round has been triggered, promoted and served by every worker."""
    first = walk.ratchet("model", "list")[0]["model_version"]
    begun = time.monotonic()
    broken, refused = walk.visits(rows)
    seconds = time.monotonic() - begun
    must(not broken + refused, f"{len(rows)} corrections by {PEOPLE} people in {seconds:.0f} s, {refused} refused")

    def ended() -> list[dict[str, Any]]:
        over = ("promoted", "rejected", "insufficient_evidence", "failed", "skipped")
        return [r for r in walk.ratchet("round", "list") if r["reason"] != "no champion yet" and r["state"] in over]

    within(600, ended)
    rounds = ended()
    took = time.monotonic() - begun
    if not rounds:
        must(False, "a round ended within 10 minutes")
        return
    record = rounds[-1]
    told = {name: f"{e['accuracy']:.3f}" for name, e in record["evaluations"].items()}
    must(record["state"] == "promoted", f"round by trigger is {record['state']} after {took:.0f} s: {told}")
    print(f"      {record['detail']}; quarantined: {len(record['dataset']['quarantined_people'])} people")
    swapped = within(20, lambda: first not in walk.served().values())
    must(swapped is not None, f"every worker serves {walk.served()}")


def harm(
    walk: Walk, up: subprocess.Popen[bytes], rows: Iterator[FileRow], must: Callable[[bool, str], None]
) -> subprocess.Popen[bytes]:
    """Take each part away and see it come back; the `up` that runs at the end."""

    def some() -> tuple[int, int]:
        return walk.visits([row for row, _ in zip(rows, range(40), strict=False)])

    for part, module in PARTS.items():
        before = walk.pid(part)
        os.kill(before, signal.SIGKILL)
        broken, refused = some()
        back = within(30, lambda part=part, before=before: walk.pid(part) not in (before, None))  # type: ignore[misc]
        must(back is not None, f"{part} ({module}) killed: back after {back or 0:.1f} s, {refused} calls refused")
        must(not broken, f"{part} killed: {broken} calls broke")
    worker = int(next(iter(walk.served())))
    os.kill(worker, signal.SIGKILL)
    back = within(60, lambda: len(walk.served().keys() - {str(worker)}) == walk.settings.serving.workers)
    must(back is not None, f"a worker killed: {walk.settings.serving.workers} serve again after {back or 0:.1f} s")
    broken, refused = some()
    must(not broken + refused, f"after that {broken} calls broke, {refused} refused")
    stored = within(60, lambda: walk.ratchet("status")["not_yet_stored"] == 0)
    must(stored is not None, f"status: nothing waits to be stored after {stored or 0:.0f} s")
    second = subprocess.run(
        ratchet("up", "-c", walk.config),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        encoding="utf-8",
    )
    must(second.returncode == 1 and "already up" in second.stderr, f"a second up: {second.stderr.strip()}")

    up.kill()
    up.wait(10)
    again = walk.up()
    broken, refused = some()
    must(not broken + refused, f"up killed and started again: {broken} calls broke, {refused} refused")
    again.send_signal(signal.SIGTERM)
    must(again.wait(120) == 0, "SIGTERM stops it with exit 0")
    shutil.rmtree(walk.settings.path(walk.settings.artifacts.cache))
    third = walk.up()
    broken, refused = some()
    must(not broken + refused, f"the model cache deleted, started again: {broken} calls broke, {refused} refused")
    return third


if __name__ == "__main__":
    main()
