"""What learns and where it starts: adapters, a head or all weights; the base model or the champion, whose head grows."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from safetensors.numpy import load_file, save_file

from pipelines.compression import export
from pipelines.dataset.examples import Example
from pipelines.models.encoder import Encoder, base_model_sha256
from pipelines.training.fitting import Fit, schedule
from pipelines.training.frozen_layers import first_changing
from pipelines.training.tasks.classification import Classification
from pipelines.training.tasks.multilabel import Multilabel
from pipelines.training.tasks.regression import Regression
from pipelines.training.tasks.task import Batch, HeldOut
from pipelines.training.trainer import Trained, probe_outputs, train
from pipelines.training.warm_start import CannotContinue, WarmStart, open_warm_start
from schemas.configuration.training import TrainingSettings
from schemas.records import Pace
from schemas.targets import Task, canonical
from serving.model_directory import write_manifest
from tests.support.fakes import TINY_RECIPE, TOPICS, toy_rows
from tests.support.manifests import manifest
from tests.support.versions import other_base

LABELS = sorted(TOPICS)
TASK = Classification(LABELS)
RECIPE = TINY_RECIPE.model_copy(update={"refit_below": None})


@pytest.fixture(scope="module")
def encoder(tiny_base: Path) -> Encoder:
    torch.set_num_threads(1)
    return Encoder(tiny_base, max_length=32)


def recipe(**changes: object) -> TrainingSettings:
    return RECIPE.model_copy(update=changes)


def examples(n: int, seed: int, labels: Sequence[str] = LABELS) -> list[Example]:
    rows = toy_rows(n, seed, tuple(labels))
    return [Example(text=text, label=label, source="seed") for text, label in rows]


def outputs(model: torch.nn.Module, encoder: Encoder, texts: Sequence[str]) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(model.eval()(**encoder.batch(texts)).numpy())


def saved(
    trained: Trained, encoder: Encoder, directory: Path, labels: list[str], task: Task = "classification"
) -> Path:
    """A version's directory as training leaves it."""
    directory.mkdir()
    export.save_weights(trained.model, directory)
    sha = base_model_sha256(encoder.path)
    filled = manifest(directory.name, task=task, labels=labels, base_model_sha256=sha, method=trained.method)
    write_manifest(directory, filled)
    return directory


def opened(directory: Path, encoder: Encoder, settings: TrainingSettings, task: Task = "classification") -> WarmStart:
    return open_warm_start(directory, task, base_model_sha256(encoder.path), settings)


@pytest.fixture(scope="module")
def champion(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trained]:
    """A version of two of the three topics."""
    two = LABELS[:2]
    trained = train(Classification(two), encoder, examples(40, 1, two), [], RECIPE, lambda *_: None)
    assert trained.method == "lora"
    return saved(trained, encoder, tmp_path_factory.mktemp("champion") / "v1", two), trained


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_all_weights_learn_in_each_family_and_the_base_stays(encoder: Encoder, tmp_path: Path, kind: str) -> None:
    base = other_base(kind, encoder, tmp_path / "base")
    before = {name: weights.clone() for name, weights in base.model.state_dict().items()}
    settings = recipe(method="full", learning_rate=2e-3, layer_decay=0.9, base_dropout=True)
    rows = examples(48, 1)
    model = TASK.start(base, rows[:9], settings)
    with Fit(TASK, model, TASK.rows(base, rows, settings), range(48), settings) as fit:
        losses = [fit.epoch() for _ in range(4)]
    assert losses[-1] < losses[0]
    for name, weights in base.model.state_dict().items():
        assert torch.equal(weights, before[name]), name
    export.save_weights(model, tmp_path)
    learned = load_file(tmp_path / "model.safetensors")
    assert not (tmp_path / "adapter").exists()
    for name, weights in before.items():
        if "embeddings." in name or name.endswith(("query.weight", "q_lin.weight")):
            assert np.array_equal(learned[name], weights.numpy()) == ("embeddings." in name), name


def test_all_weights_go_through_a_round_and_on_from_it(encoder: Encoder, tmp_path: Path) -> None:
    settings = recipe(method="full", learning_rate=3e-3, start="champion", epochs=8, patience=8)
    trained = train(TASK, encoder, examples(60, 1), [], settings, lambda *_: None)
    assert trained.method == "full"
    texts = [text for text, _ in toy_rows(5, seed=3)]
    export.export(trained.model, encoder, tmp_path)  # of other families, test_pruning.py exports
    inputs = {name: tensor.numpy() for name, tensor in encoder.batch(texts).items()}
    exported = ort.InferenceSession(tmp_path / "model.onnx").run(["logits"], inputs)[0]
    np.testing.assert_allclose(exported, outputs(trained.model, encoder, texts), atol=1e-4)
    before = opened(saved(trained, encoder, tmp_path / "v1", LABELS), encoder, settings)
    again = TASK.start(encoder, examples(20, 2), settings, before)
    np.testing.assert_allclose(outputs(again, encoder, texts), outputs(trained.model, encoder, texts), atol=1e-5)
    with pytest.raises(CannotContinue, match="holds all weights"):
        opened(before.directory, encoder, recipe(start="champion"))


