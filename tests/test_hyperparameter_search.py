"""The study before a round: it finds a better recipe than a bad one, keeps the recipe where it is no better, and ends in time."""

from pathlib import Path

import pytest

from pipelines.dataset.examples import Example
from pipelines.models.encoder import Encoder
from pipelines.training.history import Log
from pipelines.training.hyperparameter_search import Search
from pipelines.training.tasks.classification import Classification
from pipelines.training.trainer import Trained, train
from schemas.configuration.training import TrainingSettings
from tests.support.fakes import TOPICS, toy_rows

TASK = Classification(sorted(TOPICS))
# A rate at which tiny adapters learn nothing: any study should leave it.
BAD = TrainingSettings(
    search="optuna", search_trials=6, epochs=3, threads=1, learning_rate=2e-4, head_learning_rate=1e-4, bf16=False
)


@pytest.fixture(scope="module")
def encoder(tiny_base: Path) -> Encoder:
    return Encoder(tiny_base, 32)


def examples(n: int, seed: int) -> list[Example]:
    return [Example(text=text, label=label, source="seed") for text, label in toy_rows(n, seed)]


def fit(encoder: Encoder, held: int, **recipe: object) -> Trained:
    return train(TASK, encoder, examples(60, 1), examples(held, 2), BAD.model_copy(update=recipe), lambda *_: None)


@pytest.fixture(scope="module")
def trained(encoder: Encoder) -> Trained:
    return fit(encoder, 60)


def test_the_first_trial_is_the_recipe_and_the_best_is_chosen_if_clearly_better(trained: Trained) -> None:
    lines = [line for line in trained.history if line["phase"] == "hyperparameters"]
    trials = [line for line in lines if "trial" in line]
    assert [line["trial"] for line in trials] == list(range(6))
    first = {key: trials[0][key] for key in ("learning_rate", "lora_rank", "epochs", "weight_decay", "adapted_layers")}
    assert first == pytest.approx(
        {"learning_rate": 2e-4, "lora_rank": 16, "epochs": 3, "weight_decay": 0.01, "adapted_layers": 2}
    )
    complete = [line for line in trials if line["state"] == "complete"]
    best = min(complete, key=lambda line: float(line["value"]))
    [end] = [line for line in lines if "chosen" in line]
    clearly = float(end["gain"]) > float(end["gain_needed"])
    assert end["chosen"] == (f"trial {best['trial']}" if clearly else "recipe")
    assert float(end["gain"]) >= float(trials[0]["value"]) - float(best["value"]) - 1e-6
    assert {line["state"] for line in trials} <= {"complete", "pruned"}
    most = max(int(line["epoch"]) for line in trained.history if "epoch" in line)
    assert most <= int(best["epochs"] if clearly else 3), "the round trains the chosen epochs at most"


def test_the_same_rows_and_seed_give_the_same_study(encoder: Encoder, trained: Trained) -> None:
    again = fit(encoder, 60)
    assert [line for line in again.history if "trial" in line] == [line for line in trained.history if "trial" in line]


def test_the_study_ends_with_its_time_and_the_recipe_stays(encoder: Encoder) -> None:
    stopped = fit(encoder, 60, search_minutes=1e-9)
    trials = [line for line in stopped.history if "trial" in line]
    assert [(line["trial"], line["state"]) for line in trials] == [(0, "fail")]
    [end] = [line for line in stopped.history if line["phase"] == "hyperparameters" and "chosen" in line]
    assert (end["chosen"], "did not end" in str(end["why"])) == ("recipe", True)


def test_a_study_with_time_for_the_recipe_alone_says_so(encoder: Encoder) -> None:
    rows = [*examples(60, 1), *examples(60, 2)]
    tokenised, log = TASK.rows(encoder, rows, BAD), Log(lambda *_: None)
    split = (list(range(60)), list(range(60, 120)))

    def clock() -> float:
        """Return a time after the budget as soon as the recipe's trial has ended."""
        return 1e9 if any("trial" in line for line in log.history) else 0.0

    assert Search(TASK, encoder, rows, tokenised, split, BAD, log, clock).run() == BAD
    assert [line["state"] for line in log.history if "trial" in line] == ["complete"]
    [end] = [line for line in log.history if "chosen" in line]
    assert (end["chosen"], "more minutes" in str(end["why"])) == ("recipe", True)


def test_few_validation_rows_choose_nothing_and_none_is_the_default(encoder: Encoder) -> None:
    few = fit(encoder, 12)
    [line] = [line for line in few.history if line["phase"] == "hyperparameters"]
    assert line["why"] == "12 validation rows, 30 are needed"
    assert not [line for line in fit(encoder, 60, search="none").history if line["phase"] == "hyperparameters"]
