"""What tests put in the place of the outside: a tiny base model, separable rows, a free port, a bounded wait.

Used by the test modules and conftest.py. Nothing here stands in for Ratchet's own code.
"""

import contextlib
import csv
import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from schemas.configuration.training import TrainingSettings

REPOSITORY = Path(__file__).parents[2]
# Ports below those of outgoing connections, one of which could take a port before its server does: a share for each process.
PORTS_EACH = 1000
_FIRST_PORT = 10_000 + PORTS_EACH * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw9").removeprefix("gw")) % 10)
# A child of a test has the same share, and begins elsewhere.
_ports = itertools.cycle([_FIRST_PORT + (os.getpid() + n) % PORTS_EACH for n in range(PORTS_EACH)])
PATIENCE_S = 180.0  # for what takes milliseconds on an idle machine: only a failure waits this long
TOPICS: dict[str, list[str]] = {
    "football": "goal match striker league referee penalty stadium coach team keeper kick pitch".split(),
    "money": "bank loan market profit share tax budget invoice trade price bond rate".split(),
    "cooking": "oven recipe butter onion soup pepper bake flour garlic dough spoon taste".split(),
}
# A probe held this short leaves much to learn; adapters of a random base first make it worse, hence the patience.
TINY_RECIPE = TrainingSettings(
    epochs=8,
    patience=8,
    threads=1,
    learning_rate=2e-3,
    lora_dropout=0.0,
    base_dropout=False,
    label_names=False,
    bf16=False,
    adapted_layers=1,
    lora_targets="query-value",
    lora_rank=8,
    probe_c=1e-4,
    tfidf=False,
)
FILLERS = "the a of and to in with for on was is about today people new many".split()


def toy_rows(n: int, seed: int, topics: tuple[str, ...] = tuple(TOPICS)) -> list[tuple[str, str]]:
    """`n` rows of (text, label), all texts different: four words of one topic among eight fillers."""
    draw = random.Random(seed)
    rows: dict[str, str] = {}
    while len(rows) < n:
        label = topics[len(rows) % len(topics)]
        words = draw.choices(TOPICS[label], k=4) + draw.choices(FILLERS, k=8)
        draw.shuffle(words)
        rows.setdefault(" ".join(words), label)
    return list(rows.items())


def write_rows(path: Path, rows: list[tuple[str, str]], column: str = "label") -> Path:
    """Write rows as a CSV with the columns text and, unless said, label."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", column])
        writer.writerows(rows)
    return path


def tiny_base_model(directory: Path) -> Path:
    """A BERT of 2 layers, 64 wide, with random weights and a listed WordPiece vocabulary, as a local model folder."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    # The vocabulary is listed, not trained: training breaks ties at random, and tests would see another model each time.
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = sorted({*FILLERS, *(word for topic in TOPICS.values() for word in topic)} - set(letters))
    pieces = [*specials, *letters, *(f"##{letter}" for letter in letters), *words]
    tokenizer = Tokenizer(models.WordPiece({piece: n for n, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(
        ("[SEP]", tokenizer.token_to_id("[SEP]") or 0), ("[CLS]", tokenizer.token_to_id("[CLS]") or 0)
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=128,
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=128,
    )
    BertModel(config).save_pretrained(directory)
    fast.save_pretrained(directory)
    return directory


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on."""
    return free_ports(1)


def free_ports(n: int) -> int:
    """The first of `n` such ports in a row."""
    for first in itertools.islice(_ports, PORTS_EACH):
        with contextlib.ExitStack() as bound, contextlib.suppress(OSError):
            for port in range(first, first + n):
                bound.enter_context(socket.socket()).bind(("127.0.0.1", port))
            for _ in range(n - 1):
                next(_ports)
            return first
    raise OSError(f"no {n} ports in a row are free from {_FIRST_PORT} on")


def wait_until(condition: Callable[[], object], timeout_s: float = PATIENCE_S, every_s: float = 0.05) -> None:
    """Return once `condition()` is true; raises TimeoutError after `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not true within {timeout_s} s: {condition}")
        time.sleep(every_s)


def tiny_causal_model(directory: Path, seed: int = 0) -> Path:
    """A Llama of 2 layers, 32 wide, with random weights and a tokenizer of bytes that knows a chat template, as a folder."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)}, []))
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ("<end>", "<user>", "<model>")])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>", model_max_length=256
    )
    fast.chat_template = (
        "{% for m in messages %}{{ '<user>' if m.role == 'user' else '<model>' }}{{ m.content }}<end>\n{% endfor %}"
        "{% if add_generation_prompt %}<model>{% endif %}"
    )
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=256,
        initializer_range=0.3,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    fast.save_pretrained(directory)
    return directory


def killed_round(round_id: str, config: Path, step: str) -> None:
    """Run a claimed round in a process of its own that is killed after a step."""
    command = [sys.executable, "-m", "services.cli.main", "round", "run", "--claimed", round_id, "-c", str(config)]
    environment = {**os.environ, "RATCHET_CRASH_AT": step}
    ended = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, check=False, timeout=300)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