@pytest.mark.parametrize(("adapted", "first"), [(1, 1), (2, 0), (9, 0), (None, 0)])
def test_what_does_not_change_is_set_aside(encoder: Encoder, adapted: int | None, first: int) -> None:
    settings = recipe(adapted_layers=adapted, lora_targets="all", lora_rank=2)
    rows = examples(9, seed=4)
    model = TASK.start(encoder, rows, settings)
    assert first_changing(model.encoder) == first
    whole = outputs(model, encoder, [row.text for row in rows])
    with Fit(TASK, model, TASK.rows(encoder, rows, settings), range(9), settings) as fit:
        np.testing.assert_allclose(fit.outputs(range(9)), whole, atol=1e-4)
    carrying = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name, _ in model.named_parameters() if "lora_" in name}
    assert carrying == {"query", "key", "value", "dense"}
    assert model.encoder.peft_config["default"].lora_alpha == 4


def test_a_head_alone_is_the_probe(encoder: Encoder) -> None:
    rows = examples(30, 1)
    trained = train(TASK, encoder, rows, [], recipe(method="head"), lambda *_: None)
    assert trained.method == "head"
    texts = [text for text, _ in toy_rows(5, seed=7)]
    expected = probe_outputs(TASK, encoder, rows, texts, RECIPE)
    np.testing.assert_allclose(outputs(trained.model, encoder, texts), expected, atol=1e-4)


def test_rates_fall_with_depth_and_over_time(encoder: Encoder) -> None:
    settings = recipe(layer_decay=0.5, method="full", learning_rate=1e-3, weight_decay=0.1)
    rows = examples(9, seed=4)
    model = TASK.start(encoder, rows, settings)
    fit = Fit(TASK, model, TASK.rows(encoder, rows, settings), range(9), settings)
    groups = {(group["initial_lr"], group["weight_decay"]) for group in fit.optimizer.param_groups[:-1]}
    assert groups == {(rate, decay) for rate in (1e-3, 5e-4, 2.5e-4) for decay in (0.1, 0.0)}
    assert fit.optimizer.param_groups[-1]["initial_lr"] == settings.head_learning_rate
    for kind in ("linear", "cosine", "constant"):
        factor = schedule(100, recipe(schedule=kind, warmup_share=0.1))
        rising, falling = [factor(n) for n in range(10)], [factor(n) for n in range(10, 100)]
        assert rising == sorted(rising)
        assert rising[-1] == 1.0
        assert falling == sorted(falling, reverse=True)
        assert (falling[-1] == 1.0) == (kind == "constant")


def test_the_best_checkpoint_is_kept_and_validation_rows_never_train(encoder: Encoder) -> None:
    rows, held = examples(60, 1), examples(30, 2)
    trained = train(TASK, encoder, rows, held, recipe(refit_below=0), lambda *_: None)
    assert trained.method == "lora"
    curve = [line for line in trained.history if "held_out_nll" in line]
    best = min(curve, key=lambda line: float(line["held_out_nll"]))
    texts, truth = [row.text for row in held], TASK.targets(held)
    now = TASK.row_losses(outputs(trained.model, encoder, texts), truth).mean()
    assert now == pytest.approx(best["held_out_nll"], abs=1e-4)
    assert "final" not in {line["phase"] for line in trained.history}
    assert trained.history[-1]["chosen"] == "lora"
    other = train(TASK, encoder, rows, held[:15] + held[:15], recipe(refit_below=0, epochs=1), lambda *_: None)
    assert len([line for line in other.history if "held_out_nll" in line]) == 2


