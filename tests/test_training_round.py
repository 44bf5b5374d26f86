"""The round: promoted once, resumed after kill -9, refused when the champion moved (invariants 3, 4 and 6)."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipelines.dataset.project_dataset import training_rows
from pipelines.gates.policy import default_policy
from pipelines.round_inputs import round_folder
from pipelines.training_round import run_round
from schemas.records import RoundRecord, RoundState, VersionState
from schemas.settings import Settings, render_settings
from services.cli.evidence import evidence
from services.cli.rounds import rounds
from serving.artifacts import ArtifactStore
from serving.inference.encoder_runtime import Runtime
from serving.model_directory import read_manifest, verify
from serving.registry.registry import ChampionMoved, NotServable, Registry, RoundOver
from tests.support import first_rounds
from tests.support.fakes import killed_round, toy_rows, write_rows


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


@pytest.fixture
def promoted(first_round: Path, tmp_path: Path) -> Iterator[tuple[Settings, Registry, RoundRecord]]:
    """A project after its first round."""
    settings, registry = first_rounds.copied(first_round, tmp_path / "toys")
    [record] = registry.rounds()
    yield settings, registry, record
    registry.close()


def test_a_first_round_promotes_a_whole_artefact(promoted: tuple[Settings, Registry, RoundRecord]) -> None:
    project, registry, record = promoted
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
    rows = training_rows(round_folder(project, record.round_id))
    assert len(rows) == record.dataset.rows_train + record.dataset.rows_validation

    assert manifest.calibration.conformal is not None
    assert manifest.golden.sets
    assert manifest.code_version is not None

    # its page is shown where it was run, and elsewhere from the version
    page = round_folder(project, record.round_id) / "report.html"
    assert str(page) in show(project, record.round_id)
    page.unlink()
    assert str(project.path("state/cache") / champion.digest / "report.html") in show(project, record.round_id)


def test_the_same_data_again_is_no_improvement(promoted: tuple[Settings, Registry, RoundRecord]) -> None:
    """Nothing is promoted, and the version cannot be promoted past the gates."""
    project, registry, first = promoted
    champion = registry.champion()
    assert champion is not None
    policy = project.path("policy.toml")
    text = policy.read_text(encoding="utf-8")
    assert text.count("max_share = 0.1\n") == 1
    changed = text.replace("max_share = 0.1\n", "max_share = 0.9\n").replace("people = 1\n", "people = 2\n")
    policy.write_text(changed, encoding="utf-8")
    onwards = project.model_copy(update={"training": project.training.model_copy(update={"start": "champion"})})
    registry.set_labels(["gardening"])
    second = first_rounds.next_round(onwards, registry)
    versions = [round_folder(project, one.round_id) / "version" for one in (first, second)]
    assert [read_manifest(version).untaught_labels for version in versions] == [[], ["gardening"]]
    history = (versions[1] / "history.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(history[0]) == {"phase": "start", "weights": "champion", "champion": champion.model_version}
    assert second.gate_report is not None
    assert "drift" in [result.gate for result in second.gate_report.results]
    assert second.gate_report.policy_changes == ["approval.people: 1 -> 2", "flips.max_share: 0.1 -> 0.9"]
    assert second.approvals_needed == 2
    assert second.state in (RoundState.REJECTED, RoundState.INSUFFICIENT, RoundState.SETTLING)
    assert second.candidate_version is not None

    # the look is in the ledger, and the same rows once more are not worth another
    [look] = registry.looks()
    assert (look.champion, look.candidate, look.number) == (champion.model_version, second.candidate_version, 1)
    assert (look.p, look.alpha) == (second.gate_report.p, second.gate_report.alpha)
    assert look.rows == look.fresh_rows == second.gate_report.fresh_rows > 100
    third = first_rounds.next_round(onwards, registry)
    assert third.state is RoundState.SKIPPED
    assert third.detail is not None
    assert third.detail.startswith(f"nothing new: round {second.round_id} judged")
    assert registry.looks() == [look]
    printed = CliRunner().invoke(evidence, ["-c", str(project.root / "ratchet.toml")])
    assert printed.exit_code == 0, printed.output
    assert f"look 1 at {champion.model_version}: {second.candidate_version}" in printed.output
    assert "a gain of 3 points would be found in" in printed.output
    told = json.loads(CliRunner().invoke(evidence, ["--json", "-c", str(project.root / "ratchet.toml")]).output)
    assert [one["round_id"] for one in told["looks"]] == [second.round_id]
    assert told["spent"] == pytest.approx(look.alpha)

    with pytest.raises(NotServable):
        registry.promote(second.candidate_version, expected=champion.model_version, token=None, actor="somebody")
    registry.mark_servable(second.candidate_version, approved_by="a reviewer")
    with pytest.raises(ChampionMoved):
        registry.promote(second.candidate_version, expected="another", token=None, actor="somebody")
    assert registry.champion() == champion


def test_a_first_champion_waits_for_two_people_if_the_policy_of_its_judgement_says_so(
    full_precision: Settings, registry: Registry
) -> None:
    project = full_precision
    asks = (
        default_policy("classification")
        .replace("when = []", 'when = ["first_champion"]')
        .replace("people = 1", "people = 2")
    )
    project.path("policy.toml").write_text(asks, encoding="utf-8")
    write_config(project)
    claimed = registry.claim_round(reason="test", cut={}, token=None)
    assert claimed is not None
    killed_round(claimed.round_id, project.root / "ratchet.toml", "gates")
    project.path("policy.toml").write_text(
        default_policy("classification"), encoding="utf-8"
    )  # after the judgement: too late
    waits = run(project, registry, claimed.round_id)
    assert (waits.state, waits.approvals_needed) == (RoundState.AWAITING_APPROVAL, 2)
    assert waits.detail is not None
    assert waits.detail.endswith("it is the first champion")
    assert waits.candidate_version is not None
    assert registry.version(waits.candidate_version).state is VersionState.AWAITING_APPROVAL
    assert registry.approve(waits.round_id, actor="ann", reason="read it").champion is None
    champion = registry.approve(waits.round_id, actor="bob", reason="read it too").champion
    assert champion is not None
    assert champion.model_version == waits.candidate_version


def test_a_round_whose_reference_set_is_too_small_settles(promoted: tuple[Settings, Registry, RoundRecord]) -> None:
    """A project without a reference of its own: labels alone decide its rounds."""
    project, registry, _ = promoted
    policy = project.path("policy.toml")
    text = policy.read_text(encoding="utf-8")
    assert "min_judge_rows = 100\n" in text
    policy.write_text(text.replace("min_judge_rows = 100\n", "min_judge_rows = 1000\n"), encoding="utf-8")

    second = first_rounds.next_round(project, registry)

    assert second.state is RoundState.SETTLING, second.detail
    assert second.gate_report is not None
    assert second.gate_report.reference_p is None
    assert {"data", "calibration", "baseline", "serving"} <= {result.gate for result in second.gate_report.results}
    assert second.settling is not None
    assert (second.settling.look, second.settling.reference_e) == (1, 1.0)
    assert registry.unfinished_round() is None
    assert second.candidate_version is not None
    champion = registry.champion()
    assert champion is not None
    with pytest.raises(NotServable):
        registry.promote(second.candidate_version, expected=champion.model_version, token=None, actor="somebody")


def test_a_project_of_a_few_rows_gets_a_first_champion_whose_successor_settles(
    settings: Settings, registry: Registry
) -> None:
    project = settings.model_copy(update={"dataset": settings.dataset.model_copy(update={"reference": None})})
    write_rows(project.path("data/seed.csv"), toy_rows(9, seed=1))
    project.path("policy.toml").write_text(default_policy("classification"), encoding="utf-8")
    first = first_rounds.next_round(project, registry)
    assert first.state is RoundState.PROMOTED, first.detail
    assert first.dataset is not None
    assert 1 <= first.dataset.reference_rows < 9

    write_rows(project.path("data/seed.csv"), toy_rows(24, seed=1))
    second = first_rounds.next_round(project, registry)
    assert second.state is RoundState.SETTLING, second.detail


def test_too_few_rows_let_nothing_settle_that_cannot_serve(promoted: tuple[Settings, Registry, RoundRecord]) -> None:
    project, registry, _ = promoted
    policy = project.path("policy.toml")
    text = policy.read_text(encoding="utf-8").replace("min_judge_rows = 100\n", "min_judge_rows = 1000\n")
    policy.write_text(text.replace("max_size_mb = 4000", "max_size_mb = 0.001"), encoding="utf-8")
    second = first_rounds.next_round(project, registry)
    assert second.state is RoundState.REJECTED, second.detail
    assert second.detail is not None
    assert "serving:" in second.detail


def test_a_killed_round_is_resumed_and_promotes_once(full_precision: Settings, registry: Registry) -> None:
    project = full_precision
    project.path("policy.toml").write_text(default_policy("classification"), encoding="utf-8")
    write_config(project)
    claimed = registry.claim_round(reason="test", cut={}, token=None)
    assert claimed is not None
    round_id = claimed.round_id
    killed_round(round_id, project.root / "ratchet.toml", "gates")
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
