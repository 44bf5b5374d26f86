"""Models: every version with its parent, two of them side by side, one in detail with downloads and its card, roll back.

Turns versions, promotions and manifests into pages. Files are sent by the names in a version's manifest alone.
"""

import io
import zipfile
from pathlib import Path

from starlette.responses import FileResponse, Response

from schemas.records import RoundRecord
from schemas.reports import RoundReport
from services.console import actions, charts, round_files
from services.console.curves import MAIN, main_figure, standings
from services.console.visit import Visit
from serving.artifacts import ArtifactMissing
from serving.model_directory import ArtifactDamaged, read_manifest

SHOWN = 60
ZIPS = {"adapter.zip": "adapter/"}


def index(visit: Visit) -> Response:
    """List versions with their lineage, newest first."""
    registry, task = visit.project.registry, visit.project.settings.model.task
    skip = int(visit.query("skip")) if visit.query("skip").isdecimal() else 0
    versions = registry.history.recent_versions(skip + SHOWN + 1)[skip:]
    figures = {s.model_version: s.value for s in standings(registry, task)}
    waiting = registry.unfinished_round() or registry.settling_round()
    if waiting and waiting.candidate_version and (value := main_figure(waiting, task)) is not None:
        figures[waiting.candidate_version] = value
    generations: dict[str, list[int]] = {}
    for champion in registry.history.recent_promotions(500):
        generations.setdefault(champion.model_version, []).append(champion.generation)
    live = registry.champion()
    return visit.page(
        "models.html",
        section="models",
        title="Models",
        versions=versions[:SHOWN],
        has_more=len(versions) > SHOWN,
        skip=skip,
        per_page=SHOWN,
        figures=figures,
        generations=generations,
        live=live.model_version if live else None,
        metric=MAIN[task][1],
        base=_base(visit),
    )


def _base(visit: Visit) -> str:
    name = visit.project.settings.model.base_model
    return Path(name).name if name else "the installed base model"


def one(visit: Visit) -> Response:
    """Show one version."""
    registry = visit.project.registry
    version = registry.version(visit.part("version"))
    live = registry.champion()
    record = _round(visit, version.round_id)
    try:
        manifest, problem = read_manifest(visit.project.version_folder(version.digest)), ""
    except (OSError, ValueError, ArtifactDamaged) as error:
        manifest, problem = None, f"its files cannot be read: {error}"
    served = [c for c in registry.history.recent_promotions(500) if c.model_version == version.model_version]
    return visit.page(
        "model.html",
        section="models",
        title=version.model_version,
        v=version,
        m=manifest,
        problem=problem,
        r=record,
        evaluation=record.evaluations.get("candidate") if record else None,
        served=served,
        live=live.model_version if live else None,
        can_return=version.state.value in ("retired", "rolled back"),
        others=[
            v.model_version for v in registry.history.recent_versions(200) if v.model_version != version.model_version
        ],
        has_adapter=bool(manifest and any(name.startswith("adapter/") for name in manifest.files)),
    )


def _round(visit: Visit, round_id: str) -> RoundRecord | None:
    try:
        return visit.project.registry.round(round_id)
    except KeyError:
        return None


def compare(visit: Visit) -> Response:
    """Show two versions on the same rows, once they have been run."""
    first, second = visit.query("first"), visit.query("second")
    assert visit.comparisons is not None
    done = visit.comparisons.of(first, second)
    span = max([0.01, *(max(abs(m.low), abs(m.high)) for m in done.metrics)]) if done else 1.0
    drawn = [(m, charts.interval(m.change, m.low, m.high, span, m.sentence)) for m in done.metrics] if done else []
    partial = "compare_done.html" if done else "compare_wait.html"
    return visit.page(
        partial if visit.is_partial else "compare.html",
        section="models",
        title="Side by side",
        first=first,
        second=second,
        c=done,
        drawn=drawn,
    )


def download(visit: Visit) -> Response:
    """Send a file of a version, its adapter as a zip, or its card; any other name is unknown."""
    registry, name = visit.project.registry, visit.part("name")
    version = registry.version(visit.part("version"))
    folder = visit.project.version_folder(version.digest)
    manifest = read_manifest(folder)
    if name == "card.md":
        text = card_of(visit, folder)
        disposition = f'attachment; filename="{version.model_version}-card.md"'
        return Response(text, media_type="text/markdown; charset=utf-8", headers={"content-disposition": disposition})
    if name in ZIPS:
        inside = [one for one in manifest.files if one.startswith(ZIPS[name])]
        if inside:
            disposition = f'attachment; filename="{version.model_version}-{name}"'
            headers = {"content-disposition": disposition}
            return Response(_zipped(folder, inside), media_type="application/zip", headers=headers)
    elif name in manifest.files or name == "manifest.json":
        filename = f"{version.model_version}-{name.replace('/', '-')}"
        return FileResponse(folder / name, filename=filename, media_type="application/octet-stream")
    raise ArtifactMissing(f"{version.model_version} has no such file: choose one of its page")


def _zipped(folder: Path, names: list[str]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.write(folder / name, name)
    return made.getvalue()


def card_of(visit: Visit, folder: Path) -> str:
    """Return a version's model card."""
    from pipelines.report.model_card import card

    version = visit.project.registry.version(visit.part("version"))
    record = _round(visit, version.round_id)
    path = folder / "report.json"
    if not path.exists() and record is not None:
        path = round_files.report_json(visit.project, record) or path
    report = RoundReport.model_validate_json(path.read_bytes()) if path.exists() else None
    return card(read_manifest(folder), version, record, report)


def roll_back(visit: Visit) -> Response:
    """Roll back to a version, then show it."""
    champion = actions.roll_back(visit.project, visit.who, visit.part("version"), reason=visit.form.get("reason", ""))
    notice = f"{champion.model_version} is the champion again, generation {champion.generation}. Workers follow within seconds."
    return visit.redirect(f"/models/{champion.model_version}", notice)
