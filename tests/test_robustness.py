"""Harmless edits: they change the text, not what it means, and the same way each time."""

import numpy as np
import pytest

from pipelines.evaluation import robustness
from serving.inference.encoder_runtime import Runtime


@pytest.mark.parametrize(
    "text", ["I want to cancel my card, please", "ÜBERWEISUNG fehlgeschlagen", "ok", "", "123 456", "aaaa"]
)
def test_edits_are_repeatable_and_keep_the_letters(text: str) -> None:
    for kind, edit in robustness.EDITS.items():
        assert edit(text) == edit(text)
        if kind != "padding":
            assert sorted("".join(edit(text).split()).casefold()) == sorted("".join(text.split()).casefold())


def test_a_typo_swaps_two_inner_letters() -> None:
    text = "where is my refund"
    edited = robustness.typo(text)
    assert edited != text
    assert sum(a != b for a, b in zip(text, edited, strict=True)) == 2
    assert [word[0] for word in edited.split()] == [word[0] for word in text.split()]


def test_a_long_text_gets_a_few_typos() -> None:
    text = " ".join(f"where{chr(97 + n % 26)} refund" for n in range(100))
    edited = robustness.typo(text)
    assert sum(a != b for a, b in zip(text.split(), edited.split(), strict=True)) == robustness.MOST_TYPOS


def test_rows_are_chosen_whatever_their_order() -> None:
    texts = [f"text {n}" for n in range(50)]
    chosen = {texts[n] for n in robustness.chosen_rows(texts, 10)}
    turned = texts[::-1]
    assert {turned[n] for n in robustness.chosen_rows(turned, 10)} == chosen
    assert len(chosen) == 10


def test_flips_are_counted_against_the_models_own_answers() -> None:
    class Shouting(Runtime):
        """Answers 1 to capitals, 0 else; sees no white space."""

        def __init__(self) -> None:
            pass

        def encode(self, texts):  # type: ignore[no-untyped-def]
            return [[ord(c) for c in text if not c.isspace()] for text in texts]

        def probabilities(self, texts, batch=32):  # type: ignore[no-untyped-def]  # noqa: ARG002
            assert all("  " not in text for text in texts), "what the tokenizer does not see is not run"
            return np.array([[0.0, 1.0] if text.isupper() else [1.0, 0.0] for text in texts])

    def alike(some, others):  # type: ignore[no-untyped-def]
        return some.argmax(axis=1) == others.argmax(axis=1)

    model = Shouting()
    found = robustness.count_flips(model, ["small letters", "CAPITAL LETTERS"], model.probabilities, alike)
    assert {kind: one.flipped for kind, one in found.items()} == {"typo": 0, "case": 2, "white space": 0, "padding": 0}
    seen = {kind: one.edited for kind, one in found.items()}
    assert seen == {"typo": 2, "case": 2, "white space": 0, "padding": 2}, "what the model cannot see does not count"
    assert robustness.count_flips(model, [], model.probabilities, alike) == {}
