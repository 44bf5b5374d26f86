"""`make bench-dataset`: how long 200,000 feedback rows take to become a ready dataset, and whether anything leaks.

Each size is measured in a process of its own: feedback read through Feast as of a cut, cleaned, clustered, split against a
registry on SQLite, written and profiled with the real base model. Texts are word walks over BBC News, 10 % of them
near-duplicates. The quarantine judges by words at these sizes (cleaning/quarantine.py): no embedding is set apart.

`python -m tests.bench.dataset size N` measures one size; without arguments everything runs and bench-dataset.json is written.
A size is measured three times in fresh processes, with nothing in the ledger; the median by seconds counts.
"""

import contextlib
import itertools
import json
import random
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa

from pipelines.dataset.cleaning.deduplicate import cluster
from pipelines.dataset.project_dataset import collect_and_build, write_rows
from pipelines.dataset.report.write import write_report
from pipelines.feature_store.event_log import SCHEMAS
from pipelines.feature_store.store import FeatureStore
from pipelines.models.encoder import Encoder, base_model_path
from schemas.settings import Settings, load_settings
from services.demo.articles import bbc_news
from services.projects import create_project
from serving.registry.registry import Registry
from tests.bench.report import Figure, write
from tests.support.dataset_rounds import Simulation, edited, similar_pairs
from tests.support.fakes import write_rows as write_csv

SIZES = (20_000, 50_000, 100_000, 200_000)
ROWS_A_PERSON = 40
NEAR_DUPLICATES = 0.1
START = datetime(2026, 1, 1, tzinfo=UTC)


