"""LoRA fine-tuning: probe first, then adapters with the head warm-started from it, kept only if they help.

Turns a dataset's rows into a trained classifier and its metric history. training_round.py calls `train`. It deliberately
knows no registry and no gates.

Recipe: linear probing then fine-tuning (LP-FT, Kumar et al. 2022); the epoch is chosen on validation NLL after each
contender's own temperature; below REFIT_ROWS rows the choice is then repeated on training and validation rows together.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset as Table
from numpy.typing import NDArray
from torch.nn import functional

from pipelines.calibration import fit_temperature, row_nll
from pipelines.dataset.build import Example
from pipelines.training.model import Classifier, Encoder, with_lora
from pipelines.training.probe import Probe, fit_probe
from schemas.settings import TrainingSettings

LEAST_VALIDATION = 10
REFIT_ROWS = 2000
Progress = Callable[[float], None]


@dataclass(frozen=True)
class Trained:
    """A classifier whose encoder carries LoRA adapters, which method won, and what was measured on the way."""

    model: Classifier
    method: str
    history: list[dict[str, float | int | str]]


def train(
    encoder: Encoder,
    train_rows: Sequence[Example],
    validation_rows: Sequence[Example],
    labels: Sequence[str],
    settings: TrainingSettings,
    progress: Progress,
) -> Trained:
    """Train on rows whose labels are all in `labels`; `progress` is called with a share from 0 to 1."""
    torch.manual_seed(settings.seed)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    every = [*train_rows, *validation_rows]
    probe_all = _probe(encoder, every, labels, settings)
    history: list[dict[str, float | int | str]] = []
    epochs = 0
    if settings.epochs and len(validation_rows) >= LEAST_VALIDATION:
        probe = _probe(encoder, train_rows, labels, settings)
        model = _classifier(encoder, probe, settings)
        epochs = _choose_epochs(model, encoder, train_rows, validation_rows, labels, settings, history, progress)
        if epochs and len(every) >= REFIT_ROWS:
            return Trained(model, "lora", history)
        encoder.model = model.encoder.unload()
    model = _classifier(encoder, probe_all, settings)
    if epochs:
        for epoch in _epochs(model, encoder, every, labels, settings, epochs):
            history.append({"phase": "refit", **epoch})
            progress(0.5 + 0.5 * int(epoch["epoch"]) / epochs)
    return Trained(model, "lora" if epochs else "probe", history)


def probe_logits(
    encoder: Encoder, rows: Sequence[Example], labels: Sequence[str], texts: Sequence[str], settings: TrainingSettings
) -> NDArray[np.float64]:
    """Logits [n, k] of the logistic probe fitted on `rows`: the baseline that a round has to justify itself against."""
    return _probe(encoder, rows, labels, settings).logits(encoder.embed(texts))


def _probe(encoder: Encoder, rows: Sequence[Example], labels: Sequence[str], settings: TrainingSettings) -> Probe:
    embeddings = encoder.embed([row.text for row in rows])
    weights = [row.weight for row in rows]
    return fit_probe(embeddings, [row.label for row in rows], labels, c=settings.probe_c, weights=weights)


def _classifier(encoder: Encoder, probe: Probe, settings: TrainingSettings) -> Classifier:
    return Classifier(with_lora(encoder, settings), encoder.width, probe.weight, probe.bias)


def _choose_epochs(
    model: Classifier,
    encoder: Encoder,
    train_rows: Sequence[Example],
    validation_rows: Sequence[Example],
    labels: Sequence[str],
    settings: TrainingSettings,
    history: list[dict[str, float | int | str]],
    progress: Progress,
) -> int:
    """The epoch with the lowest validation NLL, restored in `model`; 0 unless it beats the probe by a standard error."""
    truth = np.array([list(labels).index(row.label) for row in validation_rows])
    texts = [row.text for row in validation_rows]

    def losses() -> NDArray[np.float64]:
        logits = predict(model, encoder, texts)
        return row_nll(logits / fit_temperature(logits, truth), truth)

    start = losses()
    best, best_epoch, kept = start, 0, _trainable(model)
    history.append({"phase": "search", "epoch": 0, "validation_nll": float(start.mean())})
    for epoch in _epochs(model, encoder, train_rows, labels, settings, settings.epochs):
        now, number = losses(), int(epoch["epoch"])
        history.append({"phase": "search", **epoch, "validation_nll": float(now.mean())})
        progress(0.5 * number / settings.epochs)
        if now.mean() < best.mean():
            best, best_epoch, kept = now, number, _trainable(model)
        elif number - best_epoch >= settings.patience:
            break
    model.load_state_dict(kept, strict=False)
    gain = start - best
    return best_epoch if gain.mean() > gain.std() / np.sqrt(len(gain)) else 0


def _trainable(model: Classifier) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def _epochs(
    model: Classifier,
    encoder: Encoder,
    rows: Sequence[Example],
    labels: Sequence[str],
    settings: TrainingSettings,
    epochs: int,
) -> Iterator[dict[str, float | int]]:
    """Train epoch by epoch; yields {"epoch", "train_loss", "learning_rate"} after each."""
    table = _table(encoder, rows, labels)
    head = list(model.head.parameters())
    adapters = [p for p in model.encoder.parameters() if p.requires_grad]
    groups = [
        {"params": adapters, "lr": settings.learning_rate, "weight_decay": settings.weight_decay},
        {"params": head, "lr": settings.head_learning_rate, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups)
    draw = random.Random(settings.seed)  # noqa: S311 - the order of batches is no secret
    steps = max(1, -(-len(rows) // settings.batch_size)) * settings.epochs
    warm = max(1, int(steps * settings.warmup_share))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, max(0.0, (steps - step) / max(1, steps - warm)))
    )
    for epoch in range(1, epochs + 1):
        model.train()
        total = 0.0
        for batch in _buckets(table["length"], settings.batch_size, draw):
            chosen = table[batch]
            inputs = encoder.tokenizer.pad(
                {"input_ids": chosen["input_ids"], "attention_mask": chosen["attention_mask"]}, return_tensors="pt"
            )
            logits = model(inputs["input_ids"], inputs["attention_mask"])
            weights = torch.tensor(chosen["weight"])
            losses = functional.cross_entropy(logits, torch.tensor(chosen["label"]), reduction="none")
            loss = (losses * weights).sum() / weights.sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(batch)
        model.eval()
        yield {"epoch": epoch, "train_loss": total / len(rows), "learning_rate": float(schedule.get_last_lr()[0])}


def _table(encoder: Encoder, rows: Sequence[Example], labels: Sequence[str]) -> Any:
    found = encoder.tokenizer([row.text for row in rows], truncation=True, max_length=encoder.max_length)
    index = {label: n for n, label in enumerate(labels)}
    return Table.from_dict(
        {
            "input_ids": found["input_ids"],
            "attention_mask": found["attention_mask"],
            "length": [len(ids) for ids in found["input_ids"]],
            "label": [index[row.label] for row in rows],
            "weight": [row.weight for row in rows],
        }
    )


def _buckets(lengths: Sequence[int], size: int, draw: random.Random) -> list[list[int]]:
    """Batches of similar length, in random order: rows are shuffled, sorted within chunks of 16 batches, cut."""
    order = list(range(len(lengths)))
    draw.shuffle(order)
    chunks = [order[i : i + size * 16] for i in range(0, len(order), size * 16)]
    batches = [
        chunk[i : i + size]
        for chunk in (sorted(c, key=lambda n: lengths[n]) for c in chunks)
        for i in range(0, len(chunk), size)
    ]
    draw.shuffle(batches)
    return batches


@torch.no_grad()  # type: ignore[untyped-decorator]  # torch is not followed
def predict(model: Classifier, encoder: Encoder, texts: Sequence[str], batch_size: int = 32) -> NDArray[np.float64]:
    """Logits [n, k]."""
    model.eval()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    result = np.zeros((len(texts), model.head.out_features))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        inputs = encoder.batch([texts[i] for i in rows])
        result[rows] = model(**inputs).numpy()
    return result
