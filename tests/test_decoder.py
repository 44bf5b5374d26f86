"""Training a tiny decoder: rows and their cost, early stopping, adapter and merged model, base models of other families."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from pipelines.dataset.examples import Example
from pipelines.models.decoder import Decoder, adapter_targets, decoder_path, save, trainable_copy
from pipelines.models.encoder import BaseModelMissing, layer_of
from pipelines.training.fitting import Fit
from pipelines.training.tasks.choose import task_for
from pipelines.training.tasks.generation import Generation, encoded
from pipelines.training.tasks.token_rows import TokenRows, layers_of
from pipelines.training.trainer import Trained, train
from pipelines.training.warm_start import open_warm_start
from schemas.configuration.training import TrainingSettings
from serving.inference import prompts
from serving.inference.decoder_runtime import DecoderRuntime, token_logprobs
from tests.support.fakes import toy_rows
from tests.support.versions import text_version

RECIPE = TrainingSettings(epochs=3, learning_rate=2e-2, threads=1)


@pytest.fixture(scope="module")
def base(tiny_decoder: Path) -> Decoder:
    return Decoder(tiny_decoder, 96, 96, torch.float32)


def examples(n: int, seed: int) -> list[Example]:
    return [Example(text=text, label=f"about {label}", source="seed") for text, label in toy_rows(n, seed)]


def fit(base: Decoder, rows: list[Example], held: list[Example], **recipe: float | str) -> Trained:
    return train(task_for("generation", []), base, rows, held, RECIPE.model_copy(update=recipe), lambda *_: None)


def nll(model: torch.nn.Module, base: Decoder, rows: list[Example]) -> float:
    """Of a token of the answers."""
    pairs = [encoded(base, row.text, row.label) for row in rows]
    with torch.no_grad():
        found = [token_logprobs(model.eval(), [ids], [answer]) for ids, answer in pairs]
    return -float(torch.cat([one.flatten() for one in found]).mean())


@pytest.fixture(scope="module")
def trained(base: Decoder) -> Trained:
    return fit(base, examples(24, seed=1), examples(9, seed=2))


def test_only_the_answer_and_its_end_cost_anything(base: Decoder) -> None:
    ids, answer = encoded(base, "goal match", "kick")
    tokenizer = base.tokenizer
    assert tokenizer.decode(ids[-answer:]) == "kick<end>"
    assert tokenizer.decode(ids[:-answer]) == "<user>goal match<end>\n<model>"
    ids, answer = encoded(base, "goal " * 50, "kick " * 50)
    assert (len(ids) - answer, answer) == (96, 96)
    assert tokenizer.decode(ids[-answer:]).endswith("kick k"), "no end where the answer goes on"

    rows = Generation().rows(base, [Example(text="a", label=label, source="seed") for label in ("b", "long")], RECIPE)
    assert rows.targets.tolist() == [2, 5]
    outputs = torch.tensor([[0.0, 0, 0, 3, 4], [5, 6, 7, 8, 9]])
    kept = Generation().kept(outputs, torch.from_numpy(rows.targets))
    assert kept.tolist() == [3 + 4, 5 + 6 + 7 + 8 + 9]
    assert Generation().row_losses(kept, rows.targets).mean() == pytest.approx(kept.sum() / 7)
    assert Generation().metrics(kept, rows.targets)["perplexity"] == pytest.approx(np.exp(kept.sum() / 7))


def test_a_prompt_has_a_token_whatever_the_text_and_the_tokenizer(tiny_decoder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_decoder)
    assert len(prompts.encode(tokenizer, "")) > 1
    tokenizer.chat_template = None
    assert tokenizer.decode(prompts.encode(tokenizer, "goal")) == "goal"
    assert prompts.encode(tokenizer, "") == [tokenizer.eos_token_id]
    tokenizer.bos_token = "<user>"
    assert prompts.encode(tokenizer, "") == [tokenizer.bos_token_id]
    tokenizer.bos_token = tokenizer.eos_token = None
    assert prompts.encode(tokenizer, "") == [0]


def copies_of_the_head(model: torch.nn.Module, base: Decoder) -> int:
    """Products of each row with a copy of the head's weights, in scoring rows of different lengths."""
    rows = [encoded(base, row.text, row.label) for row in examples(6, seed=3)]
    with torch.no_grad(), torch.profiler.profile(record_shapes=True) as profile:
        token_logprobs(model, [ids for ids, _ in rows], [length for _, length in rows])
    words = base.model.get_output_embeddings().weight.shape[0]
    events = profile.key_averages(group_by_input_shape=True)
    return sum(event.count for event in events if event.key == "aten::bmm" and words in event.input_shapes[1])