class Walks:
    """Sentences of 8 to 20 words that follow one another in some article of a topic."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)
        self._after: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for article in bbc_news():
            words = article.text.split()
            for word, following in itertools.pairwise(words):
                self._after[article.topic][word].append(following)
        self.topics = sorted(self._after)
        self._words = {topic: sorted(self._after[topic]) for topic in self.topics}

    def rows(self, n: int) -> list[tuple[str, str]]:
        """`n` rows of (text, topic), a tenth of them near-duplicates of earlier ones."""
        rows: list[tuple[str, str]] = []
        while len(rows) < n:
            if rows and self._draw.random() < NEAR_DUPLICATES:
                text, topic = self._draw.choice(rows)
                rows.append((edited(self._draw, text), topic))
            else:
                topic = self._draw.choice(self.topics)
                rows.append((self._walk(topic), topic))
        return rows

    def _walk(self, topic: str) -> str:
        words = [self._draw.choice(self._words[topic])]
        for _ in range(self._draw.randint(7, 19)):
            words.append(self._draw.choice(self._after[topic].get(words[-1]) or self._words[topic]))
        return " ".join(words)


def project(root: Path, n: int) -> Settings:
    """A project whose event log holds `n` predictions with a feedback each."""
    walks = Walks(seed=n)
    seed = write_csv(root / "seed.csv", walks.rows(100))
    reference = write_csv(root / "reference.csv", walks.rows(600))
    create_project(root / "p", seed=seed, reference=reference)
    config = root / "p/ratchet.toml"
    settings = load_settings(config.read_text(encoding="utf-8"), {}, root=config.parent)
    rows, draw = walks.rows(n), random.Random(n)
    kinds = draw.choices(["correction", "confirmation", "up", "down", "comment"], [50, 25, 10, 10, 5], k=n)
    log = FeatureStore(settings).log
    for start in range(0, n, 20_000):
        numbers = range(start, min(start + 20_000, n))
        predictions, feedback = [], []
        for i in numbers:
            text, topic = rows[i]
            wrong = kinds[i] in ("correction", "down")
            shown = draw.choice([t for t in walks.topics if t != topic]) if wrong else topic
            at = START + timedelta(seconds=i)
            where = {"created_timestamp": at, "partition": 0, "offset": i}
            predictions.append(
                {
                    "prediction_id": f"p{i:07}",
                    "model_version": "v1",
                    "generation": 1,
                    "text": text,
                    "predicted_label": shown,
                    "confidence": 0.5,
                    "probabilities": "{}",
                    "metadata": json.dumps({"channel": draw.choice(["ios", "android", "web"])}),
                    "audit": False,
                    "event_timestamp": at,
                    "topic_id": "P",
                    **where,
                }
            )
            value = {"up": "up", "down": "down", "comment": "thank you"}.get(kinds[i], topic)
            kind = {"up": "rating", "down": "rating", "comment": "comment"}.get(kinds[i], "correction")
            feedback.append(
                {
                    "feedback_id": f"f{i:07}",
                    "prediction_id": f"p{i:07}",
                    "kind": kind,
                    "value": json.dumps(value),
                    "user": f"u{i % (n // ROWS_A_PERSON)}",
                    "event_timestamp": at + timedelta(seconds=1),
                    "topic_id": "F",
                    **where,
                }
            )
        log.append("predictions", pa.Table.from_pylist(predictions, schema=SCHEMAS["predictions"]))
        log.append("feedback", pa.Table.from_pylist(feedback, schema=SCHEMAS["feedback"]))
    return settings


def measure(root: Path) -> dict[str, float]:
    """Seconds and peak memory from the event log to a ready dataset; imports and weights are loaded before."""
    settings = load_settings((root / "p/ratchet.toml").read_text(encoding="utf-8"), {}, root=root / "p")
    registry = Registry(settings.registry_url, settings.model.name)
    encoder = Encoder(base_model_path(settings.model.base_model), settings.model.max_length)
    features = FeatureStore(settings)
    cut = features.current_cut()
    folder = root / "round"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with contextlib.closing(sqlite3.connect(root / "p/state/registry.db")) as ledger:
        ledger.execute("DELETE FROM sides")
        ledger.commit()
    started = time.perf_counter()
    feedback = features.labelled_feedback(cut)
    read = time.perf_counter()
    found = collect_and_build(settings, feedback, cut=cut, labels=registry.label_map(), ledger=registry, base=encoder)
    built = time.perf_counter()
    write_rows(folder, found)
    write_report(folder, found, settings, registry, features, encoder)
    ended = time.perf_counter()
    m = found.manifest
    return {
        "seconds": ended - started,
        "read": read - started,
        "build": built - read,
        "write": ended - built,
        "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "rows": m.rows_in,
        "train": m.rows_train,
        "duplicate": m.dropped.get("duplicate", 0) + m.dropped.get("outvoted", 0) + m.dropped.get("disagreement", 0),
    }


def one_size(n: int) -> dict[str, float]:
    """Measure a size three times, each in a fresh process."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        project(root, n)
        command = [sys.executable, "-m", "tests.bench.dataset", "measure", str(root)]
        found: list[dict[str, float]] = []
        for _ in range(3):
            done = subprocess.run(command, capture_output=True, text=True, check=True, encoding="utf-8")
            found.append(json.loads(done.stdout.strip().splitlines()[-1]))
            shown = ", ".join(f"{name} {value:,.2f}" for name, value in found[-1].items())
            print(f"{n:>8,} rows: {shown}", flush=True)  # as each is measured
    return sorted(found, key=lambda one: one["seconds"])[1]


def recall(texts: Sequence[str], pairs: set[tuple[int, int]], candidates: set[tuple[int, int]]) -> float:
    """Share of the similar pairs that a method would compare."""
    return len(pairs & candidates) / max(1, len(pairs))


def minhash(texts: Sequence[str], bands: int = 17, rows: int = 8) -> set[tuple[int, int]]:
    """Candidate pairs of datasketch's MinHash LSH; 17 bands of 8 find a pair at 0.9 with probability .9999."""
    from datasketch import MinHash, MinHashLSH

    from tests.support.dataset_rounds import grams_of

    index = MinHashLSH(num_perm=bands * rows, params=(bands, rows))
    found = set()
    for n, text in enumerate(texts):
        sketch = MinHash(num_perm=bands * rows)
        sketch.update_batch([gram.encode() for gram in grams_of(text)])
        found |= {(other, n) for other in index.query(sketch)}
        index.insert(n, sketch)
    return found


