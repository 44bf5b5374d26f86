"""A round that settles: real models disagree on traffic, people label, and the labels end the round; kill -9 changes nothing."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from click.testing import CliRunner, Result

from pipelines import round_settling
from pipelines.dataset.sources.queue_labels import queue_rows
from pipelines.dataset.split import cluster_key
from pipelines.feature_store.store import FeatureStore, default_feature_store_yaml
from pipelines.gates.policy import Policy
from pipelines.gates.settling import e_value
from pipelines.round_inputs import RoundInputs, round_folder
from pipelines.round_settling import answers
from schemas.events import utc_now
from schemas.queue import QueueItem
from schemas.records import RoundRecord, RoundState
from schemas.reports import GateResult, Verdict
from schemas.settings import Settings, render_settings
from services.cli.main import cli
from services.rounds.queue_filling import fill, queue_audit_sample
from services.rounds.settling import advance
from serving.artifacts import ArtifactStore
from serving.inference.loading import open_version
from serving.model_directory import read_manifest
from serving.registry.registry import Registry
from tests.support import stored_rows
from tests.support.fakes import FILLERS, REPOSITORY, TOPICS
from tests.support.registries import begin, gate_report

LACKS = GateResult(gate="superiority", verdict=Verdict.INSUFFICIENT, sentence="few rows")
LACKING = gate_report(Verdict.INSUFFICIENT)
WORDS = [word for words in TOPICS.values() for word in words]


class Project:
    """A project with a champion and a round that settles, as the scheduler and people see it."""

    def __init__(self, settings: Settings, registry: Registry, versions: Sequence[Path]) -> None:
        self.settings, self.registry, self.versions = settings, registry, versions
        self.features = FeatureStore(settings)
        self.store = ArtifactStore(settings.location(settings.artifacts.url))
        self.sent = 0
        for version in versions:
            registry.register_version(read_manifest(version), self.store.put(version), servable=False)
        self.first, self.second = (read_manifest(version).model_version for version in versions)
        registry.mark_servable(self.first)
        registry.promote(self.first, expected=None, token=None, actor="gates")

    @property
    def config(self) -> Path:
        return self.settings.root / "ratchet.toml"

    def send(self, n: int, at: datetime, *, audit: bool = False, again: Sequence[str] = ()) -> list[str]:
        """Store predictions on n new texts that mix the words of several topics, and on those `again`."""
        numbers = range(self.sent, self.sent + n + len(again))
        self.sent += len(numbers)
        texts = [*(mixed(number) for number in numbers[:n]), *again]
        rows = [
            stored_rows.prediction_row(
                number, text=text, event_timestamp=at, created_timestamp=at, audit=audit, predicted_label="cooking"
            )
            for number, text in zip(numbers, texts, strict=True)
        ]
        stored_rows.append(self.features, "predictions", rows)
        return texts

    def judged(self) -> RoundRecord:
        """A running round whose gates are short of evidence, as its process leaves it before it settles."""
        record = begin(self.registry)
        report = gate_report(Verdict.INSUFFICIENT).model_copy(update={"results": [LACKS], "reference_p": 0.04})
        self.registry.update_round(record.round_id, candidate_version=self.second, gate_report=report)
        folder = round_folder(self.settings, record.round_id)
        folder.mkdir(parents=True)
        (folder / "rows.jsonl").write_bytes(b"")
        return self.registry.round(record.round_id)

    def settle(self) -> RoundRecord:
        """A round that settles."""
        record = self.judged()
        plan = round_settling.plan(self.inputs(record), record.gate_report or LACKING)
        assert plan is not None
        return self.registry.begin_settling(record.round_id, plan)

    def inputs(self, record: RoundRecord) -> RoundInputs:
        folder, base = round_folder(self.settings, record.round_id), cast("Any", None)
        return RoundInputs(
            record, self.settings, self.registry, self.store, None, lambda *_: None, folder, "", Policy(), base
        )

    def answer_of(self, version: str | None, item: QueueItem) -> str:
        digest = self.registry.version(version or "").digest
        return answers(open_version(self.store.fetch(digest, self.settings.path("state/cache")), digest), [item.text])[
            0
        ]

    def command(self, *arguments: str) -> Result:
        return CliRunner().invoke(cli, [*arguments, "-c", str(self.config)])

    def killed(self, point: str, *arguments: str) -> None:
        command = [sys.executable, "-m", "services.cli.main", *arguments, "-c", str(self.config)]
        environment = {**os.environ, "RATCHET_CRASH_AT": point}
        ended = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, check=False, timeout=120)
        assert ended.returncode == -signal.SIGKILL, ended.stderr


def mixed(number: int) -> str:
    """A text of which no model can be sure: words of several topics, among fillers."""
    chosen = [WORDS[(number * step + step) % len(WORDS)] for step in (7, 11, 13, 17)]
    return " ".join([*chosen, FILLERS[number % len(FILLERS)], f"n{number}"])


@pytest.fixture
def project(settings: Settings, version: Path, wider_version: Path) -> Iterator[Project]:
    model = settings.model.model_copy(update={"name": "m"})
    settings = settings.model_copy(update={"model": model})
    (settings.root / "ratchet.toml").write_text(render_settings({"model": {"name": "m"}}), encoding="utf-8")
    (settings.root / "feature_store.yaml").write_text(default_feature_store_yaml("m"), encoding="utf-8")
    registry = Registry(settings.registry_url, "m")
    registry.migrate()
    registry.set_labels([*TOPICS, "weather"])
    yield Project(settings, registry, (version, wider_version))
    registry.close()


def ignore(_champion: object) -> None:
    """Announce nothing."""


def label_until_settled(project: Project, record: RoundRecord, version: str | None) -> RoundRecord:
    """Label every item with what this version answers, until the round has its verdict."""
    done = record
    for item in project.registry.queue.items(round_id=record.round_id):
        label = project.answer_of(version, item)
        assert label in item.answers
        assert queue_rows(project.registry, project.settings).trains == []
        project.registry.queue.label(item.item_id, label, reviewer="ada")
        done = moved(project)
        if done.state is not RoundState.SETTLING:
            break
    return done


def moved(project: Project, settings: Settings | None = None) -> RoundRecord:
    done = advance(settings or project.settings, project.registry, token=None, announce=ignore)
    assert done is not None
    return done


def test_labels_on_disagreements_promote_the_candidate(project: Project) -> None:
    registry = project.registry
    before = project.send(20, utc_now() - timedelta(hours=1))
    record = project.settle()

    assert record.state is RoundState.SETTLING, record.detail
    assert registry.unfinished_round() is None  # other rounds may run
    plan = record.settling
    assert plan is not None
    assert (plan.look, round(plan.alpha, 6), plan.reference_e, plan.labels) == (1, 0.006125, e_value(0.04), 0)
    assert plan.since == record.created_at

    later = utc_now() + timedelta(minutes=1)
    texts = project.send(400, later)
    project.send(0, later, again=before)
    filled = project.command("queue", "fill")
    assert filled.exit_code == 0, filled.output
    items = registry.queue.items(round_id=record.round_id)
    assert {item.text for item in items} <= set(texts)  # none from before the round was claimed
    assert len(items) >= 15, "the models hardly disagree: the test proves nothing"
    assert fill(project.settings, registry, project.features) == {"audit": 0, "disagreement": 0}

    done = label_until_settled(project, record, record.candidate_version)
    assert done.state is RoundState.PROMOTED, done.detail
    champion = registry.champion()
    assert champion is not None
    assert (champion.model_version, champion.actor) == (record.candidate_version, "gates")
    assert done.settling is not None
    assert (done.settling.wins, done.settling.losses) == (done.settling.labels, 0)
    assert done.settling.labels < 15
    trains = queue_rows(registry, project.settings).trains
    assert len(trains) == done.settling.labels


def test_killed_at_any_point_the_round_is_promoted_once(project: Project) -> None:
    registry = project.registry
    record = project.settle()
    project.send(400, utc_now() + timedelta(minutes=1))
    fill(project.settings, registry, project.features)
    items = registry.queue.items(round_id=record.round_id)
    labels = {item.item_id: project.answer_of(record.candidate_version, item) for item in items[:9]}
    ids = list(labels)
    for item_id in ids[:-1]:
        registry.queue.label(item_id, labels[item_id], reviewer="ada")

    project.killed("settled", "queue", "label", ids[-1], labels[ids[-1]])
    assert registry.round(record.round_id).state is RoundState.SETTLING
    project.killed("settled version", "queue", "label", ids[-1], labels[ids[-1]])
    assert registry.round(record.round_id).state is RoundState.SETTLING

    done = moved(project)
    assert done.state is RoundState.PROMOTED, done.detail
    assert advance(project.settings, registry, token=None, announce=ignore) is None
    assert [champion.generation for champion in registry.promotions()] == [2, 1]


def test_the_audit_sample_is_queued_whatever_was_predicted(project: Project) -> None:
    registry = project.registry
    audited = project.send(5, utc_now(), audit=True)
    project.send(5, utc_now())
    trained = "a text that has trained"
    registry.record_sides({cluster_key("m", trained): "train"})
    row = stored_rows.prediction_row(900, text=trained, audit=True, event_timestamp=utc_now())
    stored_rows.append(project.features, "predictions", [row | {"created_timestamp": utc_now()}])

    assert queue_audit_sample(project.settings, registry, project.features) == 5
    assert registry.queue_items.waiting() == set(audited)
    assert queue_audit_sample(project.settings, registry, project.features) == 0
    [first, *_] = registry.queue.items(kind="audit")
    registry.queue.label(first.item_id, "cooking", reviewer="ada")
    assert [row.text for row in queue_rows(registry, project.settings).judges] == [first.text]
