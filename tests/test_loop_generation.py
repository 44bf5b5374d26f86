"""The walk of a model that writes: a tiny decoder that can talk learns to answer as its people do.

In one process, but for the broker, with the parts of support/walks.py.
"""

import csv
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from starlette.testclient import TestClient

from pipelines.dataset.examples import Example
from pipelines.models.decoder import Decoder, save
from pipelines.round_inputs import round_folder
from pipelines.training.tasks.generation import Generation
from pipelines.training.trainer import train
from schemas.configuration.training import TrainingSettings
from schemas.records import RoundState
from schemas.settings import SettingsError, load_settings
from services.cli.main import cli
from services.projects import create_project, open_project
from serving.model_directory import read_manifest
from tests.support.fakes import FILLERS, TOPICS
from tests.support.walks import Walk, only_advise


def pairs(n: int, seed: int, answer: str) -> list[tuple[str, str]]:
    """Texts that end with their topic, and what is to be said of it."""
    draw, found = random.Random(seed), dict[str, str]()
    while len(found) < n:
        topic = draw.choice(list(TOPICS))
        words = [*draw.sample(FILLERS, 5), draw.choice(TOPICS[draw.choice(list(TOPICS))]), topic]
        found[" ".join(words)] = answer.format(topic)
    return list(found.items())


@pytest.fixture(scope="module")
def talking(tmp_path_factory: pytest.TempPathFactory, tiny_decoder: Path) -> Path:
    """The folder of a tiny decoder that has learned to name what a text ends with: random weights take no adapter."""
    base = Decoder(tiny_decoder, 96, 24, torch.float32)
    rows = [Example(text=text, label=said, source="seed") for text, said in pairs(350, 1, "about {}")]
    recipe = TrainingSettings(method="full", learning_rate=1e-2, epochs=3, threads=1)
    folder = tmp_path_factory.mktemp("talking")
    save(train(Generation(), base, rows[:300], rows[300:], recipe, lambda *_: None).model, base, folder)
    return folder / "model"


@pytest.fixture
def walk(tmp_path: Path, talking: Path, broker: str) -> Iterator[Walk]:
    files = {}
    for name, rows in {"seed": pairs(48, 2, "{} it is"), "reference": pairs(240, 3, "{} it is")}.items():
        files[name] = tmp_path / f"{name}.csv"
        with files[name].open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "completion"), *rows])
    made = create_project(
        tmp_path / "talk",
        seed=files["seed"],
        reference=files["reference"],
        task="generation",
        base_model=str(talking),
        overrides={
            "model": {"max_length": 96, "max_new_tokens": 24},
            "kafka": {"bootstrap_servers": broker},
            "training": {
                "start": "champion",
                "epochs": 4,
                "refit_below": 1000,
                "learning_rate": 2e-2,
                "lora_rank": 16,
                "lora_targets": "all",
                "adapted_layers": 2,
                "lora_dropout": 0.0,
                "threads": 1,
            },
            "access": {"enabled": False},
            "dataset": {"max_rows_per_person": 500},
        },
    )
    # A model of two layers is neither honest nor steady; both gates have tests of their own.
    only_advise(made, "calibration", "robustness")
    found = Walk(made)
    found.outbox.start()
    yield found
    found.close()