def test_a_round_goes_on_from_the_champion_and_its_head_grows(encoder: Encoder, champion: tuple[Path, Trained]) -> None:
    directory, trained = champion
    settings = recipe(start="champion")
    before = opened(directory, encoder, settings)
    texts = [text for text, _ in toy_rows(6, seed=5)]
    was = outputs(trained.model, encoder, texts)

    same = Classification(LABELS[1::-1])  # the same labels the other way round
    np.testing.assert_allclose(
        outputs(same.start(encoder, examples(12, 2, LABELS[:2]), settings, before), encoder, texts)[:, ::-1],
        was,
        atol=1e-5,
    )
    grown = TASK.start(encoder, examples(30, 2), settings, before)
    now = outputs(grown, encoder, texts)
    np.testing.assert_allclose(now[:, :2], was, atol=1e-5)
    rows = examples(30, 2)
    new = outputs(TASK.start(encoder, rows, recipe(probe_c=1.0), before), encoder, [row.text for row in rows])[:, 2]
    own = np.array([row.label == LABELS[2] for row in rows])
    assert new[own].mean() > new[~own].mean(), "a probe's row, not zeros"
    empty = WarmStart(before.directory, "v", [LABELS[2], *before.labels[1:]], frozenset(LABELS[2:]))
    assert [empty.knows(label) for label in LABELS] == [False, True, False]
    filled = outputs(TASK.start(encoder, rows, settings, empty), encoder, [row.text for row in rows])[:, 2]
    assert filled[own].mean() > filled[~own].mean(), "an output without rows is as new as no output"
    fewer = Classification([LABELS[1], LABELS[2]])
    left = outputs(fewer.start(encoder, examples(12, 2, LABELS[1:]), settings, before), encoder, texts)
    np.testing.assert_allclose(left[:, 0], was[:, 1], atol=1e-5)

    after = train(TASK, encoder, examples(60, 2), examples(30, 3), settings, lambda *_: None, champion=before)
    test = examples(60, 9)
    truth = TASK.targets(test)
    loss = [
        TASK.row_losses(outputs(model, encoder, [row.text for row in test]), truth).mean()
        for model in (after.model, grown)
    ]
    assert after.method == "lora"
    assert loss[0] < loss[1]
    assert "final" not in {line["phase"] for line in after.history}, "validation rows don't train"

    unset = recipe(start="champion", learning_rate=None, epochs=None, patience=1)
    gentle = train(TASK, encoder, examples(60, 2), examples(30, 3), unset, lambda *_: None, champion=before)
    assert [line["epoch"] for line in gentle.history if "held_out_nll" in line] == [0, 1, 2, 3, 4], "run to its end"
    afresh = train(TASK, encoder, examples(60, 2), examples(30, 3), unset, lambda *_: None)
    rates = [max(float(line.get("learning_rate", 0)) for line in one.history) for one in (gentle, afresh)]
    assert rates[0] == pytest.approx(0.3 * rates[1], rel=0.1)
    for name, weights in grown.named_parameters():
        assert weights.requires_grad == ("lora_" in name or name.startswith("head.")), name


def test_labels_that_came_last_give_way_as_held_out_rows_ask(encoder: Encoder, champion: tuple[Path, Trained]) -> None:
    before = opened(champion[0], encoder, RECIPE)
    draw = np.random.default_rng(0)

    def shift(n: int, task: Classification = TASK, *, thinned: bool = False) -> float:
        """How far the new label's bias sinks, where it is said too often by 1.5 nats."""
        honest = draw.normal(size=(n, 3))
        truth = (honest + draw.gumbel(size=honest.shape)).argmax(axis=1)
        kept, weights = honest + np.array([0, 0, 1.5]), np.ones(n, dtype=np.float32)
        if thinned:  # one of four old rows is there, and weighs four
            own = (truth == 2) | (draw.random(n) < 0.25)
            kept, truth, weights = kept[own], truth[own], np.where(truth == 2, 1, 4).astype(np.float32)[own]
        model = task.start(encoder, examples(30, 2), recipe(start="champion"), before)
        was = model.head.bias.detach().clone()
        task.settle(model, HeldOut(kept, truth, weights / weights.mean()), before)
        sunk = (was - model.head.bias.detach()).numpy()
        assert not sunk[:2].any(), "old labels stay"
        return float(sunk[2])

    assert shift(2000) == pytest.approx(1.5, abs=0.3)
    assert shift(8000, thinned=True) == pytest.approx(1.5, abs=0.3)
    assert np.mean([abs(shift(4)) for _ in range(5)]) < 1, "few rows say little"
    known = WarmStart(before.directory, "v", LABELS)
    model = TASK.start(encoder, examples(30, 2), RECIPE)
    was = model.head.bias.detach().clone()
    TASK.settle(model, HeldOut(np.zeros((9, 3)), np.full(9, 2), np.ones(9, dtype=np.float32)), known)
    assert torch.equal(model.head.bias, was), "nothing is new"


def test_held_out_rows_count_by_their_weight(encoder: Encoder) -> None:
    rows, held = examples(60, 2), examples(30, 3)
    wrong = replace(held[0], label=next(label for label in LABELS if label != held[0].label))

    def losses(weight: float) -> list[float]:
        settings = recipe(refit_below=0, epochs=1)
        validation = [*held[1:], replace(wrong, weight=weight)]
        history = train(TASK, encoder, rows, validation, settings, lambda *_: None).history
        return [float(line["held_out_nll"]) for line in history if "held_out_nll" in line]

    assert all(light < heavy - 0.05 for light, heavy in zip(losses(0.01), losses(1000.0), strict=True))


