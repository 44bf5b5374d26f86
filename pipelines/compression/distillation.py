"""Distillation: a student of fewer or narrower layers that answers as its teacher does.

Turns a finished full-precision version and texts without labels into a smaller model of the same outputs. candidates.py calls
it, exports what comes, and serves it only if it stands in for its teacher. It deliberately needs no label and judges nothing.

The student is some of the teacher's own layers, evenly spaced (Sanh et al. 2019), of each the heads and feed-forward units that
matter most (pruning.py), trained whole on the teacher's pooled embeddings (Reimers & Gurevych 2020) and outputs by mean squared
error, which serves every task alike (Kim et al. 2021 found it no worse than KL divergence on logits).
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
from schemas.settings import TrainingSettings

BATCH = 32
WEIGHED_TEXTS = 1024  # that say which heads and units matter
LEARNING_RATE, WARMUP_SHARE, WEIGHT_DECAY = 2e-4, 0.06, 0.01


def load_teacher(directory: Path, encoder: Encoder, settings: TrainingSettings) -> TextModel:
    """The full-precision model of a version made from `encoder`, its adapter merged."""
    version = WarmStart(directory, "", [])
    head = version.tensors(HEAD)
    weights = version.apply(copy.deepcopy(encoder.model), settings)
    teacher = TextModel(weights, encoder.width, head["weight"].double().numpy(), head["bias"].double().numpy())
    if teacher.adapted:
        teacher.encoder = teacher.encoder.merge_and_unload()
    teacher.eval()
    return teacher


def evenly(layers: int, kept: int) -> list[int]:
    """Which of a teacher's layers a student of `kept` takes: evenly spaced, the first and the last among them."""
    kept = min(kept, layers)
    return [n * (layers - 1) // max(1, kept - 1) for n in range(kept)]


def distil(
    teacher: TextModel,
    encoder: Encoder,
    texts: Sequence[str],
    settings: TrainingSettings,
    progress: TrainingProgress,
) -> TextModel:
    """A student of the shape in `settings`; the same texts in another order give the same one.

    Args:
        teacher: merged, and left as it is.
        encoder: whose tokenizer both share.
        texts: any of the kind that will be served, labelled or not.
        settings: the recipe's.
        progress: called with a share from 0 to 1.

    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    draw = random.Random(settings.seed)  # noqa: S311 - the order of batches is no secret
    unique = sorted(set(texts), key=lambda text: (len(text), text))
    wanted = _answers(teacher, encoder, unique)
    pooled_scale, output_scale = (part.var(dim=0).sum().clamp(min=1e-6) for part in wanted)
    student = _start(teacher, settings.student_layers)  # in evaluation mode throughout: without dropout
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
            loss = functional.mse_loss(pooled, wanted[0][rows], reduction="sum") / pooled_scale
            loss = loss + functional.mse_loss(outputs, wanted[1][rows], reduction="sum") / output_scale
            optimizer.zero_grad()
            (loss / len(rows)).backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            rate.step()
        progress((epoch + 1) / settings.student_epochs, None)
    return student


def _start(teacher: TextModel, kept: int | None) -> TextModel:
    """A copy of the teacher with `kept` of its layers, None: all; the embeddings stay as they are."""
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
    """Prune a student that starts, by what its parts do to the answers that it will be trained on."""
    some = texts[:: -(-len(texts) // WEIGHED_TEXTS)]

    def answers(batch: Sequence[str]) -> torch.Tensor:
        return torch.cat(
            [part * scale for part, scale in zip(_run(student, encoder, batch), scales, strict=True)], dim=1
        )

    pruning.prune(
        student.encoder,
        settings.student_heads,
        settings.student_feed_forward,
        answers,
        [some[start : start + BATCH] for start in range(0, len(some), BATCH)],
        settings.seed,
    )


def _run(
    model: TextModel, encoder: Encoder, texts: Sequence[str], half: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pooled embeddings [n, width] and outputs [n, k]; with `half` the encoder multiplies in bfloat16."""
    inputs = encoder.batch(texts)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        hidden = model.encoder(**inputs).last_hidden_state
    pooled = mean_pool(hidden.float(), inputs["attention_mask"])
    return pooled, model.head(pooled)


@torch.no_grad()  # type: ignore[untyped-decorator]  # torch is not followed
def _answers(model: TextModel, encoder: Encoder, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """What the model makes of texts sorted by length."""
    found = [_run(model, encoder, texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)]
    return torch.cat([pooled for pooled, _ in found]), torch.cat([outputs for _, outputs in found])
