"""Near-duplicates among long texts: prompts behind one system message, rows of a later reference, texts that fill the memory."""

import random
import tracemalloc

import numpy as np

from pipelines.dataset.build import Dataset, Sources, build
from pipelines.dataset.cleaning.deduplicate import Grams, cluster
from pipelines.dataset.files import FileRow
from schemas.setting_groups import DatasetSettings, ModelSettings
from schemas.settings import Settings
from schemas.targets import Task
from tests.support.dataset_rounds import LABELS, LETTERS, Ledger, Simulation, no_embedding, said, sides_in_use
from tests.support.fakes import TOPICS, toy_rows

WORDS = [word for words in TOPICS.values() for word in words]


def system_message(seed: int) -> str:
    """800 characters of made-up words."""
    draw = random.Random(seed)
    return "".join("".join(draw.choices(LETTERS, k=7)) + " " for _ in range(100))


MESSAGES = [system_message(1), system_message(2)]
PROMPTS = [f"{MESSAGES[n % 2]}What does {word} mean?" for n, word in enumerate(WORDS[:20])]
LONGER = [f"{MESSAGES[0]}{text}" for text, _ in toy_rows(12, seed=1)]


def built(
    prompts: list[str], reference: list[str] | None = None, ledger: Ledger | None = None, task: Task = "generation"
) -> Dataset:
    rows, judging = ([FileRow(text, "an answer") for text in texts or ()] for texts in (prompts, reference))
    return build(
        Sources(seed=rows, reference=judging, feedback=[], cut={}),
        labels=["an answer"] if task == "classification" else [],
        settings=Settings(model=ModelSettings(name="m", task=task), dataset=DatasetSettings(quarantine=False)),
        embed=no_embedding,
        ledger=ledger or Ledger(),
    )


def test_different_questions_behind_a_long_system_message_are_different_rows() -> None:
    found = built(PROMPTS)
    assert sides_in_use(found).keys() == set(PROMPTS)
    assert found.manifest.dropped == {}
    elsewhere = PROMPTS[0].replace(MESSAGES[0], MESSAGES[1])
    assert sides_in_use(built([*PROMPTS, elsewhere])).keys() == {*PROMPTS, elsewhere}, "another system message asks it"
    assert built(PROMPTS, task="classification").manifest.dropped == {"duplicate": 18}, (
        "texts to label are compared whole"
    )


def test_one_question_in_nearly_the_same_words_behind_a_system_message_is_one_row() -> None:
    found = built([*PROMPTS, LONGER[0], f"{LONGER[0]}!"])
    assert sides_in_use(found).keys() == {*PROMPTS, LONGER[0]}
    assert found.manifest.dropped == {"duplicate": 1}


def test_a_reference_row_that_comes_later_and_is_near_a_trained_one_does_not_judge() -> None:
    simulated = Simulation(seed=7, rows=0)
    first = simulated.build([])
    trained, judged = first.train[0].text, first.reference[0]
    far = FileRow("another text that no file had before", LABELS[0])
    curated = [*simulated.reference, FileRow(f"{trained}.", LABELS[0]), far]
    simulated.reference = [row for row in curated if row.text not in (judged.text, f"{trained}.", far.text)]
    given = [said(f"{judged.text}.", judged.label, 1)]
    assert sides_in_use(simulated.build(given))[f"{judged.text}."] in ("train", "validation")
    simulated.reference = curated

    later = simulated.build(given)

    assert later.manifest.reference_dropped == {"near a row that has trained: it cannot judge": 1}
    sides = sides_in_use(later)
    assert (sides[trained], sides[judged.text], sides[far.text]) == ("train", "test", "test"), "what has judged goes on"
    assert f"{trained}." not in sides
    assert later.manifest.dropped["in the reference"] == 1


def test_a_new_prompt_of_the_reference_judges_unless_its_question_has_trained() -> None:
    ledger, prompts = Ledger(), [*PROMPTS, *LONGER]
    sides = sides_in_use(built(prompts, ledger=ledger))
    near = next(text for text in LONGER if sides[text] == "train") + "!"
    new = f"{MESSAGES[0]}What does {WORDS[20]} mean?"

    later = built(prompts, [new, near], ledger)

    assert later.manifest.reference_dropped == {"near a row that has trained: it cannot judge": 1}
    assert sides_in_use(later)[new] in ("calibration", "test")
    assert near not in sides_in_use(later)


def test_long_texts_are_compared_a_few_at_a_time_and_none_is_missed() -> None:
    draw = np.random.default_rng(0)
    texts = [draw.integers(0x4E00, 0x9000, 100_000).astype("<u4").tobytes().decode("utf-32-le") for _ in range(59)]
    texts.append(f"{texts[0][:-1]}!")

    tracemalloc.start()
    found = cluster(texts)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert most < 60 * 60 * 100_000, "all at once take about 90 bytes a character"
    assert found.leader == [*range(59), 0]
    grams = Grams(texts)
    for n in (0, 19, 20, 59):
        assert grams.of(n) == Grams([texts[n]]).of(0), n
