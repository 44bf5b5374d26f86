"""Checks of a prediction request against the settings and the live version.

Turns a well-formed request into its items and token limit, or raises `Refused`. api.py calls them before it queues a request.
"""

from schemas.configuration.serving import ServingSettings
from serving.http.asgi import Refused
from serving.http.contract import Item, Options, PredictRequest
from serving.inference.loading import Loaded


def items(request: PredictRequest, serving: ServingSettings) -> list[Item]:
    """Return the request's items. Raises Refused if there are too many, or a text is empty or too long."""
    if len(request.items) > serving.max_items:
        raise Refused(422, "too many items", ("items", f"at most {serving.max_items} items, got {len(request.items)}"))
    for n, item in enumerate(request.items):
        if len(item.text) > serving.max_text_chars:
            reason = f"at most {serving.max_text_chars} characters, got {len(item.text)}"
            raise Refused(422, "a text is too long", (f"items.{n}.text", reason))
        if not item.text.strip():
            raise Refused(422, "a text is empty", (f"items.{n}.text", "needs a character other than white space"))
    return request.items


def max_new_tokens(request: PredictRequest, options: Options, live: tuple[Loaded, int] | None) -> int | None:
    """Return the most tokens a generated text may have; None unless the live version generates text. Raises Refused."""
    manifest = live[0].manifest if live else None
    if manifest is None or manifest.task != "generation":
        if options.stream or options.max_new_tokens:
            field = "stream" if options.stream else "max_new_tokens"
            raise Refused(422, "this model generates no text", (f"options.{field}", "only for the task generation"))
        return None
    if options.coverage is not None:
        raise Refused(
            422, "a generated text has no prediction set", ("options.coverage", "not for the task generation")
        )
    if options.stream and len(request.items) > 1:
        raise Refused(
            422, "too many items", ("items", f"`options.stream` needs exactly one item, got {len(request.items)}")
        )
    limit = options.max_new_tokens or manifest.max_new_tokens
    if limit > manifest.max_new_tokens:
        raise Refused(
            422, "too many tokens", ("options.max_new_tokens", f"at most {manifest.max_new_tokens}, got {limit}")
        )
    return limit
