"""MLflow: a round is logged once, its aliases follow, and a server that is away stops nothing."""

import pytest

from pipelines.gates.policy import default_policy
from pipelines.report import mlflow_tracking, round_report
from pipelines.round_inputs import round_folder
from schemas.records import RoundRecord, RoundState
from schemas.settings import Settings
from services.rounds.announce import announce
from serving.registry.registry import Registry
from tests.support.first_rounds import next_round


def tracked(settings: Settings, uri: str) -> Settings:
    return settings.model_copy(update={"training": settings.training.model_copy(update={"mlflow_uri": uri})})


def run(settings: Settings, registry: Registry) -> RoundRecord:
    settings.path("policy.toml").write_text(default_policy("classification"), encoding="utf-8")
    return next_round(settings, registry, announce=lambda champion: announce(settings, registry, champion))


def test_a_round_is_logged_once_and_the_aliases_follow(full_precision: Settings, registry: Registry) -> None:
    from mlflow import MlflowClient

    settings = tracked(full_precision, "sqlite:///state/mlflow.db")
    record = run(settings, registry)
    assert record.state is RoundState.PROMOTED, record.detail

    client = MlflowClient(tracking_uri=settings.mlflow_uri, registry_uri=settings.mlflow_uri)
    name = settings.model.name
    for alias in ("candidate", "champion"):
        assert client.get_model_version_by_alias(name, alias).tags[mlflow_tracking.VERSION] == record.candidate_version
    sealed = round_report.sealed_folder(round_folder(settings, record.round_id) / "version")
    mlflow_tracking.log_version(settings, sealed)  # as a round that is resumed does
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    [logged] = client.search_runs([experiment.experiment_id])
    assert logged.data.tags["verdict"] == "pass"
    assert logged.data.params["training.epochs"] == "2"
    assert logged.data.metrics["candidate.accuracy"] == record.evaluations["candidate"].accuracy
    curve = client.get_metric_history(logged.info.run_id, "search.held_out_nll")
    assert [point.step for point in curve] == list(range(len(curve)))
    assert len(curve) > 1
    files = {file.path for file in client.list_artifacts(logged.info.run_id, "model")}
    assert {"model/report.html", "model/manifest.json", "model/history.jsonl"} <= files


def test_a_server_that_is_away_stops_nothing(
    settings: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    settings = tracked(settings, "http://127.0.0.1:1")
    mlflow_tracking.log_version(settings, settings.root)
    mlflow_tracking.follow_champion(settings, "v")
    assert "was not logged to MLflow: MlflowException" in caplog.text
    assert "champion was not moved to v: MlflowException" in caplog.text
