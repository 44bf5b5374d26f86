"""Before training: would this round learn anything, and could any candidate pass?

Turns a round's dataset, and what earlier rounds left in the registry, into a reason to skip the round, or into a warning.
training_round.py calls it between the dataset and the training, which is what costs time.
"""

import logging
from collections.abc import Sequence

from pipelines.dataset.build import Dataset
from pipelines.dataset.obstacles import obstacle
from pipelines.gates import power
from pipelines.round_inputs import RoundInputs
from schemas.records import RoundRecord
from schemas.reports import EvaluationReport

log = logging.getLogger("ratchet.round")


def reason_to_skip(inputs: RoundInputs, dataset: Dataset) -> str | None:
    """Return why the round is skipped: no model is possible, or the last judged round had the same rows; None if it goes on.

    A round that goes on logs which gate no candidate can pass, if the champion's last evaluation shows one.
    """
    if stopped := obstacle(dataset, inputs.settings.model.task):
        return f"nothing to do: {stopped}"
    reason = _judged_before(inputs, dataset)
    if reason is None:
        _warn_out_of_reach(inputs, dataset)
    return reason


def _judged_before(inputs: RoundInputs, dataset: Dataset) -> str | None:
    """Return why the round would learn nothing, if the last judged one had the same rows and champion; None otherwise.

    A round that a person asked for again is run; so is one under another policy or on other reference rows. Answers that nobody
    challenged are no new rows: they are the champion's.
    """
    record, manifest = inputs.record, dataset.manifest
    if record.again or record.champion_version is None:
        return None
    others = (known for known in inputs.registry.rounds() if known.round_id != record.round_id)
    last = next((known for known in others if known.gate_report and known.dataset), None)
    if last is None or last.gate_report is None or last.dataset is None:
        return None
    then = (
        last.champion_version,
        last.dataset.given_sha256 or last.dataset.fingerprint,
        last.dataset.reference_sha256,
        last.gate_report.policy_sha256,
    )
    given = manifest.given_sha256 if last.dataset.given_sha256 else manifest.fingerprint
    now = record.champion_version, given, manifest.reference_sha256, inputs.policy.sha256
    if then != now:
        return None
    return (
        f"nothing new: round {last.round_id} judged a candidate of the same rows against the same champion. Give feedback or"
        " reference rows, or use `ratchet round run --again`, which spends another look"
    )


def _warn_out_of_reach(inputs: RoundInputs, dataset: Dataset) -> None:
    """Log why a gate is out of reach for any candidate."""
    version, registry = inputs.record.champion_version, inputs.registry
    if version is None:
        return
    alpha = inputs.policy.alpha_at(len(registry.looks(version)) + 1)
    measured = last_evaluation(registry.rounds(), version)
    if measured is None or measured.accuracy is None:
        return
    n = len(dataset.reference)
    if line := power.out_of_reach(round((1 - measured.accuracy) * n), n, inputs.policy, alpha):
        log.warning("%s", line)


def last_evaluation(rounds: Sequence[RoundRecord], version: str) -> EvaluationReport | None:
    """Return how a version did on the reference set when it was last evaluated there; None if it never was."""
    for record in rounds:
        for role, named in (("champion", record.champion_version), ("candidate", record.candidate_version)):
            if named == version and role in record.evaluations:
                return record.evaluations[role]
    return None