def timed(call: Callable[[], object]) -> float:
    """Seconds of a call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def duplicates_figures() -> list[Figure]:
    """Recall and seconds of our near-duplicates against MinHash LSH, in the same run."""
    texts = list(dict.fromkeys(text for text, _ in Walks(seed=5).rows(20_000)))
    pairs = set(similar_pairs(texts))
    ours = cluster(texts, anchors=len(texts))  # every text is compared with every other
    found = {(min(i, j), max(i, j)) for i, near in ours.near.items() for j in near}
    # a text lists eight likes at most; pairs beyond are not looked for
    whole = {i for i, near in ours.near.items() if len(near) < 8}
    counted = {(i, j) for i, j in pairs if i in whole or j in whole}
    theirs = minhash(texts)
    ours_s, theirs_s = timed(lambda: cluster(texts)), timed(lambda: minhash(texts))
    n = len(counted)
    return [
        Figure(
            figure="near-duplicates: recall at Jaccard >= 0.9 (baseline: MinHash LSH, 17 bands of 8)",
            value=recall(texts, counted, found),
            op=">=",
            target=0.9999,
            n=n,
            baseline=recall(texts, counted, theirs),
        ),
        Figure(
            figure="near-duplicates: seconds for 20,000 texts (baseline: MinHash LSH before verifying)",
            value=ours_s,
            op="<=",
            target=round(theirs_s, 2),
            n=len(texts),
            baseline=theirs_s,
        ),
    ]


def leak_figures() -> list[Figure]:
    """20 rounds with 10 % near-duplicates and bridges, looked at by another method."""
    simulated = Simulation(seed=11, rows=400)
    simulated.run(20)
    print(f"rows left out over all rounds: {dict(simulated.dropped)}")
    return [
        Figure(
            figure="leak test, 20 rounds: pairs in use with Jaccard >= 0.9 across sides",
            value=simulated.leaks,
            op="<=",
            target=0,
            n=simulated.pairs,
        ),
        Figure(
            figure="leak test, 20 rounds: rows that changed side",
            value=simulated.changed,
            op="<=",
            target=0,
            n=len(simulated.side),
        ),
    ]


def fingerprint_figure() -> Figure:
    """The same cut in three processes with other hash seeds and row orders: fingerprints beyond the first."""
    code = (
        "import random, sys; from tests.support.dataset_rounds import Simulation\n"
        "s = Simulation(seed=4, rows=2000); s.grow(); rows = list(s.given); random.Random(int(sys.argv[1])).shuffle(rows)\n"
        "print(s.build(rows).manifest.fingerprint)"
    )
    found = []
    for n in range(3):
        command = [sys.executable, "-c", code, str(n)]
        done = subprocess.run(
            command, env={"PYTHONHASHSEED": str(n + 1)}, capture_output=True, text=True, check=True, encoding="utf-8"
        )
        found.append(done.stdout.strip())
    return Figure(
        figure="same cut in 3 processes and row orders: other fingerprints than the first",
        value=len(set(found)) - 1,
        op="<=",
        target=0,
        n=3,
    )


def speed_figures(sizes: Sequence[int] = SIZES) -> list[Figure]:
    """Seconds, memory and linearity."""
    found = {n: one_size(n) for n in sizes}
    largest, least = found[max(sizes)], found[min(sizes)]
    figures = [
        Figure(
            figure=f"{max(sizes):,} feedback rows -> a ready dataset, seconds",
            value=largest["seconds"],
            op="<=",
            target=60,
            n=max(sizes),
        ),
        Figure(figure="peak memory, GiB", value=largest["gib"], op="<=", target=4, n=max(sizes)),
    ]
    base = least["seconds"] / min(sizes)
    for n in sizes:
        figures.append(
            Figure(
                figure=f"seconds a row at {n:,} / at {min(sizes):,} ({1e6 * found[n]['seconds'] / n:.0f} µs a row)",
                value=found[n]["seconds"] / n / base,
                op="<=",
                target=1.2,
                n=n,
            )
        )
    return figures


def main() -> None:
    """Measure a part, or everything."""
    match sys.argv[1:]:
        case ["measure", root]:
            print(json.dumps(measure(Path(root))))
        case ["size", n]:
            one_size(int(n))
        case ["speed"]:
            write("dataset-speed", speed_figures())
        case _:
            # speed last: each part is written down as soon as it is known
            figures = [*leak_figures(), fingerprint_figure()]
            write("dataset", figures)
            figures += duplicates_figures()
            write("dataset", figures)
            write("dataset", [*speed_figures(), *figures])


if __name__ == "__main__":
    main()
