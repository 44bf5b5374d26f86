"""`ratchet queue`: texts labelled by command and in files, and what a file edited by hand is told."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from schemas.settings import render_settings
from services.cli.main import cli
from serving.registry.registry import Registry
from tests.support.settling_rounds import CANDIDATE, CHAMPION, candidate, settle


class Project:
    """A folder with a registry in which a round settles."""

    def __init__(self, root: Path) -> None:
        self.config = root / "ratchet.toml"
        self.config.write_text(render_settings({"model": {"name": "m"}}), encoding="utf-8")
        self.registry = Registry(f"sqlite:///{root}/state/registry.db", "m")
        self.registry.migrate()
        self.keys = {name: self.registry.people.add(name, ["review"], by="operator") for name in ("ada", "ben")}
        candidate(self.registry, "v2")
        self.round_id = settle(self.registry).round_id

    def command(self, *arguments: str, by: str = "ada") -> Result:
        environment = {"RATCHET_KEY": self.keys[by]}
        return CliRunner().invoke(cli, ["queue", *arguments, "-c", str(self.config)], env=environment)

    @property
    def labels(self) -> int:
        return self.registry.queue.progress(self.round_id).labels


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    made = Project(tmp_path)
    yield made
    made.registry.close()


def test_a_text_is_shown_labelled_and_counted(project: Project) -> None:
    shown = project.command("next", "--json")
    assert shown.exit_code == 0, shown.output
    item = json.loads(shown.output)
    assert set(item["answers"]) == {CHAMPION, CANDIDATE}
    assert item["progress"] == "0 of about 50 labels"
    plain = project.command("next").output
    assert item["text"] in plain
    assert f"labels     {CHAMPION}, {CANDIDATE}, rate" in plain

    done = project.command("label", item["item_id"], CANDIDATE)
    assert done.exit_code == 0, done.output
    assert f"{CANDIDATE}; recorded" in done.output
    assert "1 of about " in done.output
    assert "1 of about " in project.command("status").output
    again = project.command("label", item["item_id"], CHAMPION, "--json", by="ben")
    assert json.loads(again.output)["outcome"] == "conflict"
    refused = project.command("label", item["item_id"], "rain")
    assert refused.exit_code == 1
    assert "not in the taxonomy: 'rain'" in refused.output
    unknown = project.command("label", "nothing", CHAMPION)
    assert unknown.exit_code == 1
    assert "no item is or begins with 'nothing'" in str(unknown.exception)

    second = json.loads(project.command("next", "--json").output)
    assert second["item_id"] != item["item_id"]
    assert "skipped" in project.command("skip", second["item_id"]).output
    assert json.loads(project.command("next", "--json").output)["item_id"] != second["item_id"]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_file_is_exported_filled_and_imported(project: Project, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"queue.{suffix}"
    done = project.command("export", "--out", str(file))
    assert done.exit_code == 0, done.output
    lines = file.read_text(encoding="utf-8").splitlines()
    header = suffix == "csv"
    assert len(lines) == 40 + header
    empty, label = ("", f"{CHAMPION}") if header else ('"label":null', f'"label":"{CHAMPION}"')
    filled = [line + label if header else line.replace(empty, label) for line in lines[header : header + 3]]
    file.write_text("\n".join([*lines[:header], *filled, *lines[header + 3 :]]), encoding="utf-8")

    imported = project.command("import", str(file), "--json", by="ben")

    assert imported.exit_code == 0, imported.output
    values = json.loads(imported.output)
    assert (values["labels"], values["recorded"]) == (3, 3)
    assert project.labels == 3
    repeated = project.command("import", str(file), by="ben")
    assert "3 unchanged" in repeated.output


def test_every_bad_row_of_a_file_is_named_and_none_is_stored(project: Project, tmp_path: Path) -> None:
    file = tmp_path / "queue.csv"
    project.command("export", "--out", str(file))
    header, first, second, third, *_ = file.read_text(encoding="utf-8").splitlines()
    rows = [
        header,
        first + "rain",  # line 2: unknown label
        second + CHAMPION,  # line 3: good
        second + CANDIDATE,  # line 4: the same item again
        f"gone,disagreement,,some text,,,{CHAMPION}",  # line 5: unknown item
        "a,b",  # line 6: cells are missing
    ]

    file.write_text("\n".join(rows[:5]), encoding="utf-8")
    refused = project.command("import", str(file), by="ben")
    assert refused.exit_code == 1
    assert "3 rows are bad, no label was stored" in refused.output
    assert "line 2: " in refused.output
    assert "not in the taxonomy: 'rain'" in refused.output
    assert "line 4: " in refused.output
    assert "is in row 2 already" in refused.output
    assert "line 5: the queue has no item gone" in refused.output

    file.write_text("\n".join(rows), encoding="utf-8")
    assert "line 6: 2 cells, expected 7 as in the header" in project.command("import", str(file)).output
    file.write_text("\n".join([header, third.replace("text", "changed") + CHAMPION]), encoding="utf-8")
    assert "line 2: the text of item" in project.command("import", str(file)).output
    file.write_text("item,label\n1,2\n", encoding="utf-8")
    assert "column item_id is missing; expected item_id and label" in project.command("import", str(file)).output
    json_lines = tmp_path / "queue.jsonl"
    json_lines.write_text('{"item_id": "x"}\nnot json\n', encoding="utf-8")
    told = project.command("import", str(json_lines)).output
    assert "line 1: label is missing" in told
    assert "line 2: no JSON" in told
    assert project.labels == 0


@pytest.mark.parametrize("arguments", [("status",), ("next",), ("list",)])
def test_a_missing_registry_is_named_and_not_made(project: Project, arguments: tuple[str, ...]) -> None:
    project.registry.close()
    file = project.config.parent / "state/registry.db"
    file.rename(file.with_suffix(".away"))
    refused = project.command(*arguments)
    assert refused.exit_code == 1
    assert "registry.db is missing" in f"{refused.output}{refused.exception}"
    assert not file.exists()
