"""Formats: what training of generation reads, and the file that people fine-tune chat models elsewhere with.

Turns a prompt and its completion into tokens, and a dataset of any task into chat JSONL. training/generation.py and `ratchet
dataset export` call it. It deliberately trains nothing.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipelines.dataset.examples import Example
from schemas.targets import Task

IGNORED = -100  # the label of a token that costs nothing (torch's cross entropy)
ROLES = ("system", "user", "assistant", "tool", "function", "developer")
LEAST_CHAT_ROWS = 10
MOST_BYTES = 512 * 1024 * 1024

ASKED: Mapping[Task, str] = {
    "classification": "Answer with the one label that fits the text: {labels}.",
    "multilabel": "Answer with a JSON list of the labels that fit the text, of these: {labels}.",
    "regression": "Answer with the number that fits the text.",
    "generation": "Answer.",
}

Message = Mapping[str, str]


class BadFormat(ValueError):
    """Rows that the format does not allow; the message names the row and the rule."""


def generation(prompt: str | Sequence[Message], completion: str, tokenizer: Any) -> dict[str, list[int]]:
    """`input_ids` and `labels` of equal length, loss only on the completion and the end of the answer.

    Args:
        prompt: a text, or a conversation for the tokenizer's chat template.
        completion: what the model shall answer.
        tokenizer: a Hugging Face tokenizer; with a chat template, unless `prompt` is a text.

    """
    if isinstance(prompt, str):
        before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        after = tokenizer(completion, add_special_tokens=False)["input_ids"]
        whole = [*before, *after, *([tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else [])]
    else:
        answer = {"role": "assistant", "content": completion}
        # as one text each: a template may put the answer elsewhere than at the end of the prompt's tokens
        opening = tokenizer.apply_chat_template(list(prompt), tokenize=False, add_generation_prompt=True)
        full = tokenizer.apply_chat_template([*prompt, answer], tokenize=False)
        if not full.startswith(opening):
            raise BadFormat("the chat template does not put the answer after the prompt")
        before = tokenizer(opening, add_special_tokens=False)["input_ids"]
        whole = [*before, *tokenizer(full[len(opening) :], add_special_tokens=False)["input_ids"]]
    return {"input_ids": whole, "labels": [*([IGNORED] * len(before)), *whole[len(before) :]]}


def chat_lines(rows: Iterable[Example], labels: Sequence[str], task: Task) -> list[str]:
    """Chat fine-tuning JSONL: the system message says what is asked, the user says the text, the assistant answers the target."""
    system = ASKED[task].format(labels=", ".join(labels))
    lines = []
    for row in rows:
        said = {"system": system, "user": row.text, "assistant": row.label}
        messages = [{"role": role, "content": content} for role, content in said.items()]
        lines.append(json.dumps({"messages": messages}, ensure_ascii=False))
    return lines


def check_chat(lines: Sequence[str]) -> None:
    """Hold lines against the published rules of chat fine-tuning files.

    A JSON object with `messages` a line; known roles; content that is a text and not blank; weights, of the assistant alone,
    0 or 1; an answer of the assistant at the end; ten rows at least; 512 MB at most. Raises BadFormat.
    """
    if len(lines) < LEAST_CHAT_ROWS:
        raise BadFormat(f"{len(lines)} rows: a chat fine-tuning file needs {LEAST_CHAT_ROWS}")
    if (size := sum(len(line.encode()) + 1 for line in lines)) > MOST_BYTES:
        raise BadFormat(f"{size} bytes: a chat fine-tuning file has {MOST_BYTES} at most")
    for n, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise BadFormat(f"row {n} is not JSON: {error}") from error
        messages = row.get("messages") if isinstance(row, dict) else None
        if not isinstance(messages, list) or not messages:
            raise BadFormat(f"row {n}: no messages")
        for message in messages:
            _check_message(message, n)
        if messages[-1]["role"] != "assistant":
            raise BadFormat(f"row {n}: the last message is not the assistant's")


def _check_message(message: Any, n: int) -> None:
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise BadFormat(f"row {n}: a message without a role of {', '.join(ROLES)}")
    if not isinstance(message.get("content"), str) or not message["content"].strip():
        raise BadFormat(f"row {n}: a message without content")
    if unknown := sorted(message.keys() - {"role", "content", "name", "weight"}):
        raise BadFormat(f"row {n}: unknown keys {', '.join(unknown)}")
    if "weight" in message and (message["role"] != "assistant" or message["weight"] not in (0, 1)):
        raise BadFormat(f"row {n}: a weight is 0 or 1, and the assistant's")
