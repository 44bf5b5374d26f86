"""Part advise of `make bench-train`: estimated time and memory of a training beside what was measured, at three sizes each.

Each measurement is a process of its own, which trains one pass, scores all rows and writes the model, and prints its CPU seconds
and its peak memory. CPU seconds are compared, by one thread, so that other loads of the machine matter less. It reads no data.
"""

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from pipelines.dataset.examples import Example
from pipelines.model_selection.candidates import candidate_bases
from pipelines.model_selection.cost import estimate
from pipelines.model_selection.workload import Workload
from schemas.configuration.training import TrainingSettings
from schemas.setting_groups import ModelSettings
from schemas.targets import Task
from tests.bench.report import Figure

SIZES: dict[Task, list[tuple[int, int]]] = {  # rows, words of each
    "classification": [(400, 14), (200, 60), (120, 180)],
    "generation": [(60, 14), (40, 50), (24, 150)],
}
WORDS = "time year people way day man thing woman life child world school state family student group country problem".split()
ANSWER = "a short answer to it"
WITHIN = 0.3
RECIPE = TrainingSettings(threads=1)


def measure() -> list[Figure]:
    """Ratios of estimate and measurement."""
    return [figure for task, sizes in SIZES.items() for rows, words in sizes for figure in _compare(task, rows, words)]


def _compare(task: Task, rows: int, words: int) -> list[Figure]:
    command = [sys.executable, "-m", "tests.bench.train_advise", task, str(rows), str(words)]
    finished = subprocess.run(command, check=True, capture_output=True, encoding="utf-8")
    measured = json.loads(finished.stdout.splitlines()[-1])
    facts = candidate_bases(_model(task))[0]
    work = Workload(
        task=task,
        rows=rows,
        labels=5,
        lengths=np.array(measured["lengths"]),
        completions=np.array(measured["completions"]),
        languages=("en",),
        max_length=256,
        max_new_tokens=32,
        passes=1,
        scorings=1,
    )
    cost = estimate(facts, work, RECIPE, time.process_time)
    pairs = {
        "CPU seconds of a training pass": (cost.pass_seconds, measured["pass"]),
        "CPU seconds of a scoring pass": (cost.scoring_seconds, measured["score"]),
        "peak memory in MB": (cost.train_bytes / 1e6, measured["peak"] / 1e6),
    }
    figures = []
    for name, (estimated, seen) in pairs.items():
        print(
            f"{facts.name}, {rows} rows of {words} words, {name}: estimated {estimated:.1f}, measured {seen:.1f}",
            flush=True,
        )
        figures.append(
            Figure(
                figure=f"advise: {facts.name}, {rows} rows of {words} words, {name}: relative error of the estimate",
                value=abs(estimated / seen - 1),
                op="<=",
                target=WITHIN,
                n=rows,
                baseline=seen,
            )
        )
    return figures


def _model(task: Task) -> ModelSettings:
    return ModelSettings(task=task, max_length=256, max_new_tokens=32)


def _once(task: Task, count: int, words: int) -> None:
    """Train one pass, score, write the model; print seconds, lengths and peak memory."""
    import torch

    from pipelines.compression import export
    from pipelines.models.base_models import open_base
    from pipelines.models.decoder import Decoder, save
    from pipelines.training.fitting import Fit
    from pipelines.training.tasks.choose import task_for

    torch.set_num_threads(1)
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(words // 2, words * 3 // 2))) for _ in range(count)]
    rows = [
        Example(text=text, label=ANSWER if task == "generation" else str(n % 5), source="seed")
        for n, text in enumerate(texts)
    ]
    base, training = open_base(_model(task)), task_for(task, [str(n) for n in range(5)], rows)
    numbered, model = training.rows(base, rows, RECIPE), training.start(base, rows, RECIPE)
    with Fit(training, model, numbered, range(count), RECIPE) as fit:
        began = time.process_time()
        fit.epoch()
        passed = time.process_time()
        fit.outputs(range(count))
        scored = time.process_time()
    training.finish(model)
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(base, Decoder):
            save(model, base, Path(folder))
        else:
            export.save_weights(model, Path(folder))
            export.export(model, base, Path(folder))
            ids = [base.batch([row.text])["input_ids"][0].tolist() for row in rows[:50]]
            export.quantise(Path(folder) / "model.onnx", Path(folder) / "int8.onnx", ids)
    generates = task == "generation"
    measured = {
        "pass": passed - began,
        "score": scored - passed,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "lengths": base.token_counts(texts),
        "completions": [len(base.tokenizer(ANSWER)["input_ids"]) + 1 if generates else 0] * count,
    }
    print(json.dumps(measured))


if __name__ == "__main__":
    _once(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))  # type: ignore[arg-type]
