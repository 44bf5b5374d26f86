"""The walk of several labels and of numbers: from a file to a champion, answers, feedback through a broker, and the next one.

In one process, but for the broker; `ratchet up` around the same parts is test_loop.py's.
"""

import csv
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from starlette.testclient import TestClient

from pipelines.round_inputs import round_folder
from schemas.records import RoundState
from schemas.settings import SettingsError, load_settings
from schemas.targets import COLUMNS, Task
from services.cli.main import cli
from services.projects import ProjectError, create_project
from tests.support.fakes import FILLERS, TOPICS
from tests.support.walks import Walk, only_advise

STARS = dict(zip(TOPICS, (1.5, 3.0, 5.5), strict=True))
Row = tuple[str, Any]


def rows(task: Task, n: int, seed: int) -> list[Row]:
    """Texts about one topic or two, with the topics, or with a number that they add up to."""
    draw, found = random.Random(seed), dict[str, Any]()
    while len(found) < n:
        topics = draw.sample(list(TOPICS), k=draw.choice([1, 1, 2]))
        words = [word for topic in topics for word in draw.choices(TOPICS[topic], k=4)] + draw.choices(FILLERS, k=6)
        draw.shuffle(words)
        found[" ".join(words)] = sorted(topics) if task == "multilabel" else sum(STARS[topic] for topic in topics)
    return list(found.items())


def write(path: Path, task: Task, given: list[Row]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", COLUMNS[task]])
        writer.writerows((text, "|".join(target) if task == "multilabel" else target) for text, target in given)
    return path


@pytest.fixture
def walk(
    tmp_path: Path,
    tiny_base: Path,
    broker: str,
    request: pytest.FixtureRequest,
) -> Iterator[Walk]:
    task: Task = request.param
    made = create_project(
        tmp_path / "toys",
        seed=write(tmp_path / "seed.csv", task, rows(task, 16 if task == "multilabel" else 48, seed=1)),
        reference=write(tmp_path / "reference.csv", task, rows(task, 260, seed=2)),
        task=task,
        base_model=str(tiny_base),
        name=f"walk-{task}",  # sides are drawn by it: the same rows in every run
        overrides={
            "model": {"max_length": 32},
            "kafka": {"bootstrap_servers": broker},
            "training": {"epochs": 1, "threads": 1},
            "access": {"enabled": False},
            "dataset": {"max_rows_per_person": 500},
        },
    )
    # An encoder that has never read anything is neither steady nor always calibrated; those gates have tests of their own.
    only_advise(made, "calibration", "robustness")
    found = Walk(made)
    found.outbox.start()
    yield found
    found.close()


@pytest.mark.long
@pytest.mark.parametrize(
    ("walk", "bad", "figure", "better"),
    [("multilabel", ["a", ["sailing"], [1], 3], "accuracy", 1), ("regression", ["3", [3], "up"], "mean absolute error", -1)],
    indirect=["walk"],
)  # fmt: skip
def test_the_walk(walk: Walk, bad: list[object], figure: str, better: int) -> None:
    task = walk.settings.model.task
    first = walk.round(None)
    assert first.state is RoundState.PROMOTED, first.detail
    with TestClient(walk.api) as client:
        model = client.get("/model").json()
        assert (model["task"], model["labels"]) == (task, sorted(TOPICS) if task == "multilabel" else [])
        given = rows(task, 200, seed=3)
        answers = []
        for start in range(0, len(given), 50):
            items = [{"text": text} for text, _ in given[start : start + 50]]
            answer = client.post("/predict", json={"items": items, "options": {"coverage": 0.8}})
            assert answer.status_code == 200, answer.text
            answers += answer.json()
        for n, (answer, (_, target)) in enumerate(zip(answers, given, strict=True)):
            said = answer["labels"] if task == "multilabel" else answer["value"]
            if task == "regression":
                low, high = answer["interval"]
                assert low < said < high
            else:
                assert set(said) <= set(answer["probabilities"])
                assert set(answer["set"]) <= set(TOPICS)
            body = {
                "prediction_id": answer["prediction_id"],
                "kind": "correction",
                "user": f"u{n % 9}",
                "value": target,
            }
            assert client.post("/feedback", json=body).status_code == 202
        seen = {"prediction_id": answers[0]["prediction_id"], "user": "v"}
        for kind, value in (
            ("rating", "down"),
            ("rating", "up"),
            ("score", 0.3),
            ("comment", "hm"),
            ("correction", said),
        ):
            assert client.post("/feedback", json={**seen, "kind": kind, "value": value}).status_code == 202
        for value in bad:
            refused = client.post("/feedback", json={**seen, "kind": "correction", "value": value})
            assert refused.status_code == 422, value
            assert refused.json()["detail"][0]["field"].startswith("value")
        schemas = client.get("/openapi.json").json()["components"]["schemas"]
        assert ("LabelsPrediction" in schemas) == (task == "multilabel")

        features = walk.stored()
        feedback = features.labelled_feedback()
        assert {type(row.value) for row in feedback if row.kind == "correction"} == {
            list if task == "multilabel" else float
        }
        counts = features.counted(features.effective_feedback())[0].to_pylist()
        assert sum(row["n"] for row in counts if row["agreed"]) >= 1
        assert sum(row["n"] for row in counts) == len(given) + 4, "of two ratings by nobody the last counts"

        second = walk.round(features)
        assert second.state is RoundState.PROMOTED, second.detail
        figures = {name: report.figures[figure] for name, report in second.evaluations.items()}
        assert better * figures["candidate"] > better * figures["champion"]
        assert second.dataset is not None
        given_by_people = second.dataset.rows_by_source
        # Which rows become the audit sample goes by their ids, which are new in every run.
        assert given_by_people["correction"] + given_by_people.get("confirmation", 0) > 150
        [after] = client.post("/predict", json={"items": [{"text": given[0][0]}]}).json()
        assert after["model_version"] == second.candidate_version
    folder = round_folder(walk.settings, second.round_id)
    for page in ("dataset.html", "report.html"):
        assert "superiority" in (folder / page).read_text(encoding="utf-8") or page == "dataset.html"
    described = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))["profile"]
    assert sum(sides["train"] for sides in described["rows_by_label"].values()) >= second.dataset.rows_train
    config = ["-c", str(walk.settings.root / "ratchet.toml")]
    shown = CliRunner().invoke(cli, ["round", "show", second.round_id, *config])
    assert figure in shown.output, shown.output
    out = walk.settings.root / "rows.jsonl"
    command = ["dataset", "export", "--round", second.round_id, "--format", "jsonl", "--out", str(out), *config]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0, done.output
    assert set(json.loads(out.read_text(encoding="utf-8").splitlines()[0])) == {"text", COLUMNS[task]}


def test_what_does_not_fit_a_task_is_refused(tmp_path: Path) -> None:
    seed = write(tmp_path / "seed.csv", "regression", [("a text", 3), ("another", 3)])
    with pytest.raises(ProjectError, match=r"column target holds 3\.0 alone"):
        create_project(tmp_path / "p", seed=seed, reference=None, task="regression")
    with pytest.raises(ProjectError, match="regression has no labels"):
        create_project(tmp_path / "p", seed=seed, reference=None, task="regression", labels=["a"])
    assert not (tmp_path / "p").exists()
    with pytest.raises(SettingsError, match=r"^dataset\.balance = 'cap': works with classification alone"):
        load_settings('[model]\ntask = "multilabel"\n[dataset]\nbalance = "cap"', {}, root=tmp_path)
