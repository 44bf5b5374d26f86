"""`ratchet model advise`: which base models fit the project's data and this machine, and which learns it best.

Turns a project's files into a workload, asks pipelines/model_selection, and prints its verdicts. It changes nothing.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from services.cli.project import config_option, json_option, opened, show
from services.cli.rows.dataset import LedgerPreview

if TYPE_CHECKING:
    from pipelines.dataset.build import Dataset
    from pipelines.model_selection.bake_off import Result
    from pipelines.model_selection.verdicts import Advice
    from pipelines.model_selection.workload import Workload
    from schemas.settings import Settings
    from serving.registry.registry import Registry


@click.command(name="advise")
@config_option
@click.option(
    "--from",
    "folders",
    type=click.Path(exists=True, path_type=Path),
    multiple=True,
    help="also weigh the base model in this folder, or those in its subfolders; may be repeated",
)
@click.option("--local", is_flag=True, help="weigh only bases on this machine, not well-known public ones")
@click.option("--minutes", default=60.0, show_default=True, help="refuse bases whose round trains longer")
@click.option("--bake-off", is_flag=True, help="train the bases that fit and are on this machine, and rank them")
@click.option("--bake-minutes", default=5.0, show_default=True, help="training time of each base in the bake-off")
@json_option
def model_advise(
    config: Path,
    folders: Sequence[Path],
    local: bool,
    minutes: float,
    bake_off: bool,
    bake_minutes: float,
    as_json: bool,
) -> None:
    """Say which base models fit the data and this machine, and what they cost."""
    from pipelines.model_selection.bake_off import bake_off as ranked
    from pipelines.model_selection.candidates import candidate_bases
    from pipelines.model_selection.verdicts import advise
    from pipelines.models.machine import this_machine

    with opened(config) as (settings, registry):
        bases = [facts for facts in candidate_bases(settings.model, folders) if facts.path or not local]
        dataset, work = _workload(settings, registry)
    advice = advise(
        bases,
        work,
        settings.training,
        this_machine(),
        most_minutes=minutes,
        watch=lambda facts: click.echo(f"timing {facts.name} ...", err=True),
    )
    results = []
    if bake_off:
        results = ranked(
            advice,
            dataset.train,
            dataset.validation,
            settings,
            dataset.labels,
            work,
            minutes=bake_minutes,
            watch=lambda name, share: click.echo(f"training {name}: {share:.0%}", err=True) if share == 1.0 else None,
        )
    value = {
        "rows": work.rows,
        "languages": list(work.languages),
        "texts_beyond_max_length": work.beyond(work.max_length),
        "bases": [one.as_json() for one in advice],
        "bake_off": [asdict(result) for result in results],
    }
    show(
        value, as_json, [*_data(work), *(line for one in advice for line in _lines(one)), *_ranking(results, bake_off)]
    )


def _workload(settings: "Settings", registry: "Registry") -> "tuple[Dataset, Workload]":
    """Return the dataset of the project's files as a round would build it now, and its workload."""
    from pipelines.dataset.project_dataset import collect_and_build
    from pipelines.model_selection.workload import workload_of
    from pipelines.models.base_models import open_base

    base = open_base(settings.model)
    dataset = collect_and_build(
        settings,
        [],
        cut={},
        labels=registry.label_map(),
        ledger=LedgerPreview(registry),
        base=base,
        without=registry.excluded().rows,
    )
    rows = [*dataset.train, *dataset.validation]
    if not rows:
        raise click.ClickException("the project has no rows that train: see `ratchet doctor`")
    return dataset, workload_of(rows, settings, base.token_counts, len(dataset.validation))


def _data(work: "Workload") -> list[str]:
    import numpy as np

    middle, most = (int(np.quantile(work.lengths, q)) for q in (0.5, 0.95))
    languages = f", in {', '.join(work.languages)}" if work.languages else ""
    return [
        f"{work.rows:,} rows that train{languages}; half of the texts have at most {middle} tokens, 95 % at most {most}; "
        f"model.max_length = {work.max_length} cuts {work.beyond(work.max_length):.1%}"
    ]


def _lines(advice: "Advice") -> list[str]:
    facts = advice.facts
    size = f"{facts.parameters / 1e6:,.0f} million weights"
    card = f"{size}, {facts.context or '?'} tokens, {', '.join(facts.languages) or 'languages unknown'}, {facts.licence or '?'}"
    lines = [
        f"{'fits ' if advice.fits else 'no   '} {facts.name} ({card}{'' if facts.path else '; not on this machine'})"
    ]
    if advice.cost and advice.train_seconds is not None:
        lines.append(
            f"        a round trains up to {advice.train_seconds / 60:.1f} minutes in {advice.cost.train_bytes / 1e9:.1f} GB; "
            f"serving takes {1000 * advice.cost.serve_seconds:.1f} ms a {'token' if facts.is_decoder else 'text'} and "
            f"{advice.cost.serve_bytes / 1e9:.1f} GB a worker"
        )
    return [*lines, *(f"        {sentence}" for sentence in [*advice.reasons, *advice.notes])]


def _ranking(results: "Sequence[Result]", asked_for: bool) -> list[str]:
    if not asked_for:
        return []
    if not results:
        return [
            "bake-off: no base that fits is on this machine, or there are no validation rows: name folders with --from"
        ]
    lines = [f"bake-off on {results[0].validation_rows} validation rows, {results[0].rows} rows trained:"]
    for result in results:
        metrics = ", ".join(f"{name} {value:.3f}" for name, value in list(result.metrics.items())[:2])
        answer = "" if result.answer_seconds is None else f", {1000 * result.answer_seconds:.1f} ms an answer"
        lines.append(
            f"  {result.base_model}: NLL {result.nll:.3f} ± {result.error:.3f}, {metrics}, {result.method}, "
            f"{result.train_seconds:.0f} s{answer}"
        )
    return lines
