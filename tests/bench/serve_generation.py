"""PART=generation of `make bench-serve`: tokens a second of SmolLM2 over HTTP, beside transformers' `generate` in a bare loop.

Turns questions of the chatterbot corpus into requests of one caller, and into calls of `generate` on the same weights, prompts
and threads, in turn, so that what else the machine does touches both. Answers are greedy and have to be the same. The weights
are the base model's: what they were trained on does not change their speed.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipelines.models.decoder import Decoder, decoder_path
from pipelines.training.tasks.generation import Generation
from schemas.configuration.training import TrainingSettings
from schemas.manifests import ModelManifest
from schemas.settings import Settings, load_settings
from services.projects import create_project
from serving.artifacts import ArtifactStore
from serving.inference import prompts
from serving.inference.decoder_runtime import MODEL, compute_dtype
from serving.registry.registry import Registry
from tests.bench.report import Figure
from tests.bench.serve_project import CACHE, Project, ratchet
from tests.bench.train_generation import pairs
from tests.support.fakes import write_rows
from tests.support.versions import text_version

VERSION, SEED_ROWS, TEXTS, ROUNDS, MOST = "writer-1", 200, 8, 5, 64


@dataclass(frozen=True)
class Said:
    """Answers to the texts, how many tokens they have, and the seconds that they took."""

    texts: list[str]
    tokens: int
    seconds: float


def measure() -> list[Figure]:
    """The share of the bare loop's tokens a second, with as many threads, for one worker on all cores and for two."""
    given = pairs()
    texts = [question for question, _ in given[SEED_ROWS : SEED_ROWS + TEXTS]]
    cores = os.cpu_count() or 1
    figures = []
    for workers in dict.fromkeys((1, cores)):
        bank, threads = _project(given, workers), max(1, cores // workers)
        with ratchet(bank, VERSION) as (url, _, _), _asking(url, bank.header) as ask:
            generate = _bare(bank.full_directory, threads)
            for warm in (ask, generate):
                warm(texts[:1])
            rounds = [(generate(texts), ask(texts)) for _ in range(ROUNDS)]
        same = sum(a == b for bare, ours in rounds for a, b in zip(bare.texts, ours.texts, strict=True))
        bare_rate, rate = (statistics.median(r[n].tokens / r[n].seconds for r in rounds) for n in (0, 1))
        ratios = sorted(bare.seconds / ours.seconds for bare, ours in rounds)
        print(
            f"{workers} workers of {threads} threads: {rate:.1f} tokens/s over HTTP, {bare_rate:.1f} in a bare loop; "
            f"{same} of {ROUNDS * TEXTS} answers are the same",
            flush=True,
        )
        figures.append(
            Figure(
                figure=f"generation: tokens/s over HTTP / bare generate, 1 caller, {workers} workers of {threads} threads",
                value=statistics.median(ratios),
                op=">=",
                target=0.9,
                n=ROUNDS * TEXTS,
                interval=(ratios[0], ratios[-1]),
                baseline=bare_rate,
            )
        )
    return figures


@contextmanager
def _asking(url: str, header: str) -> Iterator[Callable[[list[str]], Said]]:
    """Inside: texts, one a request -> answers. Tokens are those of the worker's own counter, which counts all workers'."""
    with httpx.Client(base_url=url, headers={"Authorization": header}, timeout=120) as client:

        def ask(texts: list[str]) -> Said:
            before, started = _written(client), time.monotonic()
            found = [
                client.post("/predict", json={"items": [{"text": text}]}).raise_for_status().json() for text in texts
            ]
            seconds = time.monotonic() - started
            return Said([answer[0]["text"] for answer in found], _written(client) - before, seconds)

        yield ask


def _written(client: httpx.Client) -> int:
    lines = client.get("/metrics").text.splitlines()
    return sum(int(float(line.rsplit(" ", 1)[1])) for line in lines if line.startswith("ratchet_written_tokens_total"))


def _bare(directory: Path, threads: int) -> Callable[[list[str]], Said]:
    """transformers' own loop on a version's weights."""
    tokenizer: Any = AutoTokenizer.from_pretrained(directory / MODEL, local_files_only=True)
    model: Any = AutoModelForCausalLM.from_pretrained(directory / MODEL, dtype=compute_dtype(), local_files_only=True)

    def generate(texts: list[str]) -> Said:
        torch.set_num_threads(threads)
        found, tokens, started = [], 0, time.monotonic()
        for text in texts:
            ids = torch.tensor([prompts.encode(tokenizer, text)])
            with torch.inference_mode():
                whole = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=MOST, do_sample=False)[
                    0, ids.shape[1] :
                ]
            tokens += len(whole)
            found.append(tokenizer.decode(whole, skip_special_tokens=True))
        return Said(found, tokens, time.monotonic() - started)

    return generate


def _project(given: list[tuple[str, str]], workers: int) -> Project:
    """A project whose one version is the base model itself."""
    root = CACHE / f"writer-{workers}"
    if not (root / "ratchet.toml").exists():
        create_project(
            root,
            seed=write_rows(CACHE / "pairs.csv", given[:SEED_ROWS], column="completion"),
            reference=None,
            task="generation",
            overrides={"serving": {"workers": workers}, "model": {"max_new_tokens": MOST}},
        )
    settings = load_settings((root / "ratchet.toml").read_text(encoding="utf-8"), {}, root=root)
    registry = Registry(settings.registry_url, settings.model.name)
    directory = CACHE / f"writer-{workers}-version"
    if VERSION not in {version.model_version for version in registry.versions()}:
        manifest = _version(settings, directory)
        store = ArtifactStore(settings.location(settings.artifacts.url))
        registry.register_version(manifest, store.put(directory), servable=True)
    return Project(settings, registry, VERSION, VERSION, directory, CACHE / "texts")


def _version(settings: Settings, directory: Path) -> ModelManifest:
    directory.mkdir(exist_ok=True)
    base = Decoder(decoder_path(None), settings.model.max_length, MOST)
    model = Generation().start(base, [], TrainingSettings())
    return text_version(directory, model, base, VERSION, settings.model.name)
