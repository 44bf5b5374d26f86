"""The serving try: load the exact artefact in a fresh process, ask it, and see what that costs on this machine.

Turns a version's directory into milliseconds and megabytes, or into the reason why it does not serve.
gates/evidence_and_facts.py calls `try_in_fresh_process`, which runs this module as a program; that loads what serving
loads and nothing else.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

QUERIES, WRITTEN = 20, 3  # texts that are asked of a model, and of one that writes
LIMIT_S = 120


@dataclass(frozen=True)
class Tried:
    """What was seen: the median milliseconds of one text, peak memory of the process and size on disk in MB."""

    latency_ms: float | None
    memory_mb: float | None
    size_mb: float
    error: str | None = None


def try_in_fresh_process(directory: Path) -> Tried:
    """Load and query a version in a process of its own."""
    size_mb = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file()) / 1e6
    command = [sys.executable, "-m", "pipelines.evaluation.smoke_test", str(directory)]
    repository = Path(__file__).parents[2]
    try:
        done = subprocess.run(
            command, cwd=repository, capture_output=True, text=True, timeout=LIMIT_S, check=False, encoding="utf-8"
        )
    except subprocess.TimeoutExpired:
        return Tried(None, None, size_mb, f"the artefact did not load and answer within {LIMIT_S} s in a fresh process")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        return Tried(None, None, size_mb, f"the artefact does not load in a fresh process: {last}")
    seen = json.loads(done.stdout.strip().splitlines()[-1])
    return Tried(seen["latency_ms"], seen["memory_mb"], size_mb)


def main(directory: str) -> None:
    """Load, which checks hashes and golden outputs; answer some texts, one by one; print what it took."""
    from serving.inference.encoder_runtime import Runtime
    from serving.inference.loading import open_version

    runtime = open_version(Path(directory))
    texts = runtime.manifest.golden.texts or ["one text"]
    ask, queries = (runtime.probabilities, QUERIES) if isinstance(runtime, Runtime) else (runtime.generate, WRITTEN)
    times = []
    for n in range(queries):
        started = time.perf_counter()
        ask([texts[n % len(texts)]])
        times.append(1000 * (time.perf_counter() - started))
    print(json.dumps({"latency_ms": statistics.median(times), "memory_mb": _peak_mb()}))


def _peak_mb() -> float:
    """Peak memory of this program. On Linux getrusage also counts the round that it was forked from."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


if __name__ == "__main__":
    main(sys.argv[1])
