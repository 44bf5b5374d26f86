"""What stands before an answer that is to be written.

Turns a text into the prompt of a causal language model: a conversation where its tokenizer knows how to write one, else
the text itself. serving/inference/decoder_runtime.py answers prompts, pipelines/training/tasks/generation.py learns from
them, so both read the same. It deliberately knows tokenizers alone, no model and no torch.
"""

from typing import Any


def prompt_of(tokenizer: Any, text: str) -> str | list[dict[str, str]]:
    """A conversation for the tokenizer's chat template, or the text if it has none."""
    return [{"role": "user", "content": text}] if tokenizer.chat_template else text


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of the prompt, up to where the answer begins."""
    prompt = prompt_of(tokenizer, text)
    if not isinstance(prompt, str):
        prompt = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    return _ids(tokenizer, prompt)


def shortened(tokenizer: Any, text: str, length: int) -> str:
    """The text without so much of its end that its prompt has `length` tokens at most; empty if nothing fits."""
    excess = len(encode(tokenizer, text)) - length
    own = _ids(tokenizer, text) if excess > 0 else []
    while excess > 0 and own:
        own = own[:-excess]
        text = tokenizer.decode(own)  # cut tokens may join differently, hence again
        excess = len(encode(tokenizer, text)) - length
    return text


def _ids(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found
