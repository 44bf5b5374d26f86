"""`ratchet dataset`: a look at what a round would train on, which leaves no trace in the ledger, and an export."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from schemas.settings import Settings, load_settings
from services.cli.main import cli
from services.projects import create_project
from serving.registry.registry import Registry
from tests.support.fakes import toy_rows, write_rows


@pytest.fixture
def project(tmp_path: Path, tiny_base: Path) -> Settings:
    create_project(
        tmp_path / "toys",
        seed=write_rows(tmp_path / "seed.csv", toy_rows(60, seed=1)),
        reference=write_rows(tmp_path / "reference.csv", toy_rows(30, seed=2)),
        base_model=str(tiny_base),
        overrides={"model": {"max_length": 32}},
    )
    config = tmp_path / "toys/ratchet.toml"
    return load_settings(config.read_text(encoding="utf-8"), {}, root=config.parent)


def run(project: Settings, *arguments: str) -> str:
    found = CliRunner().invoke(cli, ["dataset", *arguments, "-c", str(project.root / "ratchet.toml")])
    assert found.exception is None, found.output
    return found.stdout


def test_build_shows_the_dataset_and_decides_nothing(project: Settings) -> None:
    manifest = json.loads(run(project, "build", "--json"))
    assert manifest["rows_in"] == 60
    folder = project.path("state/dataset")
    assert json.loads((folder / "dataset.json").read_text(encoding="utf-8"))["manifest"] == manifest
    assert "<svg" in (folder / "dataset.html").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == manifest["rows_train"] + manifest["rows_validation"]
    registry = Registry(project.registry_url, project.model.name)
    from pipelines.dataset.split import cluster_key

    assert registry.sides([cluster_key(project.model.name, row["text"]) for row in rows]) == {}
    registry.close()


def test_export_writes_a_chat_file_and_a_plain_one(project: Settings, tmp_path: Path) -> None:
    from pipelines.dataset.formats import check_chat

    out = tmp_path / "chat.jsonl"
    run(project, "export", "--out", str(out))
    lines = out.read_text(encoding="utf-8").splitlines()
    check_chat(lines)
    run(project, "export", "--format", "jsonl", "--out", str(out))
    plain = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["text"] for row in plain] == [json.loads(line)["messages"][1]["content"] for line in lines]
