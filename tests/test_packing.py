"""What is exported answers as what was trained, and does not compute padding."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.compression.packing import PADDING, Layout, PackedModel
from pipelines.models.encoder import Encoder, TextModel, layers_of
from tests.support.versions import other_base

TEXTS = ["short", "a text that is somewhat longer than the first", "two words", " ".join(["long"] * 40), ""]


@pytest.fixture(params=["bert", "roberta", "distilbert"])
def base(request: pytest.FixtureRequest, tiny_base: Path, tmp_path: Path) -> Encoder:
    return other_base(request.param, Encoder(tiny_base, 32), tmp_path)


@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:1], TEXTS[3:4] * 3])
def test_a_packed_model_answers_as_the_model_and_runs_each_token_once(base: Encoder, texts: list[str]) -> None:
    weight = np.random.default_rng(0).normal(size=(4, base.width))
    model = TextModel(base.model, base.width, weight, np.zeros(4)).eval()
    packed = PackedModel(copy.deepcopy(model)).eval()
    seen: list[torch.Size] = []
    layers_of(packed.encoder)[0].register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape))
    inputs = base.batch(texts)
    with torch.no_grad():
        torch.testing.assert_close(packed(**inputs), model(**inputs), atol=1e-5, rtol=1e-5)
    assert seen == [(1, int(inputs["attention_mask"].sum()), base.width)]


def test_a_text_that_is_packed_and_laid_out_stays_where_it_was() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1]])
    rows = torch.arange(18.0).reshape(3, 3, 2)
    layout = Layout.of(mask)
    sequence = layout.pack(rows)
    assert torch.equal(sequence, rows[mask.bool()])
    assert torch.equal(layout.lay_out(sequence)[mask.bool()], sequence)


def test_padding_weighs_nothing_and_makes_no_denormal_number() -> None:
    """A denormal costs a processor as much as a hundred other numbers."""
    layout = Layout.of(torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1]]))
    laid_out = layout.lay_out(torch.arange(6))
    assert laid_out.tolist() == [[0, 1, 1], [2, 2, 2], [3, 4, 5]], "so its scores are at most the row's highest"
    weight = np.exp(np.float32(PADDING))
    assert np.float32(1) + 512 * weight == np.float32(1)
    assert weight * np.exp(np.float32(-20)) > np.finfo(np.float32).tiny
