"""Checks of a prediction request that depend on settings and on the live version.

Turns a well-formed request into what may be asked of this project, or into a refusal. api.py calls them. It deliberately knows no
HTTP beyond a status and no queue.
"""

from schemas.serving_settings import ServingSettings
from serving.http.asgi import Refused
from serving.http.contract import Item, Options, PredictRequest
from serving.inference.loading import Loaded


def items(asked: PredictRequest, serving: ServingSettings) -> list[Item]:
    """Return the items, of acceptable number and length, none empty. Raises Refused."""
    if len(asked.items) > serving.max_items:
        raise Refused(422, "too many items", ("items", f"{len(asked.items)}, at most {serving.max_items}"))
    for n, item in enumerate(asked.items):
        if len(item.text) > serving.max_text_chars:
            reason = f"{len(item.text)}, at most {serving.max_text_chars}"
            raise Refused(422, "a text is too long", (f"items.{n}.text", reason))
        if not item.text.strip():
            raise Refused(422, "a text is empty", (f"items.{n}.text", "only white space"))
    return asked.items


def most_tokens(asked: PredictRequest, options: Options, live: tuple[Loaded, int] | None) -> int | None:
    """Return how many tokens an answer may have if the live version writes, else None. Raises Refused."""
    manifest = live[0].manifest if live else None
    if manifest is None or manifest.task != "generation":
        if options.stream or options.max_new_tokens:
            field = "stream" if options.stream else "max_new_tokens"
            raise Refused(422, "this model writes no text", (f"options.{field}", "of models that write"))
        return None
    if options.coverage is not None:
        raise Refused(422, "a text has no set", ("options.coverage", "of models with labels or numbers"))
    if options.stream and len(asked.items) > 1:
        raise Refused(
            422, "too many items", ("items", f"`options.stream` needs exactly one item, got {len(asked.items)}")
        )
    most = options.max_new_tokens or manifest.max_new_tokens
    if most > manifest.max_new_tokens:
        raise Refused(422, "too many tokens", ("options.max_new_tokens", f"at most {manifest.max_new_tokens}"))
    return most
