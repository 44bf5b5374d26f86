"""What a project's reference set can show at the next look, and what was spent on the champion so far.

Turns settings, policy and registry into lines, for `ratchet doctor` and `ratchet evidence`. The power is computed in
pipelines/gates/power.py.
"""

from schemas.settings import Settings
from schemas.targets import LABELLED
from serving.registry.registry import Registry


def outlook(settings: Settings, registry: Registry) -> tuple[list[str], bool]:
    """Return what the next look can show, and whether it is out of reach for every candidate.

    Without a judged round the number of judging rows is a forecast from the files.
    """
    from pipelines.before_training import last_evaluation
    from pipelines.gates import power
    from pipelines.gates.policy import load_policy

    policy = load_policy(settings.path(settings.gates.policy).read_bytes())
    rounds, champion = registry.rounds(), registry.champion()
    looks = registry.looks(champion.model_version) if champion else []
    alpha = policy.alpha_at(len(looks) + 1)
    known = next((record.dataset.reference_rows for record in rounds if record.dataset), None)
    n = forecast_rows(settings) if known is None else known
    lines = [power.reference_line(n, policy, alpha)] if settings.model.task in LABELLED else [f"{n} reference rows"]
    lines.append(
        f"{len(looks)} looks at {champion.model_version} so far; the next one may spend alpha {alpha:.2g}"
        if champion
        else "no champion yet: the first model is not compared, and spends nothing"
    )
    measured = last_evaluation(rounds, champion.model_version) if champion else None
    if measured is None or measured.accuracy is None:
        return lines, False
    stuck = power.out_of_reach(round((1 - measured.accuracy) * n), n, policy, alpha)
    return [*lines, *([stuck] if stuck else [])], stuck is not None


def forecast_rows(settings: Settings) -> int:
    """Return about how many rows will judge, from the files alone."""
    from pipelines.dataset.files import read_rows
    from pipelines.dataset.forecast import judging_rows
    from pipelines.dataset.project_dataset import columns_of

    task, columns = settings.model.task, columns_of(settings)
    seed = read_rows(settings.path(settings.dataset.seed), task, columns)
    reference = settings.dataset.reference
    return judging_rows(seed, read_rows(settings.path(reference), task, columns) if reference else (), settings)
