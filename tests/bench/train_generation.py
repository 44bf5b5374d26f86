"""PART=generation of `make bench-train`: SmolLM2-135M learns to answer as the chatterbot corpus does.

Turns the corpus's English question/answer pairs into three sides, trains on one, chooses epochs on another, and compares answers
to the third with those of the model before training and of the nearest question's neighbour. The recipe was chosen on the
validation side (docs/lab-notes.md); what decides, chrF of each question's answer and the NLL of a token, was chosen before.

No leaks: questions that are alike but for case and punctuation, or that share an answer, are on one side, all of them.
"""

import hashlib
import importlib.util
import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray
from rich.console import Console

from pipelines.dataset.examples import Example
from pipelines.metrics import point
from pipelines.metrics.paired_tests import ResampledGain
from pipelines.models.decoder import Decoder, decoder_path
from pipelines.models.encoder import Encoder, base_model_path
from pipelines.training.tasks.generation import Generation, encoded
from pipelines.training.trainer import train
from schemas.configuration.training import TrainingSettings
from services.projects import TEXT_TRAINING
from serving.inference.decoder_runtime import DecoderRuntime
from tests.bench.report import Figure
from tests.support.versions import text_version

MAX_LENGTH, MOST = 96, 64
RECIPE = TrainingSettings.model_validate(TEXT_TRAINING)  # what `ratchet init --task generation` writes
SHARES = {"test": 0.3, "validation": 0.15}

Pair = tuple[str, str]


@dataclass(frozen=True)
class Answered:
    """One way to answer the test questions: a text each, and the NLL of the tokens of each one's references where it has any."""

    texts: list[str]
    nll: NDArray[np.float64] | None
    tokens: NDArray[np.float64] | None


def pairs() -> list[Pair]:
    """Conversations of two turns, once each."""
    found = importlib.util.find_spec("chatterbot_corpus")
    assert found is not None and found.origin is not None, "chatterbot-corpus is not installed: run make install"
    files = sorted((Path(found.origin).parent / "data/english").glob("*.yml"))
    turns = [turns for file in files for turns in yaml.safe_load(file.read_text(encoding="utf-8"))["conversations"]]
    return list(dict.fromkeys((each[0].strip(), each[1].strip()) for each in turns if len(each) == 2))


def sides(given: Sequence[Pair]) -> dict[str, list[Pair]]:
    """Pairs by side; the side of a group is a hash of it."""
    above: dict[str, str] = {}

    def top(name: str) -> str:
        while above.setdefault(name, name) != name:
            name = above[name]
        return name

    for question, answer in given:
        one, other = sorted((top("q " + _plain(question)), top("a " + _plain(answer))))
        above[other] = one
    found: dict[str, list[Pair]] = defaultdict(list)
    for question, answer in given:
        draw = int.from_bytes(hashlib.sha256(top("q " + _plain(question)).encode()).digest()[:8]) / 2**64
        side = "test" if draw < SHARES["test"] else "validation" if draw < sum(SHARES.values()) else "train"
        found[side].append((question, answer))
    return found


def examples(given: Sequence[Pair]) -> list[Example]:
    """As rows that train."""
    return [Example(text=question, label=answer, source="seed") for question, answer in given]


def references(given: Sequence[Pair]) -> dict[str, list[str]]:
    """Question -> the answers that would do."""
    found: dict[str, list[str]] = defaultdict(list)
    for question, answer in given:
        found[question].append(answer)
    return found


def written_by(model: object, base: Decoder, asked: dict[str, list[str]]) -> Answered:
    """What the artefact of a model, as it would serve, answers; and how likely the references are to it."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        text_version(directory, model, base, "bench", "bench")
        writer = DecoderRuntime(directory, threads=RECIPE.threads or 2)
    rows = [encoded(base, question, answer) for question, given in asked.items() for answer in given]
    said = writer.token_logprobs([ids for ids, _ in rows], [length for _, length in rows])
    losses, counts = iter([-sum(one) for one in said]), iter([len(one) for one in said])
    return Answered(
        [one.text.strip() for one in writer.generate(list(asked))],
        np.array([sum(next(losses) for _ in given) for given in asked.values()]),
        np.array([sum(next(counts) for _ in given) for given in asked.values()], dtype=np.float64),
    )


def nearest(known: Sequence[Pair], asked: dict[str, list[str]]) -> Answered:
    """The answer of the most similar known question, by MiniLM's embeddings."""
    encoder = Encoder(base_model_path(None), 128)
    ours, theirs = (_unit(encoder.embed(list(texts))) for texts in ([q for q, _ in known], asked))
    return Answered([known[n][1] for n in (theirs @ ours.T).argmax(axis=1)], None, None)


def measure() -> list[Figure]:
    """The figures of PART=generation."""
    return compared("generation", sides(pairs()))


def compared(part: str, by_side: Mapping[str, Sequence[Pair]]) -> list[Figure]:
    """Train on a set's rows and compare answers to its test questions with both baselines'."""
    base = Decoder(decoder_path(None), MAX_LENGTH, MOST)
    rows, held = examples(by_side["train"]), examples(by_side["validation"])
    trained = train(Generation(), base, rows, held, RECIPE, lambda *_: None)
    untrained = Generation().start(base, rows, RECIPE)
    asked = references(by_side["test"])
    answered = {
        "trained": written_by(trained.model, base, asked),
        "untrained": written_by(untrained, base, asked),
        "nearest neighbour": nearest([*by_side["train"], *by_side["validation"]], asked),
    }
    truth = list(asked.values())
    for name, one in answered.items():
        shown = point.generation(truth, one.texts)
        if one.nll is not None and one.tokens is not None:
            shown["perplexity"] = float(np.exp(one.nll.sum() / one.tokens.sum()))
        Console().print(f"{part}, {name}: " + ", ".join(f"{key} {value:.3f}" for key, value in shown.items()))
    chrf = {name: point.row_chrf(truth, one.texts) for name, one in answered.items()}
    ours, before = answered["trained"], answered["untrained"]
    assert ours.nll is not None and ours.tokens is not None and before.nll is not None
    saved, tokens = before.nll - ours.nll, ours.tokens
    return [
        _gain(f"{part}: chrF over the untrained start's", chrf["untrained"], chrf["trained"]),
        _gain(f"{part}: chrF over the nearest neighbour's", chrf["nearest neighbour"], chrf["trained"]),
        _figure(
            f"{part}: NLL of a token below the untrained start's",
            lambda counts: (counts @ saved) / (counts @ tokens),
            len(asked),
            float(before.nll.sum() / tokens.sum()),
        ),
    ]


def _gain(name: str, before: NDArray[np.float64], after: NDArray[np.float64]) -> Figure:
    """The mean difference's lower end; prints how small a gain so many rows would show four times in five."""
    n, gain = len(before), after - before
    shown = (1.96 + 0.84) * float(gain.std()) / np.sqrt(n)
    print(f"{name}: {n} rows show a gain of {shown:.3f} with a power of .8", flush=True)
    return _figure(name, lambda counts: counts @ gain / n, n, float(before.mean()))


def _figure(name: str, metric: Callable[[NDArray[np.float64]], NDArray[np.float64]], n: int, baseline: float) -> Figure:
    """The lower end of the paired interval, which has to be above zero."""
    gain = ResampledGain(metric, n, "{:+.4f}")
    interval = gain.interval()
    return Figure(
        figure=f"{name}, {gain.observed:+.4f}; low end",
        value=interval[0],
        op=">=",
        target=0.0,
        n=n,
        interval=interval,
        baseline=baseline,
    )


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold())) or text
