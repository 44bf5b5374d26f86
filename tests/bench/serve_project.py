"""What `make bench-serve` measures: a project with a real round behind it, served by Ratchet, and by the baseline.

Turns Banking77 into two servable versions of one round, once, in a folder that later runs use again; starts servers on free
ports. bench/serve.py calls it. It deliberately measures nothing.
"""

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from pipelines import candidates
from pipelines.gates import compressed
from pipelines.gates.policy import load_policy
from pipelines.models.encoder import Encoder
from pipelines.round_inputs import collect_dataset, open_inputs, round_folder
from pipelines.training_round import run_round
from schemas.records import WorkerHeartbeat
from schemas.settings import Settings, load_settings
from services.projects import create_project
from serving.artifacts import ArtifactStore
from serving.http.access import read_keys
from serving.inference.encoder_runtime import Runtime
from serving.messaging.connection import Broker
from serving.messaging.publisher import Topics, embedded_broker_command, ensure_topics
from serving.model_directory import read_manifest, write_manifest
from serving.process.start import process_environment, serving_command
from serving.registry.registry import Registry
from tests.bench.serve_load import Body, background, bank_texts, module, server
from tests.support.fakes import free_port, wait_until, write_rows
from tests.support.versions import rewritten

CACHE = Path(os.environ.get("RATCHET_BENCH_CACHE") or Path(tempfile.gettempdir()) / "ratchet-bench-serve")
REFERENCE_ROWS = 2000
BASELINE_BODY = Body('{"texts": [', '"', '"', "]}")


@dataclass(frozen=True)
class Project:
    """A project with two servable versions of one round: what `auto` picked, and its full-precision model."""

    settings: Settings
    registry: Registry
    auto: str
    full: str
    full_directory: Path
    texts: Path

    def serve(self, version: str) -> None:
        """Make a version the champion."""
        champion = self.registry.champion()
        live = champion.model_version if champion else None
        if live != version:
            self.registry.promote(version, expected=live, token=None, actor="bench")

    def alive(self) -> list[WorkerHeartbeat]:
        """Heartbeats of workers that live: those of a server that was ended stay for a while."""
        return [worker for worker in self.registry.workers(60) if psutil.pid_exists(int(worker.worker))]

    @property
    def header(self) -> str:
        """The Authorization header."""
        return f"Bearer {read_keys(self.settings.path('keys.env')).api_key}"


def project() -> Project:
    """The project, trained on most of Banking77's training file; the rest of it judges."""
    root = CACHE / "bank"
    texts = CACHE / "texts"
    done = CACHE / "done.json"
    if not done.exists():
        shutil.rmtree(CACHE, ignore_errors=True)
        CACHE.mkdir(parents=True)
        rows = bank_texts("train")
        seed, reference = rows[REFERENCE_ROWS:], rows[:REFERENCE_ROWS]
        create_project(
            root,
            seed=write_rows(CACHE / "seed.csv", seed),
            reference=write_rows(CACHE / "reference.csv", reference),
        )
        texts.write_text("".join(json.dumps(text)[1:-1] + "\n" for text, _ in rows), encoding="utf-8")
        done.write_text(json.dumps(_trained(_opened(root))), encoding="utf-8")
    settings = _opened(root)
    found = json.loads(done.read_text(encoding="utf-8"))
    registry = Registry(settings.registry_url, settings.model.name)
    return Project(settings, registry, found["auto"], found["full"], Path(found["directory"]), texts)


def _opened(root: Path) -> Settings:
    return load_settings((root / "ratchet.toml").read_text(encoding="utf-8"), {}, root=root)


def _trained(settings: Settings) -> dict[str, str]:
    """Run the first round; register its full-precision model beside what it chose, under a name of its own."""
    registry = Registry(settings.registry_url, settings.model.name)
    store = ArtifactStore(settings.location(settings.artifacts.url))
    claimed = registry.claim_round(reason="bench", cut={}, token=None)
    assert claimed is not None
    print("training, once: this takes some minutes", flush=True)
    record = run_round(
        claimed.round_id,
        settings=settings,
        registry=registry,
        store=store,
        features=None,
        token=None,
        progress=lambda *_: None,
    )
    assert record.gate_report is not None
    assert record.candidate_version is not None
    for result in record.gate_report.results:
        print(f"  {result.gate}: {result.verdict}. {result.sentence}")
    folder = round_folder(settings, claimed.round_id)
    full = folder / ("full" if (folder / "full").exists() else "version")
    copy = CACHE / "full-as-a-version"  # the scheduler removes what it does not need from a round's folder
    shutil.copytree(full, copy)
    (copy / "manifest.json").unlink()
    manifest = read_manifest(full)
    manifest = write_manifest(copy, manifest.model_copy(update={"model_version": f"{manifest.model_version}-full"}))
    registry.register_version(manifest, store.put(copy), servable=True)
    registry.close()
    return {"auto": record.candidate_version, "full": manifest.model_version, "directory": str(copy)}


