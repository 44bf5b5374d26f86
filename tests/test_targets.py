"""Targets: equal ones have one text, and what is none is refused."""

import pytest

from schemas.targets import BadTarget, Task, canonical, label_name, labels_of, text_of, value_of


@pytest.mark.parametrize(
    ("task", "value", "text"),
    [
        ("classification", "card arrival", "card arrival"),
        ("multilabel", ["b", "a", "b"], '["a", "b"]'),
        ("multilabel", [], "[]"),
        ("regression", 3, "3.0"),
        ("regression", 2.5, "2.5"),
        ("regression", -0.0, "0.0"),
        ("generation", "Hello.", "Hello."),
    ],
)
def test_a_target_has_one_text(task: Task, value: object, text: str) -> None:
    assert canonical(task, value) == text
    assert text_of(value) == text  # type: ignore[arg-type]  # a parameter is an object
    assert canonical(task, value_of(task, text)) == text


@pytest.mark.parametrize(
    ("task", "value"),
    [
        ("classification", " "),
        ("classification", float("nan")),
        ("classification", None),
        ("classification", ["a"]),
        ("classification", {"name": "a"}),
        ("classification", "\u200b\ufeff"),
        ("multilabel", ["a", None]),
        ("multilabel", "a"),
        ("multilabel", ["a", ""]),
        ("regression", True),
        ("regression", float("nan")),
        ("regression", "3"),
        ("generation", None),
    ],
)
def test_what_is_no_target_is_refused(task: Task, value: object) -> None:
    with pytest.raises(BadTarget, match="expected"):
        canonical(task, value)


def test_labels_are_read_back() -> None:
    assert labels_of("multilabel", canonical("multilabel", ["é", "a"])) == ("a", "é")
    assert labels_of("classification", "a") == ("a",)
    assert labels_of("regression", "1.0") == ()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        (
            "exchange rate",
            ["exchange rate", " exchange\u00a0rate ", "exchange  rate\n", "exchange\u200b rate", "\ufeffexchange rate"],
        ),
        ("caf\u00e9", ["caf\u00e9", "cafe\u0301"]),
        ("1", [1, 1.0, "1", "1.0", " 1.00 "]),
        ("0", [0, -0.0, "0.0", "-0.0"]),
        ("1.5", [1.5, "1.5"]),
        ("1.10", ["1.10"]),
        ("01", ["01"]),
        ("True", [True, "True"]),
        ("10000000000000000", [1e16, 10**16]),
    ],
)
def test_a_label_has_one_name_whatever_its_source(name: str, values: list[object]) -> None:
    assert {label_name(value) for value in values} == {name}
    assert label_name(name) == name
