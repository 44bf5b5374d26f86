"""Apache Kafka itself, from ../shared/kafka, where that folder and Java are there: one node or three, killed and started.

Turns a folder into running nodes. The tests that need a real cluster and `make bench-kafka` use it.
"""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from kafka import KafkaAdminClient
from kafka.admin import NewTopic

from serving.messaging.connection import Broker
from serving.messaging.publisher import topic_ids
from tests.support.fakes import free_ports, wait_until

HOME = Path(__file__).parents[3] / "shared/kafka"
CLIENTS = HOME / "libs"
START_SECONDS = 300.0  # on a machine with other work


def installed() -> bool:
    """Return whether Apache Kafka can be started here."""
    return (HOME / "start").exists() and shutil.which("java") is not None


class Cluster:
    """Nodes of one cluster, numbered from 1, each a process; topics and offsets in `folder` outlive them."""

    def __init__(self, folder: Path, nodes: int, *settings: str) -> None:
        self.folder, self._settings = folder, settings
        self.port = free_ports(2 * nodes)
        self.nodes = range(1, nodes + 1)
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    @property
    def servers(self) -> str:
        """The addresses of all nodes."""
        return ",".join(f"127.0.0.1:{self.port_of(node)}" for node in self.nodes)

    def port_of(self, node: int) -> int:
        """Return the port of a node's listener."""
        return self.port + 2 * (node - 1)

    def start(self, *nodes: int) -> None:
        """Start these nodes, all by default, and wait until each answers."""
        chosen = nodes or tuple(self.nodes)
        for node in chosen:
            which = ["--node", f"{node}/{len(self.nodes)}"] if len(self.nodes) > 1 else []
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / f"node-{node}.log").open("ab") as log:
                self._processes[node] = subprocess.Popen(
                    [HOME / "start", self.folder, str(self.port), *which, *self._settings], stdout=log, stderr=log
                )
        for node in chosen:
            wait_until(partial(self._answers, node), timeout_s=START_SECONDS, every_s=0.3)

    def make_topics(self, names: Sequence[str], configs: dict[str, str], *, partitions: int = 1) -> None:
        """Make topics as somebody else would."""
        admin = KafkaAdminClient(bootstrap_servers=self.servers)
        try:
            admin.create_topics([NewTopic(name, partitions, 1, topic_configs=configs) for name in names])
        finally:
            admin.close()

    def signal(self, number: signal.Signals, *nodes: int) -> None:
        """Send a signal to these nodes, all by default: SIGSTOP freezes, SIGCONT thaws."""
        for node in nodes or tuple(self._processes):
            os.kill(self._processes[node].pid, number)

    def stop(self, node: int) -> None:
        """Shut a node down in an orderly way, as a rolling restart does."""
        process = self._processes.pop(node)
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)

    def kill(self, *nodes: int) -> None:
        """Kill these nodes, all by default."""
        for node in nodes or tuple(self._processes):
            process = self._processes.pop(node)
            process.kill()
            process.wait(10)

    def _answers(self, node: int) -> bool:
        if self._processes[node].poll() is not None:
            raise RuntimeError(f"Apache Kafka ended: see {self.folder}/node-{node}.log")
        try:
            topic_ids(Broker(f"127.0.0.1:{self.port_of(node)}"), ["any"], timeout_s=5)
        except ConnectionError:
            return False
        return True


@contextlib.contextmanager
def cluster(folder: Path, nodes: int = 1, *settings: str) -> Iterator[Cluster]:
    """Run a cluster until the block ends."""
    made = Cluster(folder, nodes, *settings)
    try:
        made.start()
        yield made
    finally:
        made.kill()
