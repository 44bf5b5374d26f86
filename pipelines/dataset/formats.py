"""Tokenise prompts and completions for training, and write a dataset as chat fine-tuning JSONL.

training/tasks/generation.py and `ratchet dataset export` call it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipelines.dataset.examples import Example
from schemas.targets import Task

IGNORED = -100  # label of a token without loss (torch's cross entropy)
ROLES = ("system", "user", "assistant", "tool", "function", "developer")
LEAST_CHAT_ROWS = 10
MOST_BYTES = 512 * 1024 * 1024

INSTRUCTIONS: Mapping[Task, str] = {
    "classification": "Answer with the one label that fits the text: {labels}.",
    "multilabel": "Answer with a JSON list of the labels that fit the text, of these: {labels}.",
    "regression": "Answer with the number that fits the text.",
    "generation": "Answer.",
}

Message = Mapping[str, str]


class BadFormat(ValueError):
    """Rows that break the format; the message names the row and the rule."""


def generation(prompt: str | Sequence[Message], completion: str, tokenizer: Any) -> dict[str, list[int]]:
    """Return `input_ids` and `labels` of equal length; only the completion and the end token have loss.

    Args:
        prompt: a text, or a conversation for the tokenizer's chat template.
        completion: the target text.
        tokenizer: a Hugging Face tokenizer; it needs a chat template unless `prompt` is a text.

    """
    if isinstance(prompt, str):
        before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        after = tokenizer(completion, add_special_tokens=False)["input_ids"]
        whole = [*before, *after, *([tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else [])]
    else:
        answer = {"role": "assistant", "content": completion}
        # compared as texts: a template may not put the answer right after the prompt
        opening = tokenizer.apply_chat_template(list(prompt), tokenize=False, add_generation_prompt=True)
        full = tokenizer.apply_chat_template([*prompt, answer], tokenize=False)
        if not full.startswith(opening):
            raise BadFormat(
                "the tokenizer's chat template must put the answer after the prompt: use another template or model"
            )
        before = tokenizer(opening, add_special_tokens=False)["input_ids"]
        whole = [*before, *tokenizer(full[len(opening) :], add_special_tokens=False)["input_ids"]]
    return {"input_ids": whole, "labels": [*([IGNORED] * len(before)), *whole[len(before) :]]}


def chat_lines(rows: Iterable[Example], labels: Sequence[str], task: Task) -> list[str]:
    """Return chat fine-tuning JSONL: the system message has the instruction, the user the text, the assistant the target."""
    system = INSTRUCTIONS[task].format(labels=", ".join(labels))
    lines = []
    for row in rows:
        contents = {"system": system, "user": row.text, "assistant": row.label}
        messages = [{"role": role, "content": content} for role, content in contents.items()]
        lines.append(json.dumps({"messages": messages}, ensure_ascii=False))
    return lines


def check_chat(lines: Sequence[str]) -> None:
    """Raise BadFormat if lines break a published rule of chat fine-tuning files.

    Each line is a JSON object with `messages`: known roles, text content that is not blank, weights (0 or 1) only for the
    assistant, and the assistant's message last. A file has at least 10 rows and at most 512 MiB.
    """
    if len(lines) < LEAST_CHAT_ROWS:
        raise BadFormat(f"{len(lines)} rows: a chat fine-tuning file needs {LEAST_CHAT_ROWS} or more")
    if (size := sum(len(line.encode()) + 1 for line in lines)) > MOST_BYTES:
        raise BadFormat(f"{size} bytes: a chat fine-tuning file has at most {MOST_BYTES}: export fewer rows")
    for n, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise BadFormat(f"row {n} is not JSON: {error}") from error
        messages = row.get("messages") if isinstance(row, dict) else None
        if not isinstance(messages, list) or not messages:
            raise BadFormat(f"row {n}: `messages` is missing or empty")
        for message in messages:
            _check_message(message, n)
        if messages[-1]["role"] != "assistant":
            raise BadFormat(
                f"row {n}: the role of the last message is {messages[-1]['role']!r}; it must be 'assistant'"
            )


def _check_message(message: Any, n: int) -> None:
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise BadFormat(f"row {n}: the role of a message must be one of {', '.join(ROLES)}")
    if not isinstance(message.get("content"), str) or not message["content"].strip():
        raise BadFormat(f"row {n}: the content of a message must be a text that is not blank")
    if unknown := sorted(message.keys() - {"role", "content", "name", "weight"}):
        raise BadFormat(f"row {n}: unknown keys {', '.join(unknown)} in a message")
    if "weight" in message and (message["role"] != "assistant" or message["weight"] not in (0, 1)):
        raise BadFormat(f"row {n}: the weight of a message must be 0 or 1, and only the assistant's has one")
