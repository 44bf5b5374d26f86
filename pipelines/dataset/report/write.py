"""Write dataset.json and dataset.html beside a round's rows.

Rounds and `ratchet dataset` call it.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import orjson

from pipelines.dataset.build import Dataset
from pipelines.dataset.project_dataset import ROWS, training_rows
from pipelines.dataset.report.page import render
from pipelines.dataset.report.profile import Labelled, profile
from pipelines.pages import write_page
from schemas.settings import Settings
from serving.registry.registry import Registry

if TYPE_CHECKING:
    from pipelines.models.base_models import Base

TRAFFIC = 2000  # newest predictions, as a sample of live traffic


class Traffic(Protocol):
    """The part of the feature store that the report needs."""

    def recent_predictions(self, limit: int) -> list[tuple[str, str]]:
        """Return text and predicted target of the newest predictions."""


def write_report(
    folder: Path, dataset: Dataset, settings: Settings, registry: Registry, features: Traffic | None, base: "Base"
) -> None:
    """Write dataset.json (manifest and profile) and dataset.html into `folder`."""
    against: dict[str, list[Labelled]] = {}
    if features is not None:
        against["live traffic"] = features.recent_predictions(TRAFFIC)
    champion = registry.champion()
    if champion is not None and champion.round_id:
        earlier = settings.path("state/rounds") / champion.round_id
        if earlier != folder and (earlier / ROWS).exists():
            rows = training_rows(earlier)
            against["the champion's training rows"] = [(e.text, e.label) for e in rows]
    described = profile(
        dataset,
        task=settings.model.task,
        embed=base.embed,
        count_tokens=base.token_counts,
        max_length=base.max_length,
        against=against,
    )
    parts = {"manifest": dataset.manifest.model_dump(mode="json"), "profile": described.model_dump(mode="json")}
    (folder / "dataset.json").write_bytes(orjson.dumps(parts, option=orjson.OPT_INDENT_2))
    write_page(folder / "dataset.html", lambda: render(settings.model.name, dataset.manifest, described))
