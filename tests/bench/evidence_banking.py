"""`python -m tests.bench.evidence_banking FOLDER`: ten rounds on Banking77, with and without labels on disagreements.

Turns Banking77 (RATCHET_BENCH_DATA) into two projects with the same 300 reference rows and the same traffic. In each round 200
people give feedback, more often where the champion is wrong. In one project an oracle labels the queue. What each round leaves is
kept in FOLDER, so a run that was stopped goes on. It asserts nothing.
"""

import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from pipelines.dataset.examples import Example
from pipelines.feature_store.store import FeatureStore
from pipelines.round_settling import answers
from schemas.events import utc_now
from schemas.records import RoundRecord, RoundState
from schemas.settings import Settings
from services.projects import create_project, fill_taxonomy, open_project
from services.rounds.queue_filling import fill
from services.rounds.settling import advance
from serving.artifacts import ArtifactStore
from serving.inference.loading import Loaded, open_version
from serving.inference.normalise import normalise
from serving.registry.registry import Registry
from tests.bench.report import Figure, write
from tests.bench.train_data import bank_rows, few
from tests.support import stored_rows
from tests.support.fakes import write_rows
from tests.support.first_rounds import next_round

ROUNDS, FEEDBACK, REFERENCE, SEED_EACH, BLOCK = 10, 200, 300, 4, 800
WRONG, RIGHT = 0.5, 0.1  # propensity of feedback on wrong and on right answers


class Arm:
    """One project, with the texts that it has seen."""

    def __init__(
        self,
        folder: Path,
        seed: Sequence[Example],
        reference: Sequence[Example],
        traffic: Sequence[Example],
        *,
        labels: bool,
    ) -> None:
        self.folder, self.traffic, self.labels = folder, traffic, labels
        self.truth = {normalise(row.text): row.label for row in traffic}
        self.settings = self._project(seed, reference)
        self.registry = Registry(self.settings.registry_url, self.settings.model.name)
        self.registry.migrate()
        fill_taxonomy(self.settings, self.registry)
        self.features = FeatureStore(self.settings)

    def _project(self, seed: Sequence[Example], reference: Sequence[Example]) -> Settings:
        project = self.folder / "project"
        if (project / "ratchet.toml").exists():
            return open_project(project)
        self.folder.mkdir(parents=True, exist_ok=True)
        seeds, judges = (
            write_rows(self.folder / f"{name}.csv", [(row.text, row.label) for row in rows])
            for name, rows in (("seed", seed), ("reference", reference))
        )
        overrides: dict[str, dict[str, object]] = {
            "model": {"max_length": 64},
            "training": {"method": "head", "threads": 1},
            "dataset": {"audit_rate": 0.0},
        }
        made = create_project(project, seed=seeds, reference=judges, name="bank", overrides=overrides)
        policy = made.path("policy.toml")
        if not self.labels:
            text = policy.read_text(encoding="utf-8")
            policy.write_text(text.replace("\nenabled = true", "\nenabled = false"), encoding="utf-8")
        return made

    def run(self, test: Sequence[Example]) -> list[dict[str, float | str]]:
        """Run the rounds that are missing and return what each left."""
        if self.registry.champion() is None:
            next_round(self.settings, self.registry, self.features)
        for number in range(ROUNDS):
            file = self.folder / f"round-{number}.json"
            if not file.exists():
                file.write_text(json.dumps(self._round(number, test)), encoding="utf-8")
                print(f"{self.folder.name} round {number + 1}: {file.read_text(encoding='utf-8')}", flush=True)
        return [
            json.loads((self.folder / f"round-{number}.json").read_text(encoding="utf-8")) for number in range(ROUNDS)
        ]

    def _round(self, number: int, test: Sequence[Example]) -> dict[str, float | str]:
        self._serve(number)
        self._collect(number)
        for left in [self.registry.unfinished_round()]:
            if left is not None:  # of a run that was stopped
                self.registry.finish_round(left.round_id, RoundState.FAILED, detail="the benchmark was stopped")
        record = next_round(self.settings, self.registry, self.features)
        if record.state is RoundState.SETTLING:
            self._serve(number + 1)
            record = self._settle(record)
        champion = self._champion()
        right = np.array(answers(champion, [row.text for row in test])) == np.array([row.label for row in test])
        labels = record.settling.labels if record.settling else 0
        return {
            "state": record.state.value,
            "labels": labels,
            "accuracy": float(right.mean()),
            "detail": record.detail or "",
        }

    def _serve(self, number: int) -> None:
        """Let the champion answer a block of traffic; a block that is stored already stays."""
        block = self.traffic[number * BLOCK : (number + 1) * BLOCK]
        predicted, now = answers(self._champion(), [row.text for row in block]), utc_now()
        rows = [
            stored_rows.prediction_row(
                n, text=row.text, predicted_label=label, event_timestamp=now, created_timestamp=now
            )
            for n, (row, label) in enumerate(zip(block, predicted, strict=True), number * BLOCK)
        ]
        stored_rows.append(self.features, "predictions", rows)

    def _collect(self, number: int) -> None:
        """Store the feedback of a block: corrections and confirmations, by people who notice errors more often."""
        stored = self.features.log_rows("predictions").to_pylist()
        label = {row["prediction_id"]: row["predicted_label"] for row in stored}
        draw, given = random.Random(number), list[dict[str, object]]()
        for n, row in enumerate(self.traffic[number * BLOCK : (number + 1) * BLOCK], number * BLOCK):
            wrong = label[f"p{n}"] != row.label
            if len(given) < FEEDBACK and draw.random() < (WRONG if wrong else RIGHT):
                offset = number * FEEDBACK + len(given)
                given.append(stored_rows.said(f"f{n}", n, row.label, offset, user=f"u{n}"))
        stored_rows.append(self.features, "feedback", given)

    def _settle(self, record: RoundRecord) -> RoundRecord:
        fill(self.settings, self.registry, self.features)
        while item := self.registry.queue.next("oracle", kind="disagreement"):
            self.registry.queue.label(item.item_id, self.truth[item.text], reviewer="oracle")
            after = advance(self.settings, self.registry, token=None, announce=lambda _: None)
            if after is None or after.state is not RoundState.SETTLING:
                break
        return self.registry.round(record.round_id)

    def _champion(self) -> Loaded:
        champion = self.registry.champion()
        assert champion is not None
        store = ArtifactStore(self.settings.location(self.settings.artifacts.url))
        return open_version(store.fetch(champion.digest, self.settings.path("state/cache")), champion.digest)


