"""Rounds that can't work: each says why and what to do, and isn't tried again."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipelines.dataset.build import Dataset, Sources, build
from pipelines.dataset.files import FileRow
from pipelines.dataset.obstacles import obstacle
from pipelines.gates.policy import default_policy
from schemas.records import RoundRecord, RoundState
from schemas.setting_groups import DatasetSettings, ModelSettings
from schemas.settings import Settings
from services.checks.preflight import BrokenProject
from services.rounds.process import run_claimed
from serving.registry.registry import Registry
from tests.support.dataset_rounds import LABELS, Ledger, no_embedding
from tests.support.fakes import toy_rows, write_rows
from tests.support.first_rounds import next_round

FAIR = [FileRow(text, label) for text, label in toy_rows(60, 1)]


def dataset(root: Path, seed: Sequence[FileRow], reference: Sequence[FileRow] | None = None) -> Dataset:
    settings = Settings(root=root, model=ModelSettings(name="m"), dataset=DatasetSettings(quarantine=False))
    sources = Sources(seed=seed, reference=reference, feedback=[], cut={})
    return build(sources, labels=LABELS, settings=settings, embed=no_embedding, ledger=Ledger())


def test_rows_that_allow_a_round_have_no_obstacle(tmp_path: Path) -> None:
    assert obstacle(dataset(tmp_path, FAIR), "classification") is None


def test_one_label_left_after_cleaning_names_what_was_left_out(tmp_path: Path) -> None:
    others = [FileRow(row.text, "unheard") if row.label != "money" else row for row in FAIR]
    line = obstacle(dataset(tmp_path, others), "classification")
    assert line is not None
    assert "training rows have the target 'money', of 60 rows in" in line
    assert "left out as 'label not in the taxonomy' (40, such as" in line
    assert "dataset.html" in line


def test_texts_that_are_all_alike_are_called_so(tmp_path: Path) -> None:
    text = "the very same long sentence about the bank and its many loans, written again and again by everybody today"
    alike = [FileRow(f"{text} {n}", LABELS[n % 2]) for n in range(40)]
    line = obstacle(dataset(tmp_path, alike), "classification")
    assert line is not None
    assert "40 rows have nearly the same text as another row: add rows with different texts" in line


def test_no_row_to_judge_by_asks_for_a_reference(tmp_path: Path) -> None:
    few = [FileRow(text, label) for text, label in toy_rows(4, 1)]
    line = obstacle(dataset(tmp_path, few), "classification")
    assert line is not None
    assert line.startswith("no row is left to judge by")
    assert "dataset.reference" in line


def test_a_round_with_an_obstacle_ends_as_skipped(settings: Settings, registry: Registry) -> None:
    (settings.root / "policy.toml").write_text(default_policy("classification"), encoding="utf-8")
    write_rows(settings.root / "data/seed.csv", [(text, "money") for text, _ in toy_rows(30, seed=1)])
    record = next_round(settings, registry)
    assert (record.state, record.attempts) == (RoundState.SKIPPED, 1)
    assert record.detail is not None
    assert re.match(r"nothing to do: all \d+ training rows have the target 'money', of 30 rows in: ", record.detail)


def test_the_same_error_twice_ends_the_round(settings: Settings, registry: Registry) -> None:
    (settings.root / "policy.toml").write_text("[superiority]\nalpha = 7\n", encoding="utf-8")
    claimed = registry.claim_round(reason="test", cut={}, token=None)
    assert claimed is not None

    def attempt() -> RoundRecord:
        registry.start_round(claimed.round_id)
        with pytest.raises(BrokenProject):
            run_claimed(
                claimed.round_id,
                settings=settings,
                registry=registry,
                token=None,
                show=lambda *_: None,
                announce=lambda *_: None,
            )
        return registry.round(claimed.round_id)

    first, second = attempt(), attempt()
    assert first.state is RoundState.RUNNING
    assert second.state is RoundState.FAILED
    assert second.detail is not None
    assert second.detail.startswith("stopped twice by BrokenProject: ")
    assert "superiority.alpha" in second.detail