@pytest.mark.long
def test_the_walk(walk: Walk) -> None:
    def stop(step: str, *_: object) -> None:
        if step == "evaluation":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        walk.round(None, stop)
    claimed = walk.registry.unfinished_round()
    assert claimed is not None
    made = round_folder(walk.settings, claimed.round_id) / "version/model/model.safetensors"
    trained_at = made.stat().st_mtime_ns
    first = walk.round(None)
    assert (first.round_id, first.attempts) == (claimed.round_id, 2)
    assert made.stat().st_mtime_ns == trained_at, "trained twice"
    assert first.state is RoundState.PROMOTED, first.detail
    assert first.gate_report is not None
    assert {"bootstrap", "baseline", "serving", "calibration", "robustness"} <= {
        g.gate for g in first.gate_report.results
    }
    with TestClient(walk.api) as client:
        assert client.get("/model").json()["task"] == "generation"
        given = pairs(200, 4, "{} it is")
        answers = []
        for start in range(0, len(given), 50):
            items = [{"text": text} for text, _ in given[start : start + 50]]
            answer = client.post("/predict", json={"items": items})
            assert answer.status_code == 200, answer.text
            answers += answer.json()
        streamed = client.post("/predict", json={"items": [{"text": given[0][0]}], "options": {"stream": True}})
        assert streamed.headers["content-type"].startswith("text/event-stream")
        assert json.loads(streamed.text.strip().splitlines()[-1].removeprefix("data: "))["text"] == answers[0]["text"]
        for n, (answer, (_, target)) in enumerate(zip(answers, given, strict=True)):
            assert 0 <= answer["confidence"] <= 1
            said = {"kind": "correction", "user": f"u{n % 9}", "value": target}
            sent = client.post("/feedback", json={"prediction_id": answer["prediction_id"], **said})
            assert sent.status_code == 202, sent.text
        features = walk.stored()
        assert len(features.labelled_feedback()) == len(given)

        second = walk.round(features)
        assert second.state is RoundState.PROMOTED, second.detail
        assert second.dataset is not None
        candidate, champion = (second.evaluations[name] for name in ("candidate", "champion"))
        assert candidate.nll < champion.nll
        assert {"chrF", "BLEU", "ROUGE-L", "exact match", "perplexity", "NLL"} <= candidate.figures.keys()
        people = second.dataset.rows_by_source
        assert people.get("correction", 0) + people.get("confirmation", 0) > 120
        [after] = client.post("/predict", json={"items": [{"text": given[0][0]}]}).json()
        assert after["model_version"] == second.candidate_version
        version = round_folder(walk.settings, second.round_id) / "version"
        manifest = read_manifest(version)
        assert manifest.calibration.sequence is not None
        assert manifest.golden.completions
        assert "adapter/adapter_model.safetensors" in manifest.files
        went_on = {"phase": "start", "weights": "champion", "champion": first.candidate_version}
        assert json.loads((version / "history.jsonl").read_text(encoding="utf-8").splitlines()[0]) == went_on

    folder = round_folder(walk.settings, second.round_id)
    assert "perplexity" in (folder / "report.html").read_text(encoding="utf-8")
    assert "correction" in (folder / "dataset.html").read_text(encoding="utf-8")
    config = ["-c", str(walk.settings.root / "ratchet.toml")]
    shown = CliRunner().invoke(cli, ["round", "show", second.round_id, *config]).output
    assert "chrF" in shown
    assert "nearest    " in shown
    out = walk.settings.root / "rows.jsonl"
    command = ["dataset", "export", "--round", second.round_id, "--format", "jsonl", "--out", str(out), *config]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0, done.output
    assert set(json.loads(out.read_text(encoding="utf-8").splitlines()[0])) == {"text", "completion"}


def test_a_model_that_writes_has_no_student(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"^training\.student_layers, .*: generation has no student"):
        load_settings('[model]\ntask = "generation"\n[training]\nstudent_layers = 3', {}, root=tmp_path)


def test_init_makes_a_project_that_writes(tmp_path: Path, talking: Path) -> None:
    seed = tmp_path / "seed.jsonl"
    seed.write_text(
        "".join(json.dumps({"text": t, "completion": c}) + "\n" for t, c in pairs(4, 5, "{} it is")), encoding="utf-8"
    )
    command = ["init", str(tmp_path / "p"), "--task", "generation", "--seed", str(seed), "--base-model", str(talking)]
    made = CliRunner().invoke(cli, command)
    assert made.exit_code == 0, made.output
    config = tmp_path / "p/ratchet.toml"
    assert open_project(config).model.base_model == str(talking)
    assert 'metric = "nll"' in (tmp_path / "p/policy.toml").read_text(encoding="utf-8")
    checks = json.loads(CliRunner().invoke(cli, ["doctor", "-c", str(config), "--json"]).output)
    assert next(c for c in checks if c["part"] == "base model") == {
        "part": "base model",
        "verdict": "ok",
        "sentence": str(talking),
    }
    unset = config.read_text(encoding="utf-8").replace(f'base_model = "{talking}"', "")
    config.write_text(unset, encoding="utf-8")
    checks = json.loads(CliRunner().invoke(cli, ["doctor", "-c", str(config), "--json"]).output)
    assert next(c for c in checks if c["part"] == "base model")["sentence"].endswith(".gguf")
