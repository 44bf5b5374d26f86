"""Every text file and stream is opened with its encoding: what the locale says changes nothing.

ruff's PLW1514 sees calls whose receiver it knows to be a path; this sees the rest.
"""

import ast
from collections.abc import Iterator

from tests.support.fakes import REPOSITORY

SOURCES = sorted(
    path
    for name in ("schemas", "serving", "pipelines", "services", "tests")
    for path in (REPOSITORY / name).rglob("*.py")
)
TEXT_MODES = {"r", "w", "a", "x", "r+", "w+", "a+", "rt", "wt", "at"}


def calls_without_encoding(source: str) -> Iterator[ast.Call]:
    """Yield calls that open text by the locale's encoding."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and _opens_text(node) and not {"encoding", None} & {k.arg for k in node.keywords}:
            yield node


def _opens_text(call: ast.Call) -> bool:
    called, words = ast.unparse(call.func), {word.arg: word.value for word in call.keywords}
    if called.startswith("subprocess."):
        return "text" in words or "universal_newlines" in words
    match called.rpartition(".")[2]:
        case "read_text":
            return not call.args
        case "write_text":
            return len(call.args) == 1
        case "open" | "fdopen":
            return _mode(call, called) in TEXT_MODES
    return False


def _mode(call: ast.Call, called: str) -> object:
    """Return the mode of a call of open, as far as it is written there; `path.open()` and `open(path)` read text."""
    given = [word.value for word in call.keywords if word.arg == "mode"] + call.args[:2]
    modes = [one.value for one in given if isinstance(one, ast.Constant) and str(one.value).strip("rwaxbt+") == ""]
    if modes:
        return modes[0]
    is_path = not call.args and (called == "path.open" or not isinstance(getattr(call.func, "value", None), ast.Name))
    return "r" if is_path or (called == "open" and len(call.args) == 1) else None


def test_every_text_is_opened_with_its_encoding() -> None:
    found = [
        f"{path.relative_to(REPOSITORY)}:{call.lineno}"
        for path in SOURCES
        for call in calls_without_encoding(path.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_what_counts_as_opening_text() -> None:
    source = """
path.read_text(); path.write_text("x"); open(f); open(f, "w"); path.open("a+"); path.open(); config.parent.open()
files.open(name, "w"); subprocess.run(command, text=True)
path.read_text(encoding="utf-8"); path.write_text("x", "utf-8"); open(f, "rb"); path.open("rb"); files.open(name)
subprocess.run(command); subprocess.run(command, text=True, encoding="utf-8"); webbrowser.open(url); site.open()
"""
    assert [call.lineno for call in calls_without_encoding(source)].count(2) == 7
    assert {call.lineno for call in calls_without_encoding(source)} == {2, 3}
    assert len(list(calls_without_encoding(source))) == 9