def test_numbers_go_on_in_their_unit(encoder: Encoder, tmp_path: Path) -> None:
    rows = [
        Example(text=e.text, label=canonical("regression", 1000 * LABELS.index(e.label)), source="seed")
        for e in examples(40, 1)
    ]
    trained = train(Regression.of(rows), encoder, rows, [], recipe(epochs=0), lambda *_: None)
    before = opened(saved(trained, encoder, tmp_path / "v", [], "regression"), encoder, RECIPE, "regression")
    texts = [row.text for row in rows[:5]]
    wider = Regression(shift=10.0, scale=3.0)
    model = wider.start(encoder, rows, recipe(start="champion"), before)
    wider.finish(model)
    np.testing.assert_allclose(
        outputs(model, encoder, texts), outputs(trained.model, encoder, texts), rtol=1e-3, atol=0.1
    )


def test_what_a_round_cannot_go_on_from_is_said(
    encoder: Encoder, champion: tuple[Path, Trained], tmp_path: Path
) -> None:
    directory, _ = champion
    with pytest.raises(CannotContinue, match="v1 was trained on another base model"):
        open_warm_start(directory, "classification", "0" * 64, RECIPE)
    with pytest.raises(CannotContinue, match="v1 was trained for classification, this round is for multilabel"):
        opened(directory, encoder, RECIPE, "multilabel")
    with pytest.raises(CannotContinue, match="v1 holds an adapter"):
        opened(directory, encoder, recipe(start="champion", method="full"))
    other = shutil.copytree(directory, tmp_path / "v0")
    save_file(load_file(directory / "head.safetensors"), other / "head.safetensors")
    with pytest.raises(CannotContinue, match="v1 has a head for embeddings of another length"):
        opened(other, encoder, RECIPE)


def test_a_teacher_is_heard_where_it_is_right_and_only_of_what_it_knows(
    encoder: Encoder, champion: tuple[Path, Trained]
) -> None:
    directory, trained = champion
    settings = recipe(focal_distillation=2.0)
    rows = examples(12, 2)
    teacher = TASK.rows(encoder, rows, settings, opened(directory, encoder, settings)).teacher
    assert teacher is not None
    np.testing.assert_allclose(teacher[:, :2], outputs(trained.model, encoder, [row.text for row in rows]), atol=1e-4)
    assert np.isnan(teacher[:, 2]).all()
    assert TASK.rows(encoder, rows, RECIPE, opened(directory, encoder, RECIPE)).teacher is None

    says = torch.tensor([[2.0, 0.0, torch.nan], [2.0, 0.0, torch.nan], [2.0, 0.0, torch.nan]])
    truth, logits = torch.tensor([0, 1, 2]), torch.tensor([[0.0, 1.0, 0.5]] * 3)
    batch = Batch(truth, torch.ones(3), torch.zeros(3, dtype=torch.bool))
    alone = TASK.losses(logits, batch, settings)
    taught = TASK.losses(logits, Batch(truth, batch.weights, batch.rejects, says), settings)
    p, q = (torch.softmax(t, dim=0).numpy() for t in (says[0, :2], logits[0, :2]))
    np.testing.assert_allclose((taught - alone).numpy(), [2 * (p * np.log(p / q)).sum(), 0, 0], atol=1e-6)

    tags = Multilabel(LABELS)
    true = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    says = torch.tensor([[2.0, -1.0, torch.nan], [2.0, -1.0, torch.nan]])
    batch = Batch(true, torch.ones(2), torch.zeros(2, dtype=torch.bool))
    more = tags.losses(logits[:2], Batch(true, batch.weights, batch.rejects, says), settings) - tags.losses(
        logits[:2], batch, settings
    )
    assert more[0] > 0 == more[1]
    agreeing = tags.losses(says.nan_to_num(0.0), Batch(true, batch.weights, batch.rejects, says), settings)
    torch.testing.assert_close(agreeing, tags.losses(says.nan_to_num(0.0), batch, settings))


def test_history_and_progress(encoder: Encoder) -> None:
    shown: list[tuple[float, Pace | None]] = []
    rows, settings = examples(60, 1), recipe(epochs=6)
    first = train(TASK, encoder, rows, [], settings, lambda share, pace: shown.append((share, pace)))
    again = train(TASK, encoder, rows, [], settings, lambda *_: None)
    assert first.history == again.history, "no times in what is hashed"
    assert len(first.history) < 300
    json.dumps(first.history, allow_nan=False)
    steps = [line for line in first.history if "step" in line]
    assert {"phase", "step", "loss", "learning_rate", "head_learning_rate", "tokens"} == set(steps[0])
    assert {line["phase"] for line in steps} == {"search", "final"}
    shares = [share for share, _ in shown]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    paces = [pace for _, pace in shown if pace]
    assert all(pace.loss is not None and pace.eta_s is not None and pace.eta_s >= 0 for pace in paces)
    assert "tokens/s" in str(paces[-1])
