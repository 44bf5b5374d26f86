"""Training on a tiny real model: LoRA learns what the probe can't, the probe ships when it does not, both the same twice."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from pipelines.calibration.maps import fit_temperature, row_nll
from pipelines.compression import export
from pipelines.dataset.examples import Example
from pipelines.models.encoder import (
    NORM,
    BaseModelMissing,
    Encoder,
    TextModel,
    base_model_path,
    base_model_sha256,
    mean_pool,
    trainable_copy,
)
from pipelines.models.probe import fit_probe
from pipelines.training.errors import TrainingDiverged
from pipelines.training.fitting import Fit, batch_size, epochs_of
from pipelines.training.frozen_layers import LowerStates
from pipelines.training.label_names import label_rows, words
from pipelines.training.tasks.classification import Classification
from pipelines.training.tasks.task import Batch
from pipelines.training.trainer import Trained, probe_outputs, train
from schemas.configuration.training import TrainingSettings
from tests.support.fakes import TOPICS, toy_rows

LABELS = sorted(TOPICS)
TASK = Classification(LABELS)
RECIPE = TrainingSettings(
    tfidf=False,
    probe_c=0.075,
    epochs=4,
    threads=1,
    learning_rate=5e-3,
    lora_dropout=0.0,
    base_dropout=False,
    adapted_layers=1,
    label_names=False,
    refit_below=None,
    bf16=False,
    lora_targets="query-value",
    lora_rank=8,
)


@pytest.fixture(scope="module")
def encoder(tiny_base: Path) -> Encoder:
    return Encoder(tiny_base, max_length=32)


def examples(n: int, seed: int) -> list[Example]:
    return [Example(text=text, label=label, source="seed") for text, label in toy_rows(n, seed)]


def fit(encoder: Encoder, rows: Sequence[Example], held: Sequence[Example], **recipe: object) -> Trained:
    return train(TASK, encoder, rows, held, RECIPE.model_copy(update=recipe), lambda *_: None)


def answers(trained: Trained, encoder: Encoder, texts: Sequence[str]) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(trained.model(**encoder.batch(texts)).numpy())


def test_an_embedding_is_the_mean_over_tokens_at_one_length_and_padding_does_not_count(encoder: Encoder) -> None:
    short, long = "goal match", "loan market profit share tax budget invoice trade"
    alone = encoder.model(**encoder.batch([short])).last_hidden_state.mean(dim=1).detach().numpy()
    together = Encoder(encoder.path, 32).embed([short, long])
    np.testing.assert_allclose(together[:1], NORM * alone / np.linalg.norm(alone), atol=1e-4)
    pooled = mean_pool(torch.ones(1, 2, 3), torch.tensor([[1, 0]]))
    np.testing.assert_allclose(pooled.numpy(), np.full((1, 3), NORM / np.sqrt(3)), rtol=1e-6)


def test_lower_layers_run_once_give_what_the_whole_model_gives(encoder: Encoder) -> None:
    rows = examples(9, seed=4)
    texts = [row.text for row in rows]
    model = TextModel(trainable_copy(encoder, RECIPE), encoder.width, np.ones((3, encoder.width)), np.zeros(3))
    whole = model.eval()(**encoder.batch(texts)).detach().numpy()
    with Fit(TASK, model, TASK.rows(encoder, rows, RECIPE), [0], RECIPE) as opened:
        np.testing.assert_allclose(opened.outputs(range(9)), whole, atol=1e-4)
    np.testing.assert_allclose(model(**encoder.batch(texts)).detach().numpy(), whole, atol=1e-5)


def test_states_that_do_not_fit_are_run_again(encoder: Encoder) -> None:
    ids = [torch.tensor(row) for row in encoder.tokenizer([text for text, _ in toy_rows(6, seed=5)])["input_ids"]]
    kept, none = LowerStates(encoder, ids, 1), LowerStates(encoder, ids, 1, max_bytes=0)
    for one, other in zip(kept.batch([4, 1]), none.batch([4, 1]), strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), atol=1e-5)


def test_training_leaves_the_encoder_as_it_was(encoder: Encoder) -> None:
    before = encoder.model(**encoder.batch(["goal match"])).last_hidden_state.detach().numpy()
    fit(encoder, examples(40, seed=1), examples(24, seed=2))
    after = encoder.model(**encoder.batch(["goal match"])).last_hidden_state.detach().numpy()
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("cross_below", [1000, 50])
def test_adapters_are_kept_when_they_help_on_rows_not_trained_on(encoder: Encoder, cross_below: int) -> None:
    test = toy_rows(120, seed=9)
    rows, held = examples(60, seed=1), examples(24, seed=2)
    # A probe held this short leaves much to learn; adapters of a random base first make it worse, hence the patience.
    recipe = {"epochs": 8, "patience": 8, "probe_c": 1e-4, "learning_rate": 2e-3}
    trained = fit(encoder, rows, held, **recipe)
    assert trained.method == "lora"
    truth = np.array([LABELS.index(label) for _, label in test])
    texts = [text for text, _ in test]
    weak = RECIPE.model_copy(update=recipe)
    nll = [
        row_nll(logits / fit_temperature(logits, truth), truth).mean()
        for logits in (answers(trained, encoder, texts), probe_outputs(TASK, encoder, rows, texts, weak))
    ]
    assert nll[0] < nll[1]
    curve = [float(line["held_out_nll"]) for line in trained.history if "held_out_nll" in line]
    assert min(curve) < curve[0]


def test_the_probe_ships_with_an_untouched_adapter_when_nothing_can_be_learned(encoder: Encoder) -> None:
    rows = [Example(text=r.text, label=LABELS[n % 2], source="seed") for n, r in enumerate(examples(60, seed=1))]
    trained = fit(encoder, rows, examples(24, seed=2))
    assert trained.method == "probe"
    texts = [text for text, _ in toy_rows(5, seed=7)]
    every = [*rows, *examples(24, seed=2)]
    np.testing.assert_allclose(
        answers(trained, encoder, texts), probe_outputs(TASK, encoder, every, texts, RECIPE), atol=1e-2
    )


@pytest.mark.parametrize("rows", [2, 5])
def test_a_handful_of_rows_gives_the_probe(encoder: Encoder, rows: int) -> None:
    assert fit(encoder, examples(rows, seed=1), []).method == "probe"
    assert fit(encoder, examples(30, seed=1), [], epochs=0).method == "probe"


def test_the_same_rows_in_another_order_give_the_same_model(encoder: Encoder) -> None:
    rows, held = examples(30, seed=1), examples(21, seed=2)
    texts = [text for text, _ in toy_rows(8, seed=7)]
    one, other = fit(encoder, rows, held), fit(encoder, rows[::-1], held[::-1])
    np.testing.assert_allclose(answers(one, encoder, texts), answers(other, encoder, texts), atol=1e-4)


def test_a_label_without_rows_is_improbable_and_weights_count(encoder: Encoder) -> None:
    rows = [row for row in examples(30, seed=1) if row.label != LABELS[0]]
    logits = probe_outputs(TASK, encoder, rows, ["goal match"], RECIPE)
    assert logits.argmax() != 0
    points = np.array([[0.0], [0.1], [1.0], [1.1]], dtype=np.float32)
    light = fit_probe(points, ["a", "a", "b", "b"], ["a", "b"], c=1.0, weights=[1, 1, 0.1, 0.1])
    even = fit_probe(points, ["a", "a", "b", "b"], ["a", "b"], c=1.0)
    middle = np.array([[0.55]], dtype=np.float32)
    assert np.diff(light.outputs(middle))[0, 0] < np.diff(even.outputs(middle))[0, 0]


def test_the_adapter_and_the_export_are_the_model(encoder: Encoder, tmp_path: Path) -> None:
    import onnxruntime as ort
    from peft import PeftModel

    trained = fit(encoder, examples(60, seed=1), examples(24, seed=2), epochs=8)
    texts = [text for text, _ in toy_rows(7, seed=3)]
    expected = answers(trained, encoder, texts)
    export.save_weights(trained.model, tmp_path)
    export.export(trained.model, encoder, tmp_path)
    np.testing.assert_allclose(answers(trained, encoder, texts), expected, atol=1e-5)
    inputs = {name: tensor.numpy() for name, tensor in encoder.batch(texts).items()}
    exported = ort.InferenceSession(tmp_path / "model.onnx").run(["logits"], inputs)[0]
    np.testing.assert_allclose(exported, expected, atol=1e-4)
    # base model + adapter + head are enough to make it again
    head = load_file(tmp_path / "head.safetensors")
    again = PeftModel.from_pretrained(Encoder(encoder.path, 32).model, tmp_path / "adapter")
    rebuilt = TextModel(again, encoder.width, head["weight"].astype(float), head["bias"].astype(float)).eval()
    np.testing.assert_allclose(rebuilt(**encoder.batch(texts)).detach().numpy(), expected, atol=1e-4)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} <= {".onnx", ".json", ".safetensors"}


@pytest.mark.parametrize("kind", ["roberta", "distilbert"])
def test_other_architectures_start_from_lower_states_too(encoder: Encoder, tmp_path: Path, kind: str) -> None:
    from transformers import AutoConfig, AutoModel

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    if kind == "distilbert":
        sizes = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
    pad = encoder.tokenizer.pad_token_id
    config = AutoConfig.for_model(kind, vocab_size=700, max_position_embeddings=64, pad_token_id=pad, **sizes)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    encoder.tokenizer.save_pretrained(tmp_path)
    other = Encoder(tmp_path, max_length=32)
    rows = examples(10, seed=4)
    model = TextModel(trainable_copy(other, RECIPE), other.width, np.ones((3, other.width)), np.zeros(3)).eval()
    whole = model(**other.batch([row.text for row in rows])).detach().numpy()
    with Fit(TASK, model, TASK.rows(other, rows, RECIPE), [0], RECIPE) as opened:
        np.testing.assert_allclose(opened.outputs(range(10)), whole, atol=1e-4)


def test_base_models_are_found_hashed_or_refused(encoder: Encoder) -> None:
    assert base_model_path(str(encoder.path)) == encoder.path
    assert (base_model_path(None) / "config.json").is_file()
    with pytest.raises(BaseModelMissing, match="no-such-model"):
        base_model_path("/nowhere/no-such-model")
    assert base_model_sha256(encoder.path) == base_model_sha256(encoder.path)


def test_small_sets_get_small_batches() -> None:
    assert [batch_size(n, RECIPE) for n in (10, 25, 80, 500, 1500, 9000)] == [4, 4, 10, 16, 25, 32]


def test_many_rows_or_many_tokens_need_fewer_epochs() -> None:
    unset, few = TrainingSettings(), TrainingSettings(epochs=3)
    sizes = [(2000, 30_000), (700, 74_999), (400, 75_000), (4000, 60_000), (20_000, 300_000)]
    assert [epochs_of(rows, tokens, unset) for rows, tokens in sizes] == [8, 8, 4, 4, 4]
    assert [epochs_of(rows, tokens, few) for rows, tokens in sizes] == [3] * 5


def test_a_rejection_teaches_what_a_text_is_not(encoder: Encoder) -> None:
    logits = torch.tensor([[4.0, 0.0, 0.0], [4.0, 0.0, 0.0], [40.0, 0.0, 0.0]], requires_grad=True)
    losses = TASK.losses(
        logits, Batch(torch.tensor([0, 0, 0]), torch.ones(3), torch.tensor([False, True, True])), RECIPE
    )
    p = float(torch.softmax(logits[0], dim=0)[0].detach())
    np.testing.assert_allclose(losses.detach()[:2].numpy(), [-np.log(p), -np.log(1 - p)], rtol=1e-5)
    losses.sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(losses).all()
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[1, 0] > 0 > logits.grad[0, 0], "descending lowers the rejected label's logit"

    rows, label = examples(60, seed=1), LABELS[0]
    texts = [text for text, _ in toy_rows(24, seed=77)]
    rejections = [Example(text=text, label=label, source="rejection", weight=0.5) for text in texts]
    plain = train(TASK, encoder, rows, [], RECIPE, lambda *_: None)
    taught = train(TASK, encoder, rows, [], RECIPE, lambda *_: None, rejections=rejections)
    if plain.method == taught.method == "lora":
        before, after = (np.exp(answers(t, encoder, texts)) for t in (plain, taught))
        share = [float((p[:, 0] / p.sum(axis=1)).mean()) for p in (before, after)]
        assert share[1] < share[0]


def test_a_labels_own_words_are_one_more_row_of_it() -> None:
    assert [words(label) for label in ("card_arrival", "CardArrival", "card-arrival", "__", "3")] == [
        *["card arrival"] * 3,
        "",
        "3",
    ]
    several = [Example(text="t", label='["b_c", "a"]', source="seed")]
    found = [(row.text, row.label) for row in label_rows("multilabel", several)]
    assert found == [("a", '["a"]'), ("b c", '["b_c"]')]
    assert label_rows("regression", [Example(text="t", label="3.0", source="seed")]) == []


def test_training_starts_from_prototypes_and_label_names_train(encoder: Encoder) -> None:
    rows = examples(12, seed=1)
    head = TASK.start(encoder, rows, RECIPE).head.weight.detach().numpy()
    np.testing.assert_allclose(np.linalg.norm(head, axis=1), 1, rtol=1e-5)
    own = encoder.embed([row.text for row in rows if row.label == LABELS[1]]).sum(axis=0)
    np.testing.assert_allclose(head[1], own / np.linalg.norm(own), rtol=1e-4)
    named = fit(encoder, rows, [], label_names=True, epochs=0)
    plain = probe_outputs(TASK, encoder, [*rows, *label_rows("classification", rows)], ["goal match"], RECIPE)
    np.testing.assert_allclose(answers(named, encoder, ["goal match"]), plain, atol=1e-3)


def test_bfloat16_trains_about_the_same_model(encoder: Encoder) -> None:
    rows = examples(24, seed=1)
    losses = []
    for bf16 in (False, True):
        settings = RECIPE.model_copy(update={"bf16": bf16})
        model = TASK.start(encoder, rows, settings)
        with Fit(TASK, model, TASK.rows(encoder, rows, settings), range(24), settings) as opened:
            losses.append([opened.epoch() for _ in range(2)])
        TASK.finish(model)
        assert not model.bf16, "what is exported answers in full precision"
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.05)
    assert losses[0] != losses[1]


@pytest.mark.parametrize(("rate", "said"), [(float("nan"), "nan"), (1e30, "nan|inf")])
def test_a_loss_that_is_no_number_stops_the_training_with_the_way_out(encoder: Encoder, rate: float, said: str) -> None:
    settings = RECIPE.model_copy(update={"learning_rate": rate, "head_learning_rate": rate})
    expected = (
        rf"the training loss is ({said}) at step \d+ of \d+ \(.*\): lower training.learning_rate, or set training.bf16"
    )
    with pytest.raises(TrainingDiverged, match=expected):
        train(TASK, encoder, examples(60, 1), examples(20, 2), settings, lambda *_: None)


def test_a_loss_that_explodes_stops_the_training_with_the_way_out(encoder: Encoder) -> None:
    settings = RECIPE.model_copy(update={"head_learning_rate": 300.0})
    expected = (
        r"the training loss exploded from .* to .* in epoch \d \(learning rate 3e\+02\): lower training.learning_rate"
    )
    with pytest.raises(TrainingDiverged, match=expected):
        train(TASK, encoder, examples(60, 1), examples(20, 2), settings, lambda *_: None)
