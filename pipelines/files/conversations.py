"""Turn the messages of a chat into system message, prompt and completion.

Reads OpenAI's `messages`, ShareGPT's `conversations`, and prompts that are lists of messages. layouts.py calls it for the task
"generation".
"""

from collections.abc import Mapping, Sequence

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
}


class BadConversation(ValueError):
    """Messages that are no prompt with a completion; the error text says what was expected."""


def turns(value: object) -> list[tuple[str, str]]:
    """Return the (role, content) pairs of a list of messages. Raises BadConversation."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not value:
        raise BadConversation("expected a list of messages such as [{'role': 'user', 'content': '...'}]")
    return [_turn(message) for message in value]


def prompt_and_completion(pairs: Sequence[tuple[str, str]]) -> tuple[str, str, str]:
    """Return system message, prompt and completion; the completion is the assistant's message at the end.

    A single user message is the prompt. Several turns become paragraphs, each beginning with its role. Raises BadConversation.
    """
    system = "\n\n".join(content for role, content in pairs if role == "system")
    dialogue = [(role, content) for role, content in pairs if role != "system"]
    if len(dialogue) < 2 or dialogue[-1][0] != "assistant":
        raise BadConversation("expected a user's message and an assistant's answer at the end")
    *before, (_, completion) = dialogue
    if not any(role == "user" for role, _ in before):
        raise BadConversation("expected a user's message before the answer")
    if len(before) == 1:
        return system, before[0][1], completion
    return system, "\n\n".join(f"{role.capitalize()}: {content}" for role, content in before), completion


def _turn(message: object) -> tuple[str, str]:
    if not isinstance(message, Mapping):
        raise BadConversation("a message is not an object with role and content")
    named = message.get("role", message.get("from"))
    role = _ROLES.get(named.strip().lower()) if isinstance(named, str) else None
    if role is None:
        raise BadConversation(f"role {named!r}: expected system, user or assistant")
    content = message.get("content", message.get("value"))
    if isinstance(content, Sequence) and not isinstance(content, str):  # a list of parts: all must be texts
        texts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
        known = [text for text in texts if isinstance(text, str)]
        content = "\n".join(known) if len(known) == len(texts) else None
    if not isinstance(content, str) or not content.strip():
        raise BadConversation(f"the {role}'s message has no text")
    return role, content.strip()
