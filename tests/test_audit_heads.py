"""The audit log listed, exported and compared with heads kept elsewhere: what is cut off or written again is noticed."""

import csv
import hashlib
import json
import uuid
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from schemas.settings import Settings, render_settings
from services.audit_heads import HeadKeeper
from services.cli.main import cli
from serving.http.access import write_keys
from serving.messaging.connection import Broker
from serving.messaging.publisher import ensure_topics
from serving.registry.registry import Registry
from serving.registry.safeguards.audit_heads import BadHeads, faults, head_of, read_heads
from tests.support import registries
from tests.support.kafka_tools import read_all
from tests.support.registries import Clock, statement

url, clock, registry = registries.url, registries.clock, registries.registry


def logged(registry: Registry, *actions: str) -> None:
    for action in actions:
        registry.audit("ann", action, {"reason": "=HYPERLINK()"})


def test_a_head_shows_that_the_tail_is_gone_though_the_chain_is_whole(
    registry: Registry, url: str, clock: Clock
) -> None:
    logged(registry, "a", "b")
    early = head_of(registry)
    logged(registry, "c")
    late = head_of(registry)
    assert early is not None
    assert late is not None
    assert faults(registry, [early, late]) == []
    statement(url, "DELETE FROM audit WHERE sequence = 3")
    assert registry.verify_audit() == [], "the chain alone cannot know"
    assert faults(registry, [early, late]) == [
        "audit log of m: cut off: the log ends at row 2, and had row 3 at 2026-11-24 12:00:00 UTC"
    ]
    logged(registry, "d")
    assert faults(registry, [early, late]) == [
        "audit log of m: row 3 was written again: it had another hash at 2026-11-24 12:00:00 UTC"
    ]


def test_an_empty_log_has_no_head_and_an_emptied_one_is_noticed(registry: Registry, url: str) -> None:
    assert head_of(registry) is None
    logged(registry, "a")
    head = head_of(registry)
    assert head is not None
    statement(url, "DELETE FROM audit")
    assert "cut off: the log ends at row 0" in faults(registry, [head])[0]


@pytest.mark.parametrize("text", ["", "nonsense\n", '{"model_name": "m"}\n', '{"model_name": "other"'])
def test_a_file_that_is_no_file_of_heads_is_refused(text: str) -> None:
    with pytest.raises(BadHeads):
        read_heads(text.splitlines(), "m")


def test_only_a_moved_head_is_written_and_other_models_may_share_the_file(
    registry: Registry, url: str, tmp_path: Path
) -> None:
    file = tmp_path / "elsewhere/heads.jsonl"
    tree = {"model": {"name": "m"}, "registry": {"audit_head_file": str(file)}, "root": tmp_path}
    settings = Settings.model_validate(tree)
    keeper = HeadKeeper(settings, registry, None)
    keeper.write()
    assert not file.exists(), "nothing is logged yet"
    logged(registry, "a")
    for _ in range(3):
        keeper.write()
    HeadKeeper(settings, registry, None).write()  # another process
    logged(registry, "b")
    keeper.write()
    other = Registry(url, "other")
    logged(other, "a")
    HeadKeeper(settings, other, None).write()
    other.close()
    lines = file.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["sequence"] for line in lines] == [1, 2, 1]
    assert [head.sequence for head in read_heads(lines, "m")] == [1, 2]


def test_a_head_that_cannot_be_written_now_is_written_later(registry: Registry, tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file, where a folder has to be", encoding="utf-8")
    tree = {"registry": {"audit_head_file": str(blocked / "heads.jsonl")}, "root": tmp_path}
    keeper = HeadKeeper(Settings.model_validate(tree), registry, None)
    logged(registry, "a")
    keeper.write()
    blocked.unlink()
    keeper.write()
    assert (blocked / "heads.jsonl").exists()


def test_the_messages_of_a_topic_are_a_file_of_heads(registry: Registry, broker: str, tmp_path: Path) -> None:
    topic = f"heads-{uuid.uuid4().hex[:8]}"
    ensure_topics(Broker(broker), [topic], partitions=1, replication_factor=1, timeout_s=30)
    settings = Settings.model_validate({"registry": {"audit_head_topic": topic}, "root": tmp_path})
    keeper = HeadKeeper(settings, registry, Broker(broker))
    for action in ("a", "b"):
        logged(registry, action)
        keeper.write()
        keeper.write()
    messages = read_all(broker, topic)
    heads = read_heads((message.value.decode() for message in messages), "m")
    assert [head.sequence for head in heads] == [1, 2]
    assert faults(registry, heads) == []


# --- the command line ----------------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with settings, keys and a registry whose log has three rows."""
    (tmp_path / "ratchet.toml").write_text(render_settings({"model": {"name": "m"}}), encoding="utf-8")
    write_keys(tmp_path / "keys.env")
    made = Registry(f"sqlite:///{tmp_path}/state/registry.db", "m")
    made.migrate()
    logged(made, "approve", "reject", "approve")
    made.close()
    return tmp_path


def run(project: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["audit", *arguments, "-c", str(project)])


def test_the_log_is_listed_by_actor_and_action(project: Path) -> None:
    assert [row["sequence"] for row in json.loads(run(project, "list", "--json").stdout)] == [1, 2, 3]
    listed = json.loads(run(project, "list", "--action", "approve", "--last", "1", "--json").stdout)
    assert [row["sequence"] for row in listed] == [3]
    assert run(project, "list", "--actor", "bob").stdout == "no rows\n"
    assert "ann" in run(project, "list").stdout


def test_an_export_can_be_verified_without_ratchet_and_runs_no_formula(project: Path) -> None:
    assert run(project, "export", "--out", str(project / "log.jsonl")).exit_code == 0
    previous = "0" * 64
    for line in (project / "log.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        digest = row.pop("hash")
        assert hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest() == digest
        assert row["previous"] == previous
        previous = digest
    opened = Registry(f"sqlite:///{project}/state/registry.db", "m")
    opened.audit("ann", "=cmd|' /C calc'!A0", {})
    opened.close()
    assert run(project, "export", "--out", str(project / "log.csv")).exit_code == 0
    with (project / "log.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["sequence"] for row in rows] == ["1", "2", "3", "4"]
    assert rows[3]["action"].startswith("'=cmd")


def test_verify_compares_with_a_file_of_heads(project: Path) -> None:
    database = f"sqlite:///{project}/state/registry.db"
    opened = Registry(database, "m")
    head = head_of(opened)
    opened.close()
    assert head is not None
    (project / "heads.jsonl").write_text(head.model_dump_json() + "\n", encoding="utf-8")
    whole = run(project, "verify", "--head", str(project / "heads.jsonl"))
    assert (whole.exit_code, whole.stdout) == (0, "the audit log is whole: 3 rows, and holds all of 1 heads\n")
    statement(database, "DELETE FROM audit WHERE sequence = 3")
    assert run(project, "verify").exit_code == 0
    cut = run(project, "verify", "--head", str(project / "heads.jsonl"))
    assert cut.exit_code == 1
    assert "cut off: the log ends at row 2, and had row 3" in cut.stdout
