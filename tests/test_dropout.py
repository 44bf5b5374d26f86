"""Fast dropout: what torch's dropout does, at its rate, by torch's seed, inside attention too."""

from pathlib import Path

import pytest
import torch

from pipelines.models.dropout import FastDropout, attend, dropped, with_fast_dropout
from pipelines.models.encoder import Encoder, trainable_copy
from schemas.configuration.training import TrainingSettings


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_share_p_is_lost_the_rest_is_scaled_and_gradients_follow(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    values = torch.ones(500, 401, dtype=dtype, requires_grad=True)
    result = dropped(values, p)
    kept = result != 0
    assert float(kept.float().mean()) == pytest.approx(1 - p, abs=0.005)
    assert float(kept.float().mean(dim=0).std()) == pytest.approx((p * (1 - p) / 500) ** 0.5, rel=0.2), "independent"
    torch.testing.assert_close(result[kept], torch.full_like(result[kept], 1 / (1 - p)), atol=2e-2, rtol=0)
    result.sum().backward()
    torch.testing.assert_close(values.grad, result.detach())


def test_torchs_seed_decides_and_evaluation_loses_nothing() -> None:
    values, module = torch.randn(7, 9), FastDropout(0.5)
    torch.manual_seed(3)
    one, other = module(values), module(values)
    torch.manual_seed(3)
    assert torch.equal(module(values), one)
    assert not torch.equal(one, other)
    assert torch.equal(module.eval()(values), values)
    assert dropped(values, 0.0) is values


def test_a_training_copy_loses_what_it_lost_and_answers_as_before(tiny_base: Path) -> None:
    encoder = Encoder(tiny_base, 32)
    inputs = encoder.batch(["goal match", "the oven and the butter of many people"])
    plain = encoder.model(**inputs).last_hidden_state
    copy = with_fast_dropout(trainable_copy(encoder, TrainingSettings()).eval(), attention=True)
    assert not any(module.training for module in copy.modules()), "as before"
    assert not [
        name for name, module in copy.named_modules() if type(module) is torch.nn.Dropout and "self" not in name
    ]
    torch.testing.assert_close(copy.eval()(**inputs).last_hidden_state, plain, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(copy.train()(**inputs).last_hidden_state, plain, atol=1e-2)
    assert torch.equal(encoder.model(**inputs).last_hidden_state, plain), "the base model is as it was"


def test_attention_loses_weights_in_training() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, 5, 4) for _ in range(3))
    whole, _ = attend(torch.nn.Module(), query, key, value, None, scaling=0.5)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=0.5).transpose(1, 2)
    torch.testing.assert_close(whole, expected)
    lost, _ = attend(torch.nn.Module(), query, key, value, None, scaling=0.5, dropout=0.3)
    assert not torch.allclose(lost, whole)
