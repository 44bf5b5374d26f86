"""The round: promoted once, resumed after kill -9, refused when the champion moved (invariants 3, 4 and 6)."""

import json

import pytest
from click.testing import CliRunner

from pipelines.dataset.project_dataset import training_rows
from pipelines.gates.policy import DEFAULT_POLICY
from pipelines.round_inputs import round_folder
from pipelines.training_round import run_round
from schemas.records import RoundRecord, RoundState
from schemas.settings import Settings, render_settings
from services.cli.rounds import rounds
from serving.artifacts import ArtifactStore
from serving.inference.encoder_runtime import Runtime
from serving.model_directory import read_manifest, verify
from serving.registry.registry import ChampionMoved, NotServable, Registry, RoundOver
from tests.support.fakes import killed_round


def run(settings: Settings, registry: Registry, round_id: str) -> RoundRecord:
    return run_round(
        round_id,
        settings=settings,
        registry=registry,
        store=ArtifactStore(settings.location(settings.artifacts.url)),
        features=None,
        token=None,
        progress=lambda *_: None,
    )


def claim(registry: Registry) -> str:
    record = registry.claim_round(reason="test", cut={}, token=None)
    assert record is not None
    return record.round_id


@pytest.fixture
def project(settings: Settings, registry: Registry) -> Settings:
    settings.path("policy.toml").write_text(DEFAULT_POLICY, encoding="utf-8")
    return settings


def test_a_first_round_promotes_a_whole_artefact(project: Settings, registry: Registry) -> None:
    round_id = claim(registry)
    record = run(project, registry, round_id)
    assert record.state is RoundState.PROMOTED, record.detail
    champion = registry.champion()
    assert champion is not None
    assert (champion.model_version, champion.generation) == (record.candidate_version, 1)
    directory = ArtifactStore(project.location(project.artifacts.url)).fetch(
        champion.digest, project.path("state/cache")
    )
    manifest = verify(directory, champion.digest)
    assert {
        "model.onnx",
        "tokenizer.json",
        "head.safetensors",
        "adapter/adapter_model.safetensors",
        "report.json",
        "report.html",
        "policy.toml",
    } <= manifest.files.keys()
    runtime = Runtime(directory, champion.digest)
    [probabilities] = runtime.probabilities(["oven dough butter recipe"])
    assert probabilities.sum() == pytest.approx(1)
    assert runtime.labels[probabilities.argmax()] == "cooking"
    assert record.dataset is not None
    assert (
        len(training_rows(round_folder(project, round_id)))
        == record.dataset.rows_train + record.dataset.rows_validation
    )

    assert manifest.calibration.conformal is not None
    assert manifest.golden.sets
    assert manifest.code_version is not None

    # its page is shown where it was run, and elsewhere from the version
    write_config(project)
    shown = show(project, round_id)
    assert str(round_folder(project, round_id) / "report.html") in shown
    (round_folder(project, round_id) / "report.html").unlink()
    assert str(project.path("state/cache") / champion.digest / "report.html") in show(project, round_id)

    # the same data again is no improvement: nothing is promoted, and the version cannot be promoted past the gates
    project.path("policy.toml").write_text(
        DEFAULT_POLICY.replace("max_share = 0.1", "max_share = 0.9"), encoding="utf-8"
    )
    onwards = project.model_copy(update={"training": project.training.model_copy(update={"start": "champion"})})
    registry.set_labels(["gardening"])
    second = run(onwards, registry, claim(registry))
    version = round_folder(project, second.round_id) / "version"
    assert (manifest.untaught_labels, read_manifest(version).untaught_labels) == ([], ["gardening"])
    history = (version / "history.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(history[0]) == {"phase": "start", "weights": "champion", "champion": champion.model_version}
    assert second.gate_report is not None
    assert "drift" in [result.gate for result in second.gate_report.results]
    assert second.gate_report.policy_changes == ["flips.max_share: 0.1 -> 0.9"]
    assert second.state in (RoundState.REJECTED, RoundState.INSUFFICIENT)
    assert second.candidate_version is not None
    with pytest.raises(NotServable):
        registry.promote(second.candidate_version, expected=champion.model_version, token=None, actor="somebody")
    registry.mark_servable(second.candidate_version, approved_by="a reviewer")
    with pytest.raises(ChampionMoved):
        registry.promote(second.candidate_version, expected="another", token=None, actor="somebody")
    assert registry.champion() == champion


@pytest.mark.parametrize("step", ["gates"])
def test_a_killed_round_is_resumed_and_promotes_once(full_precision: Settings, registry: Registry, step: str) -> None:
    project = full_precision
    project.path("policy.toml").write_text(DEFAULT_POLICY, encoding="utf-8")
    write_config(project)
    round_id = claim(registry)
    killed_round(round_id, project.root / "ratchet.toml", step)
    assert registry.round(round_id).state is RoundState.RUNNING
    made = (round_folder(project, round_id) / "version/manifest.json").stat().st_mtime_ns
    judged = registry.round(round_id).gate_report

    # what was judged is not judged again, under whatever policy
    project.path("policy.toml").write_text("[bootstrap]\nmin_gain_over_majority = 1.0", encoding="utf-8")
    resumed = run(project, registry, round_id)
    assert resumed.state is RoundState.PROMOTED, resumed.detail
    assert resumed.attempts == 2
    assert resumed.gate_report == judged
    assert (round_folder(project, round_id) / "version/manifest.json").stat().st_mtime_ns == made, "trained twice"
    assert [c.generation for c in registry.promotions()] == [1]
    with pytest.raises(RoundOver):
        run(project, registry, round_id)
    assert [c.generation for c in registry.promotions()] == [1]


def write_config(project: Settings) -> None:
    """The project as commands find it: ratchet.toml and feature_store.yaml."""
    from pipelines.feature_store.store import default_feature_store_yaml

    values = project.model_dump(mode="json", exclude_none=True)
    overrides = {group: dict(values[group]) for group in ("model", "dataset", "training")}
    overrides["serving"] = {"artifact": project.serving.artifact}
    (project.root / "ratchet.toml").write_text(render_settings(overrides), encoding="utf-8")
    (project.root / "feature_store.yaml").write_text(default_feature_store_yaml(project.model.name), encoding="utf-8")


def show(project: Settings, round_id: str) -> str:
    """What `ratchet round show` prints."""
    done = CliRunner().invoke(rounds, ["show", round_id, "-c", str(project.root / "ratchet.toml")])
    assert done.exit_code == 0, done.output
    return done.output
