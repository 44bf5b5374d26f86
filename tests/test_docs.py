"""Documents that must match the code: the walk, the rooms' pages and the settings reference."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import grimp
import pytest

from schemas import settings_reference
from schemas.settings import groups
from services.cli.main import cli
from tests.support import reference_pages, room_pages
from tests.support.command_lines import fenced, parsed

REPOSITORY = Path(__file__).parent.parent
PACKAGES = ("services", "pipelines", "serving", "schemas")
MOST_WORDS = 150
# Made from the code, or dated and so never corrected.
GENERATED = {
    "docs/settings.md",
    "docs/rooms.md",
    "docs/lab-notes.md",
    *(f"docs/{name}" for name in reference_pages.pages()),
}
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "examples/README.md",
    "serving/client/README.md",
    *sorted({f"docs/{file.name}" for file in (REPOSITORY / "docs").glob("*.md")} - GENERATED),
]
COMMAND = re.compile(r"`(?:\.venv/bin/)?ratchet ([a-z]+)(?: ([a-z-]+))?")
SETTING = re.compile(r"`(\w+)\.(?!yaml|html)(\w+)[` ]")
FILE = re.compile(r"`((?:services|pipelines|serving|schemas|tests)/[\w/.-]*\w/?)`")
MODULE = re.compile(r"(?<![\w.<])[\w/-]+\.(?:py|md)\b")
STEP = re.compile(r"^\d+\. `([\w/]+)\.py`", re.MULTILINE)


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """Return the imports of all packages, without those for type checkers alone."""
    return grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True)


def legs() -> list[list[str]]:
    """Return the walk's modules in order, one list for each process."""
    page = (REPOSITORY / "docs/walk.md").read_text(encoding="utf-8")
    return [[name.replace("/", ".") for name in STEP.findall(part)] for part in page.split("\n## ")[1:]]


@pytest.mark.parametrize("leg", legs(), ids=lambda leg: leg[0])
def test_the_walk_never_goes_back_up(leg: list[str], graph: grimp.ImportGraph) -> None:
    ranks = [PACKAGES.index(name.partition(".")[0]) for name in leg]
    assert ranks == sorted(ranks), leg
    first, *others = leg
    for name in others:
        assert graph.chain_exists(importer=first, imported=name), f"{first} does not reach {name}"
        assert not graph.chain_exists(importer=name, imported=first), f"{name} imports {first}"


@pytest.mark.parametrize("room", room_pages.rooms(), ids=str)
def test_a_room_has_a_short_page(room: Path) -> None:
    page = room_pages.page_of(room)
    assert page
    assert len(page.split()) <= MOST_WORDS


def test_the_index_of_rooms_holds_every_page() -> None:
    index = (REPOSITORY / "docs/rooms.md").read_text(encoding="utf-8")
    assert index == room_pages.index(), "run `make docs`"


def test_the_settings_reference_matches_the_models() -> None:
    page = (REPOSITORY / "docs/settings.md").read_text(encoding="utf-8")
    assert page == settings_reference.reference(), "run `make docs`"


@pytest.mark.parametrize("name", PAGES)
def test_the_commands_in_a_pages_blocks_have_these_arguments_and_options(name: str) -> None:
    for words in fenced((REPOSITORY / name).read_text(encoding="utf-8")):
        try:
            parsed(words)
        except click.BadParameter as error:
            assert error.message.endswith("does not exist."), f"{words}: {error.message}"  # noqa: PT017 - a reader's own file


@pytest.mark.parametrize(("name", "text"), list(reference_pages.pages().items()), ids=str)
def test_a_reference_page_matches_the_code(name: str, text: str) -> None:
    assert (REPOSITORY / "docs" / name).read_text(encoding="utf-8") == text, "run `make docs`"


@pytest.mark.parametrize("name", PAGES)
def test_a_page_names_only_commands_settings_and_pages_that_exist(name: str) -> None:
    page = (REPOSITORY / name).read_text(encoding="utf-8")
    for command, word in COMMAND.findall(page):
        assert command in cli.commands, f"ratchet {command}"
        group = cli.commands[command]
        assert not isinstance(group, click.Group) or word in group.commands, f"ratchet {command} {word}"
    settings = dict(groups())
    for group_name, key in SETTING.findall(page):
        assert group_name not in settings or key in settings[group_name].model_fields, f"{group_name}.{key}"
    for file in FILE.findall(page):
        assert (REPOSITORY / file).exists(), file
    for link in re.findall(r"\]\((?!https:)([\w./-]+)", page):
        assert (REPOSITORY / name).parent.joinpath(link).exists(), link


def test_docstrings_name_only_modules_and_pages_that_exist() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, check=True).stdout.decode()
    tracked = [f"/{file}" for file in listed.split()]
    for package in PACKAGES:
        for file in (REPOSITORY / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_bytes())):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    for name in MODULE.findall(ast.get_docstring(node) or ""):
                        assert any(path.endswith(f"/{name}") for path in tracked), f"{file}: {name}"


def test_the_site_builds_without_a_warning_and_shows_every_page(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, check=False, timeout=120, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    configuration = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
    for page in (REPOSITORY / "docs").glob("*.md"):
        assert f": {page.name}\n" in configuration, f"{page.name} is not in the nav of mkdocs.yml"
    for built in (tmp_path / "site").rglob("*.html"):
        outside = re.findall(
            r"<(?:script|link)[^>]+(?:src|href)=\"(https?://[^\"]+)", built.read_text(encoding="utf-8")
        )
        assert not outside, (built, outside)
