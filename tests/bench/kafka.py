"""Benchmark on Apache Kafka: `make bench-kafka` prints each figure and writes bench-kafka.json.

`python -m tests.bench.kafka PART…` measures some parts (faults, throughput, codecs) and keeps the others' figures from the
file. It needs ../shared/kafka and Java, and judges nothing. All of it takes about twelve minutes on two cores: faults three,
throughput three, codecs six.

Rates are measured by turns: every way once a round, in an order that turns around, so that a machine that slows down slows all
of them. A figure is the median of the rounds; its interval is the lowest and the highest, which for five rounds holds the true
median with a probability of 94 %.
"""

import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from kafka import KafkaProducer

from schemas.events import FeedbackReceived, PredictionMade
from serving.messaging.publisher import Outgoing, Topics
from tests.bench.ingest_throughput import drained, mixed, polled, project
from tests.bench.kafka_faults import fault_figures
from tests.bench.report import Figure, measure_parts
from tests.support.apache_kafka import cluster
from tests.support.events import outgoing
from tests.support.kafka_tools import own_broker

NAME = "kafka"
EVENTS = int(os.environ.get("EVENTS", "20000"))
ROUNDS = int(os.environ.get("ROUNDS", "5"))
CODECS = ("gzip", "snappy", "lz4", "zstd")
TARGET = 3000  # events a second, of one consumer


@dataclass(frozen=True)
class Way:
    """A broker, and a codec of the batches that are sent to it."""

    address: str
    codec: str | None = None


@dataclass(frozen=True)
class Turn:
    """Events a second in one round: sent, stored exactly once, and polled by kafka-python's bare loop."""

    sent: float
    stored: float
    polled: float


def throughput_figures(folder: Path) -> list[Figure]:
    """Events a second from Apache Kafka, beside the embedded broker and beside the bare poll loop on each."""
    with own_broker() as embedded, cluster(folder / "kafka") as kafka:
        ways = {"Apache Kafka": Way(kafka.servers), "the embedded broker": Way(embedded.address)}
        turns = by_turns(folder, ways)
    ours, theirs = (turns[name] for name in ways)
    return [
        _rate("events/s stored from Apache Kafka, beside the embedded broker", ours, [turn.stored for turn in theirs]),
        *(
            _rate(f"events/s stored from {name}, beside the bare poll loop", of, [turn.polled for turn in of])
            for name, of in turns.items()
        ),
    ]


def codec_figures(folder: Path) -> list[Figure]:
    """Events a second stored from batches of each codec, beside uncompressed ones; the topics' bytes are printed."""
    with cluster(folder / "kafka") as kafka:
        turns = by_turns(folder, {"no codec": Way(kafka.servers)} | {c: Way(kafka.servers, c) for c in CODECS})
        for number, name in enumerate(turns):
            files = (folder / "kafka").glob(f"**/way-{number}-*.*-?/*.log")
            size = sum(file.stat().st_size for file in files) / (EVENTS * ROUNDS)
            print(f"  {name}: {size:.0f} bytes an event on the broker's disk", flush=True)
    plain = [turn.stored for turn in turns["no codec"]]
    return [_rate(f"events/s stored from {codec}, beside no codec", turns[codec], plain) for codec in CODECS]


def by_turns(folder: Path, ways: Mapping[str, Way]) -> dict[str, list[Turn]]:
    """Measure every way once a round, each time on topics of its own, and print each turn."""
    events, turns = list(mixed(EVENTS, seed=1)), {name: list[Turn]() for name in ways}
    numbered = list(enumerate(ways))
    for n in range(ROUNDS):
        for number, name in numbered if n % 2 == 0 else reversed(numbered):
            turn = measured(folder / f"{number}-{n}", f"way-{number}-{n}", ways[name], events)
            turns[name].append(turn)
            print(
                f"  round {n + 1}, {name}: {turn.sent:.0f} events/s sent, {turn.stored:.0f} stored, {turn.polled:.0f} polled",
                flush=True,
            )
    return turns


def measured(folder: Path, model: str, way: Way, events: Sequence[PredictionMade | FeedbackReceived]) -> Turn:
    """Send the events to new topics, store them with one consumer, then poll them with the bare loop."""
    settings, registry = project(folder, way.address, model)
    with closing(registry):
        topics = Topics.of(model)
        messages = [outgoing(topics, event) for event in events]
        sent = send(way, messages)
        stored = drained(settings, registry, len(messages))
        if letters := [note for note in registry.ingestion() if note.kind == "dead letters"]:
            raise RuntimeError(f"not stored: {letters}")
        begun = time.perf_counter()
        names = [topics.predictions, topics.feedback]
        count = sum(len(records) for records in polled(way.address, names, len(messages)))
        return Turn(sent, stored, count / (time.perf_counter() - begun))


def send(way: Way, messages: Sequence[Outgoing]) -> float:
    """Send messages as another application would, in large batches; return how many a second."""
    producer = KafkaProducer(
        bootstrap_servers=way.address, compression_type=way.codec, linger_ms=20, batch_size=1 << 18, acks="all"
    )
    begun = time.perf_counter()
    futures = [producer.send(message.topic, message.value, key=message.key) for message in messages]
    producer.flush()
    seconds = time.perf_counter() - begun
    for future in futures:
        future.get(timeout=10)  # raises what failed
    producer.close()
    return len(messages) / seconds


def _rate(figure: str, turns: Sequence[Turn], baseline: Sequence[float]) -> Figure:
    rates = [turn.stored for turn in turns]
    return Figure(
        figure=figure,
        value=median(rates),
        op=">=",
        target=TARGET,
        n=EVENTS * len(rates),
        interval=(min(rates), max(rates)),
        baseline=median(baseline),
    )


PARTS: dict[str, Callable[[Path], list[Figure]]] = {
    "faults": fault_figures,
    "throughput": throughput_figures,
    "codecs": codec_figures,
}


def main() -> None:
    """Measure the parts that the arguments name, or all."""
    warnings.simplefilter("ignore")
    measure_parts(NAME, PARTS)


if __name__ == "__main__":
    main()
