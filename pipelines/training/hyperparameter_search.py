"""Hyperparameter search: a small Optuna study on the validation rows, within a time budget, before the round trains.

Turns a recipe into a better one, or leaves it as it is. trainer.py calls `searched` where `training.search = "optuna"`.

The study varies learning rate, LoRA rank, epochs, weight decay and number of adapted layers by the tree-structured Parzen
estimator (Bergstra et al. 2011). Trials that lag behind the median of earlier ones are pruned. The first trial is the recipe
itself, and another one replaces it only if it is better on the same rows by more than a standard error: the best of many trials
looks better than it is. The study is in memory; a round that is killed starts it anew.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.dataset.examples import Example
from pipelines.training.fitting import RATES, Fit, Step, batch_size, epochs_of
from pipelines.training.history import Log
from pipelines.training.tasks.task import Rows, TrainingTask
from schemas.configuration.training import TrainingSettings

LEAST_VALIDATION = 30  # rows; fewer choose by chance
STARTUP_TRIALS, UNPRUNED_EPOCHS = 4, 1
RATE_FACTOR = 5.0  # the rate is searched within this factor of the recipe's
DECAYS = (1e-4, 0.3)
RANKS = (4, 8, 16, 32)
PHASE = "hyperparameters"
SHARE = 0.4  # of the progress that a training reports


class _OutOfTimeError(Exception):
    """The study's time is over."""


