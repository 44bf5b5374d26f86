"""The index of rooms, docs/rooms.md, made from the packages' docstrings.

`make docs` writes it; tests/test_docs.py compares the file and limits each page's length.
"""

import ast
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PACKAGES = ("services", "pipelines", "serving", "schemas")
HEAD = """# Folders of the code

A section for each folder: the docstring of its `__init__.py`. Imports run one way, `services → pipelines → serving → schemas`,
without cycles among files or folders; import-linter checks both. Made by `make docs`; do not edit.
"""


def rooms() -> list[Path]:
    """Return every folder of a package that holds modules, callers first."""
    folders = {file.parent for package in PACKAGES for file in (REPOSITORY / package).rglob("*.py")}
    known = sorted(folder.relative_to(REPOSITORY) for folder in folders if "migrations" not in folder.parts)
    return sorted(known, key=lambda room: (PACKAGES.index(room.parts[0]), room))


def page_of(room: Path) -> str:
    """Return a room's page: the docstring of its package."""
    text = (REPOSITORY / room / "__init__.py").read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(text)) or ""


def index() -> str:
    """Return docs/rooms.md."""
    return "\n\n".join([HEAD.strip(), *(f"## {room.as_posix()}\n\n{page_of(room)}" for room in rooms())]) + "\n"


if __name__ == "__main__":
    (REPOSITORY / "docs/rooms.md").write_text(index(), encoding="utf-8")
