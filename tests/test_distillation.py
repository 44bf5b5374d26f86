"""A student of a tiny real teacher: fewer layers, nearly the same answers, and served by a round only if it stands in."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines import candidates
from pipelines.compression import distillation
from pipelines.gates.policy import default_policy
from pipelines.models.encoder import Encoder, TextModel, layers_of
from pipelines.round_inputs import round_folder
from pipelines.training.errors import TrainingDiverged
from pipelines.training_round import run_round
from schemas.configuration.training import TrainingSettings
from schemas.settings import Settings
from serving.artifacts import ArtifactStore
from serving.model_directory import read_manifest
from serving.registry.registry import Registry
from tests.support.fakes import toy_rows

RECIPE = TrainingSettings(student_layers=1, student_epochs=12, threads=1)
TEXTS = [text for text, _ in toy_rows(120, seed=3)]


@pytest.fixture
def encoder(tiny_base: Path) -> Encoder:
    return Encoder(tiny_base, 32)


def teacher(encoder: Encoder) -> TextModel:
    draw = np.random.default_rng(0)
    made = TextModel(encoder.model, encoder.width, draw.normal(size=(3, encoder.width)), np.zeros(3))
    made.eval()
    return made


def test_layers_are_taken_evenly_with_the_first_and_the_last() -> None:
    assert distillation.evenly(6, 3) == [0, 2, 5]
    assert distillation.evenly(12, 4) == [0, 3, 7, 11]
    assert distillation.evenly(6, 2) == [0, 5]
    assert distillation.evenly(2, 1) == [0]
    assert distillation.evenly(2, 5) == [0, 1]


def test_a_student_answers_as_its_teacher_on_texts_it_has_not_seen(encoder: Encoder) -> None:
    fresh = sorted({text for text, _ in toy_rows(60, seed=9)} - set(TEXTS), key=len)
    model = teacher(encoder)
    before = [parameter.clone() for parameter in model.parameters()]
    student = distillation.distil(model, encoder, TEXTS, RECIPE, lambda *_: None)
    assert (len(layers_of(student.encoder)), len(layers_of(model.encoder))) == (1, 2)
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    cut = distillation.start_student(model, 1)
    wanted, learnt, started = (distillation.run_all(each, encoder, fresh)[1] for each in (model, student, cut))
    assert (learnt - wanted).square().mean() < 0.5 * (started - wanted).square().mean()


def test_the_order_of_its_texts_does_not_matter(encoder: Encoder) -> None:
    recipe = RECIPE.model_copy(update={"student_epochs": 1})
    one, other = (
        distillation.distil(teacher(encoder), encoder, texts, recipe, lambda *_: None) for texts in (TEXTS, TEXTS[::-1])
    )
    for left, right in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize("shape", [{"student_layers": 1}, {"student_heads": 0.5, "student_feed_forward": 0.5}])
def test_a_loss_that_is_no_number_stops_the_distillation_with_the_way_out(
    encoder: Encoder, shape: dict[str, float]
) -> None:
    expected = (
        r"the distillation loss is (nan|inf) at step \d+ of 48 \(learning rate .*\): raise or unset training.student_"
    )
    recipe = TrainingSettings(threads=1, student_epochs=12, **shape)
    with pytest.raises(TrainingDiverged, match=expected):
        distillation.distil(teacher(encoder), encoder, TEXTS, recipe, lambda *_: None, learning_rate=1e30)


def test_a_round_serves_its_student_where_that_is_fastest_and_stands_in(settings: Settings, registry: Registry) -> None:
    shape = {"student_layers": 1, "student_heads": 0.5, "student_feed_forward": 0.25}
    anything = {"min_agreement": 0, "min_student_agreement": 0, "accuracy_margin": 1, "nll_margin": 9}
    keys = [line.partition(" = ")[0] for line in default_policy("classification").splitlines()]
    assert sorted(key for key in keys if key in anything) == sorted(anything)
    lines = [
        f"{key} = {anything[key]}" if key in anything else line
        for key, line in zip(keys, default_policy("classification").splitlines(), strict=True)
    ]
    slices = "min_rows = 200\nalpha = 0.05"  # 7-bit weights, of processors without VNNI, cost the tiny model a slice
    policy = "\n".join(lines)
    assert slices in policy
    settings.path("policy.toml").write_text(policy.replace(slices, "min_rows = 200\nalpha = 1e-9"), encoding="utf-8")
    training = settings.training.model_copy(update={"epochs": 0, "student_epochs": 2, **shape})
    settings = settings.model_copy(update={"training": training})
    claimed = registry.claim_round(reason="test", cut={}, token=None)
    assert claimed is not None
    steps = []
    store = ArtifactStore(settings.location(settings.artifacts.url))
    record = run_round(
        claimed.round_id,
        settings=settings,
        registry=registry,
        store=store,
        features=None,
        token=None,
        progress=lambda step, *_: steps.append(step),
    )
    assert "distillation" in steps
    assert record.gate_report is not None
    reported = [result.sentence for result in record.gate_report.results if result.gate == "compression"]
    assert any(sentence.startswith("student-int8 serves") for sentence in reported), reported
    folder = round_folder(settings, claimed.round_id)
    found = {result.sentence.split(" ")[0]: result for result in candidates.trials(folder)}
    assert list(found) == ["int8", "student-int8"]
    assert all(result.verdict == "pass" for result in found.values()), found
    assert read_manifest(folder / "version").artifact in found  # which is faster is the machine's to say