class Search:
    """One study: every trial trains on the same rows and is scored on the same validation rows."""

    def __init__(
        self,
        task: TrainingTask,
        base: Any,
        examples: Sequence[Example],
        rows: Rows,
        split: tuple[list[int], list[int]],
        settings: TrainingSettings,
        log: Log,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare a study.

        Args:
            task: made for these rows.
            base: the frozen base model.
            examples: of `rows`, in their order.
            rows: tokenised.
            split: numbers of the training and of the validation rows.
            settings: the recipe, with its trials and minutes.
            log: receives a line for each trial.
            clock: of the time budget, in seconds.

        """
        self._task, self._base, self._rows, self._log = task, base, rows, log
        self._train, self._held = split
        self._examples = [examples[n] for n in self._train if not rows.rejects[n]]  # as for any start
        self._settings, self._clock = settings, clock
        self._end = clock() + 60 * settings.search_minutes
        self._losses: dict[int, NDArray[np.float64]] = {}

    def run(self) -> TrainingSettings:
        """Return the settings of the best trial if it is clearly better than the recipe, else the recipe."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(
            sampler=optuna.samplers.TPESampler(seed=self._settings.seed, n_startup_trials=STARTUP_TRIALS),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=UNPRUNED_EPOCHS),
        )
        study.enqueue_trial(self._recipe())
        self._log.begin(PHASE, self._settings.search_trials * self._most_steps(), SHARE)
        for _ in range(self._settings.search_trials):
            trial = study.ask()
            state = self._run(trial, optuna.trial.TrialState)
            value = float(self._losses[trial.number].mean()) if trial.number in self._losses else None
            study.tell(trial, value if state is optuna.trial.TrialState.COMPLETE else None, state=state)
            self._log.line(**{"trial": trial.number, "state": state.name.lower(), **trial.params}, **_value(value))
            if self._clock() >= self._end:
                break
        return self._chosen(study)

    def _chosen(self, study: Any) -> TrainingSettings:
        complete = {trial.number: trial for trial in study.trials if trial.state.name == "COMPLETE"}
        if 0 not in complete:
            self._log.line(chosen="recipe", why="the recipe's own trial did not end within training.search_minutes")
            return self._settings
        if sum(trial.state.name in ("COMPLETE", "PRUNED") for trial in study.trials) == 1:
            self._log.line(
                chosen="recipe", why="no other trial ended within training.search_minutes: more minutes compare more"
            )
            return self._settings
        best = min(complete, key=lambda number: float(self._losses[number].mean()))
        gain = self._losses[0] - self._losses[best]
        needed = float(gain.std() / np.sqrt(len(gain)))
        better = bool(gain.mean() > needed)
        self._log.line(chosen=f"trial {best}" if better else "recipe", gain=float(gain.mean()), gain_needed=needed)
        return self._settings.model_copy(update=complete[best].params) if better else self._settings

    def _run(self, trial: Any, states: Any) -> Any:
        """Train one trial and return its state; keep its losses if it is complete."""
        settings = self._settings.model_copy(update=self._suggested(trial))
        model = self._task.start(self._base, self._examples, settings)
        targets, weights = self._rows.targets[self._held], self._rows.weights[self._held]
        try:
            with Fit(self._task, model, self._rows, self._train, settings) as fit:
                for epoch in range(1, (settings.epochs or 0) + 1):
                    fit.epoch(self._step)
                    losses = weights / weights.mean() * self._task.row_losses(fit.outputs(self._held), targets)
                    trial.report(float(losses.mean()), epoch)
                    if epoch < (settings.epochs or 0) and trial.should_prune():
                        return states.PRUNED
        except _OutOfTimeError:
            return states.FAIL
        except ArithmeticError:  # a rate at which training diverges
            return states.FAIL
        self._losses[trial.number] = losses
        return states.COMPLETE

    def _step(self, step: Step) -> None:
        """Report a step. Raises _OutOfTimeError after the budget."""
        self._log.step(step)
        if self._clock() >= self._end:
            raise _OutOfTimeError

    def _recipe(self) -> dict[str, Any]:
        """Return the parameters that the settings, or their defaults, mean."""
        settings, layers = self._settings, self._layers()
        return {
            "learning_rate": settings.learning_rate or RATES[settings.method],
            "lora_rank": settings.lora_rank or (8 if self._task.name == "generation" else 16),
            "epochs": self._most_epochs(),
            "weight_decay": min(max(settings.weight_decay, DECAYS[0]), DECAYS[1]),
            "adapted_layers": min(
                layers, settings.adapted_layers or (layers - layers // 2 if self._task.name == "generation" else layers)
            ),
        }

    def _suggested(self, trial: Any) -> dict[str, Any]:
        recipe = self._recipe()
        rate = recipe["learning_rate"]
        return {
            "learning_rate": trial.suggest_float("learning_rate", rate / RATE_FACTOR, rate * RATE_FACTOR, log=True),
            "lora_rank": trial.suggest_categorical("lora_rank", sorted({*RANKS, recipe["lora_rank"]})),
            "epochs": trial.suggest_int("epochs", 1, recipe["epochs"]),
            "weight_decay": trial.suggest_float("weight_decay", *DECAYS, log=True),
            "adapted_layers": trial.suggest_int("adapted_layers", 1, self._layers()),
        }

    def _layers(self) -> int:
        return int(self._base.model.config.num_hidden_layers)

    def _most_steps(self) -> int:
        rows = len(self._train)
        return self._most_epochs() * -(-rows // batch_size(rows, self._settings))

    def _most_epochs(self) -> int:
        tokens = int(self._rows.inputs.lengths[self._train].sum())
        return epochs_of(len(self._train), tokens, self._settings)


def searched(
    task: TrainingTask,
    base: Any,
    examples: Sequence[Example],
    rows: Rows,
    validation: range,
    settings: TrainingSettings,
    log: Log,
) -> TrainingSettings:
    """Return the settings after a study on the validation rows; as they are if no study is asked for or possible.

    Args:
        task: made for these rows.
        base: the frozen base model.
        examples: of `rows`, in their order.
        rows: tokenised.
        validation: numbers of the validation rows; those after them always train.
        settings: the recipe.
        log: receives the study.

    """
    if settings.search == "none":
        return settings
    if settings.method != "lora" or len(validation) < LEAST_VALIDATION:
        log.begin(PHASE, 1, 0.0)
        why = f"{len(validation)} validation rows, {LEAST_VALIDATION} are needed"
        log.line(chosen="recipe", why=why if settings.method == "lora" else "only training.method = lora is searched")
        return settings
    train = [n for n in range(len(examples)) if n not in validation]
    return Search(task, base, examples, rows, (train, list(validation)), settings, log).run()


def _value(value: float | None) -> dict[str, float]:
    return {} if value is None else {"value": value}
