"""Tasks beyond classification on a tiny real model: each learns, weighs rows, and is exported in the unit of its targets."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

from pipelines.compression import export
from pipelines.dataset.examples import Example
from pipelines.models.encoder import Encoder
from pipelines.models.probe import fit_one_vs_rest_path, fit_ridge
from pipelines.training.fitting import Fit
from pipelines.training.tasks.choose import task_for
from pipelines.training.tasks.classification import Classification
from pipelines.training.tasks.multilabel import Multilabel
from pipelines.training.tasks.regression import Regression
from pipelines.training.tasks.task import Batch
from pipelines.training.trainer import Trained, probe_outputs, train
from schemas.configuration.training import TrainingSettings
from schemas.targets import canonical
from tests.support.fakes import TINY_RECIPE, TOPICS, toy_rows

LABELS = sorted(TOPICS)
RECIPE = TINY_RECIPE.model_copy(update={"batch_size": 8})


@pytest.fixture(scope="module")
def encoder(tiny_base: Path) -> Encoder:
    return Encoder(tiny_base, max_length=32)


def tagged(n: int, seed: int) -> list[Example]:
    """Texts of one topic or of two, end to end."""
    rows = toy_rows(2 * n, seed)
    pairs = [(rows[2 * i], rows[2 * i + 1]) for i in range(n)]
    found = [(a, [la]) if i % 2 else (f"{a} {b}", [la, lb]) for i, ((a, la), (b, lb)) in enumerate(pairs)]
    return [Example(text=text, label=canonical("multilabel", labels), source="seed") for text, labels in found]


def rated(n: int, seed: int) -> list[Example]:
    """Texts worth 1000, 2000 or 3000 by their topic."""
    return [
        Example(text=text, label=canonical("regression", 1000.0 * (1 + LABELS.index(label))), source="seed")
        for text, label in toy_rows(n, seed)
    ]


def outputs(trained: Trained, encoder: Encoder, rows: Sequence[Example]) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(trained.model(**encoder.batch([row.text for row in rows])).numpy())


def exported(trained: Trained, encoder: Encoder, rows: Sequence[Example], folder: Path) -> np.ndarray:
    export.export(trained.model, encoder, folder)
    inputs = {name: tensor.numpy() for name, tensor in encoder.batch([row.text for row in rows]).items()}
    return np.asarray(ort.InferenceSession(folder / "model.onnx").run(["logits"], inputs)[0])


def test_several_labels_are_learned_beyond_the_probe(encoder: Encoder) -> None:
    task = Multilabel(LABELS)
    rows, test = tagged(60, seed=1), tagged(60, seed=9)
    trained = train(task, encoder, rows, [], RECIPE, lambda *_: None)
    assert trained.method == "lora"
    truth = task.targets(test)
    probe = probe_outputs(task, encoder, rows, [row.text for row in test], RECIPE)
    mine, its = (task.row_losses(found, truth).mean() for found in (outputs(trained, encoder, test), probe))
    assert mine < its
    assert {"held_out_nll", "micro_f1", "subset_accuracy"} <= trained.history[0].keys()


def test_a_number_is_learned_and_exported_in_its_unit(encoder: Encoder, tmp_path: Path) -> None:
    rows, test = rated(60, seed=1), rated(45, seed=9)
    task = Regression.of(rows)
    model = task.start(encoder, rows[:9], RECIPE)
    made = task.rows(encoder, [*rows, *test], RECIPE)
    held = list(range(60, 105))
    with Fit(task, model, made, range(60), RECIPE) as fit:
        before = task.metrics(fit.outputs(held), made.targets[held])
        losses = [fit.epoch() for _ in range(4)]
        after = task.metrics(fit.outputs(held), made.targets[held])
    assert losses[-1] < losses[0]
    assert after["mae"] < before["mae"]
    assert 100 < after["rmse"] < 800, "metrics are in the unit"
    task.finish(model)
    trained = Trained(model, "lora", [])
    found = exported(trained, encoder, test, tmp_path)
    assert found.shape == (45, 1)
    np.testing.assert_allclose(found, outputs(trained, encoder, test), rtol=1e-4)
    errors = np.abs(found[:, 0] - [float(row.label) for row in test])
    assert errors.mean() == pytest.approx(after["mae"], rel=1e-3)


def test_the_probe_of_a_number_ships_in_its_unit(encoder: Encoder) -> None:
    rows = rated(40, seed=1)
    trained = train(
        task_for("regression", [], rows), encoder, rows, [], TrainingSettings(epochs=0, tfidf=False), lambda *_: None
    )
    expected = probe_outputs(Regression(), encoder, rows, [row.text for row in rows], RECIPE)
    np.testing.assert_allclose(outputs(trained, encoder, rows), expected, rtol=1e-3)


@pytest.mark.parametrize("task", [Classification(LABELS), Multilabel(LABELS), Regression(5.0, 2.0)])
def test_losses_are_the_row_losses_of_the_same_outputs(task: Classification | Multilabel | Regression) -> None:
    draw = np.random.default_rng(3)
    given = {
        "classification": LABELS,
        "multilabel": [canonical("multilabel", some) for some in (LABELS[:2], [], LABELS[2:])],
        "regression": ["1.0", "5.0", "8.5"],
    }[task.name]
    targets = task.targets([Example(text="t", label=label, source="seed") for label in given])
    logits = draw.normal(size=(3, 1 if task.name == "regression" else 3)).astype(np.float32)
    batch = Batch(torch.from_numpy(targets), torch.ones(3), torch.zeros(3, dtype=torch.bool))
    losses = task.losses(torch.from_numpy(logits), batch, RECIPE)
    best = task.row_losses(logits, targets)
    assert losses.shape == best.shape == (3,)
    if task.name == "regression":
        np.testing.assert_allclose(losses.numpy(), (logits[:, 0] - targets) ** 2 / 2, rtol=1e-5)
        assert targets.tolist() == [-2.0, 0.0, 1.75]
    else:  # the best temperature can only help
        assert best.mean() <= float(losses.mean()) + 1e-6
        soft = task.losses(torch.from_numpy(logits), batch, RECIPE.model_copy(update={"label_smoothing": 0.2}))
        assert not np.allclose(soft.numpy(), losses.numpy())
    assert all(isinstance(value, float) for value in task.metrics(logits, targets).values())


def test_a_rejected_set_of_labels_becomes_less_probable() -> None:
    task = Multilabel(LABELS)
    logits = torch.tensor([[3.0, 3.0, -3.0]], requires_grad=True)
    targets = torch.tensor([[1.0, 1.0, 0.0]])
    kept, rejected = (
        task.losses(logits, Batch(targets, torch.ones(1), torch.tensor([flag])), RECIPE) for flag in (False, True)
    )
    p = float(torch.exp(-kept.detach()))
    assert float(rejected.detach()) == pytest.approx(-np.log(1 - p), rel=1e-4)
    rejected.sum().backward()
    assert logits.grad is not None
    assert logits.grad[0, 0] > 0 > logits.grad[0, 2]


def test_probes_respect_weights_and_survive_labels_without_rows() -> None:
    points = np.array([[0.0], [0.1], [1.0], [1.1]], dtype=np.float32)
    middle = np.array([[0.55]], dtype=np.float32)
    targets = np.array([[0, 0, 1], [0, 0, 1], [1, 0, 1], [1, 0, 1]], dtype=np.float32)
    even = fit_one_vs_rest_path(points, targets, cs=[1.0])[0]
    light = fit_one_vs_rest_path(points, targets, cs=[1.0], weights=[1, 1, 0.1, 0.1])[0]
    assert light.outputs(middle)[0, 0] < even.outputs(middle)[0, 0]
    assert even.outputs(middle)[0, 1] < 0 < even.outputs(middle)[0, 2]
    values = np.array([0.0, 0.0, 10.0, 10.0])
    assert fit_ridge(points, values, weights=[1, 1, 0.01, 0.01]).outputs(middle)[0, 0] < 4
    assert fit_ridge(points, values).outputs(points)[:, 0] == pytest.approx(values, abs=2)
    assert fit_ridge(points[:1], values[2:3]).outputs(middle)[0, 0] == 10


def test_history_is_json_whatever_the_metrics(encoder: Encoder) -> None:
    rows = [Example(text=text, label="4.0", source="seed") for text, _ in toy_rows(12, seed=1)]
    trained = train(
        task_for("regression", [], rows), encoder, rows, [], RECIPE.model_copy(update={"epochs": 1}), lambda *_: None
    )
    assert trained.method == "probe"
    json.dumps(trained.history, allow_nan=False)
