"""Choose the training task by its name.

Turns `model.task` into the `TrainingTask` that trainer.py trains. Rounds and baselines call it.
"""

from collections.abc import Sequence

from pipelines.dataset.examples import Example
from pipelines.training.tasks.task import TrainingTask
from schemas.targets import Task


def task_for(name: Task, labels: Sequence[str], examples: Sequence[Example] = ()) -> TrainingTask:
    """Return the training task with this name over `labels`; for regression, `examples` set mean and scale."""
    match name:
        case "classification":
            from pipelines.training.tasks.classification import Classification

            return Classification(labels)
        case "multilabel":
            from pipelines.training.tasks.multilabel import Multilabel

            return Multilabel(labels)
        case "regression":
            from pipelines.training.tasks.regression import Regression

            return Regression.of(examples)
        case "generation":
            from pipelines.training.tasks.generation import Generation

            return Generation()
