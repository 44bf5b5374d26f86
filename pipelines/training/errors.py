"""Errors of training. This module imports no torch, so that reporting them does not load it."""


class TrainingDiverged(ArithmeticError):
    """The loss is not finite; the same rows, seed and settings would diverge again."""
