"""Choose the training task by its name.

Turns `model.task` into the `Task` that trainer.py trains. Rounds and baselines call it. It deliberately knows no settings.
"""

from collections.abc import Sequence

from pipelines.dataset.examples import Example
from pipelines.training.tasks import Task
from schemas.targets import Task as TaskName


def task_for(name: TaskName, labels: Sequence[str], examples: Sequence[Example] = ()) -> Task:
    """The task of a round over these labels; `examples` set the scale of a number."""
    match name:
        case "classification":
            from pipelines.training.classification import Classification

            return Classification(labels)
        case "multilabel":
            from pipelines.training.multilabel import Multilabel

            return Multilabel(labels)
        case "regression":
            from pipelines.training.regression import Regression

            return Regression.of(examples)
        case "generation":
            from pipelines.training.generation import Generation

            return Generation()
