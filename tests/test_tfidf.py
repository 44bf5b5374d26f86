"""TF-IDF as a model version: chosen where it wins, exported, and served as it was trained."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from pipelines.compression.tfidf_graph import export_tfidf
from pipelines.dataset.examples import Example
from pipelines.gates.policy import default_policy
from pipelines.models.tfidf import count_ngrams
from pipelines.round_inputs import round_folder
from pipelines.training.baselines import TFIDF_CS, TfidfRival, choose_c
from pipelines.training.tasks.classification import Classification
from pipelines.training.tasks.encoder_task import EncoderTask
from pipelines.training.tasks.multilabel import Multilabel
from pipelines.training.tasks.regression import Regression
from schemas.records import RoundState
from schemas.settings import Settings
from serving.artifacts import ArtifactStore
from serving.inference.encoder_runtime import Runtime
from serving.inference.loading import open_version
from serving.inference.ngrams import CHARACTER, WORD, ngrams
from serving.inference.normalise import NORMALISER
from serving.model_directory import write_manifest
from serving.registry.registry import Registry
from tests.support.fakes import TOPICS, toy_rows, write_rows
from tests.support.first_rounds import next_round
from tests.support.manifests import manifest

ODD = ["", "?!", "never seen qzx", "Ⅳ Straße 银行", "goal " * 400]


def examples(n: int, seed: int) -> list[Example]:
    return [Example(text=text, label=label, source="seed") for text, label in toy_rows(n, seed)]


def tasks() -> list[tuple[EncoderTask, list[Example]]]:
    rows, numbers = examples(90, 0), {"cooking": "1.0", "football": "5.0", "money": "30.0"}
    several = [Example(text=e.text, label=f'["{e.label}"]', source="seed") for e in rows]
    values = [Example(text=e.text, label=numbers[e.label], source="seed") for e in rows]
    return [
        (Classification(sorted(TOPICS)), rows),
        (Multilabel(sorted(TOPICS)), several),
        (Regression.of(values), values),
    ]


@pytest.mark.parametrize(("task", "rows"), tasks(), ids=lambda value: getattr(value, "name", ""))
def test_what_serves_answers_as_what_was_trained(task: EncoderTask, rows: list[Example], tmp_path: Path) -> None:
    model = TfidfRival(task, rows).fit()
    assert model is not None
    export_tfidf(model, tmp_path)
    labels = list(task.labels)
    write_manifest(tmp_path, manifest("v1", task=task.name, labels=labels, kind="tfidf"))
    texts = [*(e.text for e in examples(40, 7)), *ODD]
    served = Runtime(tmp_path).logits(texts)
    assert served == pytest.approx(model.outputs(texts), abs=1e-4)
    assert model.outputs([]).shape == (0, served.shape[1])
    alone = np.vstack([Runtime(tmp_path).logits([text]) for text in texts])
    assert alone == pytest.approx(served, abs=1e-5)


def test_features_are_those_of_scikit_learn() -> None:
    """Words and characters each as `TfidfVectorizer` with sublinear counts weighs them, on the same n-grams."""
    texts = [text for text, _ in toy_rows(60, 3)] + ["the the the bank", "bank of the bank"]
    found = count_ngrams(texts, 3)
    ours = found.features(texts)
    for kind in (WORD, CHARACTER):
        columns = [n for n, name in enumerate(found.vocabulary.names) if name[0] == kind]
        names = [found.vocabulary.names[n] for n in columns]
        theirs = TfidfVectorizer(
            analyzer=lambda text, kind=kind: [name for name in ngrams(text) if name[0] == kind],
            vocabulary=names,
            sublinear_tf=True,
        ).fit_transform(texts)
        assert ours[:, columns].toarray() == pytest.approx(theirs.toarray(), abs=1e-9)


def test_ngrams_of_languages_without_spaces_are_characters() -> None:
    found = set(ngrams("银行 Card"))
    assert {"w银行", "wcard", "w银行 card", "c银", "c银行", "c 银行 ", "ccard"} <= found
    assert not any(len(name) > 5 and name[0] == CHARACTER for name in found)


def test_noise_chooses_strong_regularisation_and_signal_weak() -> None:
    task, rows = Classification(sorted(TOPICS)), examples(120, 1)
    draw = np.random.default_rng(0)
    shuffled = [Example(text=e.text, label=str(draw.choice(sorted(TOPICS))), source="seed") for e in rows]
    features = TfidfRival(task, rows).features
    assert choose_c(task, features, shuffled, TFIDF_CS) == TFIDF_CS[0]
    assert choose_c(task, features, rows, TFIDF_CS) > TFIDF_CS[0]


def test_texts_without_a_common_ngram_give_no_model() -> None:
    rows = [Example(text=text, label=label, source="seed") for text, label in (("银", "a"), ("行", "b"))]
    assert count_ngrams(["银", "x"], 2).vocabulary.names == ["c "]
    assert TfidfRival(Classification(["a", "b"]), rows[:1]).fit() is None


def test_a_round_serves_tfidf_where_it_wins_and_goes_on_from_there(
    full_precision: Settings, registry: Registry
) -> None:
    """An encoder of random weights knows nothing, so words decide."""
    training = full_precision.training.model_copy(update={"tfidf": True, "start": "champion"})
    project = full_precision.model_copy(update={"training": training})
    (project.root / "policy.toml").write_text(default_policy("classification"), encoding="utf-8")
    record = next_round(project, registry)
    assert record.state is RoundState.PROMOTED, record.detail
    champion = registry.champion()
    assert champion is not None
    store = ArtifactStore(project.location(project.artifacts.url))
    served = open_version(store.fetch(registry.version(champion.model_version).digest, project.root / "cache"))
    assert (served.manifest.kind, served.manifest.method, served.manifest.normaliser) == ("tfidf", "tfidf", NORMALISER)
    assert isinstance(served, Runtime)
    figures = {name: report.figures for name, report in record.evaluations.items()}
    assert figures.keys() == {"candidate", "probe", "tfidf"}
    assert figures["candidate"]["accuracy"] == figures["tfidf"]["accuracy"] > figures["probe"]["accuracy"]
    assert record.gate_report is not None
    [baseline] = [result for result in record.gate_report.results if result.gate == "baseline"]
    assert baseline.sentence.endswith("against TF-IDF with a linear model on the same training rows")
    page = (round_folder(project, record.round_id) / "report.html").read_text(encoding="utf-8")
    assert ">tfidf</th>" in page

    write_rows(project.root / "data/seed.csv", toy_rows(60, seed=5))
    again = next_round(project, registry)
    lines = (round_folder(project, again.round_id) / "version/history.jsonl").read_text(encoding="utf-8").splitlines()
    assert "is TF-IDF with a linear model, which has no weights of the base model" in json.loads(lines[0])["why"]
