"""A loaded version that writes: the same answer whole, in pieces and beside others, golden answers, and the end of it."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from schemas.manifests import Calibration, SequenceCalibration
from serving.inference import prompts
from serving.inference.decoder_runtime import MODEL, DecoderRuntime, last_logits, token_logprobs
from serving.inference.golden import GoldenMismatch
from serving.inference.text_generator import right_aligned
from serving.model_directory import ArtifactDamaged, read_manifest, sha256
from tests.support.fakes import tiny_causal_model
from tests.support.versions import copied, rewritten

TEXTS = ["hello", "a", "where is my card? " * 9]


@pytest.fixture(scope="module")
def writer(text_version: Path) -> DecoderRuntime:
    return DecoderRuntime(text_version, sha256(text_version / "manifest.json"))


def test_an_answer_is_the_same_whole_in_pieces_and_beside_others(writer: DecoderRuntime) -> None:
    together = writer.generate(TEXTS)
    for text, answer in zip(TEXTS, together, strict=True):
        pieces = list(writer.pieces(writer.encode(text), 12))
        assert writer.joined(pieces).text == answer.text
        assert writer.joined(pieces).tokens == answer.tokens
        np.testing.assert_allclose([piece.logprob for piece in pieces], answer.logprobs, atol=1e-4)
        [given] = writer.token_logprobs([[*writer.encode(text), *answer.tokens]], [len(answer.tokens)])
        np.testing.assert_allclose(given, answer.logprobs, atol=1e-4)
    assert [len(answer.tokens) for answer in together] == [12, 12, 12]
    assert writer.generate([], 12) == []


def test_an_answer_stops_at_its_end_at_its_bound_and_when_nobody_waits(
    writer: DecoderRuntime, text_version: Path, tmp_path: Path
) -> None:
    [answer] = writer.generate(["hello"], 12)
    folder = copied(text_version, tmp_path / "stopping")
    config = folder / MODEL / "generation_config.json"
    config.write_text(json.dumps({"eos_token_id": answer.tokens[4]}), encoding="utf-8")
    stopping = DecoderRuntime(rewritten(folder))
    [ended] = stopping.generate(["hello"], 12)
    assert ended.tokens == answer.tokens[: answer.tokens.index(answer.tokens[4]) + 1]
    assert len(ended.logprobs) == len(ended.tokens)
    pieces = list(stopping.pieces(stopping.encode("hello"), 12))
    assert [piece.token for piece in pieces] == ended.tokens
    assert "".join(piece.text for piece in pieces) == ended.text
    assert pieces[-1].text == ""
    assert [len(one.tokens) for one in writer.generate(TEXTS, 12, cancelled=lambda: True)] == [1, 1, 1]
    assert [len(one.tokens) for one in writer.generate(["hello"], 1000)] == [12], "its own bound"
    assert len(list(writer.pieces([7] * 250))) == 6, "its context holds 256"


def test_characters_of_several_bytes_come_whole(writer: DecoderRuntime) -> None:
    ids = writer.tokenizer("aä€", add_special_tokens=False)["input_ids"]
    assert len(ids) == 6
    assert writer.decode(ids) == "aä€"
    assert writer.decode(ids[:4]) == "aä"


def test_long_texts_are_cut_and_their_prompt_stays_whole(writer: DecoderRuntime) -> None:
    long = writer.encode("word " * 100)
    assert len(long) == 48
    assert long[-1] == writer.encode("a")[-1], "the answer's place follows the cut text"
    tokenizer = writer.tokenizer
    assert prompts.shortened(tokenizer, "short", 48) == "short"
    assert prompts.shortened(tokenizer, "word", 2) == ""
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None
    assert prompts.prompt_of(plain, "a text") == "a text"
    assert plain.decode(prompts.encode(plain, "a text")) == "a text"


def test_rows_that_end_together_say_the_same_as_alone(tiny_decoder: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_decoder, dtype=torch.float32).eval()
    rows = [[1, 2, 3, 4, 5, 6, 7], [8, 9, 10], [11, 12, 13, 14]]
    ids, mask = right_aligned(rows)
    assert ids[1].tolist() == [0, 0, 0, 0, 8, 9, 10]
    assert mask[1].tolist() == [0, 0, 0, 0, 1, 1, 1]
    with torch.no_grad():
        found = token_logprobs(model, rows, [2, 1, 2])
        assert found[1, 0] == 0
        for n, row in enumerate(rows):
            alone = model(input_ids=torch.tensor([row])).logits[0].log_softmax(dim=-1)
            last = [alone[-3, row[-2]], alone[-2, row[-1]]] if n != 1 else [0, alone[-2, row[-1]]]
            np.testing.assert_allclose(found[n], last, atol=1e-5)
            np.testing.assert_allclose(last_logits(model, [row], 1)[0, 0].log_softmax(dim=-1), alone[-2], atol=1e-5)


def test_confidence_is_the_calibrated_mean_log_probability(
    writer: DecoderRuntime, text_version: Path, tmp_path: Path
) -> None:
    assert writer.confidence([[-1.0, -2.0], [-0.1]]) == pytest.approx([np.exp(-1.5), np.exp(-0.1)])
    fitted = Calibration(sequence=SequenceCalibration(kind="platt", scale=2.0, shift=1.0))
    other = DecoderRuntime(copied(text_version, tmp_path / "c", calibration=fitted))
    assert other.confidence([[-1.0, -2.0]]) == pytest.approx([1 / (1 + np.exp(2.0))])


def test_a_version_is_refused_when_it_is_not_what_it_was(text_version: Path, tmp_path: Path) -> None:
    golden = read_manifest(text_version).golden
    moved = golden.model_copy(update={"logprobs": [[said - 0.5 for said in row] for row in golden.logprobs]})
    with pytest.raises(GoldenMismatch, match="log-probability"):
        DecoderRuntime(copied(text_version, tmp_path / "a", golden=moved))
    other = golden.model_copy(
        update={"completions": [[(token + 1) % 256 for token in row] for row in golden.completions]}
    )
    with pytest.raises(GoldenMismatch):
        DecoderRuntime(copied(text_version, tmp_path / "b", golden=other))
    changed = copied(text_version, tmp_path / "d")
    with (changed / "model/model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    with pytest.raises(ArtifactDamaged, match=r"model/model\.safetensors: changed"):
        DecoderRuntime(changed)
    weights = tiny_causal_model(tmp_path / "other", seed=9) / "model.safetensors"
    (changed / "model/model.safetensors").write_bytes(weights.read_bytes())
    with pytest.raises(GoldenMismatch):
        DecoderRuntime(rewritten(changed))
