"""Part setfit of `make bench-train`: SetFit beside Ratchet on the same base model, rows and machine.

Turns DRAWS (1) draws of ten rows an intent of Banking77 into test accuracy and seconds of both, trained in turn. SetFit trains
for one epoch, with ten iterations of pairs and batches of 16. It comes with the extra `bench`.
"""

import importlib.util
import os
import tempfile
import time

import numpy as np
from numpy.typing import NDArray

from pipelines.dataset.examples import Example
from pipelines.models.encoder import Encoder, base_model_path
from pipelines.training.tasks.classification import Classification
from pipelines.training.trainer import train
from schemas.configuration.training import TrainingSettings
from tests.bench.report import Figure
from tests.bench.train_data import MAX_LENGTH, Floats, all_threads, answers, bank_rows, few, over_seeds, right

DRAWS = int(os.environ.get("DRAWS", "1"))
EACH, ITERATIONS, BATCH = 10, 10, 16


def measure() -> list[Figure]:
    """Points of accuracy over SetFit, and the share of its time."""
    if importlib.util.find_spec("setfit") is None:
        print("  setfit is not installed: not measured. It comes with the extra `bench`", flush=True)
        return []
    all_threads()
    test = bank_rows("test")
    gains, seconds = list[Floats](), list[tuple[float, float]]()
    theirs = 0.0
    for seed in range(DRAWS):
        own = few(bank_rows("train"), EACH, seed)[0]
        began = time.perf_counter()
        setfit = _setfit(own, test, seed)
        turned = time.perf_counter()
        ratchet = _ratchet(own, test, seed)
        seconds.append((turned - began, time.perf_counter() - turned))
        gains.append((ratchet.astype(float) - setfit) * 100)
        theirs += 100 * float(setfit.mean()) / DRAWS
        for name, hits, taken in zip(("SetFit", "Ratchet"), (setfit, ratchet), seconds[-1], strict=True):
            print(f"draw {seed}: {name} {hits.mean():.4f} in {taken:.0f} s", flush=True)
    took = np.mean(seconds, axis=0)
    return [
        Figure(
            figure=f"setfit: {EACH} an intent: points of test accuracy over SetFit",
            value=float(np.mean(gains)),
            op=">=",
            target=0.0,
            n=len(test),
            interval=over_seeds(gains),
            baseline=theirs,
        ),
        Figure(
            figure=f"setfit: {EACH} an intent: seconds with the answers to the test file / SetFit's",
            value=float(took[1] / took[0]),
            op="<=",
            target=1.0,
            n=DRAWS,
            baseline=float(took[0]),
        ),
    ]


def _setfit(own: list[Example], test: list[Example], seed: int) -> NDArray[np.bool_]:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from setfit import SetFitModel, Trainer, TrainingArguments
    from sklearn.linear_model import LogisticRegression

    body = Transformer(str(base_model_path(None)), max_seq_length=MAX_LENGTH)
    sentences = SentenceTransformer(modules=[body, Pooling(body.get_word_embedding_dimension())], device="cpu")
    model = SetFitModel(model_body=sentences, model_head=LogisticRegression(max_iter=1000))
    labels = sorted({row.label for row in own})
    rows = Dataset.from_dict({"text": [row.text for row in own], "label": [labels.index(row.label) for row in own]})
    with tempfile.TemporaryDirectory() as folder:
        recipe = TrainingArguments(
            output_dir=folder,
            batch_size=BATCH,
            num_epochs=1,
            num_iterations=ITERATIONS,
            seed=seed,
            report_to="none",
            show_progress_bar=False,
        )
        Trainer(model=model, args=recipe, train_dataset=rows).train()
    predicted = model.predict([row.text for row in test], batch_size=64)
    return np.array([labels[int(n)] == row.label for n, row in zip(predicted, test, strict=True)])


def _ratchet(own: list[Example], test: list[Example], seed: int) -> NDArray[np.bool_]:
    labels = sorted({row.label for row in own})
    task, encoder = Classification(labels), Encoder(base_model_path(None), MAX_LENGTH)
    settings = TrainingSettings(seed=seed)
    trained = train(task, encoder, own, [], settings, lambda *_: None)
    return right(answers(task, encoder, trained.model, test, settings), test, labels)