def arms(folder: Path) -> Iterator[Arm]:
    """The two projects, on the same rows."""
    seed, others = few(bank_rows("train"), SEED_EACH, 0)
    random.Random(0).shuffle(others)
    reference, traffic = others[:REFERENCE], others[REFERENCE:]
    for labels in (True, False):
        yield Arm(folder / ("with labels" if labels else "without"), seed, reference, traffic, labels=labels)


def main() -> None:
    """Run both projects and write the figures."""
    folder, test = Path(sys.argv[1]), bank_rows("test")
    done = {arm.folder.name: arm.run(test) for arm in arms(folder)}
    with_labels, without = done["with labels"], done["without"]
    promoted = {name: sum(one["state"] == "promoted" for one in rounds) for name, rounds in done.items()}
    spent = sum(int(one["labels"]) for one in with_labels)
    accuracies = [float(rounds[-1]["accuracy"]) for rounds in (with_labels, without)]
    write(
        "evidence-banking",
        [
            Figure(
                figure="Banking77, 10 rounds: promoted with labels (baseline: without)",
                value=promoted["with labels"],
                op=">=",
                target=promoted["without"],
                n=ROUNDS,
                baseline=promoted["without"],
            ),
            Figure(
                figure=f"Banking77: final test accuracy with labels, {spent} spent (baseline: without)",
                value=accuracies[0],
                op=">=",
                target=accuracies[1],
                n=len(test),
                baseline=accuracies[1],
            ),
        ],
    )


if __name__ == "__main__":
    main()
