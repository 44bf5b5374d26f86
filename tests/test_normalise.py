"""Training and serving read the same text: one normaliser, named by the artefact and applied by both."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.dataset.build import Sources, build
from pipelines.dataset.cleaning.clean import clean
from pipelines.dataset.examples import Drops, Example
from pipelines.dataset.files import FileRow
from pipelines.models.decoder import Decoder
from pipelines.models.encoder import Encoder
from pipelines.training.tasks.generation import encoded
from schemas.setting_groups import DatasetSettings, ModelSettings
from schemas.settings import Settings
from serving.inference.decoder_runtime import DecoderRuntime
from serving.inference.encoder_runtime import Runtime
from serving.inference.normalise import NORMALISER, UnknownNormaliser, normalise
from tests.support.dataset_rounds import LABELS, Ledger, no_embedding
from tests.support.versions import copied

MESSY = [
    "the   bank\tand the\nloan",
    "the cafÃ© isnâ€™t open for a goal",
    "zero\u200bwidth\ufeff oven and \u202ebutter",
    "a goal for the team\nSent from my iPhone",
    "1 &lt; 2 &amp; 3 loans at the bank",
    "write to bob&#64;example.org about the goal",
    "e\u0301te\u0301 of the trade",
    "the market " * 60,  # cut at 32 tokens
    "Sent from my iPhone",
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, version: Path) -> Path:
    """A version whose manifest names no normaliser, as those made before it was recorded."""
    return copied(version, tmp_path_factory.mktemp("versions") / "plain", model_version="plain")


def test_a_row_is_trained_on_as_its_text_is_served(plain: Path, tmp_path: Path, tiny_base: Path) -> None:
    """From the text that a caller sends to token ids: through a dataset build and training, and through the runtime."""
    settings = Settings(root=tmp_path, model=ModelSettings(name="m"), dataset=DatasetSettings(quarantine=False))
    runtime = Runtime(copied(plain, tmp_path / "v", normaliser=NORMALISER))
    encoder = Encoder(tiny_base, 32)
    fillers = [FileRow(f"{word} and nothing else here", LABELS[0]) for word in ("one", "two", "three")]
    for text in MESSY:
        seed = [FileRow(text, LABELS[1]), *fillers]
        dataset = build(
            Sources(seed=seed, reference=[FileRow("a reference text", LABELS[0])] * 1, feedback=[], cut={}),
            labels=LABELS,
            settings=settings,
            embed=no_embedding,
            ledger=Ledger(),
        )
        used = [(row.text, row.label) for row in [*dataset.train, *dataset.validation]]
        used += [(row.text, row.label) for row in [*dataset.calibration, *dataset.reference]]
        [kept] = [used_text for used_text, label in used if label == LABELS[1]]
        [trained] = encoder.batch([kept])["input_ids"].tolist()
        assert runtime.encode([text]) == [trained], text
        assert runtime.encode([kept]) == [trained], text


def test_a_version_without_a_normaliser_goes_on_as_before(plain: Path, tmp_path: Path, tiny_base: Path) -> None:
    before, after = Runtime(plain), Runtime(copied(plain, tmp_path / "v", normaliser=NORMALISER))
    text = "1 &lt; 2 loans"
    assert before.encode([text]) == [Encoder(tiny_base, 32).batch([text])["input_ids"][0].tolist()]
    assert before.encode([text]) != after.encode([text])
    assert before.encode(["the bank"]) == after.encode(["the bank"])


def test_an_unknown_normaliser_is_refused_by_name(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UnknownNormaliser, match="plain: `normaliser` is 'ratchet-text-9', this release has ratchet-text-1"
    ):
        Runtime(copied(plain, tmp_path / "v", normaliser="ratchet-text-9"))


@pytest.mark.parametrize("text", MESSY)
def test_a_normalised_text_stays_as_it_is(text: str) -> None:
    once = normalise(text)
    assert once
    assert normalise(once) == once


@given(st.text(max_size=60))
def test_normalising_twice_is_normalising_once(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


def test_a_prompt_is_trained_on_as_it_is_served(text_version: Path, tiny_decoder: Path, tmp_path: Path) -> None:
    """From the text that a caller sends to token ids: through the runtime, and as training encodes a row."""
    served = DecoderRuntime(copied(text_version, tmp_path / "v", normaliser=NORMALISER))
    base = Decoder(tiny_decoder, served.max_length, served.max_new_tokens)
    before = DecoderRuntime(text_version)
    for text in MESSY:
        ids, length = encoded(base, normalise(text), "yes")
        assert served.encode(text) == ids[: len(ids) - length], text
    assert before.encode("two\nlines") != served.encode("two\nlines")


def kept(texts: list[str], source: str) -> tuple[list[str], dict[str, int]]:
    """The texts of rows of a source that are usable, and how many are left out for which reason."""
    drops, rows = Drops(), [Example(text=text, label="money", source=source) for text in texts]
    usable = clean(rows, {"money"}, drops, task="classification", min_chars=2)
    return [row.text for row in usable], dict(drops.counts)


@pytest.mark.parametrize("source", ["seed", "domain", "correction"])
def test_a_wish_that_reads_like_a_mail_footer_trains_if_a_file_has_it(source: str) -> None:
    wish = "Unsubscribe me from the newsletter"
    found = kept([wish, f"the market is up\n{wish}"], source)
    if source == "correction":
        assert found == (["the market is up"], {"boilerplate": 1})
    else:
        assert found == ([wish, "the market is up"], {})


def test_a_text_is_long_enough_wherever_its_letters_stand() -> None:
    texts = ["!" * 16 + " where is my card", "\U0001f600" * 40 + " ok", "_" * 200 + "a1"]
    assert kept([*texts, "?!" * 20, "a" + "!" * 20], "seed") == (texts, {"too short": 2})
