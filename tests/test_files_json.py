"""JSON Lines and lists of objects: separators inside strings, marks, broken lines, chat and Alpaca files."""

import json
from pathlib import Path

import pytest

from pipelines.dataset.files import BadFile, FileRow, read_file
from schemas.targets import Task

GOOD = [FileRow("hi", "a"), FileRow("bye", "b")]
ROWS = [{"text": "hi", "label": "a"}, {"text": "bye", "label": "b"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def wrong(path: Path, content: str, task: Task = "classification", name: str = "a.jsonl") -> str:
    """What reading says of a bad file, below its path."""
    (path / name).write_text(content, encoding="utf-8")
    with pytest.raises(BadFile) as caught:
        read_file(path / name, task)
    return str(caught.value).removeprefix(f"{path / name}: ")


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json", "a.JSONL"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize(
    "content",
    [
        LINES,
        LINES.replace("\n", "\r\n"),
        LINES.rstrip("\n"),
        f"\n  \n{LINES}\n\n",
        LINES.replace("\n", "\n\ufeff", 1),
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2),
        "[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]\n",
    ],
)
def test_lines_and_lists_are_read(tmp_path: Path, name: str, encoding: str, content: str) -> None:
    (tmp_path / name).write_bytes(content.encode(encoding))
    assert read_file(tmp_path / name, "classification").rows == GOOD


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_only_a_line_feed_parts_lines(tmp_path: Path, separator: str) -> None:
    text = f"one{separator}two"
    strict = separator < "\x20"
    line = json.dumps({"text": text, "label": "a"}, ensure_ascii=strict)
    (tmp_path / "a.jsonl").write_text(f"{line}\n{line}\n", encoding="utf-8")
    assert [row.text for row in read_file(tmp_path / "a.jsonl", "classification").rows] == [text, text]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "no rows"),
        ("\n\n", "no rows"),
        ("[]", "no rows"),
        (json.dumps({"data": ROWS}, indent=1), "holds one object over several lines: expected a list of objects"),
        (json.dumps({"data": ROWS}), "no column 'text' and no column 'label'; it has data"),
        (LINES + '{"text": "x", "te', "line 3: not JSON: Unterminated string starting at (column 15): is the line cut off?"),
        (LINES + '{"text": "x"', "line 3: not JSON: Expecting ',' delimiter (column 13): is the line cut off?"),
        ('{"text": "x",\n' + LINES, "line 1: not JSON: "),
        ('{"text": "x", "label": "a"},\n' + LINES, "line 1: not JSON: Extra data (column 28)"),
        ('{"text": "x", "label": "a",}\n' + LINES, "line 1: not JSON: "),
        ("{'text': 'x'}\n" + LINES, "line 1: not JSON: Expecting property name enclosed in double quotes (column 2)"),
        ('{"text": "x", "label": "a", "label": "b"}\n' + LINES, "line 1: key 'label' appears twice in an object"),
        ('{"text": "x", "label": "a"}\n"b"\n3\nnull\n', "3 rows cannot be read: line 2: \"b\" is not an object such as "
         '{"text": ...}; line 3: 3 is not an object'),
        ('["x", "a"]\n["y", "b"]\n', "2 rows cannot be read: line 1: [\"x\", \"a\"] is not an object"),
        ("[" * 100_000, "line 1: nested too deeply"),
        ('{"text": ' + "[" * 100_000 + "\n" + LINES, "line 1: nested too deeply"),
        ('[\n{"text": "x", "label": "a"},\n{"text": "y"', "line 3: not JSON: "),
        ('[\n{"text": "x", "label": "a"}\n{"text": "y"}]', "line 3: expected ',' or ']' after a row of the list"),
        ('[\n{"text": "x", "label": "a"},\n]', "line 3: a comma before ']': remove it"),
        ('[\n{"text": "x", "label": "a"}]\nmore', "line 3: text follows the list's ']'"),
        ('[\n{"text": "x", "label": "a"},\n7]', "line 3: 7 is not an object"),
        ('{"text": "x"}\n' + LINES, "line 1: no 'label', which other rows have"),
        ('{"text": "x", "lable": "a"}\n' + LINES, "line 1: no 'label', which other rows have"),
        ('{"text": "x", "label": ["a"]}\n' + LINES, "line 1: label is ['a']: expected a label"),
        ('{"text": "x", "label": {"name": "a"}}\n' + LINES, "line 1: label is {'name': 'a'}: expected a label"),
        ('{"text": "x", "label": ""}\n' + LINES, "line 1: label is empty"),
        ('{"text": "x", "label": Infinity}\n' + LINES, "line 1: label is inf: expected a label"),
        ('{"text": {"body": "x"}, "label": "a"}\n' + LINES, "line 1: text is {'body': 'x'}: expected a text"),
        ('{"text": ["x"], "label": "a"}\n' + LINES, "line 1: text is ['x']: expected a text"),
        ('{"text": null, "label": "a"}\n' + LINES, "line 1: text is empty"),
        ('{"text": "x", "label": null}\n', "no rows; 1 row without a label left out (the first: line 1)"),
        ('{"messages": []}\n', "no column 'text' and no column 'label'; it has messages: a chat is read with --task generation"),
    ],
)  # fmt: skip
def test_what_is_malformed_is_refused_by_its_line(tmp_path: Path, content: str, said: str) -> None:
    assert wrong(tmp_path, content).startswith(said)


