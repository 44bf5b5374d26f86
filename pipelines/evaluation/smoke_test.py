"""Smoke test: load the exact artefact in a fresh process, run predictions, and measure time and memory.

Turns a version's directory into milliseconds and megabytes, or into the reason why it can't serve.
gates/evidence_and_facts.py calls `try_in_fresh_process`, which runs this module as a program. The program imports only what
serving imports.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from serving.process.start import APPLICATION

QUERIES, GENERATIONS = 20, 3  # predictions to time; fewer for generation, which is slow
LIMIT_S = 120


@dataclass(frozen=True)
class SmokeTest:
    """Result of a smoke test: median milliseconds of one text, peak memory of the process and size on disk in MB, or an error."""

    latency_ms: float | None
    memory_mb: float | None
    size_mb: float
    error: str | None = None


def try_in_fresh_process(directory: Path) -> SmokeTest:
    """Load a version in a process of its own, run predictions and return the measurements."""
    size_mb = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file()) / 1e6
    command = [sys.executable, "-m", "pipelines.evaluation.smoke_test", str(directory)]
    try:
        done = subprocess.run(
            command, cwd=APPLICATION, capture_output=True, text=True, timeout=LIMIT_S, check=False, encoding="utf-8"
        )
    except subprocess.TimeoutExpired:
        return SmokeTest(
            None, None, size_mb, f"the artefact did not load and answer within {LIMIT_S} s in a fresh process"
        )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        return SmokeTest(None, None, size_mb, f"the artefact does not load in a fresh process: {last}")
    measured = json.loads(done.stdout.strip().splitlines()[-1])
    return SmokeTest(measured["latency_ms"], measured["memory_mb"], size_mb)


def main(directory: str) -> None:
    """Load a version, which checks hashes and golden outputs; time single predictions; print the results as JSON."""
    from serving.inference.encoder_runtime import Runtime
    from serving.inference.loading import open_version

    runtime = open_version(Path(directory))
    texts = runtime.manifest.golden.texts or ["one text"]
    predict, queries = (
        (runtime.probabilities, QUERIES) if isinstance(runtime, Runtime) else (runtime.generate, GENERATIONS)
    )
    times = []
    for n in range(queries):
        started = time.perf_counter()
        predict([texts[n % len(texts)]])
        times.append(1000 * (time.perf_counter() - started))
    print(json.dumps({"latency_ms": statistics.median(times), "memory_mb": _peak_mb()}))


def _peak_mb() -> float:
    """Return the peak memory of this process. On Linux, getrusage would include the parent that it was forked from."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


if __name__ == "__main__":
    main(sys.argv[1])
