"""The model card: what a version is, what it learnt from, how good it is, where it fails, what it cost, as Markdown.

Turns a version's manifest, its report and its round's record into text (Mitchell et al. 2019, "Model Cards for Model Reporting").
The console offers it for download. Texts of users are not in it.
"""

import re
from collections.abc import Sequence

from schemas.manifests import ModelManifest
from schemas.records import RoundRecord, VersionRecord
from schemas.reports import RoundReport, Verdict

WATTS = 65.0  # assumed draw of the machine while it trains; no meter is read


def card(
    manifest: ModelManifest, version: VersionRecord, record: RoundRecord | None, report: RoundReport | None
) -> str:
    """Return the card; parts that the version's round did not measure are left out."""
    lines = [
        f"# {_plain(manifest.model_name)} {manifest.model_version}",
        "",
        f"- task: {manifest.task}",
        f"- base model: {_plain(manifest.base_model.rsplit('/', 1)[-1])} (SHA-256 `{manifest.base_model_sha256[:16]}…`)",
        f"- method: {manifest.method}, served as {manifest.artifact}, texts of at most {manifest.max_length} tokens",
        f"- made by round {manifest.round_id}, after {manifest.parent_version or 'no earlier version'}",
        f"- state: {version.state.value}"
        + (f", approved by {_plain(version.approved_by)}" if version.approved_by else ""),
        *([f"- labels: {', '.join(map(_plain, manifest.labels))}"] if manifest.labels else []),
        "",
    ]
    lines += _data(report) + _metrics(report) + _limits(manifest, report) + _cost(record)
    return "\n".join(lines).rstrip() + "\n"


def _data(report: RoundReport | None) -> list[str]:
    if report is None:
        return []
    data = report.dataset
    sources = ", ".join(f"{n:,} {_plain(source)}" for source, n in data.rows_by_source.items())
    dropped = ", ".join(f"{n:,} {_plain(reason)}" for reason, n in data.dropped.items()) or "none"
    return [
        "## Data",
        "",
        f"Trained on {data.rows_train:,} rows, validated on {data.rows_validation:,} ({sources}). Left out: {dropped}.",
        f"Judged on {data.reference_rows:,} reference rows that never trained. Personal data is replaced by placeholders "
        "before anything is stored.",
        "",
    ]


def _metrics(report: RoundReport | None) -> list[str]:
    if report is None:
        return []
    shown = {name: e for name, e in report.evaluations.items() if name in ("candidate", "champion", "probe")}
    names = list(report.evaluations["candidate"].measures)
    rows = [
        "| measure | " + " | ".join("this version" if n == "candidate" else n for n in shown) + " | 95 % interval |"
    ]
    rows.append("|---" * (len(shown) + 2) + "|")
    for name in names:
        cells = [f"{e.measures[name].value:.4f}" if name in e.measures else "–" for e in shown.values()]
        mine = report.evaluations["candidate"].measures[name]
        rows.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} | {mine.low:.4f} to {mine.high:.4f} |")
    verdict = report.gate_report
    gates = ", ".join(f"{g.gate.replace('_', ' ')} {_word(g.verdict)}" for g in verdict.results)
    return ["## Measures", "", *rows, "", f"Gates: {gates}.", ""]


def _limits(manifest: ModelManifest, report: RoundReport | None) -> list[str]:
    lines = ["## Limits", "", "Meant for texts like those it was trained and judged on; others were not measured."]
    if manifest.untaught_labels:
        lines.append(f"No row taught these labels: {', '.join(map(_plain, manifest.untaught_labels))}.")
    if report is not None:
        weak = sorted((s for s in report.labels if s.recall is not None and s.n), key=lambda s: s.recall or 0.0)[:3]
        lines += [
            f"Recall on {_plain(s.label)}: {s.recall:.2f} over {s.n} rows." for s in weak if (s.recall or 0) < 0.95
        ]
        lines += [
            f"{g.gate.replace('_', ' ')}: {g.sentence}"
            for g in report.gate_report.results
            if g.verdict is not Verdict.PASS
        ]
    return [*_bullets(lines), ""]


def _cost(record: RoundRecord | None) -> list[str]:
    if record is None or record.started_at is None or record.finished_at is None:
        return []
    seconds = (record.finished_at - record.started_at).total_seconds()
    return [
        "## Cost",
        "",
        f"The round took {seconds:,.0f} s in {max(1, record.attempts)} attempt(s), judgement and waiting included: at most "
        f"{seconds * WATTS / 3600:,.1f} Wh if the machine draws {WATTS:.0f} W, which was assumed, not measured.",
        "",
    ]


def _bullets(lines: Sequence[str]) -> list[str]:
    return [line if n < 3 else f"- {line}" for n, line in enumerate(lines)]


def _word(verdict: Verdict) -> str:
    return {Verdict.PASS: "passed", Verdict.FAIL: "failed", Verdict.INSUFFICIENT: "lacks evidence"}[verdict]


def _plain(text: str) -> str:
    """Return text that Markdown renders as it is: labels and names come from outside."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|&~])", r"\\\1", " ".join(text.split()))
