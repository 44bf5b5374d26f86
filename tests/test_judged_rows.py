"""The rows on which a round's judgement compares two models that write: never more than are worth the time."""

import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from pipelines import candidates
from pipelines.dataset.build import Sources, build
from pipelines.dataset.examples import Example
from pipelines.dataset.files import FileRow
from pipelines.gates.policy import default_policy
from pipelines.round_inputs import open_inputs
from pipelines.round_judgement import judge
from schemas.events import utc_now
from schemas.records import RoundState
from schemas.settings import Settings
from serving.artifacts import ArtifactStore
from serving.registry.registry import Registry
from tests.support.dataset_rounds import no_embedding
from tests.support.fakes import toy_rows
from tests.support.versions import copied, promote, rewritten


def test_validation_rows_beyond_two_hundred_are_not_answered(
    settings: Settings, tiny_decoder: Path, text_version: Path, tmp_path: Path
) -> None:
    writes = {
        "name": "m",
        "task": "generation",
        "base_model": str(tiny_decoder),
        "max_length": 48,
        "max_new_tokens": 12,
    }
    settings = settings.model_copy(update={"model": settings.model.model_copy(update=writes)})
    policy = default_policy("generation").replace("min_judge_rows = 100", "min_judge_rows = 9")
    settings.path("policy.toml").write_text(policy, encoding="utf-8")
    store = ArtifactStore(settings.location(settings.artifacts.url))
    seed, reference, given = ([FileRow(*row) for row in toy_rows(n, seed=n)] for n in (30, 10, 250))
    with closing(Registry(settings.registry_url, "m")) as registry:
        registry.migrate()
        first = registry.claim_round(reason="test", cut={}, token=None)
        assert first is not None
        champion = copied(text_version, tmp_path / "champion", model_version="champion", round_id=first.round_id)
        promote(registry, store, champion)
        registry.finish_round(first.round_id, RoundState.REJECTED, detail="test")
        claimed = registry.claim_round(reason="test", cut={}, token=None)
        assert claimed is not None
        started = registry.start_round(claimed.round_id)
        inputs = open_inputs(started, settings, registry, store, None, lambda *_: None)
        sources = Sources(seed=seed, reference=reference, feedback=[], cut={})
        dataset = build(sources, labels=[], settings=settings, embed=no_embedding, ledger=registry)
        now = utc_now().isoformat()
        newer = [Example(text=row.text, label=row.label, source="correction", order=now) for row in given]
        directory = Path(shutil.copytree(text_version, inputs.folder / "version"))
        (directory / "history.jsonl").touch()
        (inputs.folder / candidates.TRIALS).write_text("[]", encoding="utf-8")
        rewritten(directory, model_version="candidate", round_id=claimed.round_id)

        report = judge(inputs, replace(dataset, validation=newer), directory)

    [held_back] = [result for result in report.gate_report.results if result.gate == "validation"]
    assert held_back.sentence.startswith("not better than the champion on 200 validation rows that trained neither")
