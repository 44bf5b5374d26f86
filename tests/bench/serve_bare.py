"""The ceiling of `make bench-serve`: the bare ONNX session in a loop over ideally sorted batches, on all cores.

Turns a version and texts into texts a second: tokenised beforehand, sorted by length, the best of several batch sizes, as one
process with a thread for each core and as a process for each core. No HTTP, no JSON, no tokenizer, no softmax.
"""

import json
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np

from schemas.settings import Settings
from serving.artifacts import ArtifactStore
from serving.inference.encoder_runtime import Runtime

ROWS = 3072
BATCHES = (8, 16, 32)


def ceiling(settings: Settings, digest: str, texts: Path) -> float:
    """The most texts a second that this machine's cores get out of the version's session."""
    directory = ArtifactStore(settings.location(settings.artifacts.url)).fetch(digest, settings.path("state/cache"))
    lines = [json.loads(f'"{line}"') for line in texts.read_text(encoding="utf-8").splitlines()[:ROWS]]
    cores = len(os.sched_getaffinity(0))
    best = 0.0
    context = multiprocessing.get_context("spawn")
    for processes, threads in ((1, cores), (cores, 1)):
        for batch in BATCHES:
            with context.Pool(processes) as pool:
                jobs = [pool.apply_async(_loop, (directory, lines, threads, batch)) for _ in range(processes)]
                rate = sum(job.get(300) for job in jobs)
            best = max(best, rate)
    return best


def _loop(directory: Path, texts: list[str], threads: int, batch: int) -> float:
    runtime = Runtime(directory, threads=threads)
    # As unique as what wrk sends, and as long.
    encoded = sorted(runtime.encode([f"{text} {_word(n)}" for n, text in enumerate(texts)]), key=len)
    batches = []
    for start in range(0, len(encoded), batch):
        rows = encoded[start : start + batch]
        ids = np.zeros((len(rows), len(rows[-1])), dtype=np.int64)
        mask = np.zeros_like(ids)
        for n, row in enumerate(rows):
            ids[n, : len(row)] = row
            mask[n, : len(row)] = 1
        batches.append({"input_ids": ids, "attention_mask": mask})
    session = runtime.session
    for inputs in batches[:: max(1, len(batches) // 20)]:
        session.run(["logits"], inputs)
    started = time.perf_counter()
    for inputs in batches:
        session.run(["logits"], inputs)
    return len(texts) / (time.perf_counter() - started)


def _word(n: int) -> str:
    letters = []
    for _ in range(5):
        letters.append(chr(97 + n % 26))
        n //= 26
    return "".join(reversed(letters))
