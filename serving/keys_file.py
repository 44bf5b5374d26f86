"""The file keys.env: the project's secrets as a shell's assignments.

Turns the file into values by name. Access control reads its keys from it, messaging the passwords of Kafka.
"""

from collections.abc import Mapping
from pathlib import Path


class KeysMissing(FileNotFoundError):
    """The file keys.env is absent, unreadable, or lacks a key; the message names the command that makes keys."""


def assignments(path: Path) -> dict[str, str]:
    """Return the values of keys.env by name, quotes removed. Raises KeysMissing if it is absent or cannot be read."""
    return {name: value for name, value in map(assigned, lines(path)) if name}


def secret(name: str, path: Path, environ: Mapping[str, str]) -> str:
    """Return a secret of the environment, else of keys.env, else ""; a container may have variables alone."""
    try:
        return environ.get(name) or assignments(path).get(name, "")
    except KeysMissing:
        return ""


def lines(path: Path) -> list[str]:
    """Return the lines of keys.env. Raises KeysMissing if it is absent or cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise KeysMissing(f"{path} is missing: restore it, or make new keys with `ratchet access keys`") from error
    except UnicodeDecodeError as error:
        hint = "restore it, or make new keys with `ratchet access keys --renew all`"
        raise KeysMissing(f"{path} is not text in UTF-8: {hint}") from error
    except OSError as error:
        raise KeysMissing(f"{path} cannot be read: {error.strerror}") from error


def assigned(line: str) -> tuple[str, str]:
    """Return name and value of one line; an empty name if it assigns nothing."""
    name, equals, value = line.strip().partition("=")
    name = name.removeprefix("export ").strip()
    if not equals or name.startswith("#"):
        return "", ""
    return name, _unquoted(value.strip())


def _unquoted(value: str) -> str:
    """Return a value without its quotes, or without the comment after it."""
    if value[:1] in ("'", '"'):
        return value[1:].partition(value[0])[0]
    return value.partition(" #")[0].strip()
