"""Base models of every supported family, tiny and untrained: trained, exported, served and swapped in; others refused by name."""

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.compression import export
from pipelines.dataset.examples import Example
from pipelines.models.base_files import BaseModelUnfit, base_problem, student_problem, unfit
from pipelines.models.base_models import open_base
from pipelines.models.decoder import Decoder
from pipelines.models.encoder import Encoder, TextModel, trainable_copy
from pipelines.models.families import DECODERS, ENCODERS
from pipelines.models.machine import Machine, this_machine
from pipelines.training.fitting import Fit
from pipelines.training.tasks.classification import Classification
from pipelines.training.tasks.generation import Generation, encoded
from pipelines.training.trainer import train
from pipelines.training.warm_start import HEAD, open_warm_start
from schemas.configuration.training import TrainingSettings
from schemas.records import RoundState
from schemas.setting_groups import ModelSettings
from services.checks.preflight import BrokenProject
from services.projects import create_project
from serving.artifacts import ArtifactStore
from serving.inference.decoder_runtime import DecoderRuntime, token_logprobs
from serving.inference.encoder_runtime import Runtime
from serving.live import LiveModel
from serving.model_directory import write_manifest
from serving.registry.registry import Registry
from tests.support import families
from tests.support.fakes import TOPICS, toy_rows, write_rows
from tests.support.families import write_weights
from tests.support.first_rounds import next_round
from tests.support.manifests import manifest
from tests.support.versions import GOLDEN, promote, rewritten, text_version, with_golden

LABELS = sorted(TOPICS)
TASK = Classification(LABELS)
RECIPE = TrainingSettings(epochs=3, threads=1, learning_rate=5e-3, bf16=False)
TEXTS = ["", "goal match", "two words", " ".join(["long"] * 60), "a text that is somewhat longer than the second one"]


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with closing(Registry(f"sqlite:///{tmp_path}/registry.db", "m")) as opened:
        opened.migrate()
        yield opened


@pytest.fixture
def live(registry: Registry, tmp_path: Path) -> LiveModel:
    return LiveModel(registry, ArtifactStore(str(tmp_path / "store")), tmp_path / "cache", threads=1, poll_seconds=0.05)


def examples(n: int, seed: int) -> list[Example]:
    return [Example(text=text, label=label, source="seed") for text, label in toy_rows(n, seed)]


def swapped(live: LiveModel, registry: Registry, store: ArtifactStore, before: Path, after: Path) -> Any:
    """What a worker serves that followed both promotions."""
    for directory in (before, after):
        promote(registry, store, directory)
        live.follow()
    assert [worker.error for worker in registry.workers(60)] == [None]
    current = live.current()
    assert current is not None
    return current[0]


def test_the_families_of_these_tests_are_those_supported() -> None:
    assert families.ENCODERS.keys() == ENCODERS.keys()
    assert families.DECODERS.keys() == set(DECODERS)


@pytest.mark.parametrize("kind", ENCODERS)
def test_an_encoder_is_trained_exported_served_and_swapped_in(
    kind: str, version: Path, live: LiveModel, registry: Registry, tmp_path: Path
) -> None:
    folder = families.encoder_base(kind, tmp_path / "base")
    assert base_problem(ModelSettings(base_model=str(folder), max_length=64)) is None
    encoder = Encoder(folder, 64)
    assert encoder.token_limit == 64
    rows = examples(48, 1)
    model = TASK.start(encoder, rows, RECIPE)
    with Fit(TASK, model, TASK.rows(encoder, rows, RECIPE), range(48), RECIPE) as fit:
        losses = [fit.epoch() for _ in range(3)]
    assert losses[-1] < losses[0]
    TASK.finish(model)
    with torch.no_grad():
        expected = np.asarray(model(**encoder.batch(TEXTS)).numpy())

    made = tmp_path / "version"
    made.mkdir()
    export.save_weights(model, made)
    export.export(model, encoder, made)
    int8 = made / "int8.onnx"
    export.quantise(made / "model.onnx", int8, [encoder.batch([text])["input_ids"][0].tolist() for text in TEXTS])
    int8.unlink()
    filled = manifest(
        "new", labels=LABELS, base_model="base", base_model_sha256=encoder.sha256, max_length=64, method="lora"
    )
    write_manifest(made, filled)
    with_golden(made, Runtime(made).probabilities(GOLDEN).tolist())

    served = swapped(live, registry, ArtifactStore(str(tmp_path / "store")), version, made)
    assert served.version == "new"
    for batch in (1, 2, 32):
        np.testing.assert_allclose(served.logits(TEXTS, batch), expected, atol=1e-3)

    champion = open_warm_start(made, "classification", encoder.sha256, RECIPE)
    again = TASK.start(encoder, examples(12, 2), RECIPE.model_copy(update={"start": "champion"}), champion)
    assert set(champion.tensors(HEAD)) == {"weight", "bias"}
    with torch.no_grad():
        np.testing.assert_allclose(again.eval()(**encoder.batch(TEXTS)).numpy(), expected, atol=1e-3)


