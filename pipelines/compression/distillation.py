"""Distillation: train a student of fewer or narrower layers to reproduce its teacher's outputs.

Turns a finished full-precision version and unlabelled texts into a smaller model. candidates.py calls it and exports the student;
gates/compressed.py judges whether the student may serve.

The student starts as evenly spaced layers of the teacher (Sanh et al. 2019), pruned to their most important heads and
feed-forward units (pruning.py). All its weights but the embeddings are trained. The loss is the mean squared error on the
teacher's pooled embeddings (Reimers & Gurevych 2020) and outputs. It suits every task, and is no worse than KL divergence on
logits (Kim et al. 2021).
"""

import copy
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from pipelines.compression import pruning
from pipelines.models.encoder import Encoder, TextModel, computes_bf16, layers_of, mean_pool
from pipelines.training.errors import check_loss
from pipelines.training.fitting import batches, schedule
from pipelines.training.history import TrainingProgress
from pipelines.training.warm_start import HEAD, WarmStart
from schemas.configuration.training import TrainingSettings

BATCH = 32
PRUNING_TEXTS = 1024  # on which the importance of heads and units is measured
REMEDY = "raise or unset training.student_layers, training.student_heads and training.student_feed_forward"
LEARNING_RATE, WARMUP_SHARE, WEIGHT_DECAY = 2e-4, 0.06, 0.01


def load_teacher(directory: Path, encoder: Encoder, settings: TrainingSettings) -> TextModel:
    """Return the full-precision model of a version made from `encoder`, with its adapter merged."""
    version = WarmStart(directory, "", [])
    head = version.tensors(HEAD)
    weights = version.apply(copy.deepcopy(encoder.model), settings)
    teacher = TextModel(weights, encoder.width, head["weight"].double().numpy(), head["bias"].double().numpy())
    if teacher.adapted:
        teacher.encoder = teacher.encoder.merge_and_unload()
    teacher.eval()
    return teacher


def evenly(layers: int, kept: int) -> list[int]:
    """Return the teacher's layers that a student of `kept` layers takes: evenly spaced, including the first and the last."""
    kept = min(kept, layers)
    return [n * (layers - 1) // max(1, kept - 1) for n in range(kept)]


def distil(
    teacher: TextModel,
    encoder: Encoder,
    texts: Sequence[str],
    settings: TrainingSettings,
    progress: TrainingProgress,
    *,
    learning_rate: float = LEARNING_RATE,
) -> TextModel:
    """Return a student of the shape in `settings`; the order of the texts does not matter.

    Args:
        teacher: a merged model; left as it is.
        encoder: the base model, for its tokenizer.
        texts: texts like those to be served; labels are not needed.
        settings: the recipe.
        progress: receives the completed share from 0 to 1.
        learning_rate: peak learning rate.

    Raises:
        TrainingDiverged: the loss is not finite.

    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    unique = sorted(set(texts), key=lambda text: (len(text), text))
    targets = run_all(teacher, encoder, unique)
    scales = [target.var(dim=0).sum().clamp(min=1e-6) for target in targets]
    student = start_student(teacher, settings.student_layers)  # stays in evaluation mode: without dropout
    if settings.student_heads < 1 or settings.student_feed_forward < 1:
        _narrow(student, encoder, unique, settings, [1 / scale.sqrt() for scale in scales])
    _fit(student, encoder, unique, targets, scales, settings, progress, learning_rate)
    return student


def _fit(
    student: TextModel,
    encoder: Encoder,
    texts: Sequence[str],
    targets: Sequence[torch.Tensor],
    scales: Sequence[torch.Tensor],
    settings: TrainingSettings,
    progress: TrainingProgress,
    learning_rate: float,
) -> None:
    """Train a student on texts sorted by length, towards its teacher's embeddings and outputs. Raises TrainingDiverged."""
    draw = random.Random(settings.seed)  # noqa: S311 - the order of batches is no secret
    trained = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=WEIGHT_DECAY)
    step, steps = 0, settings.student_epochs * -(-len(texts) // BATCH)
    falling = settings.model_copy(update={"warmup_share": WARMUP_SHARE, "schedule": "linear"})
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule(steps, falling))
    half = computes_bf16()
    for epoch in range(settings.student_epochs):
        for rows in batches(range(len(texts)), range(len(texts)), BATCH, draw):
            outputs = _run(student, encoder, [texts[n] for n in rows], half)
            parts = zip(outputs, targets, scales, strict=True)
            loss = sum(functional.mse_loss(o, t[rows], reduction="sum") / scale for o, t, scale in parts) / len(rows)
            step += 1
            check_loss(float(loss.detach()), "distillation loss", step, steps, rate.get_last_lr()[0], REMEDY)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            rate.step()
        progress((epoch + 1) / settings.student_epochs, None)


def start_student(teacher: TextModel, kept: int | None) -> TextModel:
    """Return a copy of the teacher with `kept` of its layers, None for all, and frozen embeddings."""
    student: TextModel = copy.deepcopy(teacher)
    layers = layers_of(student.encoder)
    chosen = [layers[n] for n in evenly(len(layers), kept or len(layers))]
    del layers[len(chosen) :]
    for n, layer in enumerate(chosen):
        layers[n] = layer
    student.requires_grad_(True)
    student.encoder.embeddings.requires_grad_(False)
    return student


def _narrow(
    student: TextModel,
    encoder: Encoder,
    texts: Sequence[str],
    settings: TrainingSettings,
    scales: Sequence[torch.Tensor],
) -> None:
    """Prune a student before training, by the importance of its parts for its scaled embeddings and outputs."""
    some = texts[:: -(-len(texts) // PRUNING_TEXTS)]

    def outputs_of(batch: Sequence[str]) -> torch.Tensor:
        return torch.cat(
            [part * scale for part, scale in zip(_run(student, encoder, batch), scales, strict=True)], dim=1
        )

    pruning.prune(
        student.encoder,
        settings.student_heads,
        settings.student_feed_forward,
        outputs_of,
        [some[start : start + BATCH] for start in range(0, len(some), BATCH)],
        settings.seed,
    )


def _run(
    model: TextModel, encoder: Encoder, texts: Sequence[str], half: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pooled embeddings [n, width] and outputs [n, k]; with `half` the encoder multiplies in bfloat16."""
    inputs = encoder.batch(texts)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        hidden = model.encoder(**inputs).last_hidden_state
    pooled = mean_pool(hidden.float(), inputs["attention_mask"])
    return pooled, model.head(pooled)


@torch.no_grad()  # type: ignore[untyped-decorator]  # torch is not followed
def run_all(model: TextModel, encoder: Encoder, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pooled embeddings [n, width] and outputs [n, k] of texts sorted by length."""
    batched = [_run(model, encoder, texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)]
    return torch.cat([pooled for pooled, _ in batched]), torch.cat([outputs for _, outputs in batched])
