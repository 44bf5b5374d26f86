"""What outputs mean by task: answer and event say the same, sets and intervals hold what they promise."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from schemas.events import PredictionMade, parse_event
from schemas.manifests import Calibration, Conformal, Golden, IntervalCalibration
from schemas.targets import canonical
from serving.http.contract import PREDICTIONS
from serving.http.responses import ResponseBuilder
from serving.inference.batching import EncoderResult
from serving.inference.encoder_runtime import Runtime
from serving.inference.golden import GoldenMismatch
from serving.inference.outputs import BY_TASK, MultilabelOutputs, RegressionOutputs, UnknownTask
from serving.inference.passes import TOKENS
from tests.support.fakes import toy_rows
from tests.support.versions import copied

LABELS = ['a "b"', "100 %", "č"]


def test_labels_in_plural_say_what_is_likelier_than_not() -> None:
    outputs = MultilabelOutputs(LABELS, Calibration(conformal=Conformal(scores=[0.1] * 80 + [0.7] * 20)))
    probabilities = np.array([[0.6, 0.35, 0.9], [0.2, 0.1, 0.05]])
    (answer, event), (none, nothing) = outputs.predictions(probabilities, 0.9)
    assert answer["labels"] == ["č", 'a "b"']
    assert answer["set"] == ["č", 'a "b"', "100 %"]
    assert event["label"] == canonical("multilabel", answer["labels"])
    assert event["confidence"] == pytest.approx(0.6 * 0.65 * 0.9)
    assert (none["labels"], none["set"], nothing["label"]) == ([], [], "[]")
    assert "set" not in next(outputs.predictions(probabilities, None))[0]
    assert outputs.apply(np.array([[0.0, 100.0, -1000.0]])).tolist() == [[0.5, pytest.approx(1), pytest.approx(0)]]
    hotter = MultilabelOutputs(LABELS, Calibration(kind="temperature", temperature=2.0))
    assert hotter.apply(np.log([[3.0, 1.0, 1.0]]) * 2)[0] == pytest.approx([0.75, 0.5, 0.5])


def test_a_number_is_said_with_its_interval_and_confirmed_by_saying_it_back() -> None:
    outputs = RegressionOutputs([], Calibration(intervals=IntervalCalibration(scores=[0.5] * 18 + [2.0])))
    [(answer, event)] = outputs.predictions(np.array([[np.float32(3.3)]]), None)
    assert answer == {"value": 3.3, "interval": [2.8, 3.8]}
    assert (event["label"], event["confidence"]) == (canonical("regression", 3.3), 0.9)
    [(wide, _)] = outputs.predictions(np.array([[3.3]]), 0.95)
    assert wide["interval"] == [1.3, 5.3]
    [(unbounded, _)] = outputs.predictions(np.array([[3.3]]), 0.99)
    assert unbounded["interval"] == [None, None]


def test_outer_sets_hold_every_true_label() -> None:
    """A row's score is that of its least likely true label."""
    draw = np.random.default_rng(0)
    probabilities = draw.beta(1, 3, size=(4000, 6))
    truth = draw.random(probabilities.shape) < probabilities
    scores = np.sort(np.where(truth, 1 - probabilities, 0.0).max(axis=1)[:2000])
    outputs = MultilabelOutputs(list("abcdef"), Calibration(conformal=Conformal(scores=scores.tolist())))
    for coverage in (0.8, 0.95):
        inside = outputs.sets(probabilities[2000:], coverage)
        assert (inside | ~truth[2000:]).all(axis=1).mean() == pytest.approx(coverage, abs=0.03)


@pytest.mark.parametrize("task", ["classification", "multilabel"])
def test_answer_and_event_keep_the_contract(version: Path, tmp_path: Path, task: str) -> None:
    runtime = Runtime(copied(version, tmp_path / "v", task=task, golden=Golden(texts=[], probabilities=[])))
    outputs = runtime.probabilities(["text"])
    builder = ResponseBuilder("m", "s", "secret", audit_rate=0.5, token_seconds=60)
    body, [(_, value)] = builder.build(EncoderResult(runtime, 1, outputs), ["text"], [{}], user=None, coverage=0.8)
    [answer] = json.loads(body)
    shape = PREDICTIONS[task]  # type: ignore[index]  # a parameter
    assert set(answer) == set(shape.model_fields), shape.model_validate(answer)
    event = parse_event(value)
    assert isinstance(event, PredictionMade)
    assert json.loads(event.model_dump_json()) == json.loads(value)
    assert (event.data.task, event.data.model_version) == (task, answer["model_version"])


def test_a_version_of_another_task_or_with_other_golden_sets_is_refused(version: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownTask, match="'painting'"):
        Runtime(copied(version, tmp_path / "other", task="painting"))
    assert {*BY_TASK, "generation"} == set(PREDICTIONS)
    runtime = Runtime(version)
    golden = runtime.manifest.golden
    inside = runtime.outputs.sets(np.array(golden.probabilities), 0.9)
    sets = [np.flatnonzero(row).tolist() for row in inside]
    assert Runtime(copied(version, tmp_path / "same", golden=golden.model_copy(update={"sets": sets}))).version
    wrong = golden.model_copy(update={"sets": [[], *sets[1:]]})
    with pytest.raises(GoldenMismatch, match="sets"):
        Runtime(copied(version, tmp_path / "wrong", golden=wrong))


class Noted:
    """A runtime's session that notes the rows and tokens of each pass."""

    def __init__(self, runtime: Runtime) -> None:
        self.session = runtime.session
        self.shapes: list[tuple[int, ...]] = []

    def run(self, names: Sequence[str], arrays: dict[str, NDArray[np.int64]]) -> list[NDArray[np.float32]]:
        self.shapes.append(arrays["input_ids"].shape)
        found: list[NDArray[np.float32]] = self.session.run(names, arrays)
        return found


def test_a_texts_logits_are_the_same_whatever_runs_with_it_and_no_pass_is_too_large(version: Path) -> None:
    runtime = Runtime(version)
    texts = [f"{text} " * (1 + n % 4) for n, (text, _) in enumerate(toy_rows(300, seed=6))]  # of 14 to 32 tokens
    alone = np.vstack([runtime.logits([text]) for text in texts])
    runtime.session = noted = Noted(runtime)
    for batch in (7, 32, 1000):
        noted.shapes.clear()
        np.testing.assert_allclose(runtime.logits(texts, batch), alone, rtol=1e-4, atol=1e-4)
        assert sum(rows for rows, _ in noted.shapes) == len(texts)
        assert max(rows for rows, _ in noted.shapes) <= batch
        assert max(rows * longest for rows, longest in noted.shapes) <= TOKENS
