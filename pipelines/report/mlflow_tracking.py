"""MLflow tracking of judged rounds.

Turns a sealed version's directory into an MLflow run: parameters, metrics by step and epoch, the version's files. Registers
the model version there, and moves the aliases `candidate` and `champion`. training_round.py calls `log_version`,
services/rounds/announce.py `follow_champion`; both do nothing unless `training.mlflow_uri` is set. Ratchet's registry is the
source of truth: an unreachable tracking server costs a warning.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from schemas.manifests import ModelManifest
from schemas.reports import RoundReport
from schemas.settings import Settings
from serving.model_directory import read_manifest

log = logging.getLogger("ratchet.tracking")

EXTRA = "training.mlflow_uri is set, but MLflow is not installed: pip install mlflow-skinny (extra `mlflow`)"
ROUND, VERSION = "ratchet.round_id", "ratchet.model_version"
# With MLflow's defaults, an unreachable server would block a round for 15 minutes.
REQUEST_LIMITS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}
NOT_METRICS = frozenset({"phase", "step", "epoch"})


def log_version(settings: Settings, directory: Path) -> None:
    """Log a sealed version, once even if the round is resumed. Never raises."""
    if settings.training.mlflow_uri is None:
        return
    try:
        client = _client(settings)
        experiment = _experiment(client, settings)
        report = RoundReport.model_validate_json((directory / "report.json").read_bytes())
        manifest = read_manifest(directory)
        logged = client.search_runs([experiment], f"tags.`{VERSION}` = '{manifest.model_version}'")
        for run in (run for run in logged if run.info.status == "RUNNING"):
            client.set_terminated(run.info.run_id, "KILLED")  # left by an attempt that crashed
        if not any(run.info.status == "FINISHED" for run in logged):
            run = client.create_run(
                experiment,
                run_name=manifest.model_version,
                tags={ROUND: report.round_id, VERSION: manifest.model_version, "verdict": report.gate_report.verdict},
            )
            _log(client, run.info.run_id, settings, manifest, report)
            client.log_artifacts(run.info.run_id, str(directory), "model")
            _register(client, run, manifest)
            client.set_terminated(run.info.run_id)
        _point(client, settings.model.name, "candidate", manifest.model_version)
    except Exception as error:  # tracking never fails a round
        log.warning("%s was not logged to MLflow: %s", directory, _sentence(error))


def follow_champion(settings: Settings, model_version: str) -> None:
    """Move the alias `champion` to a logged version. Never raises."""
    if settings.training.mlflow_uri is None:
        return
    try:
        _point(_client(settings), settings.model.name, "champion", model_version)
    except Exception as error:
        log.warning("MLflow's champion was not moved to %s: %s", model_version, _sentence(error))


def look(settings: Settings) -> str:
    """Return the tracking server's address and the project's experiment there. Raise the client's errors."""
    experiment = _client(settings).get_experiment_by_name(settings.model.name)
    return f"{settings.mlflow_uri}: {f'experiment {experiment.experiment_id}' if experiment else 'no rounds yet'}"


def _client(settings: Settings) -> Any:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    for variable, value in REQUEST_LIMITS.items():
        os.environ.setdefault(variable, value)
    try:
        from mlflow import MlflowClient
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(EXTRA) from error
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=settings.mlflow_uri, registry_uri=settings.mlflow_uri)


def _experiment(client: Any, settings: Settings) -> str:
    experiment = client.get_experiment_by_name(settings.model.name)
    if experiment:
        return str(experiment.experiment_id)
    # A server has its own artefact store; a database address alone needs one.
    local = "://" in str(settings.mlflow_uri) and not str(settings.mlflow_uri).startswith("http")
    location = settings.path("state/mlflow").as_uri() if local else None
    return str(client.create_experiment(settings.model.name, artifact_location=location))


def _log(client: Any, run: str, settings: Settings, manifest: ModelManifest, report: RoundReport) -> None:
    from mlflow.entities import Metric, Param

    parameters = {
        **{f"training.{key}": value for key, value in settings.training.model_dump().items()},
        **{f"lineage.{key}": value for key, value in report.lineage.model_dump().items()},
        "task": manifest.task,
        "artifact": manifest.artifact,
        "calibration": manifest.calibration.kind,
        "labels": len(manifest.labels),
        "rows_train": report.dataset.rows_train,
        "rows_validation": report.dataset.rows_validation,
    }
    metrics = [metric for line in report.history for metric in _curve_points(line)]
    for whose, evaluation in report.evaluations.items():
        numbers = evaluation.model_dump(include={"accuracy", "macro_f1", "nll", "brier", "ece"})
        metrics += [Metric(f"{whose}.{key}", float(value), 0, 0) for key, value in numbers.items() if value is not None]
    for start in range(0, len(metrics), 500):
        client.log_batch(run, metrics=metrics[start : start + 500])
    client.log_batch(run, params=[Param(key, str(value)[:500]) for key, value in parameters.items()])


def _curve_points(line: Mapping[str, Any]) -> list[Any]:
    """Return the numbers in a line of history.jsonl as metrics at its step or epoch."""
    from mlflow.entities import Metric

    at = int(line.get("step", line.get("epoch", 0)))
    numbers = {key: value for key, value in line.items() if key not in NOT_METRICS and isinstance(value, int | float)}
    return [Metric(f"{line.get('phase', 'training')}.{key}", float(value), 0, at) for key, value in numbers.items()]


def _register(client: Any, run: Any, manifest: ModelManifest) -> None:
    name = manifest.model_name
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    if _known(client, name, manifest.model_version) is None:
        source = f"{run.info.artifact_uri}/model"
        client.create_model_version(name, source, run.info.run_id, tags={VERSION: manifest.model_version})


def _known(client: Any, name: str, model_version: str) -> str | None:
    """Return MLflow's number of a version; None if it is not registered."""
    versions = client.search_model_versions(f"name = '{name}'")
    return next((one.version for one in versions if one.tags.get(VERSION) == model_version), None)


def _point(client: Any, name: str, alias: str, model_version: str) -> None:
    number = _known(client, name, model_version)
    if number is None:
        raise LookupError(f"{model_version} is not registered in MLflow under {name!r}")
    client.set_registered_model_alias(name, alias, number)


def _sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