def student(bank: Project, shape: dict[str, Any]) -> tuple[str, bool]:
    """A version distilled from the round's full-precision model, made once, and whether the round would have let it serve."""
    called = "-".join(f"{value:g}" for value in shape.values())
    name, folder = f"{bank.full}-student-{called}", bank.full_directory.parent / f"student-{called}"
    known = {version.model_version for version in bank.registry.versions()}
    [record] = bank.registry.rounds()
    store = ArtifactStore(bank.settings.location(bank.settings.artifacts.url))
    inputs = open_inputs(record, bank.settings, bank.registry, store, None, lambda *_: None)
    assert isinstance(inputs.base, Encoder)
    dataset = collect_dataset(inputs)
    if name not in known:
        training = bank.settings.training.model_copy(update=shape)
        settings = bank.settings.model_copy(update={"training": training})
        started = time.monotonic()
        candidates.make_student(
            bank.full_directory,
            folder,
            [],
            dataset,
            inputs.base,
            settings,
            lambda share, _: print(f"distilled {share:.0%}"),
            inputs.rule,
        )
        print(f"distilling, exporting and calibrating took {time.monotonic() - started:.0f} s", flush=True)
        made = rewritten(folder, model_version=name)
        bank.registry.register_version(read_manifest(made), store.put(made), servable=True)
    policy = load_policy(bank.settings.path(bank.settings.gates.policy).read_text(encoding="utf-8"))
    trial = compressed.try_compressed(Runtime(bank.full_directory), Runtime(folder), dataset.reference, policy)
    print(trial.result.sentence, flush=True)
    return name, trial.passed


@contextmanager
def ratchet(
    bank: Project, version: str, **variables: str
) -> Iterator[tuple[str, psutil.Process, list[psutil.Process]]]:
    """Run serving, broker, consumer and scheduler as `ratchet up` does: (address, server, the other three)."""
    bank.serve(version)
    port, broker_port = free_port(), free_port()
    address = f"127.0.0.1:{broker_port}"
    outbox = Path(tempfile.mkdtemp(dir=CACHE, prefix="outbox-"))
    config = bank.settings.root / "ratchet.toml"
    with ExitStack() as stack:
        broker = stack.enter_context(_broker(broker_port))
        names = Topics.of(bank.settings.stream_name).names()
        ensure_topics(Broker(address), names, partitions=2, replication_factor=1, timeout_s=10)
        base = {
            **os.environ,
            "RATCHET_KAFKA__BOOTSTRAP_SERVERS": address,
            "RATCHET_EMBEDDED_BROKER": "1",
            "RATCHET_SERVING__OUTBOX": str(outbox),
            "RATCHET_SERVING__OUTBOX_MAX_BYTES": str(10**11),
            **variables,
        }

        def environment(part: str) -> dict[str, str]:
            return process_environment(part, bank.settings, config, base)

        beside = [broker]
        for part, name in (("consumer", "feedback_consumer"), ("scheduler", "training_scheduler")):
            command = [*module(f"services.{name}"), "-c", str(config)]
            beside.append(stack.enter_context(background(command, environment(part), CACHE / f"{part}.log")))
        url = f"http://127.0.0.1:{port}"
        command = serving_command("127.0.0.1", port)
        process = stack.enter_context(server(command, environment("serving"), CACHE / "serving.log", f"{url}/readyz"))
        wait_until(lambda: len(bank.alive()) == bank.settings.serving.workers, timeout_s=30)
        yield url, process, beside
    shutil.rmtree(outbox)


@contextmanager
def _broker(port: int) -> Iterator[psutil.Process]:
    with (CACHE / "broker.log").open("wb") as log:
        process = subprocess.Popen(embedded_broker_command(port), stdout=log, stderr=subprocess.STDOUT)
    try:

        def answers() -> bool:
            try:
                ensure_topics(Broker(f"127.0.0.1:{port}"), ["warm-up"], partitions=1, replication_factor=1, timeout_s=5)
            except ConnectionError:
                return False
            return True

        wait_until(answers, timeout_s=15)
        yield psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait(10)


@contextmanager
def baseline(bank: Project, setting: tuple[int, int, int, int]) -> Iterator[tuple[str, psutil.Process]]:
    """The baseline with settings of its grid: (address, server)."""
    port = free_port()
    environment = {
        "BASELINE": json.dumps(setting),
        "BASELINE_VERSION": str(bank.full_directory),
        "BENTOML_HOME": str(CACHE / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "true",
    }
    command = [*module("bentoml"), "serve", "tests.bench.serve_baseline:Baseline", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    with server(command, environment, CACHE / "baseline.log", f"{url}/readyz") as process:
        yield url, process
