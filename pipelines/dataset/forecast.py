"""Predict the size of the first round's reference set, before anything is trained.

The data gate compares that size with `data.min_judge_rows`. Near-duplicates are not removed here, so the number is an upper
bound. services/checks/data_summary.py calls it.
"""

from collections.abc import Sequence

from pipelines.dataset.files import FileRow
from pipelines.dataset.sources.collect import from_files
from pipelines.dataset.split import Policy, cluster_key, decide, held_out_side
from schemas.settings import Settings


def judging_rows(seed: Sequence[FileRow], reference: Sequence[FileRow], settings: Settings) -> int:
    """Return how many of these rows judge in a first round."""
    wanted, name = settings.dataset, settings.model.name
    policy = Policy(wanted.validation_share, wanted.calibration_share or 0.0, wanted.split_by)
    curated = {cluster_key(name, row.text) for row in reference}
    keyed = {cluster_key(name, row.text): row for row in from_files(seed, "seed")}
    train = {key: row for key, row in keyed.items() if key not in curated}
    drawn = decide(list(train.values()), list(train), {}, policy, task=settings.model.task, reference_rows=len(curated))
    return [*(held_out_side(key, policy) for key in curated), *drawn].count("test")
