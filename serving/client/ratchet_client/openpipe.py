"""An adapter for OpenPipe's exported request logs: a seed file for `ratchet init`.

Turns JSONL lines of `{"input": {"messages": [...]}, "output": {"choices": [...]}, "tags": {...}}` into rows with `messages`
(generation) or with `text` and `label` (classification). Tags become metadata. Source: OpenPipe's documentation, "Exporting
Logs". Datasets exported by OpenPipe need no adapter: `ratchet init` reads their `messages`.

    python -m ratchet_client.openpipe logs.jsonl seed.jsonl --task classification
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

Task = Literal["generation", "classification"]


class NoRow(ValueError):
    """A log that cannot become a row; the text says why."""


def row_of(log: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """Return one log as a row. Raises NoRow for errors, tool calls and logs without a user's message."""
    messages, answer = _messages(log), _answer(log)
    given = log.get("tags")
    tags = {str(k): str(v) for k, v in given.items() if v is not None} if isinstance(given, Mapping) else {}
    if task == "generation":
        return {"messages": [*messages, {"role": "assistant", "content": answer}], **tags}
    questions = [_text(message.get("content")) for message in messages if message.get("role") == "user"]
    if not questions or not questions[-1]:
        raise NoRow("no user's message")
    return {
        "text": questions[-1],
        "label": answer.strip(),
        **{k: v for k, v in tags.items() if k not in ("text", "label")},
    }


def rows(lines: Iterable[str], task: Task, skipped: "Counter[str]") -> Iterator[dict[str, Any]]:
    """Yield the row of each log; count those left out in `skipped`, by reason."""
    for line in lines:
        if not line.strip():
            continue
        try:
            yield row_of(json.loads(line), task)
        except json.JSONDecodeError:
            skipped["not JSON"] += 1
        except NoRow as error:
            skipped[str(error)] += 1


def _messages(log: Any) -> list[Mapping[str, Any]]:
    given = log.get("input") if isinstance(log, Mapping) else None
    messages = given.get("messages") if isinstance(given, Mapping) else None
    if not isinstance(messages, list) or not all(isinstance(message, Mapping) for message in messages):
        raise NoRow("no messages in `input`")
    return messages


def _answer(log: Mapping[str, Any]) -> str:
    output = log.get("output")
    choices = output.get("choices") if isinstance(output, Mapping) else None
    if not isinstance(choices, list) or not choices:
        raise NoRow("no answer in `output`")
    message = choices[0].get("message") if isinstance(choices[0], Mapping) else None
    text = _text(message.get("content")) if isinstance(message, Mapping) else ""
    if not text:
        raise NoRow("the answer has no text")
    return text


def _text(content: Any) -> str:
    """Return the text of a message's content: a string, or a list of parts of which each has a text."""
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
        return "\n".join(str(part) for part in parts) if all(isinstance(part, str) for part in parts) else ""
    return content if isinstance(content, str) else ""


def main(arguments: list[str] | None = None) -> int:
    """Convert a file and print how many logs became rows; return the exit status, 1 if none did."""
    parser = argparse.ArgumentParser(
        prog="python -m ratchet_client.openpipe", description="OpenPipe's logs as a seed file"
    )
    parser.add_argument("logs", type=Path, help="exported request logs, JSONL")
    parser.add_argument("seed", type=Path, help="file to write, JSONL")
    parser.add_argument("--task", choices=["generation", "classification"], default="generation")
    given = parser.parse_args(arguments)
    skipped: Counter[str] = Counter()
    with given.logs.open(encoding="utf-8") as logs, given.seed.open("w", encoding="utf-8") as seed:
        written = 0
        for row in rows(logs, given.task, skipped):
            seed.write(json.dumps(row, ensure_ascii=False) + "\n")
            written += 1
    left_out = "".join(f"; left out: {n} ({reason})" for reason, n in skipped.most_common())
    print(f"{given.seed}: {written} rows{left_out}")
    return 0 if written else 1


if __name__ == "__main__":
    sys.exit(main())
