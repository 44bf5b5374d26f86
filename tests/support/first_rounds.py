"""A project as its first round leaves it: made by `init`, trained on a tiny model, its candidate promoted.

conftest.py makes it once a run; tests that start from a champion copy it.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

from pipelines.feature_store.store import FeatureStore
from pipelines.training_round import run_round
from schemas.records import Champion, RoundRecord, RoundState
from schemas.settings import Settings
from services.projects import create_project, fill_taxonomy, open_project
from serving.artifacts import ArtifactStore
from serving.registry.registry import Registry
from tests.support.fakes import toy_rows, write_rows

# What a URL, a pattern or a shell would not read as a plain name.
FOLDER = "a[b] größe 100% #1? {x} *'\"店"


def next_round(
    settings: Settings,
    registry: Registry,
    features: FeatureStore | None = None,
    announce: Callable[[Champion], None] | None = None,
    reason: str = "test",
) -> RoundRecord:
    """Claim a round and run it in this process."""
    cut = features.current_cut() if features else {}
    claimed = registry.claim_round(reason=reason, cut=cut, token=None)
    assert claimed is not None
    return run_round(
        claimed.round_id,
        settings=settings,
        registry=registry,
        store=ArtifactStore(settings.location(settings.artifacts.url)),
        features=features,
        token=None,
        progress=lambda *_: None,
        announce=announce,
    )


def make(folder: Path, base: Path) -> None:
    """Fill `folder` with the project, in a folder FOLDER of its own."""
    project = folder / FOLDER
    settings = create_project(
        project,
        seed=write_rows(folder / "seed.csv", toy_rows(30, seed=1)),
        reference=write_rows(folder / "reference.csv", toy_rows(240, seed=2)),
        base_model=str(base),
        name="toys",
        overrides={"model": {"max_length": 32}, "training": {"epochs": 2, "threads": 1, "tfidf": False}},
    )
    registry = Registry(settings.registry_url, settings.model.name)
    registry.migrate()
    fill_taxonomy(settings, registry)
    record = next_round(settings, registry, FeatureStore(settings), reason="no model serves yet")
    registry.close()
    assert record.state is RoundState.PROMOTED, record.detail


def copied(made: Path, to: Path) -> tuple[Settings, Registry]:
    """Copy the project to the new folder `to` and open it. Close the registry."""
    settings = open_project(shutil.copytree(made / FOLDER, to))
    return settings, Registry(settings.registry_url, settings.model.name)
