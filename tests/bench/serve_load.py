"""Load for `make bench-serve`: texts, servers in processes of their own, and wrk.

Turns a URL and texts into throughput, percentiles and CPU seconds. bench/serve.py calls it. It deliberately knows neither
Ratchet nor the baseline: both are a command line that listens on a port.
"""

import contextlib
import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).parents[2]

# Every text unique: a word of five letters that counts up is put behind each, so nothing can come from a cache. `check` looks
# into every answer for a second version; `think` is the mean pause of a caller in milliseconds, exponentially distributed.
LUA = """
local items, before, after = {items}, '{before}', '{after}'
local texts, n, think, check = {{}}, {start}, {think}, {check}
mixed = 0
for line in io.lines('{texts}') do texts[#texts + 1] = line end
local function word(k)
  local w = ''
  for _ = 1, 5 do w = string.char(97 + k % 26) .. w; k = math.floor(k / 26) end
  return w
end
wrk.method = 'POST'
wrk.headers['Content-Type'] = 'application/json'
if '{header}' ~= '' then wrk.headers['Authorization'] = '{header}' end
local threads = {{}}
function setup(thread) threads[#threads + 1] = thread end
function request()
  local parts = {{}}
  for i = 1, items do
    n = n + 1
    parts[i] = before .. texts[n % #texts + 1] .. ' ' .. word(n) .. after
  end
  return wrk.format(nil, nil, nil, '{open}' .. table.concat(parts, ',') .. '{close}')
end
if think > 0 then function delay() return math.floor(-math.log(1 - math.random()) * think) end end
if check then
  function response(status, headers, body)
    local first
    for found in body:gmatch('"model_version":"([^"]*)"') do
      first = first or found
      if found ~= first then mixed = mixed + 1 end
    end
  end
end
function done(summary, latency, requests)
  local e, parts, mixed = summary.errors, {{}}, 0
  for _, thread in ipairs(threads) do mixed = mixed + thread:get('mixed') end
  for i = 1, #latency do
    local value, count = latency(i)
    parts[i] = value .. ',' .. count
  end
  io.write('RESULT [' .. summary.requests .. ',' .. summary.duration .. ',' ..
    (e.status + e.timeout + e.connect + e.read + e.write) .. ',' .. mixed .. ',[' .. table.concat(parts, ',') .. ']]\\n')
end
"""


@dataclass(frozen=True)
class Load:
    """One run of wrk.

    `latencies` counts answers by microseconds; `cpu` is seconds of the server's processes for 1,000 texts, `all_cpu` those of
    every process measured, wrk too.
    """

    rate: float
    texts_rate: float
    requests: int
    failed: int
    mixed: int
    latencies: "Counter[int]"
    cpu: float
    all_cpu: float

    @property
    def p50(self) -> float:
        """Median latency in milliseconds."""
        return percentile(self.latencies, 0.5)

    @property
    def p99(self) -> float:
        """99th percentile of latency in milliseconds."""
        return percentile(self.latencies, 0.99)


def percentile(latencies: "Counter[int]", share: float) -> float:
    """Milliseconds that a share of the answers took at most."""
    wanted, seen = share * latencies.total(), 0
    for value, count in sorted(latencies.items()):
        seen += count
        if seen >= wanted:
            return value / 1000
    return float("nan")


@dataclass(frozen=True)
class Body:
    """How a request's body is written around its texts."""

    opening: str
    before: str  # each text
    after: str
    closing: str


RATCHET_BODY = Body('{"items": [', '{"text": "', '"}', "]}")


