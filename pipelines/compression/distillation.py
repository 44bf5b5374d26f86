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
from pipelines.training.fitting import batches, schedule
from pipelines.training.history import TrainingProgress
from pipelines.training.warm_start import HEAD, WarmStart
from schemas.training_settings import TrainingSettings

BATCH = 32
PRUNING_TEXTS = 1024  # on which the importance of heads and units is measured
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
) -> TextModel:
    """Return a student of the shape in `settings`; the order of the texts does not matter.

    Args:
        teacher: a merged model; left as it is.
        encoder: the base model, for its tokenizer.
        texts: texts like those to be served; labels are not needed.
        settings: the recipe.
        progress: receives the completed share from 0 to 1.

    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    draw = random.Random(settings.seed)  # noqa: S311 - the order of batches is no secret
    unique = sorted(set(texts), key=lambda text: (len(text), text))
    teacher_pooled, teacher_outputs = run_all(teacher, encoder, unique)
    pooled_scale, output_scale = (t.var(dim=0).sum().clamp(min=1e-6) for t in (teacher_pooled, teacher_outputs))
    student = start_student(teacher, settings.student_layers)  # stays in evaluation mode: without dropout
    if settings.student_heads < 1 or settings.student_feed_forward < 1:
        _narrow(student, encoder, unique, settings, [1 / pooled_scale.sqrt(), 1 / output_scale.sqrt()])
    trained = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = settings.student_epochs * -(-len(unique) // BATCH)
    falling = settings.model_copy(update={"warmup_share": WARMUP_SHARE, "schedule": "linear"})
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule(steps, falling))
    half = computes_bf16()
    for epoch in range(settings.student_epochs):
        for rows in batches(range(len(unique)), range(len(unique)), BATCH, draw):  # sorted by length already
            pooled, outputs = _run(student, encoder, [unique[n] for n in rows], half)
            loss = functional.mse_loss(pooled, teacher_pooled[rows], reduction="sum") / pooled_scale
            loss = loss + functional.mse_loss(outputs, teacher_outputs[rows], reduction="sum") / output_scale
            optimizer.zero_grad()
            (loss / len(rows)).backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            rate.step()
        progress((epoch + 1) / settings.student_epochs, None)
    return student


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
