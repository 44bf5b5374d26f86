"""Hold the floor of the house: sizes, docstrings and names. `make lint` runs it; import-linter holds the arrows and the circles.

Reads every tracked Python file outside tests and prints what breaks a rule, one line each. Exit status 1 if anything does.
"""

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

MOST_MODULES = 20  # in a folder
MOST_LINES = 300  # of a module
MOST_FUNCTION_LINES = 60
# Modules past MOST_LINES, each with its reason; three at most.
LONG: dict[str, str] = {}
# Words of a private language that this code once had: they say too little to be names.
VAGUE = frozenset({"found", "own", "place", "said", "told", "asked", "writing", "helper", "manager", "handler"})
SENTENCE = re.compile(r"[A-Z`][^\s]*(?:\s+\S+){2,}")

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def main() -> int:
    """Print every breach and return the exit status."""
    listed = subprocess.run(
        ["git", "ls-files", "schemas", "serving", "pipelines", "services"], capture_output=True, check=True
    )
    files = [Path(line) for line in listed.stdout.decode().splitlines() if line.endswith(".py")]
    breaches = [*_folders(files), *(breach for file in files for breach in _module(file))]
    if len(LONG) > 3:
        breaches.append(f"{__file__}: {len(LONG)} modules are named as long, 3 at most")
    for breach in breaches:
        print(breach)
    print(f"structure: {len(files)} modules, {len(breaches)} breaches")
    return 1 if breaches else 0


def _folders(files: list[Path]) -> Iterator[str]:
    counts = Counter(file.parent for file in files if file.name != "__init__.py")
    for folder, count in counts.items():
        if count > MOST_MODULES:
            yield f"{folder}: {count} modules, {MOST_MODULES} at most: it is looking for rooms"


def _module(file: Path) -> Iterator[str]:
    text = file.read_text(encoding="utf-8")
    lines, tree = text.count("\n"), ast.parse(text)
    if lines > MOST_LINES and str(file) not in LONG:
        yield f"{file}: {lines} lines, {MOST_LINES} at most: it is looking for its second noun"
    for node in ast.walk(tree):
        yield from _node(file, node)
    yield from _docstrings(file, tree)


def _node(file: Path, node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if lines > MOST_FUNCTION_LINES:
            yield f"{file}:{node.lineno}: {node.name} has {lines} lines, {MOST_FUNCTION_LINES} at most"
    names = {
        ast.Name: lambda n: n.id if isinstance(n.ctx, ast.Store) else "",
        ast.arg: lambda n: n.arg,
        ast.FunctionDef: lambda n: n.name,
        ast.AsyncFunctionDef: lambda n: n.name,
        ast.ClassDef: lambda n: n.name,
    }
    name = names.get(type(node), lambda _: "")(node)
    if name.strip("_").lower() in VAGUE:
        yield f"{file}:{getattr(node, 'lineno', 0)}: the name {name!r} says too little"


def _docstrings(file: Path, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, Definition) and not node.name.startswith("_"):
            first = (ast.get_docstring(node) or "").partition("\n")[0]
            if first and not SENTENCE.match(first):
                yield f"{file}:{node.lineno}: {node.name}: the docstring is no sentence: {first!r}"


if __name__ == "__main__":
    sys.exit(main())