def test_rows_share_one_copy_of_the_head(base: Decoder, trained: Trained, tmp_path: Path) -> None:
    plain = base.model.from_pretrained(base.path, dtype=torch.float32).requires_grad_(False).eval()
    assert copies_of_the_head(plain, base) == 1, "torch no longer copies the head's weights: `with_one_head` can go"
    adapted = trainable_copy(base, RECIPE).eval()  # freezes the weights that it shares with the base model
    text_version(tmp_path, trained.model, base, "bench", "bench")
    served = DecoderRuntime(tmp_path).model.requires_grad_(False)
    for model in (base.model, adapted, served):
        assert copies_of_the_head(model, base) == 0


def test_what_was_learned_holds_on_rows_not_trained_on(base: Decoder, trained: Trained) -> None:
    test = examples(12, seed=9)
    assert trained.method == "lora"
    assert nll(trained.model, base, test) < nll(base.model, base, test) - 0.5
    curve = [float(line["held_out_nll"]) for line in trained.history if "held_out_nll" in line]
    assert min(curve) < curve[0]
    # the base model is as it was
    again = Decoder(base.path, 96, 96, torch.float32)
    assert nll(base.model, base, test) == pytest.approx(nll(again.model, again, test))


def test_rows_weigh_what_they_weigh(base: Decoder) -> None:
    rows = [Example(text="a", label="yes", source="seed"), Example(text="a", label="no!", source="seed", weight=1e-6)]
    model = Generation().start(base, rows, RECIPE)
    with Fit(Generation(), model, Generation().rows(base, rows, RECIPE), range(2), RECIPE) as fitted:
        for _ in range(8):
            fitted.epoch()
    assert nll(model, base, rows[:1]) < nll(model, base, rows[1:])


def test_the_adapter_and_the_merged_model_are_the_trained_one(base: Decoder, trained: Trained, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    test = examples(5, seed=3)
    expected = nll(trained.model, base, test)
    assert save(trained.model, base, tmp_path) == "fp32"
    assert nll(trained.model, base, test) == pytest.approx(expected), "saving left it as it was"
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert nll(merged, base, test) == pytest.approx(expected, abs=1e-3)
    again = PeftModel.from_pretrained(Decoder(base.path, 96, 96, torch.float32).model, tmp_path / "adapter")
    assert nll(again, base, test) == pytest.approx(expected, abs=1e-3)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} <= {".json", ".safetensors", ".jinja"}
    assert str(base.path) not in (tmp_path / "adapter" / "adapter_config.json").read_text(encoding="utf-8")


FAMILIES = [
    ("llama", ["q_proj", "v_proj"], ["k_proj", "o_proj"], ["down_proj", "gate_proj", "up_proj"]),
    ("gpt2", ["c_attn"], ["c_proj"], ["c_fc"]),
    ("gpt_neox", ["query_key_value"], ["dense"], ["dense_4h_to_h", "dense_h_to_4h"]),
]


