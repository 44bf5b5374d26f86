"""The manifest of a small version, as tests of the registry, the artefact store and pruning fill it."""

from schemas.manifests import Calibration, Golden, ModelManifest


def manifest(version: str, **changes: object) -> ModelManifest:
    """A manifest of two labels without files, but for `changes`."""
    fields: dict[str, object] = {
        "model_version": version,
        "model_name": "m",
        "task": "classification",
        "labels": ["a", "b"],
        "base_model": "tiny",
        "base_model_sha256": "0" * 64,
        "max_length": 32,
        "parent_version": None,
        "round_id": "r",
        "dataset_fingerprint": "f",
        "method": "lora",
        "calibration": Calibration(),
        "golden": Golden(texts=[], probabilities=[]),
        "files": {},
    }
    return ModelManifest.model_validate({**fields, **changes})
