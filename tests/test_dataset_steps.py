"""The steps of the dataset one by one: cleaning, names, votes, balance, replay, formats, profile and page."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.dataset import balance, formats
from pipelines.dataset.cleaning import names
from pipelines.dataset.cleaning.aggregate import aggregate
from pipelines.dataset.cleaning.clean import clean, is_language
from pipelines.dataset.cleaning.quarantine import quarantined
from pipelines.dataset.examples import Drops, Example
from pipelines.dataset.files import BadFile, FileRow, read_rows
from pipelines.dataset.report.page import render
from pipelines.dataset.report.profile import profile, two_sample
from pipelines.metrics.stability import psi
from serving.inference.normalise import tidy
from tests.support.dataset_rounds import LABELS, Simulation, said
from tests.support.fakes import toy_rows


def row(text: str, label: str = "money", source: str = "correction", **fields: object) -> Example:
    return Example(text=text, label=label, source=source, **fields)  # type: ignore[arg-type]  # fields of an example


@pytest.mark.parametrize(
    ("given_text", "repaired"),
    [
        ("plain  text\twith\nspace", "plain text with space"),
        ("the cafÃ© isnâ€™t open", "the café isn’t open"),
        ("schÃ¶n", "schön"),
        ("e\u0301te\u0301", "été"),
        ("zero\u200bwidth\ufeff and \u202ebidi", "zerowidth and bidi"),
        ("bell\x07 and null\x00", "bell and null"),
        ("1 &lt; 2 &amp; 3", "1 < 2 & 3"),
        ("lone \ud800 surrogate", "lone \ufffd surrogate"),
        ("write to bob&#64;example.org", "write to <EMAIL>"),
        ("bob\u200b@example.org", "<EMAIL>"),
        ("   ", ""),
    ],
)
def test_a_text_is_repaired_and_stays_anonymous(given_text: str, repaired: str) -> None:
    assert tidy(given_text) == repaired


@given(st.text(max_size=80))
def test_tidying_twice_is_tidying_once(text: str) -> None:
    once = tidy(text)
    assert tidy(once) == once
    once.encode()  # no lone surrogate is left


def test_every_text_left_out_has_a_reason_and_an_example() -> None:
    drops = Drops()
    rows = [
        row("the bank and the loan"),
        row(" \t"),
        row("?!"),
        row("Sent from my iPhone"),
        row("the market is up\nSent from my iPhone"),
        row("of another label", "unheard"),
        row("word " * 40),
        row("dies ist ein deutscher Satz über das Wetter und die Bank in der Stadt"),
    ]
    kept = clean(rows, {"money"}, drops, task="classification", min_chars=2, language="en")
    assert [e.text for e in kept] == ["the bank and the loan", "the market is up", ("word " * 40).strip()]
    assert drops.counts == {
        "empty": 1,
        "too short": 1,
        "boilerplate": 1,
        "label not in the taxonomy": 1,
        "wrong language": 1,
    }
    assert drops.examples["wrong language"].startswith("dies ist")


def test_a_language_is_believed_only_when_sure() -> None:
    assert is_language("ok", "en")
    assert is_language("where is the card that I ordered from you last week?", "en")
    assert not is_language("où est la carte que j'ai commandée chez vous la semaine dernière ?", "en")


def test_names_and_places_are_replaced_and_placeholders_stay() -> None:
    text = "Ada Lovelace mailed <EMAIL> from London on Monday"

    def find(texts: Sequence[str]) -> Iterable[list[names.Span]]:
        spans = [("Ada Lovelace", "PERSON"), ("EMAIL", "PERSON"), ("London", "GPE"), ("Monday", "DATE")]
        for one in texts:
            yield [(one.index(name), one.index(name) + len(name), kind) for name, kind in spans]

    assert names.redact([text], find) == ["<PERSON> mailed <EMAIL> from <PLACE> on Monday"]
    assert clean(
        [row(text)],
        {"money"},
        Drops(),
        task="classification",
        min_chars=1,
        names=lambda texts: names.redact(texts, find),
    )[0].text == ("<PERSON> mailed <EMAIL> from <PLACE> on Monday")


@pytest.mark.parametrize(
    ("members", "label", "weight"),
    [
        ([row("t", "a"), row("t", "a"), row("t", "b")], "a", 1.0),
        ([row("t", "a", "seed"), *(row("t", "b") for _ in range(9))], "a", 1.0),
        ([row("t", "a", "reviewer"), *(row("t", "b") for _ in range(9))], "a", 1.0),
        ([row("t", "a", "rating", weight=0.5)], "a", 0.5),
        ([row("t", "a", "rating", weight=0.5) for _ in range(3)], "a", 1.0),
        ([row("t", "a"), row("t", "a", "rejection", weight=0.5)], "a", 0.5),
        ([row("t", "a"), row("t", "b")], None, None),
        ([row("t", "a", "rating", weight=0.5), row("t", "a", "rejection", weight=0.5)], None, None),
    ],
)
def test_one_row_stands_for_a_cluster_with_the_votes_of_all(
    members: list[Example], label: str | None, weight: float | None
) -> None:
    drops = Drops()
    found = aggregate("the leader", members, drops, "classification")
    assert (found.label if found else None, found.weight if found else None) == (label, weight)
    assert drops.counts.total() == len(members) - (found is not None)
    assert found is None or (found.text == "the leader" and not found.rejects)


def test_thumbs_down_alone_says_what_a_text_is_not() -> None:
    found = aggregate(
        "t",
        [row("t", "a", "rejection", weight=0.5), row("t", "b", "rejection", weight=0.5)] * 2,
        Drops(),
        "classification",
    )
    assert found is not None
    assert found.rejects
    built = Simulation(seed=1, rows=0).build([said("goal and the referee on the pitch", "down", 1, kind="rating")])
    assert [(e.label, e.rejects) for e in built.rejections] == [(LABELS[1], True)]
    assert built.manifest.rows_rejections == 1
    assert not any(e.rejects for e in [*built.train, *built.validation])


def test_old_rows_are_replayed_up_to_a_ratio_beyond_a_floor() -> None:
    since = datetime(2026, 1, 2, tzinfo=UTC)
    old = [row(f"old {n}", order="2026-01-01T00:00:00+00:00") for n in range(50)]
    new = [row(f"new {n}", order="2026-01-03T00:00:00+00:00") for n in range(15)]
    seed = [row(f"seed {n}", source="seed") for n in range(5)]
    drops = Drops()
    kept = balance.replay([*old, *new, *seed], since, 1.0, drops, always=10)
    assert Counter(e.text.split()[0] for e in kept) == {"old": 20, "new": 15, "seed": 5}
    assert drops.counts == {"not replayed": 30}
    assert {e.text.split()[0]: e.weight for e in kept} == {"old": 2.5, "new": 1, "seed": 1}
    again = balance.replay([*seed, *new, *old[::-1]], since, 1.0, Drops(), always=10)
    assert {e.text for e in again} == {e.text for e in kept}
    onwards = balance.replay([*old, *new[:5]], since, 1.0, Drops(), always=0)
    assert Counter(e.text.split()[0] for e in onwards) == {"old": 5, "new": 5}
    assert max(e.weight for e in onwards) == balance.MOST_WEIGHT
    for moment, ratio in ((None, 1.0), (since, None)):
        assert balance.replay(old, moment, ratio, Drops(), always=10) == old


def test_rare_labels_weigh_more_or_frequent_ones_are_capped() -> None:
    rows = [row(f"a{n}", "a") for n in range(90)] + [row(f"b{n}", "b") for n in range(10)]
    weighted = balance.class_weights(rows)
    totals = {label: sum(e.weight for e in weighted if e.label == label) for label in "ab"}
    assert totals["a"] == pytest.approx(totals["b"])
    assert sum(e.weight for e in weighted) == pytest.approx(100)
    drops = Drops()
    rows += [row(f"c{n}", "c") for n in range(10)]
    assert Counter(e.label for e in balance.capped(rows, drops)) == {"a": 50, "b": 10, "c": 10}
    assert drops.counts == {"over the cap per label": 40}


def test_settings_of_balance_reach_the_dataset() -> None:
    rows = [said(text, label, n + 1) for n, (text, label) in enumerate(toy_rows(60, seed=3, topics=("football",)))]
    plain, weighted = (Simulation(seed=2, rows=0, settings={"balance": b}).build(rows) for b in ("none", "weights"))
    assert {e.weight for e in plain.train} == {1.0}
    assert len({e.weight for e in weighted.train}) > 1
    assert plain.manifest.fingerprint != weighted.manifest.fingerprint


def test_beyond_what_is_embedded_the_quarantine_reads_words() -> None:
    rows = [(text, label, f"u{n % 40}") for n, (text, label) in enumerate(toy_rows(600, seed=3))]
    turned = dict(zip(LABELS, [*LABELS[1:], LABELS[0]], strict=True))
    rows += [(text, turned[label], "liar") for text, label in toy_rows(40, seed=4)]

    def never(_: Sequence[str]) -> "np.ndarray":
        raise AssertionError("embedded all the same")

    texts, labels, people = zip(*rows, strict=True)
    found = quarantined(
        texts, labels, people, [True] * len(rows), task="classification", embed=never, probe_c=1.0, embedded_rows=639
    )
    assert found == {"liar"}


def test_generation_costs_on_the_completion_alone(tiny_base: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    plain = formats.generation("goal match", "bank loan", tokenizer)
    prompt = tokenizer("goal match", add_special_tokens=False)["input_ids"]
    assert plain["labels"][: len(prompt)] == [-100] * len(prompt)
    assert tokenizer.decode([t for t in plain["labels"] if t != -100]).strip() == "bank loan"
    assert len(plain["labels"]) == len(plain["input_ids"])
    each = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
    tokenizer.chat_template = each + "{% if add_generation_prompt %}assistant {% endif %}"
    chat = formats.generation([{"role": "user", "content": "goal match"}], "bank loan", tokenizer)
    assert tokenizer.decode([t for t in chat["labels"] if t != -100]).strip() == "bank loan"
    assert "goal match" in tokenizer.decode(chat["input_ids"])


def test_the_chat_export_keeps_the_published_rules() -> None:
    rows = [row(f'text "{n}"\nwith a line', "a") for n in range(12)]
    lines = formats.chat_lines(rows, ["a", "b"], "classification")
    formats.check_chat(lines)
    assert [m["role"] for m in json.loads(lines[0])["messages"]] == ["system", "user", "assistant"]
    for task, label in (("multilabel", '["a"]'), ("regression", "3.0"), ("generation", "text")):
        lines = formats.chat_lines([row(f"t{n}", label) for n in range(10)], ["a"], task)  # type: ignore[arg-type]
        formats.check_chat(lines)
        assert json.loads(lines[0])["messages"][2]["content"] == label


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("{", "not JSON"),
        ("[]", "`messages` is missing or empty"),
        ('{"messages": []}', "`messages` is missing or empty"),
        ('{"messages": [{"role": "bot", "content": "x"}]}', "role"),
        ('{"messages": [{"role": "assistant", "content": " "}]}', "content"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "last message"),
        ('{"messages": [{"role": "assistant", "content": "x", "weight": 2}]}', "weight"),
        ('{"messages": [{"role": "assistant", "content": "x", "text": "y"}]}', "unknown keys text"),
    ],
)
def test_what_breaks_a_rule_of_the_chat_format_is_refused_by_row(line: str, rule: str) -> None:
    good = formats.chat_lines([row(f"t{n}", "a") for n in range(10)], ["a"], "classification")
    with pytest.raises(formats.BadFormat, match=f"row 11.*{rule}"):
        formats.check_chat([*good, line])
    with pytest.raises(formats.BadFormat, match="needs 10"):
        formats.check_chat(good[:9])


def test_a_hugging_face_folder_is_read_and_any_other_folder_refused(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"]), "channel": Value("string")})
    rows = {"text": ["mail bob@example.org", "b"], "label": [1, 0], "channel": ["ios", None]}
    Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "hf"))
    assert read_rows(tmp_path / "hf", "classification") == [
        FileRow("mail <EMAIL>", "yes", {"channel": "ios"}),
        FileRow("b", "no"),
    ]
    (tmp_path / "other").mkdir()
    with pytest.raises(BadFile, match="not of a Hugging Face dataset"):
        read_rows(tmp_path / "other", "classification")


def embed(texts: Sequence[str]) -> "np.ndarray":
    """Counts of letters."""
    return np.array([[text.count(letter) for letter in "abcdefghijklmnop"] for text in texts], dtype=np.float32)


def test_drift_is_seen_where_there_is_some() -> None:
    draw = np.random.default_rng(0)
    same, other = draw.normal(size=(2, 200, 8)).astype(np.float32)
    assert two_sample(same, other)[1] > 0.01
    accuracy, p = two_sample(same, other + 1)
    assert accuracy > 0.9
    assert p < 1e-9
    assert psi({"a": 50, "b": 50}, {"a": 500, "b": 500}) < 0.01
    assert psi({"a": 90, "b": 10}, {"a": 10, "b": 90}) > 0.25


def test_the_page_is_whole_in_itself_and_escapes_what_people_wrote() -> None:
    rows = [said(text, label, n + 1) for n, (text, label) in enumerate(toy_rows(80, seed=5))]
    rows.append(said("<script>alert(1)</script>", "unheard", 900))
    found = Simulation(seed=3, rows=0).build(rows)
    against = {"live traffic": toy_rows(60, seed=6), "nothing": []}
    described = profile(
        found,
        task="classification",
        embed=embed,
        count_tokens=lambda texts: [len(text.split()) for text in texts],
        max_length=8,
        against=against,
    )
    assert described.rows_by_side["train"] == len(found.train)
    assert sum(described.token_counts) == len(found.train)
    assert described.cut_share > 0.9
    assert [d.two_sample_accuracy is None for d in described.drift] == [False, True]
    page = render("m", found.manifest, described)
    assert page.count("<svg") == 4
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert not any(loads in page for loads in ("src=", "<link", "@import", "url(http", 'xlink:href="http'))
    assert "#010203" not in page
    assert render("m", found.manifest, described) == page
