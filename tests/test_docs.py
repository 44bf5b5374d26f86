"""Documents that must match the code: the walk, the rooms' pages and the settings reference."""

import re
from pathlib import Path

import click
import grimp
import pytest

from schemas import settings_reference
from schemas.settings import groups
from services.cli.main import cli
from tests.support import room_pages

REPOSITORY = Path(__file__).parent.parent
PACKAGES = ("services", "pipelines", "serving", "schemas")
MOST_WORDS = 150
PAGES = ("README.md", "docs/architecture.md", "docs/install.md", "docs/limits.md", "docs/security.md")
COMMAND = re.compile(r"`(?:\.venv/bin/)?ratchet ([a-z]+)(?: ([a-z]+))?")
SETTING = re.compile(r"`(\w+)\.(?!yaml|html)(\w+)[` ]")
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
def test_a_page_names_only_commands_settings_and_pages_that_exist(name: str) -> None:
    page = (REPOSITORY / name).read_text(encoding="utf-8")
    for command, word in COMMAND.findall(page):
        assert command in cli.commands, f"ratchet {command}"
        group = cli.commands[command]
        assert not isinstance(group, click.Group) or word in group.commands, f"ratchet {command} {word}"
    settings = dict(groups())
    for group_name, key in SETTING.findall(page):
        assert group_name not in settings or key in settings[group_name].model_fields, f"{group_name}.{key}"
    for link in re.findall(r"\]\(([\w./-]+)", page):
        assert (REPOSITORY / name).parent.joinpath(link).exists(), link