def bank_texts(name: str) -> list[tuple[str, str]]:
    """(text, label) of Banking77's train or test file, in a fixed random order."""
    folder = Path(os.environ["RATCHET_BENCH_DATA"])
    with (folder / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        rows = [(row["text"], row["category"]) for row in csv.DictReader(file)]
    random.Random(0).shuffle(rows)
    return rows


def wrk(
    url: str,
    texts: Path,
    body: Body,
    *,
    callers: int,
    seconds: float,
    items: int = 1,
    header: str = "",
    servers: Sequence[psutil.Process] = (),
    beside: Sequence[psutil.Process] = (),
    think_ms: float = 0,
    check: bool = False,
) -> Load:
    """Load a URL. `texts` holds one JSON-escaped text a line; `servers` and `beside` are trees whose CPU time is counted."""
    script = texts.with_name(f"load-{os.getpid()}.lua")
    script.write_text(
        LUA.format(
            items=items,
            before=body.before,
            after=body.after,
            header=header,
            start=random.randrange(26**5),
            think=think_ms,
            check="true" if check else "false",
            texts=texts,
            open=body.opening,
            close=body.closing,
        ),
        encoding="utf-8",
    )
    command = ["wrk", "-t1", f"-c{callers}", f"-d{seconds:.0f}s", "--timeout", "30s", "-s", str(script), url]
    before, before_beside = _cpu(servers), _cpu(beside)
    own = sum(os.times()[2:4])
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 60, encoding="utf-8")
    spent, spent_beside, spent_wrk = _cpu(servers) - before, _cpu(beside) - before_beside, sum(os.times()[2:4]) - own
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    requests, micros, failed, mixed, pairs = json.loads(line.removeprefix("RESULT "))
    texts_answered = items * max(1, requests - failed)
    return Load(
        rate=(requests - failed) / (micros / 1e6),
        texts_rate=items * (requests - failed) / (micros / 1e6),
        requests=requests,
        failed=failed,
        mixed=mixed,
        latencies=Counter(dict(zip(pairs[::2], pairs[1::2], strict=True))),
        cpu=1000 * spent / texts_answered,
        all_cpu=1000 * (spent + spent_beside + spent_wrk) / texts_answered,
    )


def tree(process: psutil.Process) -> list[psutil.Process]:
    """A process and its descendants."""
    return [process, *process.children(recursive=True)]


def memory(process: psutil.Process) -> list[int]:
    """Unique set size in bytes of each worker below a server: of its processes, those that hold a fifth of the largest."""
    sizes = []
    for one in tree(process):
        with contextlib.suppress(psutil.Error):
            sizes.append(one.memory_full_info().uss)
    return [size for size in sizes if size > max(sizes) / 5]


def server(
    command: Sequence[str], environment: Mapping[str, str], log: Path, ready_url: str
) -> contextlib.AbstractContextManager[psutil.Process]:
    """Start a server as `running` does; it is ready once the address answers 200."""
    return running(command, environment, log, lambda: _answers(ready_url))


def background(
    command: Sequence[str], environment: Mapping[str, str], log: Path
) -> contextlib.AbstractContextManager[psutil.Process]:
    """Start a background service as `running` does; it is ready once it logs a line `ready`."""
    return running(command, environment, log, lambda: "ready" in log.read_text(encoding="utf-8").splitlines())


@contextlib.contextmanager
def running(
    command: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    ready: Callable[[], bool],
    timeout_s: float = 300,
) -> Iterator[psutil.Process]:
    """Start a process in a session of its own, wait until it is ready, and end all of it after the block."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env={**os.environ, **environment},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    watched = psutil.Process(process.pid)
    try:
        deadline = time.monotonic() + timeout_s
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[:4]} did not get ready: see {log}")
            time.sleep(0.05)
        yield watched
    finally:
        family = tree(watched) if watched.is_running() else []
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(family, timeout=20)
        for one in alive:
            with contextlib.suppress(psutil.Error):
                one.kill()
        process.wait(10)


def module(name: str) -> list[str]:
    """Command line of a module."""
    return [sys.executable, "-m", name]


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:  # noqa: S310 - our own address
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _cpu(roots: Sequence[psutil.Process]) -> float:
    total = 0.0
    for root in roots:
        for process in tree(root):
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system
    return total
