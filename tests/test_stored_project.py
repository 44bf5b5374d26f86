"""A project of version 0.1.0, and what people do to a real project by command: it opens, serves, learns and is rolled back.

`data/project-0.1.0.tar.xz` was made by the code of 0.1.0 on a tiny model: two rounds promoted, 100 predictions and their
feedback stored, 30 of them since the last round. No test repairs anything in it by hand.
"""

import json
import shutil
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pipelines.feature_store.store import FeatureStore
from pipelines.round_inputs import round_folder
from schemas.records import RoundRecord, RoundState
from schemas.settings import Settings
from services.cli.identity import operator
from services.cli.main import cli
from services.projects import open_project
from serving.artifacts import ArtifactStore
from serving.inference.encoder_runtime import Runtime
from serving.inference.loading import open_version
from serving.registry.registry import Registry
from tests.support.fakes import free_port

STORED = Path(__file__).parent / "data/project-0.1.0.tar.xz"
FIRST, CHAMPION = "20261129-002437-d12ede", "20261129-002544-ef5bf2"


def command(project: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, [*arguments, "-c", str(project)])


def why(refused: Result) -> str:
    """Return the line that `main` prints for a refused command."""
    assert isinstance(refused.exception, Exception)
    return f"{refused.output}{refused.exception}"


def answer(project: Path, *arguments: str) -> dict[str, object]:
    """Return the JSON object that a command prints."""
    done = command(project, *arguments, "--json")
    assert done.exit_code == 0, done.output
    printed: dict[str, object] = json.loads(done.stdout)
    return printed


