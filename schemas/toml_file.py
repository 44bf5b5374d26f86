"""TOML files of settings, and one-line explanations of what is wrong in them.

Turns the bytes of a file into a tree of values, and a validation error into "FILE line N: NAME = VALUE: RULE; the way out".
`load_settings` and `load_policy` use it. It reads no file by itself.
"""

import codecs
import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_POSITION = re.compile(r" \(at line (\d+), column \d+\)$")
_PLAIN = {
    "Cannot overwrite a value": "this key is set twice",
    "Cannot declare": "this table is written twice: put its keys under one header",
    "Invalid value": "text needs double quotes",
    "Expected '=' after a key": "expected KEY = VALUE",
}


class NotToml(ValueError):
    """The file cannot be read as TOML; the message names the file and the line."""


def decode(raw: str | bytes, name: str) -> str:
    """Return the text of a file in UTF-8, or in UTF-16 with a byte-order mark. Raises NotToml for other encodings."""
    if isinstance(raw, str):
        return raw.removeprefix("\ufeff")
    mark, encoding = next(((mark, name) for mark, name in _MARKS if raw.startswith(mark)), (b"", "utf-8"))
    try:
        text = raw.removeprefix(mark).decode(encoding)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise NotToml(f"{name} line {line}: not UTF-8: save the file as UTF-8") from error
    if "\0" in text:
        raise NotToml(f"{name}: contains zero bytes, as UTF-16 without a byte-order mark does: save the file as UTF-8")
    return text


def parse(text: str, name: str) -> dict[str, Any]:
    """Return the tree of a TOML text. Raises NotToml with the file's name, the line and its content."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        reason = str(error)
        position = _POSITION.search(reason)
        reason = _POSITION.sub("", reason).removesuffix(" (at end of document)")
        plain = next((words for start, words in _PLAIN.items() if reason.startswith(start)), reason)
        lines = text.splitlines()
        number = int(position[1]) if position else len(lines)
        content = lines[number - 1].strip() if 0 < number <= len(lines) else ""
        raise NotToml(f"{name} line {number}: not TOML: {plain}: {content[:80]!r}") from error


def line_of(text: str, path: Sequence[str]) -> int | None:
    """Return the line, counted from 1, that sets `path` ("group", "key") or begins its table; None if there is none."""
    group, key = path[0], path[1] if len(path) > 1 else None
    inside, header = "", None
    for number, line in enumerate(text.splitlines(), start=1):
        bare = line.strip()
        if bare.startswith("["):
            inside = bare.strip("[] ").partition("]")[0].strip(" \"'")
            header = header or (number if inside.partition(".")[0] == group else None)
            continue
        left = re.sub(r"[\s\"']", "", bare.partition("=")[0]) if "=" in bare and not bare.startswith("#") else ""
        if not inside and (left == group or left.startswith(f"{group}.")):
            header = header or number
        if key and left and left in ((key,) if inside == group else (f"{group}.{key}",) if not inside else ()):
            return number
    return header


def nearest(model: type[BaseModel], path: Sequence[str]) -> str | None:
    """Return the known name that is closest to an unknown group or "group.key"; None if none is close."""
    groups = {
        name: list(field.annotation.model_fields)
        for name, field in model.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }
    if len(path) == 1:
        close = difflib.get_close_matches(path[0], groups, 1)
        elsewhere = [f"{group}.{path[0]}" for group, keys in groups.items() if path[0] in keys]
        return next(iter([*close, *elsewhere]), None)
    group, key = path[0], path[1]
    close = difflib.get_close_matches(key, groups.get(group, ()), 1)
    if close:
        return f"{group}.{close[0]}"
    elsewhere = [f"{name}.{key}" for name, keys in groups.items() if key in keys]
    whole = difflib.get_close_matches(
        f"{group}.{key}", [f"{g}.{k}" for g, keys in groups.items() for k in keys], 1, 0.8
    )
    return next(iter([*elsewhere, *whole]), None)


def explain(
    error: Any, model: type[BaseModel], text: str, name: str, variables: Mapping[tuple[str, ...], str] | None = None
) -> str:
    """Return one line for one of pydantic's errors: line or variable, field, value, rule and the way out.

    Args:
        error: one entry of `ValidationError.errors()`.
        model: the validated tree, with two levels: group and key.
        text: the content of the file.
        name: the name of the file.
        variables: (group, key) -> environment variable that set it.

    """
    path = tuple(str(part) for part in error["loc"])
    if not path:
        return str(error["ctx"]["error"])
    variable = (variables or {}).get(path[:2])
    line = line_of(text, path)
    where = f"{variable}: " if variable else f"{name} line {line}: " if line else f"{name}: " if text else ""
    dotted = ".".join(path[:2]) + "".join(f"[{part}]" for part in path[2:])
    if error["type"] == "extra_forbidden":
        known = nearest(model, path)
        return f"{where}unknown setting {dotted}" + (f"; did you mean {known}?" if known else "")
    if error["type"] in ("model_type", "model_attributes_type"):
        return f"{where}{dotted} = {error['input']!r}: expected a table: write [{dotted}] and its keys below"
    return f"{where}{dotted} = {error['input']!r}: {_rule(error)}"


def _rule(error: Any) -> str:
    """Return pydantic's rule in terms of a TOML file, such as "expected a whole number"."""
    kinds = {
        "int_type": "expected a whole number",
        "int_parsing": "expected a whole number",
        "int_from_float": "expected a whole number",
        "float_type": "expected a number",
        "float_parsing": "expected a number",
        "bool_type": "expected true or false",
        "bool_parsing": "expected true or false",
        "string_type": "expected text in quotes",
        "tuple_type": "expected a list in brackets",
    }
    message: str = error["msg"].removeprefix("Value error, ")
    return kinds.get(
        error["type"], message.replace("Input should be", "expected", 1).replace("String should", "should", 1)
    )
