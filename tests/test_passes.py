"""Passes without gradients: few tokens run together, however long the rows are, and each row's output is the one it has alone."""

from pathlib import Path

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines.models.encoder import Encoder
from serving.inference.passes import ROWS, TOKENS, passes
from tests.support.fakes import FILLERS

LONG = 300  # words, of a token each


@given(st.lists(st.integers(0, 3 * TOKENS), max_size=200).map(sorted), st.integers(1, 64))
def test_every_row_is_in_one_pass_and_a_pass_is_small_or_one_row(lengths: list[int], rows: int) -> None:
    ranges = list(passes(lengths, rows))
    assert [n for start, end in ranges for n in range(start, end)] == list(range(len(lengths)))
    for start, end in ranges:
        assert end - start == 1 or (end - start <= rows and (end - start) * lengths[end - 1] <= TOKENS)


def test_short_rows_run_as_many_together_as_may() -> None:
    assert list(passes([8] * 2 * ROWS)) == [(0, ROWS), (ROWS, 2 * ROWS)]
    assert list(passes([TOKENS // 4] * 9)) == [(0, 4), (4, 8), (8, 9)]
    assert list(passes([8] * 31 + [TOKENS])) == [(0, 31), (31, 32)], "one long row leaves the short ones together"


def long_base(folder: Path, tiny_base: Path) -> Path:
    """Save a tiny BERT that reads 512 tokens."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    config = AutoConfig.from_pretrained(tiny_base)
    config.max_position_embeddings = 512
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_base, model_max_length=512)
    tokenizer.save_pretrained(folder)
    return folder


def test_long_texts_are_embedded_a_few_at_a_time_as_each_alone(tiny_base: Path, tmp_path: Path) -> None:
    encoder = Encoder(long_base(tmp_path, tiny_base), 512)
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(FILLERS, size=LONG)) for _ in range(40)] + ["goal match", "the oven"]
    seen: list[tuple[int, ...]] = []
    embeddings = encoder.model.embeddings
    hook = embeddings.register_forward_hook(lambda _, __, hidden: seen.append(tuple(hidden.shape[:2])))
    together = encoder.embed(texts)
    hook.remove()
    assert sum(rows for rows, _ in seen) == len(texts)
    assert max(length for _, length in seen) == LONG + 2
    assert max(rows * length for rows, length in seen) <= TOKENS
    alone = np.concatenate([encoder.embed_with(encoder.model, [text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-4)
