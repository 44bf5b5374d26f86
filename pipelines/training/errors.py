"""Errors of training that say what to do. Without torch, so that whoever reports them need not load it."""


class TrainingDiverged(ArithmeticError):
    """The loss is no number any more: the same rows, seed and settings would end there again."""
