"""The bake-off: train the base models that fit for minutes each, and rank them on validation rows.

Turns advice and a round's dataset into `Result`s. Every base trains on the same rows with the project's recipe and validates on
the same rows; reference rows are not read, so the bake-off spends no evidence. It keeps no model.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from pipelines.compression import export
from pipelines.dataset.examples import Example
from pipelines.model_selection.cost import Cost
from pipelines.model_selection.verdicts import Advice
from pipelines.model_selection.workload import Workload
from pipelines.models.base_models import open_base
from pipelines.models.encoder import Encoder
from pipelines.training.fitting import outputs_of
from pipelines.training.tasks.choose import task_for
from pipelines.training.trainer import train
from schemas.settings import Settings

LEAST_ROWS = 32  # fewer say nothing
TIMED = 32  # texts that the exported model answers one by one


@dataclass(frozen=True)
class Result:
    """One base after its training: validation NLL and metrics, what ran, and what an answer costs.

    `nll` is the mean loss on `validation_rows` rows, lower is better; `error` its standard error. `answer_seconds` is the median
    of one text at a time by the int8 artefact; None for a decoder.
    """

    base_model: str
    method: str
    rows: int
    validation_rows: int
    nll: float
    error: float
    metrics: dict[str, float]
    train_seconds: float
    answer_seconds: float | None


def bake_off(
    advice: Sequence[Advice],
    train_rows: Sequence[Example],
    validation_rows: Sequence[Example],
    settings: Settings,
    labels: Sequence[str],
    work: Workload,
    *,
    minutes: float,
    watch: Callable[[str, float], None] = lambda *_: None,
) -> list[Result]:
    """Return the results, best validation NLL first.

    Args:
        advice: of the candidates; those that fit and are on this machine take part.
        train_rows: rows that train; every base gets the same ones, as many as the slowest can train in `minutes`.
        validation_rows: rows that rank.
        settings: the project's.
        labels: of the task.
        work: that the advice was given for.
        minutes: that each base may train.
        watch: receives a base's name and its completed share.

    """
    takers = [(one, one.cost) for one in advice if one.fits and one.facts.path and one.cost]
    if not takers or not validation_rows:
        return []
    rows = min(rows_within(cost, work, 60 * minutes) for _, cost in takers)
    kept = train_rows[:: max(1, -(-len(train_rows) // max(rows, LEAST_ROWS)))]
    results = [_trained(one, kept, validation_rows, settings, labels, watch) for one, _ in takers]
    return sorted(results, key=lambda result: result.nll)


def rows_within(cost: Cost, work: Workload, seconds: float) -> int:
    """Return how many training rows a base trains in so many seconds, by its estimate."""
    return int(work.rows * seconds / max(1e-9, cost.train_seconds(work.passes, work.scorings)))


def _trained(
    advice: Advice,
    train_rows: Sequence[Example],
    validation_rows: Sequence[Example],
    settings: Settings,
    labels: Sequence[str],
    watch: Callable[[str, float], None],
) -> Result:
    facts = advice.facts
    model = settings.model.model_copy(update={"base_model": str(facts.path)})
    base = open_base(model)
    task = task_for(model.task, labels, [*train_rows, *validation_rows])
    began = time.perf_counter()
    # Validation rows rank the bases, so they choose no epochs: training holds out rows of its own.
    recipe = settings.training.model_copy(update={"tfidf": False})  # bases are compared, and TF-IDF has none
    trained = train(task, base, train_rows, [], recipe, lambda share, _: watch(facts.name, share))
    seconds = time.perf_counter() - began
    rows = task.rows(base, list(validation_rows), recipe)
    with rows.inputs.feeding(trained.model.eval()) as forward:
        outputs = outputs_of(task, forward, rows, range(len(validation_rows)))
    losses = task.row_losses(outputs, rows.targets)
    return Result(
        base_model=facts.name,
        method=trained.method,
        rows=len(train_rows),
        validation_rows=len(validation_rows),
        nll=float(losses.mean()),
        error=float(losses.std() / np.sqrt(len(losses))),
        metrics=task.metrics(outputs, rows.targets),
        train_seconds=seconds,
        answer_seconds=_answer_seconds(trained.model, base, validation_rows) if isinstance(base, Encoder) else None,
    )


def _answer_seconds(model: Any, encoder: Encoder, rows: Sequence[Example]) -> float:
    """Return the median seconds of one text at a time through the exported int8 model, on one thread."""
    with tempfile.TemporaryDirectory() as folder:
        export.export(model, encoder, Path(folder))
        ids = [encoder.batch([row.text])["input_ids"][0].tolist() for row in rows[:TIMED]]
        export.quantise(Path(folder) / "model.onnx", Path(folder) / "int8.onnx", ids)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        session = ort.InferenceSession(Path(folder) / "int8.onnx", options)
    return float(np.median([_seconds(session, encoder.batch([row.text])) for row in rows[:TIMED]]))


def _seconds(session: ort.InferenceSession, batch: dict[str, torch.Tensor]) -> float:
    inputs: dict[str, NDArray[np.int64]] = {name: tensor.numpy() for name, tensor in batch.items()}
    began = time.perf_counter()
    session.run(["logits"], inputs)
    return time.perf_counter() - began
