"""Narrower layers: the asked shape, what matters kept, ONNX equal to torch, and a round that serves the student it asked for."""

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from scipy.stats import spearmanr
from transformers import AutoConfig, AutoModel

from pipelines.compression import distillation, export, pruning
from pipelines.models import families
from pipelines.models.encoder import Encoder, TextModel, layers_of
from pipelines.models.families import Parts, UnknownArchitecture
from schemas.configuration.training import TrainingSettings
from tests.support.fakes import toy_rows

TEXTS = sorted({text for text, _ in toy_rows(48, seed=3)}, key=len)
BATCHES = [TEXTS[:24], TEXTS[24:]]
FAMILIES = ["bert", "roberta", "distilbert"]


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, tiny_base: Path, tmp_path: Path) -> tuple[Encoder, TextModel]:
    """A tiny model of a family: 2 layers of 4 heads and 32 units."""
    encoder = Encoder(tiny_base, 32)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
    if request.param == "distilbert":
        sizes = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 32}
    pad = encoder.tokenizer.pad_token_id
    config = AutoConfig.for_model(request.param, vocab_size=700, max_position_embeddings=64, pad_token_id=pad, **sizes)
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(tmp_path / "base")
    encoder.tokenizer.save_pretrained(tmp_path / "base")
    found = Encoder(tmp_path / "base", 32)
    draw = np.random.default_rng(0)
    text_model = TextModel(found.model, found.width, draw.normal(size=(3, found.width)), np.zeros(3)).eval()
    for name, weights in text_model.named_parameters():
        if name.endswith("bias"):  # a new model's biases are nought: here they have to be sliced as well
            torch.nn.init.normal_(weights, std=0.1)
    return found, text_model


def pruned(encoder: Encoder, model: TextModel, heads: float, units: float) -> TextModel:
    narrow: TextModel = copy.deepcopy(model)

    def answers(texts: Sequence[str]) -> torch.Tensor:
        return narrow(**encoder.batch(texts))

    pruning.prune(narrow.encoder, heads, units, answers, BATCHES, seed=1)
    return narrow


def outputs(encoder: Encoder, model: TextModel, texts: Sequence[str] = TEXTS) -> np.ndarray:
    return np.asarray(model(**encoder.batch(texts)).detach().numpy())


def parts_of(model: TextModel) -> Parts:
    return families.parts_of(model.encoder.config.model_type)


def test_keeping_everything_changes_nothing(model: tuple[Encoder, TextModel]) -> None:
    encoder, full = model
    np.testing.assert_array_equal(outputs(encoder, pruned(encoder, full, 1, 1)), outputs(encoder, full))


def test_every_layer_has_the_asked_shape_and_onnx_says_the_same(
    model: tuple[Encoder, TextModel], tmp_path: Path
) -> None:
    encoder, full = model
    narrow, parts = pruned(encoder, full, 0.5, 0.25), parts_of(full)
    for layer in layers_of(narrow.encoder):
        attention = layer.get_submodule(parts.attention)
        assert [attention.get_submodule(name).weight.shape for name in parts.inner] == [(16, 32)] * 3
        assert [getattr(attention, name) for name in parts.shape] == [2, 16]
        assert layer.get_submodule(parts.merge).weight.shape == (32, 16)
        assert layer.get_submodule(parts.widen).weight.shape == (8, 32)
        assert layer.get_submodule(parts.narrow).weight.shape == (32, 8)
    export.export(narrow, encoder, tmp_path)
    rows = [encoder.batch([text])["input_ids"][0].tolist() for text in TEXTS]
    export.quantise(tmp_path / "model.onnx", tmp_path / "int8.onnx", rows)
    inputs = {name: tensor.numpy() for name, tensor in encoder.batch(TEXTS[:6]).items()}
    wanted = outputs(encoder, narrow, TEXTS[:6])
    exact, int8 = (
        ort.InferenceSession(tmp_path / name).run(["logits"], inputs)[0] for name in ("model.onnx", "int8.onnx")
    )
    assert np.abs(exact - wanted).max() < 1e-4
    assert np.abs(int8 - wanted).max() < 0.1 * np.abs(wanted).max()


def test_what_does_nothing_goes_and_nothing_changes(model: tuple[Encoder, TextModel]) -> None:
    encoder, full = model
    parts, idle_heads, idle_units = parts_of(full), [0, 2], [1, 3, 5, *range(10, 23)]
    lanes = [8 * head + n for head in idle_heads for n in range(8)]
    with torch.no_grad():
        for layer in layers_of(full.encoder):
            layer.get_submodule(parts.merge).weight[:, lanes] = 0
            layer.get_submodule(parts.narrow).weight[:, idle_units] = 0
    narrow = pruned(encoder, full, 0.5, 0.5)
    np.testing.assert_allclose(outputs(encoder, narrow), outputs(encoder, full), atol=1e-4)
    kept = [n for n in range(32) if n not in idle_units]
    for layer, before in zip(layers_of(narrow.encoder), layers_of(full.encoder), strict=True):
        widen = layer.get_submodule(parts.widen).weight
        assert torch.equal(widen, before.get_submodule(parts.widen).weight[kept])


def test_what_matters_most_costs_more_than_what_matters_least(model: tuple[Encoder, TextModel]) -> None:
    encoder, full = model
    parts = parts_of(full)
    layer = layers_of(full.encoder)[1]
    [_, (_, scores)] = pruning.importance(
        full.encoder, parts, lambda texts: full(**encoder.batch(texts)), BATCHES * 8, seed=1
    )
    wanted, changes = outputs(encoder, full), []
    for unit in range(32):
        weight = layer.get_submodule(parts.narrow).weight
        before = weight.detach().clone()
        with torch.no_grad():
            weight[:, unit] = 0
            changes.append(float(np.square(outputs(encoder, full) - wanted).sum()))
            weight.copy_(before)
    assert spearmanr(scores.numpy(), changes).statistic > 0.8


def test_a_narrow_student_learns_its_teachers_answers(model: tuple[Encoder, TextModel]) -> None:
    encoder, teacher = model
    recipe = TrainingSettings(student_heads=0.5, student_feed_forward=0.25, student_epochs=12, threads=1)
    assert recipe.makes_student
    student = distillation.distil(teacher, encoder, TEXTS, recipe, lambda *_: None)
    assert len(layers_of(student.encoder)) == 2
    assert layers_of(student.encoder)[0].get_submodule(parts_of(teacher).widen).out_features == 8
    fresh = [text for text, _ in toy_rows(30, seed=9)]
    wanted, learnt = outputs(encoder, teacher, fresh), outputs(encoder, student, fresh)
    started = outputs(encoder, pruned(encoder, teacher, 0.5, 0.25), fresh)
    assert np.square(learnt - wanted).mean() < 0.7 * np.square(started - wanted).mean()


def test_an_unknown_family_is_refused_by_name(tiny_base: Path) -> None:
    encoder = Encoder(tiny_base, 32)
    encoder.model.config.model_type = "gpt2"
    with pytest.raises(UnknownArchitecture, match="gpt2"):
        pruning.prune(encoder.model, 0.5, 0.5, lambda _: torch.zeros(1), [], seed=0)


def test_a_student_is_asked_for_by_any_part_of_its_shape() -> None:
    assert not TrainingSettings().makes_student
    assert all(
        TrainingSettings(**shape).makes_student
        for shape in ({"student_layers": 6}, {"student_heads": 0.5}, {"student_feed_forward": 0.5})
    )