@pytest.mark.parametrize(("kind", "some", "more", "rest"), FAMILIES, ids=[family[0] for family in FAMILIES])
def test_every_family_carries_adapters_where_it_is_asked_to(
    base: Decoder, tmp_path: Path, kind: str, some: list[str], more: list[str], rest: list[str]
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    if kind == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2}
    ends = {"bos_token_id": None, "eos_token_id": base.tokenizer.eos_token_id, "tie_word_embeddings": False}
    config = AutoConfig.for_model(kind, vocab_size=300, **ends, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    base.tokenizer.save_pretrained(tmp_path)
    other = Decoder(tmp_path, 32, 32, torch.float32)
    groups = {"query-value": some, "attention": [*some, *more], "all": [*some, *more, *rest]}
    for group, expected in groups.items():
        assert {name.rsplit(".", 1)[1] for name in adapter_targets(other.model, group)} == set(expected)
    rows = examples(2, seed=4)
    adapted = trainable_copy(other, RECIPE.model_copy(update={"adapted_layers": 1}))
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert {layer_of(name) for name in trained} == {1}
    assert nll(adapted, other, rows) == pytest.approx(nll(other.model, other, rows), abs=1e-5)

    # what is below the adapters runs once, and changes nothing
    tokens = Generation().rows(other, examples(5, seed=5), RECIPE).inputs
    with tokens.feeding(adapted) as forward:
        found = forward([0, 3, 4]).sum(dim=1)
    with tokens.feeding(other.model.requires_grad_(True)) as forward:
        whole = forward([0, 3, 4]).sum(dim=1)
    np.testing.assert_allclose(found.detach(), whole.detach(), rtol=1e-4)
    assert nll(adapted, other, rows) == pytest.approx(nll(other.model, other, rows), abs=1e-5)


def test_rows_whose_states_take_too_much_memory_run_through_all_layers(base: Decoder) -> None:
    adapted = trainable_copy(base, RECIPE.model_copy(update={"adapted_layers": 1})).eval()
    pairs = [encoded(base, row.text, row.label) for row in examples(5, seed=5)]
    runs: list[int] = []
    layers_of(adapted)[0].register_forward_hook(lambda *_: runs.append(1))
    states = 4 * base.model.config.hidden_size * sum(len(ids) for ids, _ in pairs)
    found = {}
    for most in (states, states - 1):
        rows = TokenRows([ids for ids, _ in pairs], [answer for _, answer in pairs], max_bytes=most)
        with rows.feeding(adapted) as forward:
            runs.clear()
            found[most] = forward([0, 3, 4]).detach()
        assert len(runs) == (most < states), "below the adapters"
    torch.testing.assert_close(found[states - 1], found[states], rtol=1e-4, atol=1e-4)


def test_a_round_goes_on_from_a_champion_or_trains_all_weights(
    base: Decoder, trained: Trained, text_version: Path
) -> None:
    test = examples(6, seed=3)
    champion = open_warm_start(text_version, "generation", base.sha256, RECIPE)
    start = Generation().start(base, test, RECIPE, champion)
    writer = DecoderRuntime(text_version)
    assert nll(start, base, test) == pytest.approx(nll(writer.model, base, test), abs=1e-3)
    whole = fit(base, examples(24, seed=1), examples(9, seed=2), method="full", learning_rate=1e-2)
    assert whole.method == "full"
    assert nll(whole.model, base, test) < nll(base.model, base, test) - 0.5


def test_base_models_are_found_hashed_or_refused_by_name(base: Decoder) -> None:
    assert decoder_path(str(base.path)) == base.path
    assert decoder_path(None).is_file()
    assert decoder_path(str(decoder_path(None))) == decoder_path(None)
    assert base.sha256 == Decoder(base.path, 8, 8, torch.float32).sha256
    assert base.token_limit == 256
    assert base.token_counts(["hello", ""]) == [9, 4]
    with pytest.raises(BaseModelMissing, match=r"absent\.gguf"):
        decoder_path("/nowhere/absent.gguf")