def test_null_and_nan_are_no_labels_and_numbers_are_text(tmp_path: Path) -> None:
    labels = ["null", "NaN", "1", "1.0", '"1"', "true"]
    lines = [f'{{"text": {n}, "label": {label}}}' for n, label in enumerate(labels)]
    lines += ['{"text": null, "label": null, "n": 7}', '{"text": null, "label": null}', "{}"]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    found = read_file(tmp_path / "a.jsonl", "classification")
    assert found.rows == [FileRow("2", "1"), FileRow("3", "1"), FileRow("4", "1"), FileRow("5", "True")]
    assert found.notes == ["3 rows without a label left out (the first: line 1)"]


def test_half_characters_become_replacement_characters(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"text": "x\\ud800", "label": "a", "k": "\\udfff"}\n{"text": "y", "label": "b"}\n', encoding="utf-8"
    )
    assert read_file(tmp_path / "a.jsonl", "classification").rows[0] == FileRow("x\ufffd", "a", {"k": "\ufffd"})
    assert "label is '\\ud800': expected a label" in wrong(tmp_path, '{"text": "x", "label": "\\ud800"}\n')


SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "hello"}


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([{"messages": [USER, ANSWER]}], "hi"),
        ([{"messages": [SYSTEM, USER, ANSWER]}], "hi"),
        ([{"messages": [SYSTEM, USER, ANSWER]}, {"messages": [USER, ANSWER]}], "Be brief.\n\nhi"),
        ([{"messages": [USER, ANSWER, {**USER, "content": "more"}, ANSWER]}], "User: hi\n\nAssistant: hello\n\nUser: more"),
        ([{"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}], "hi"),
        ([{"conversations": [USER, ANSWER], "id": "7"}], "hi"),
        ([{"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}, ANSWER]}], "hi"),
        ([{"instruction": "hi", "output": "hello"}], "hi"),
        ([{"instruction": "hi", "input": "", "output": "hello"}], "hi"),
        ([{"instruction": "hi", "input": None, "output": "hello"}], "hi"),
        ([{"instruction": "Translate.", "input": "hallo", "output": "hello"}], "Translate.\n\nhallo"),
        ([{"instruction": "Say hello.", "input": "", "output": "hello", "text": "Say hello. ### hello"}], "Say hello."),
        ([{"Instruction": "hi", "Input": "", "Output": "hello", "Text": "hi ### hello"}], "hi"),
        ([{"prompt": "hi", "completion": "hello"}], "hi"),
        ([{"prompt": [USER], "completion": [ANSWER]}], "hi"),
        ([{"prompt": [SYSTEM, USER], "completion": "hello"}], "hi"),
        ([{"question": "hi", "answer": "hello"}], "hi"),
        ([{"text": "hi", "completion": "hello"}], "hi"),
    ],
)  # fmt: skip
def test_chats_and_instructions_are_prompts_and_completions(
    tmp_path: Path, rows: list[dict[str, object]], text: str
) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    first = read_file(tmp_path / "a.jsonl", "generation").rows[0]
    assert (first.text, first.label) == (text, "hello")


def test_a_system_message_that_all_rows_share_is_left_out_and_said(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text((json.dumps({"messages": [SYSTEM, USER, ANSWER]}) + "\n") * 2, encoding="utf-8")
    notes = read_file(tmp_path / "a.jsonl", "generation").notes
    assert notes == ["the system message 'Be brief.' of every row is left out, because served prompts have none"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": []}, "line 1: messages: expected a list of messages such as"),
        ({"messages": "hi"}, "line 1: messages: expected a user's message and an assistant's answer at the end"),
        ({"messages": [USER]}, "line 1: messages: expected a user's message and an assistant's answer at the end"),
        ({"messages": [ANSWER, USER]}, "line 1: messages: expected a user's message and an assistant's answer at the end"),
        ({"messages": [ANSWER, ANSWER]}, "line 1: messages: expected a user's message before the answer"),
        ({"messages": ["hi", "hello"]}, "line 1: messages: a message is not an object with role and content"),
        ({"messages": [{"role": "tool", "content": "x"}, ANSWER]}, "line 1: messages: role 'tool': expected system, user or"),
        ({"messages": [USER, {"role": "assistant", "content": " "}]}, "line 1: messages: the assistant's message has no text"),
        ({"instruction": "hi", "output": {"a": 1}}, "line 1: output is {'a': 1}: expected a text"),
        ({"prompt": "hi", "output": "a", "answer": "b"}, "no column 'completion', and 'output' and 'answer' could each be it"),
    ],
)  # fmt: skip
def test_a_row_that_is_no_conversation_is_named(tmp_path: Path, row: dict[str, object], said: str) -> None:
    assert wrong(tmp_path, json.dumps(row) + "\n", "generation").startswith(said)
