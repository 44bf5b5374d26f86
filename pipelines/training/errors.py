"""Errors of training. This module imports no torch, so that reporting them does not load it."""

import math

EXPLODED = 10.0  # times the first step's loss, or times 1 where that is less


class TrainingDiverged(ArithmeticError):
    """The loss is not finite or explodes; the same rows, seed and settings would diverge again."""


def check_loss(loss: float, what: str, step: int, steps: int, rate: float, remedy: str) -> None:
    """Raise TrainingDiverged if a loss is not finite.

    Args:
        loss: of one step, before its gradients are applied.
        what: name of the loss.
        step: number of the step, from 1.
        steps: planned in all.
        rate: learning rate of the step.
        remedy: which settings to change.

    """
    if not math.isfinite(loss):
        raise TrainingDiverged(f"the {what} is {loss} at step {step} of {steps} (learning rate {rate:.2g}): {remedy}")


def check_epoch(loss: float, first: float, epoch: int, rate: float, remedy: str) -> None:
    """Raise TrainingDiverged if an epoch's mean loss is EXPLODED times that of the first step.

    Args:
        loss: mean training loss of the epoch.
        first: loss of the first step, before anything was trained.
        epoch: number of the epoch, from 1.
        rate: peak learning rate.
        remedy: which settings to change.

    """
    if loss > EXPLODED * max(first, 1.0):
        raise TrainingDiverged(
            f"the training loss exploded from {first:.3g} to {loss:.3g} in epoch {epoch} (learning rate {rate:.2g}): {remedy}"
        )
