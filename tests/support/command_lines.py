"""Command lines of `ratchet` that files and pages contain: parsed by click, never run."""

import re
import shlex
from collections.abc import Iterator

import click

from services.cli.main import cli

FENCED = re.compile(r"^ *```\w*\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def parsed(words: list[str]) -> click.Context:
    """Parse a command line of `ratchet` without running it; raises click.UsageError for what it does not know."""
    command: click.Command = cli
    context = click.Context(cli)
    while isinstance(command, click.Group):
        name, *words = words
        found = command.get_command(context, name)
        assert found is not None, f"there is no command {name}"
        command = found
    return command.make_context(command.name, words, resilient_parsing=False)


def fenced(page: str) -> Iterator[list[str]]:
    """Yield the words after `ratchet` of each such line in the fenced blocks of a Markdown page."""
    for block in FENCED.findall(page):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True) if "ratchet " in line else []
            while words and re.fullmatch(r"\w+=.*", words[0]):  # variables of this command
                words = words[1:]
            if words and words[0].rpartition("/")[2] == "ratchet":
                end = next((n for n, word in enumerate(words) if word in (">", "&", "&&", "|")), len(words))
                yield words[1:end]
