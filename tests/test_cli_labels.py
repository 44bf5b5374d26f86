"""`ratchet labels` and `ratchet dataset exclude` on a real project: what a round would train on follows them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from schemas.settings import Settings, load_settings, render_settings
from services.cli.main import cli
from services.projects import create_project
from serving.http.access import write_keys
from serving.registry.registry import Registry
from tests.support.fakes import toy_rows, write_rows


@pytest.fixture
def project(tmp_path: Path, tiny_base: Path) -> Settings:
    rows = [(text, f"{label} ") for text, label in toy_rows(60, seed=1)]
    create_project(
        tmp_path / "toys",
        seed=write_rows(tmp_path / "seed.csv", rows),
        reference=write_rows(tmp_path / "reference.csv", toy_rows(30, seed=2)),
        base_model=str(tiny_base),
        overrides={"model": {"max_length": 32}},
    )
    config = tmp_path / "toys/ratchet.toml"
    return load_settings(config.read_text(encoding="utf-8"), {}, root=config.parent)


@pytest.fixture
def registry(project: Settings) -> Iterator[Registry]:
    opened = Registry(project.registry_url, project.model.name)
    yield opened
    opened.close()


def run(project: Settings, *arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(cli, [*arguments, "-c", str(project.root / "ratchet.toml")])
    assert done.exit_code == code, done.output
    return done.output if code else done.stdout


def test_labels_have_one_form_and_are_renamed_merged_and_retired(project: Settings, registry: Registry) -> None:
    assert registry.active_labels() == ["cooking", "football", "money"]
    assert run(project, "labels", "add", "money ", "\u200bcooking") == "known already: nothing added\n"
    assert run(project, "labels", "add", "1.0") == "added: 1\n"
    assert "a label may not be empty" in run(project, "labels", "add", "\u200b", code=2)
    assert run(project, "labels", "rename", "money", "finance").startswith("renamed: money is finance from now on; ")
    assert run(project, "labels", "merge", "1", "finance").startswith("merged: 1 is finance from now on")
    assert run(project, "labels", "retire", "cooking").startswith("retired: cooking; the champion predicts its own")
    refused = CliRunner().invoke(cli, ["labels", "retire", "football", "-c", str(project.root / "ratchet.toml")])
    assert "needs at least 2: add another first" in str(refused.exception)
    assert "money  merged into finance" in run(project, "labels", "list")

    manifest = json.loads(run(project, "dataset", "build", "--json"))
    assert manifest["labels"] == ["football", "finance"]
    assert manifest["dropped"]["label not in the taxonomy"] == 20
    assert set(manifest["rows_by_label"]) == {"football", "finance"}
    rows = [
        json.loads(line) for line in project.path("state/dataset/rows.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert {row["label"] for row in rows} == {"football", "finance"}
    assert run(project, "labels", "add", "cooking") == "in use again: cooking\n"


def test_a_row_is_found_taken_out_and_taken_in_again(project: Settings, registry: Registry) -> None:
    text = toy_rows(60, seed=1)[3][0]
    [found] = json.loads(run(project, "dataset", "exclude", "--find", text, "--json"))
    assert (found["excluded"], found["label"]) == (False, "football")
    before = json.loads(run(project, "dataset", "build", "--json"))["rows_in"]
    run(project, "dataset", "exclude", "seed.csv:5", "--reason", "poisoned")  # the header is row 1
    [listed] = json.loads(run(project, "dataset", "exclude", "--json"))
    assert (listed["key"], listed["excluded"]) == (found["key"], True)
    assert json.loads(run(project, "dataset", "build", "--json"))["rows_in"] == before - 1
    run(project, "dataset", "exclude", found["key"][:8], "--undo")
    assert run(project, "dataset", "exclude") == "no rows\n"
    assert [row.detail["reason"] for row in registry.audit_rows()] == ["poisoned", ""]
    assert "rows from line 2 to line 61" in run(project, "dataset", "exclude", "seed.csv:1", code=2)
    assert "0 rows have a key that begins so" in run(project, "dataset", "exclude", "ffff0000ffff", code=2)


def test_a_row_is_named_by_its_line_in_a_file_with_columns_of_its_own(tmp_path: Path) -> None:
    lines = ["words\tmeaning", '"an oven\nand butter"\tcooking', "a goal\tfootball", "a bank\tmoney", "a loan\tmoney"]
    (tmp_path / "seed.tsv").write_text("\n".join(lines), encoding="utf-8")
    named = {"seed": "seed.tsv", "text_column": "words", "label_column": "meaning"}
    config = render_settings({"model": {"name": "m"}, "dataset": named})
    (tmp_path / "ratchet.toml").write_text(config, encoding="utf-8")
    write_keys(tmp_path / "keys.env")
    project = load_settings(config, {}, root=tmp_path)

    [first] = json.loads(run(project, "dataset", "exclude", "seed.tsv:2", "--json"))
    assert first["text"] == "an oven\nand butter"
    [goal] = json.loads(run(project, "dataset", "exclude", "seed.tsv:4", "--json"))
    assert (goal["text"], goal["label"], goal["excluded"]) == ("a goal", "football", True)
    inside = run(project, "dataset", "exclude", "seed.tsv:3", code=2)
    assert "there is no such row; seed.tsv has rows from line 2 to line 6" in inside
    elsewhere = run(project, "dataset", "exclude", "other.tsv:2", code=2)
    assert "the project has no file other.tsv; it has seed.tsv" in elsewhere
    shown = json.loads(run(project, "dataset", "exclude", "--json"))
    assert [row["text"] for row in shown] == ["an oven\nand butter", "a goal"]


def test_a_dataset_is_exported_as_csv_and_parquet(project: Settings, tmp_path: Path) -> None:
    from pipelines.dataset.files import read_rows

    for name in ("out.csv", "out.parquet"):
        run(project, "dataset", "export", "--out", str(tmp_path / name))
        assert len(read_rows(tmp_path / name, "classification")) > 40
