"""Prompts of a causal language model.

Turns a text into a prompt: a conversation if the tokenizer has a chat template, else the text itself. decoder_runtime.py and
pipelines/training/tasks/generation.py call it, so serving and training use the same prompts. It knows no model and no torch.
"""

from typing import Any


def prompt_of(tokenizer: Any, text: str) -> str | list[dict[str, str]]:
    """Return a conversation for the tokenizer's chat template, or the text if it has none."""
    return [{"role": "user", "content": text}] if tokenizer.chat_template else text


def encode(tokenizer: Any, text: str) -> list[int]:
    """Return the prompt's token ids, up to where the generated text begins; at least one, as a model needs."""
    prompt = prompt_of(tokenizer, text)
    if not isinstance(prompt, str):
        prompt = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    return _ids(tokenizer, prompt) or [tokenizer.bos_token_id or tokenizer.eos_token_id or 0]


def shortened(tokenizer: Any, text: str, length: int) -> str:
    """Cut the text's end until its prompt has at most `length` tokens; return an empty text if nothing fits."""
    excess = len(encode(tokenizer, text)) - length
    ids = _ids(tokenizer, text) if excess > 0 else []
    while excess > 0 and ids:
        ids = ids[:-excess]
        text = tokenizer.decode(ids)  # the cut text may be tokenised differently, hence the loop
        excess = len(encode(tokenizer, text)) - length
    return text


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
