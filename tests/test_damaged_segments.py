"""A broker's failing disk: what it cannot read, or returns damaged, is passed over and counted; the rest is stored."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from serving.messaging.publisher import Outgoing, Publisher
from tests.support.apache_kafka import Cluster, cluster
from tests.support.events import fid
from tests.support.fakes import wait_until
from tests.support.ingesting import Ingesting
from tests.support.segments import Batch, batches, flip_bit, set_length

pytestmark = pytest.mark.kafka

EVENTS, DAMAGED = 60, 20
# Kafka finds an offset from the last of its index entries before it, one for each 4,096 bytes: behind a damaged header it cannot
# read the rest of such an interval.
INTERVAL = 12
Harm = Callable[[Path, Batch], None]
DAMAGES: dict[str, tuple[Harm, int]] = {  # and how many events may be lost
    "a bit of a record": (flip_bit, 1),
    "a length of nothing": (lambda segment, batch: set_length(segment, batch, 0), INTERVAL),
    "a negative length": (lambda segment, batch: set_length(segment, batch, -1), INTERVAL),
}


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("kafka")) as node:
        yield node


def test_what_a_disk_has_damaged_is_passed_over_and_counted(kafka: Cluster, tmp_path: Path, model_name: str) -> None:
    projects = {
        damage: Ingesting(tmp_path / f"project-{n}", kafka.servers, f"{model_name}-{n}")
        for n, damage in enumerate(DAMAGES)
    }
    for project in projects.values():
        project.make_topics()
        with closing(Publisher(project.broker, timeout_s=20)) as publisher:
            for n in range(EVENTS):  # a batch each
                publisher.publish_many([Outgoing(project.topics.feedback, b"k", project.event(n))])
    kafka.stop(1)
    for damage, project in projects.items():
        segment = next(kafka.folder.glob(f"**/{project.topics.feedback}-0/*.log"))
        batch = next(batch for batch in batches(segment) if batch.base_offset == DAMAGED)
        DAMAGES[damage][0](segment, batch)
    kafka.start()
    for damage, project in projects.items():
        passed_over(project, DAMAGES[damage][1])
        project.close()


def passed_over(project: Ingesting, most: int) -> None:
    """What is not stored is `most` events from the damaged one on, each counted and with a dead letter for it."""
    with project.consuming() as consumer:
        wait_until(lambda: fid(EVENTS - 1) in project.stored() and consumer.drained(), timeout_s=120, every_s=0.5)
    lost = sorted({fid(n) for n in range(EVENTS)} - set(project.stored()))
    assert lost == [fid(n) for n in range(DAMAGED, DAMAGED + len(lost))]
    assert 1 <= len(lost) <= most
    assert project.notes()["unreadable"][0] == len(lost)
    assert {int(headers["ratchet-offset"]) for _, headers in project.letters()} == set(
        range(DAMAGED, DAMAGED + len(lost))
    )