def opened(project: Path) -> tuple[Settings, Registry]:
    settings = open_project(project)
    registry = Registry(settings.registry_url, settings.model.name)
    registry.upgrade()  # as every command does
    return settings, registry


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) >= 1, old
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stored project on a port that nobody uses; copy it before you change it."""
    folder = tmp_path_factory.mktemp("stored") / "toys"
    with tarfile.open(STORED) as archive:
        archive.extractall(folder, filter="data")
    replace(folder / "ratchet.toml", "port = 37685", f"port = {free_port()}")
    return folder


@pytest.fixture
def project(unpacked: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(unpacked, tmp_path / "toys"))


@pytest.fixture(scope="module")
def judged(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RoundRecord]:
    """The project after a round whose candidate awaits approval; copy it before you change it."""
    folder = Path(shutil.copytree(unpacked, tmp_path_factory.mktemp("judged") / "toys"))
    replace(folder / "ratchet.toml", '# approval = "auto"', 'approval = "manual"')
    replace(folder / "ratchet.toml", '# artifact = "auto"', 'artifact = "fp32"')  # quantisation has tests of its own
    replace(folder / "policy.toml", "alpha = 0.05", "alpha = 0.5")  # thirty new rows show little
    done = command(folder, "round", "run")
    assert done.exit_code == 0, done.output
    _, registry = opened(folder)
    record = registry.rounds()[0]
    registry.close()
    return folder, record


@pytest.fixture
def awaiting(judged: tuple[Path, RoundRecord], tmp_path: Path) -> tuple[Path, RoundRecord]:
    return Path(shutil.copytree(judged[0], tmp_path / "toys")), judged[1]


def test_status_and_doctor_see_what_is_stored(project: Path) -> None:
    status = answer(project, "status")
    champion = status["champion"]
    assert isinstance(champion, dict)
    assert (champion["model_version"], champion["generation"]) == (CHAMPION, 2)
    assert (status["feedback"], status["not_yet_stored"]) == (30, 0)
    assert status["live_feedback"] == {FIRST: {"agreed": 44, "disagreed": 56}}

    examined = command(project, "doctor", "--json")
    checks = {check["part"]: check for check in json.loads(examined.stdout)}
    assert examined.exit_code == 0, examined.output
    assert {part for part, check in checks.items() if check["verdict"] != "ok"} == {"broker", "serving"}, "not up"
    assert CHAMPION in checks["registry"]["sentence"]
    assert "'predictions': 100, 'feedback': 100" in checks["feature store"]["sentence"]


def test_the_registry_migrates_and_its_audit_log_verifies(project: Path) -> None:
    settings, registry = opened(project)
    before = registry.rounds()
    registry.migrate()
    assert registry.rounds() == before
    assert registry.verify_audit() == []
    assert [(c.model_version, c.generation) for c in registry.promotions()] == [(CHAMPION, 2), (FIRST, 1)]
    assert registry.excluded().users == {}, "a table that 0.1.0 had not"
    registry.close()
    assert command(project, "audit", "verify").exit_code == 0
    assert settings.model.base_model == str(project / "base")


def test_stored_feedback_is_read_through_the_class_paths_of_then(project: Path) -> None:
    assert "pipelines.offline_store." in (project / "feature_store.yaml").read_text(encoding="utf-8")
    features = FeatureStore(open_project(project))
    feedback = features.labelled_feedback()
    assert len(feedback) == 100
    assert {row.value for row in feedback} == {"cooking", "football", "money"}
    assert all(row.text for row in feedback), "each with its prediction"
    online = features.look_up([row.prediction_id for row in feedback])
    assert {row["predicted_label"] for row in online.values()} == {"cooking", "football", "money"}


@pytest.mark.parametrize("version", [FIRST, CHAMPION])
def test_a_stored_version_is_whole_and_gives_its_golden_outputs(project: Path, version: str) -> None:
    settings, registry = opened(project)
    digest = registry.version(version).digest
    registry.close()
    folder = ArtifactStore(settings.location(settings.artifacts.url)).fetch(digest, settings.path("state/cache"))
    runtime = open_version(folder, digest)  # raises GoldenMismatch; the artefact is fp32, so that processors agree
    assert isinstance(runtime, Runtime)
    assert runtime.probabilities(["oven dough butter recipe"]).shape == (1, 3)


def test_a_rollback_makes_the_version_before_the_champion(project: Path) -> None:
    champion = answer(project, "model", "rollback", "--reason", "complaints")
    assert (champion["model_version"], champion["generation"], champion["actor"]) == (FIRST, 3, operator())
    refused = command(project, "model", "rollback", FIRST)
    assert refused.exit_code == 1
    assert f"{FIRST} is the champion already" in why(refused)
    again = command(project, "model", "rollback")
    assert again.exit_code == 1, "a second one does not toggle back"
    assert "no other version to roll back to" in why(again)
    assert answer(project, "model", "rollback", CHAMPION, "--reason", "was no fault")["generation"] == 4
    _, registry = opened(project)
    assert registry.verify_audit() == []
    registry.close()


def test_a_rollback_to_a_damaged_version_is_refused(project: Path) -> None:
    settings, registry = opened(project)
    model = settings.path("state/artifacts") / registry.version(FIRST).digest / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1])
    refused = command(project, "model", "rollback")
    assert refused.exit_code == 1
    assert f"{FIRST} cannot be served" in refused.output
    champion = registry.champion()
    registry.close()
    assert champion is not None
    assert champion.model_version == CHAMPION
    examined = command(project, "doctor", "--json")
    assert examined.exit_code == 1
    [wrong] = [check for check in json.loads(examined.stdout) if check["verdict"] == "FAIL"]
    assert (wrong["part"], FIRST in wrong["sentence"]) == ("artefacts", True)


def test_a_round_goes_on_from_what_is_stored(judged: tuple[Path, RoundRecord]) -> None:
    project, record = judged
    assert record.state is RoundState.AWAITING_APPROVAL, record.detail
    assert record.champion_version == CHAMPION
    assert record.dataset is not None
    assert record.dataset.rows_by_source["correction"] > 50
    assert record.gate_report is not None
    assert record.gate_report.policy_changes == ["superiority.alpha: 0.05 -> 0.5"]
    assert (round_folder(open_project(project), record.round_id) / "report.html").exists()
    waits = command(project, "round", "run")
    assert waits.exit_code == 1
    assert f"`ratchet round approve {record.round_id}`" in waits.output


def test_an_approved_candidate_is_the_champion(awaiting: tuple[Path, RoundRecord]) -> None:
    project, record = awaiting
    champion = answer(project, "round", "approve", record.round_id, "--reason", "read the report")
    assert (champion["model_version"], champion["generation"]) == (record.candidate_version, 3)
    _, registry = opened(project)
    assert registry.round(record.round_id).state is RoundState.PROMOTED
    assert registry.version(str(record.candidate_version)).approved_by == operator()
    assert registry.verify_audit() == []
    registry.close()
    for decision in ("approve", "reject"):
        again = command(project, "round", decision, record.round_id, "--reason", "again")
        assert again.exit_code == 1, decision
    assert answer(project, "model", "rollback")["model_version"] == CHAMPION


def test_a_rejected_candidate_changes_nothing(awaiting: tuple[Path, RoundRecord]) -> None:
    project, record = awaiting
    ended = answer(project, "round", "reject", "latest", "--reason", "too few rows")
    assert (ended["state"], ended["detail"]) == ("rejected", f"rejected by {operator()}: too few rows")
    refused = command(project, "round", "approve", record.round_id, "--reason", "enough for me")
    assert refused.exit_code == 1
    assert "add --overrule" in why(refused)
    _, registry = opened(project)
    champion = registry.champion()
    registry.close()
    assert champion is not None
    assert champion.model_version == CHAMPION


def test_a_candidate_judged_against_another_champion_is_not_approved(awaiting: tuple[Path, RoundRecord]) -> None:
    project, record = awaiting
    assert command(project, "model", "rollback").exit_code == 0
    refused = command(project, "round", "approve", record.round_id, "--reason", "good")
    assert refused.exit_code == 1
    assert f"was judged against {CHAMPION}" in why(refused)