@pytest.mark.parametrize("kind", ENCODERS)
def test_frozen_layers_of_every_encoder_run_once_and_change_nothing(kind: str, tmp_path: Path) -> None:
    encoder = Encoder(families.encoder_base(kind, tmp_path), 64)
    upper = RECIPE.model_copy(update={"adapted_layers": 1})
    model = TextModel(trainable_copy(encoder, upper), encoder.width, np.ones((3, encoder.width)), np.zeros(3)).eval()
    rows = [Example(text=text, label=LABELS[0], source="seed") for text in TEXTS]
    whole = model(**encoder.batch(TEXTS)).detach().numpy()
    with Fit(TASK, model, TASK.rows(encoder, rows, upper), [0], upper) as opened:
        np.testing.assert_allclose(opened.outputs(range(len(rows))), whole, atol=1e-4)
    np.testing.assert_allclose(model(**encoder.batch(TEXTS)).detach().numpy(), whole, atol=1e-5)


@pytest.mark.parametrize("kind", DECODERS)
def test_a_decoder_is_trained_merged_served_and_swapped_in(
    kind: str, text_version: Path, live: LiveModel, registry: Registry, tmp_path: Path
) -> None:
    folder = families.decoder_base(kind, tmp_path / "base")
    assert base_problem(ModelSettings(task="generation", base_model=str(folder))) is None
    base = Decoder(folder, 64, 16, torch.float32)
    assert base.token_limit == 256
    rows = [replace(row, label=f"about {row.label}") for row in examples(24, 1)]
    settings = TrainingSettings(epochs=1, threads=1, learning_rate=2e-2, refit_below=0)
    trained = train(Generation(), base, rows[:18], rows[18:], settings, lambda *_: None)
    assert trained.method == "lora"
    pairs = [encoded(base, row.text, row.label) for row in rows[:5]]
    with torch.no_grad():
        expected = [float(token_logprobs(trained.model.eval(), [ids], [length]).sum()) for ids, length in pairs]

    made = tmp_path / "version"
    made.mkdir()
    from_trained(made, trained.model, base)
    served = swapped(live, registry, ArtifactStore(str(tmp_path / "store")), text_version, made)
    assert served.version == "new"
    scores = served.token_logprobs([ids for ids, _ in pairs], [length for _, length in pairs])
    np.testing.assert_allclose([sum(row) for row in scores], expected, rtol=1e-3)
    together = served.generate(["goal match", "a longer text than that"])
    assert [one.tokens for one in together] == [
        served.generate([text])[0].tokens for text in ("goal match", "a longer text than that")
    ]


def from_trained(directory: Path, model: Any, base: Decoder) -> None:
    text_version(directory, model, base, "new", "m")
    rewritten(directory, golden=DecoderRuntime(directory).golden(["goal match"], 1e-3))


REFUSED: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("an encoder-decoder", {"model_type": "t5"}, {}, "model_type 't5' is not supported for classification"),
    ("shared layers", {"model_type": "albert"}, {}, "supported are bert, camembert, deberta-v2, distilbert"),
    ("no model type", {}, {}, "model_type None is not supported"),
    ("a decoder that classifies", {"model_type": "gpt2"}, {}, "'gpt2' (a causal language model) is not supported for"),
    ("an encoder that writes", {"model_type": "bert"}, {"task": "generation"}, "'bert' (an encoder) is not supported"),
    ("code of its own", {"model_type": "nomic_bert", "auto_map": {}}, {}, "needs code of its own, which is never run"),
    (
        "quantised weights",
        {"model_type": "llama", "quantization_config": {"quant_method": "gptq"}},
        {"task": "generation"},
        "its weights are quantised (gptq)",
    ),
    ("a convolution", {"model_type": "deberta-v2", "conv_kernel_size": 3}, {}, "DeBERTa with a convolution"),
    (
        "a short context",
        {"model_type": "roberta", "max_position_embeddings": 66, "pad_token_id": 1},
        {"max_length": 65},
        "reads at most 64 tokens, and model.max_length = 65: lower it",
    ),
    (
        "no room for a completion",
        {"model_type": "gpt2", "n_positions": 128},
        {"task": "generation", "max_length": 128},
        "reads at most 128 tokens",
    ),
]


