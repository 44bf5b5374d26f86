"""The report.html of a judged round: in its folder, or in the version that it made.

Turns a round's record into a path. `ratchet round show` and the console open it.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from schemas.records import RoundRecord
from schemas.settings import Settings

if TYPE_CHECKING:
    from serving.registry.registry import Registry


def report_page(settings: Settings, registry: "Registry", record: RoundRecord) -> Path | None:
    """Return the round's page; None if it has none.

    Raises:
        ArtifactMissing, ArtifactDamaged, ArtifactStoreUnavailable: the version cannot be fetched.

    """
    page = settings.path("state/rounds") / record.round_id / "report.html"
    if page.exists():
        return page
    if record.gate_report is None or record.candidate_version is None:
        return None
    from serving.artifacts import ArtifactStore

    try:
        digest = registry.version(record.candidate_version).digest
    except KeyError:  # the version was deleted
        return None
    store = ArtifactStore(settings.location(settings.artifacts.url))
    fetched = store.fetch(digest, settings.path(settings.artifacts.cache)) / "report.html"
    return fetched if fetched.exists() else None
