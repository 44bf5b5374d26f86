"""The demo's report: the figures of a finished walk.

Turns the rounds, champions and traffic of a walk into the values of demo-report.json. The walk calls it once everything has
stopped. Accuracies are measured on the exported artefacts.
"""

from dataclasses import dataclass

from schemas.records import Champion, RoundRecord
from schemas.settings import Settings
from services.demo.articles import Article
from services.demo.traffic import Seen
from serving.artifacts import ArtifactStore
from serving.registry.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Walk:
    """A finished walk: its traffic, its champions and the rounds that feedback and poison triggered."""

    seen: Seen
    first: Champion
    promoted: RoundRecord
    swap: Champion
    poisoned: RoundRecord
    end: Champion


def report_of(
    walk: Walk, settings: Settings, registry: Registry, splits: dict[str, list[Article]], *, no_defences: bool
) -> dict[str, object]:
    """Return the report's values; `events_stored` and `seconds` are None until the caller knows them."""
    test, rounds = splits["test"], {record.candidate_version: record for record in registry.rounds()[::-1]}
    before = _measured(settings, registry, test, rounds[walk.first.model_version])
    after = _measured(settings, registry, test, walk.promoted)
    poisoned = _measured(settings, registry, test, walk.poisoned) if walk.poisoned.candidate_version else None
    at_end = _measured(settings, registry, test, rounds[walk.end.model_version])
    seen, moment = walk.seen, walk.swap.promoted_at.timestamp()
    return {
        "accuracy_before": before["accuracy"],
        "accuracy_after": after["accuracy"],
        "probe_before": before["probe"],
        "probe_after": after["probe"],
        "nll_before": before["nll"],
        "nll_after": after["nll"],
        "ece_after": after["ece"],
        "ece_null_99": after["ece_null_99"],
        "events_produced": seen.events,
        "events_stored": None,
        "requests": len(seen.requests),
        "failed_requests": len(seen.failures),
        "failures": [failure for _, failure in seen.failures[:5]],
        "requests_near_swap": seen.near(moment, 5.0),
        "swap_seconds": [round(at - moment, 3) for at in seen.first_answers(walk.swap.model_version).values()],
        "poisoned_round_state": walk.poisoned.state.value,
        "poison_stopped_by": _stopped_by(walk.poisoned),
        "poisoned_candidate_accuracy": poisoned["accuracy"] if poisoned else None,
        "accuracy_end": at_end["accuracy"],
        "reference_rows": len(splits["reference"]),
        "test_rows": len(test),
        "defences": not no_defences,
        "seconds": None,
    }


def _stopped_by(record: RoundRecord) -> list[str]:
    rules = []
    if record.dataset and record.dataset.quarantined_people:
        rules.append("quarantine")
    if record.dataset and record.dataset.dropped.get("over the cap per person"):
        rules.append("cap per person")
    gates = record.gate_report.stopped_by() if record.gate_report else []
    return rules + [f"gate {name}" for name in gates]


def _measured(settings: Settings, registry: Registry, test: list[Article], record: RoundRecord) -> dict[str, float]:
    """Return test figures of a round's artefact, and of the logistic probe fitted to the same training rows."""
    from pipelines.dataset.files import FileRow
    from pipelines.dataset.project_dataset import training_rows
    from pipelines.evaluation.evaluators import evaluate
    from pipelines.models.encoder import Encoder, base_model_path
    from pipelines.round_inputs import round_folder
    from pipelines.training.tasks.classification import Classification
    from pipelines.training.trainer import probe_outputs
    from serving.inference.encoder_runtime import Runtime

    assert record.candidate_version is not None
    digest = registry.version(record.candidate_version).digest
    store = ArtifactStore(settings.location(settings.artifacts.url))
    runtime = Runtime(store.fetch(digest, settings.path(settings.artifacts.cache)), digest, threads=2)
    rows = [FileRow(article.text, article.topic) for article in test]
    report = evaluate(runtime, rows, split="test").report
    encoder = Encoder(base_model_path(settings.model.base_model), settings.model.max_length)
    trained = training_rows(round_folder(settings, record.round_id))
    task, texts = Classification(runtime.labels), [row.text for row in rows]
    logits = probe_outputs(task, encoder, trained, texts, settings.training)
    right = [runtime.labels[best] == row.label for best, row in zip(logits.argmax(axis=1), rows, strict=True)]
    return {
        "accuracy": report.accuracy,
        "nll": report.nll,
        "ece": report.ece,
        "ece_null_99": report.ece_null_99,
        "probe": sum(right) / len(right),
    }