@pytest.mark.parametrize(("config", "model", "reason"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_what_is_not_supported_is_refused_by_name_at_init_and_by_a_round(
    config: dict[str, Any], model: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    write_weights(folder / "model.safetensors", [2, 3])
    task = model.get("task", "classification")
    target = "completion" if task == "generation" else "label"
    seed = tmp_path / "seed.csv"
    seed.write_text(f"text,{target}\n" + "".join(f"text {n},{n % 2}\n" for n in range(20)), encoding="utf-8")
    with pytest.raises(BrokenProject, match=r"model\.base_model = ") as refused:
        create_project(
            tmp_path / "p",
            seed=seed,
            reference=None,
            task=task,
            base_model=str(folder),
            overrides={"model": {key: value for key, value in model.items() if key != "task"}},
        )
    assert reason in str(refused.value)
    assert "`ratchet model advise`" in str(refused.value)
    with pytest.raises(BaseModelUnfit) as stopped:
        open_base(ModelSettings(base_model=str(folder), **model))
    assert reason in str(stopped.value)


def test_a_student_that_cannot_be_pruned_is_refused_before_training(tmp_path: Path) -> None:
    narrow = TrainingSettings(student_heads=0.5)
    modern = ModelSettings(base_model=str(families.encoder_base("modernbert", tmp_path / "modern")), max_length=32)
    problem = student_problem(modern, narrow)
    assert problem is not None
    assert "'modernbert': heads and units can be pruned in bert, camembert, distilbert, roberta, xlm-roberta" in problem
    assert student_problem(modern, TrainingSettings(student_layers=2)) is None
    assert student_problem(ModelSettings(), narrow) is None


def test_weights_that_exceed_the_memory_are_refused_before_they_are_read(tmp_path: Path) -> None:
    folder = families.encoder_base("bert", tmp_path)
    settings = ModelSettings(base_model=str(folder), max_length=32)
    assert unfit(folder, settings, Machine(memory=1 << 30, processors=1)) is None
    problem = unfit(folder, settings, Machine(memory=100_000, processors=1))
    assert problem is not None
    assert "take at least 0.0 GB to train, and this machine has 0.0; a model of at most 0 million" in problem
    write_weights(folder / "model.safetensors", [10**6, 10**6])
    with pytest.raises(BaseModelUnfit, match=r"1,000,000 million weights take at least 8000\.0 GB"):
        open_base(settings)
    assert this_machine().memory > 1 << 28


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("config.json", b"{", "config.json cannot be read"),
        ("config.json", b"[]", "expected an object"),
        ("model.safetensors", (10**9).to_bytes(8, "little"), "model.safetensors is cut short"),
        ("model.safetensors", (1).to_bytes(8, "little") + b"{", "model.safetensors cannot be read"),
    ],
)
def test_a_damaged_folder_is_named(file: str, content: bytes, reason: str, tmp_path: Path) -> None:
    folder = families.encoder_base("bert", tmp_path)
    (folder / file).write_bytes(content)
    problem = base_problem(ModelSettings(base_model=str(folder), max_length=32))
    assert problem is not None
    assert reason in problem


WORDS = {
    "refund": ["退款", "订单还没有到", "возврат денег", "επιστροφή χρημάτων", "rückgabe für größe"],
    "weather": ["天气", "今天天气很好", "погода сегодня", "καιρός σήμερα", "wetter größer"],
    "delivery": ["طلب شحنة", "شحنة", "доставка", "你好 请问 到", "envío señor"],
}


def test_a_multilingual_base_in_a_folder_learns_texts_of_several_scripts(tmp_path: Path) -> None:
    base = families.encoder_base("xlm-roberta", tmp_path / "my-xlm-r")
    draw = np.random.default_rng(0)

    def rows(n: int) -> list[tuple[str, str]]:
        labels = [sorted(WORDS)[k % 3] for k in range(n)]
        return [(" ".join(draw.choice(WORDS[label], 4)), label) for label in labels]

    settings = create_project(
        tmp_path / "project",
        seed=write_rows(tmp_path / "seed.csv", rows(120)),
        reference=write_rows(tmp_path / "reference.csv", rows(300)),
        base_model=str(base),
        overrides={"model": {"max_length": 64}, "training": {"epochs": 1, "threads": 1, "tfidf": False}},
    )
    with closing(Registry(settings.registry_url, settings.model.name)) as registry:
        record = next_round(settings, registry)
        assert record.state is RoundState.PROMOTED, record.detail
        champion = registry.champion()
        assert champion is not None
        store = ArtifactStore(settings.location(settings.artifacts.url))
        runtime = Runtime(store.fetch(champion.digest, tmp_path / "cache"))
    fresh = rows(90)
    best = runtime.probabilities([text for text, _ in fresh]).argmax(axis=1)
    assert np.mean([runtime.labels[n] == label for n, (_, label) in zip(best, fresh, strict=True)]) > 0.8
    assert 3 not in [token for ids in runtime.encode([text for text, _ in fresh]) for token in ids], "an unknown letter"
