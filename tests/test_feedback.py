"""The one checker of feedback: one canonical form, one rule a kind, and nothing personal in what is stored."""

import math
import uuid

import pytest

from schemas.events import FeedbackData, GivenValue
from schemas.labels import LabelMap
from schemas.records import Label
from schemas.targets import Task
from serving.http.feedback_values import BadFeedback, FeedbackChecker

LABELS = LabelMap(
    [
        *(Label(name=name) for name in ("exchange_rate", "1", "True", "caf\u00e9", "card arrival", "2.5")),
        Label(name="old", state="merged", merged_into="older"),
        Label(name="older", state="merged", merged_into="1"),
        Label(name="gone", state="retired"),
    ]
)
PREDICTION = "01900000-0000-7000-8000-000000000000"


def checker(task: Task = "classification") -> FeedbackChecker:
    return FeedbackChecker("m", task, secret=lambda: "s", max_chars=100, labels=lambda: LABELS)


def data(value: GivenValue, **changes: object) -> FeedbackData:
    given = {
        "feedback_id": "mine",
        "prediction_id": PREDICTION,
        "model_name": "m",
        "kind": "correction",
        "value": value,
    }
    return FeedbackData.model_validate(given | changes)


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ("exchange_rate ", "exchange_rate"),
        ("\u00a0exchange_rate\u200b", "exchange_rate"),
        ("cafe\u0301", "caf\u00e9"),
        ("card\u00a0 arrival", "card arrival"),
        (1, "1"),
        (1.0, "1"),
        ("1.0", "1"),
        (2.5, "2.5"),
        (True, "True"),
        ("old", "1"),
    ],
)
def test_a_label_has_one_form_whatever_is_sent(value: GivenValue, stored: str) -> None:
    assert checker().checked(data(value)).value == stored


def test_lists_of_labels_are_in_that_form_too() -> None:
    assert checker("multilabel").checked(data([1, "exchange_rate ", "1.0", True])).value == [
        "1",
        "True",
        "exchange_rate",
    ]


@pytest.mark.parametrize(
    ("value", "task", "rule"),
    [
        (math.nan, "classification", "nan: expected a label"),
        (["exchange_rate"], "classification", "expected a label"),
        ("\u200b", "classification", "expected a label"),
        (
            "gone",
            "classification",
            "'gone' is a retired label; use another, or activate it again with `ratchet labels add`",
        ),
        ("new", "classification", "not in the taxonomy: 'new'; add it with `ratchet labels add`"),
        ("exchange_rate", "multilabel", "expected a list of labels"),
        (["exchange_rate", "gone"], "multilabel", "retired"),
        (True, "regression", "expected a finite number"),
        ("3.5", "regression", "expected a finite number"),
        (" ", "generation", "expected a text"),
        ("x" * 101, "generation", "at most 100 characters"),
    ],
)
def test_what_is_no_target_names_the_rule(value: GivenValue, task: Task, rule: str) -> None:
    with pytest.raises(BadFeedback) as refused:
        checker(task).checked(data(value))
    assert (refused.value.field, rule in refused.value.rule) == ("value", True), refused.value.rule


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model_name": "another"}, "model_name"),
        ({"prediction_id": "p1"}, "prediction_id"),
        ({"kind": "rating", "value": "sideways"}, "value"),
        ({"kind": "score", "value": 1.5}, "value"),
        ({"kind": "score", "value": True}, "value"),
        ({"kind": "comment", "value": 3}, "value"),
        ({"kind": "retract", "value": "x" * 129}, "value"),
    ],
)
def test_every_kind_has_its_rules(change: dict[str, object], field: str) -> None:
    with pytest.raises(BadFeedback) as refused:
        checker().checked(data("1").model_copy(update=change))
    assert refused.value.field == field


@pytest.mark.parametrize("user", ["bob", "0" * 32, uuid.UUID(int=7).hex, "d41d8cd98f00b204e9800998ecf8427e"])
def test_a_person_is_one_user_whatever_their_name_looks_like_and_whichever_door_they_take(user: str) -> None:
    over_http = checker().checked(data("1", user=user)).user
    assert over_http != user
    assert checker().checked(data("1", user=user), source="https://example.org/app").user == over_http
    assert checker().stored_user(user, "ratchet/another/serving") == over_http
    assert checker().checked(data("1", user=over_http), source="ratchet/m/serving").user == over_http


def test_what_is_typed_freely_is_not_stored_and_what_was_checked_stays_as_it_is() -> None:
    given = data("bob@example.org", kind="comment", user="bob", feedback_id="bob@example.org")
    stored = checker().checked(given)
    assert stored.value == "<EMAIL>"
    assert "bob" not in stored.model_dump_json()
    assert uuid.UUID(stored.feedback_id).version == 8
    assert checker().checked(stored, source="ratchet/m/serving") == stored
    retract = checker().checked(data("bob@example.org", kind="retract", user="bob", feedback_id="r"))
    assert retract.value == stored.feedback_id
    own = str(uuid.uuid4())
    assert checker().checked(data("1", feedback_id=own.upper())).feedback_id == own
