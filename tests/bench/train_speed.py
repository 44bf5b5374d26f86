"""Part speed of `make bench-train`: how long a round takes, beside the stock recipe on the same rows in the same run.

Turns 2,000 rows of Banking77's training file, 1,000 others to validate on, into seconds. Stock: transformers' Trainer and peft's
LoRA on AutoModelForSequenceClassification, dynamic padding, a run for each learning rate; the best run alone is counted, with
its evaluations, as ours are. Nothing here reads the test file.
"""

import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from pipelines.dataset.examples import Example
from pipelines.models.encoder import Encoder, base_model_path
from pipelines.training.fitting import Fit
from pipelines.training.label_names import label_rows
from pipelines.training.tasks.classification import Classification
from pipelines.training.trainer import train
from schemas.configuration.training import TrainingSettings
from tests.bench.report import Figure
from tests.bench.train_data import MAX_LENGTH, all_threads, bank_rows

ROWS, VALIDATION = 2000, 1000
STOCK_RATES, STOCK_EPOCHS, STOCK_BATCH = (1e-4, 5e-4, 2e-3), 5, 16
MORE = 0.003


def measure() -> list[Figure]:
    """Seconds to the stock recipe's best accuracy and a little more, and seconds of a whole round."""
    all_threads()
    rows = bank_rows("train")
    order = np.random.default_rng(0).permutation(len(rows))
    own, held = ([rows[n] for n in part] for part in (order[:ROWS], order[ROWS : ROWS + VALIDATION]))
    labels = sorted({row.label for row in rows})
    runs = [(stock(own, held, labels, rate), rate) for rate in STOCK_RATES]
    (best, seconds), rate = max(runs, key=lambda run: run[0][0])
    print(f"stock: {best:.4f} after {seconds:.0f} s at rate {rate:g}", flush=True)
    reached = ours(own, held, labels, best + MORE)
    started = time.monotonic()
    trained = train(
        Classification(labels),
        Encoder(base_model_path(None), MAX_LENGTH),
        own[VALIDATION // 4 :],
        own[: VALIDATION // 4],
        TrainingSettings(),
        lambda *_: None,
    )
    whole = time.monotonic() - started
    print(f"a round of {ROWS} rows: {trained.method}, {whole:.0f} s", flush=True)
    return [
        Figure(
            figure="speed: seconds to the stock recipe's best accuracy + 0.3 points, over its seconds",
            value=None if reached is None else reached / seconds,
            op="<=",
            target=0.5,
            n=ROWS,
            baseline=1.0,
        ),
        Figure(
            figure=f"speed: seconds of a round of {ROWS:,} short rows, training alone",
            value=whole,
            op="<=",
            target=120,
            n=ROWS,
            baseline=seconds,
        ),
    ]


def ours(own: Sequence[Example], held: Sequence[Example], labels: Sequence[str], wanted: float) -> float | None:
    """Seconds from nothing but files until an epoch's accuracy is as wanted, evaluations counted; None if none is."""
    started = time.monotonic()
    settings, task = TrainingSettings(), Classification(labels)
    encoder = Encoder(base_model_path(None), MAX_LENGTH)
    training = [*own, *label_rows("classification", own)]
    rows = task.rows(encoder, [*training, *held], settings)
    model = task.start(encoder, training, settings)
    numbers = range(len(training), len(training) + len(held))
    with Fit(task, model, rows, range(len(training)), settings) as fit:
        for epoch in range(8):
            fit.epoch()
            accuracy = task.metrics(fit.outputs(numbers), rows.targets[numbers.start :])["accuracy"]
            seconds = time.monotonic() - started
            print(f"ours: epoch {epoch + 1}, {accuracy:.4f} after {seconds:.0f} s", flush=True)
            if accuracy >= wanted:
                return seconds
    return None


def stock(own: Sequence[Example], held: Sequence[Example], labels: Sequence[str], rate: float) -> tuple[float, float]:
    """The best accuracy of a run's epochs, and the run's seconds."""
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    torch.manual_seed(0)
    started = time.monotonic()
    path = base_model_path(None)
    tokenizer: Any = AutoTokenizer.from_pretrained(path)
    number = {label: n for n, label in enumerate(labels)}

    def table(rows: Sequence[Example]) -> Dataset:
        found = tokenizer([row.text for row in rows], truncation=True, max_length=MAX_LENGTH)
        return Dataset.from_dict({**found, "labels": [number[row.label] for row in rows]})

    model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=len(labels))
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            model=get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, lora_dropout=0.1)),
            args=TrainingArguments(
                output_dir=scratch,
                learning_rate=rate,
                num_train_epochs=STOCK_EPOCHS,
                per_device_train_batch_size=STOCK_BATCH,
                per_device_eval_batch_size=32,
                eval_strategy="epoch",
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                use_cpu=True,
            ),
            train_dataset=table(own),
            eval_dataset=table(held),
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=lambda found: {
                "accuracy": float((found.predictions.argmax(axis=1) == found.label_ids).mean())
            },
        )
        trainer.train()
    seconds = time.monotonic() - started
    return max(line["eval_accuracy"] for line in trainer.state.log_history if "eval_accuracy" in line), seconds
