"""Settings files as people save them, and what is said of a mistake: the line, the name, the value, the nearest key."""

from pathlib import Path

import pytest

from pipelines.gates.policy import BadPolicy, load_policy
from schemas.redact import redacted
from schemas.settings import SettingsError, load_settings

SAID: list[tuple[str, dict[str, str], str]] = [
    (
        "[triggers]\nmin_feedbak = 3",
        {},
        "ratchet.toml line 2: unknown setting triggers.min_feedbak; did you mean triggers.min_feedback?",
    ),
    ("# x\n[trigers]\nmin_feedback = 1", {}, "ratchet.toml line 2: unknown setting trigers; did you mean triggers?"),
    (
        "[model]\n\nmin_feedback = 1",
        {},
        "ratchet.toml line 3: unknown setting model.min_feedback; did you mean triggers.min_feedback?",
    ),
    ("min_feedback = 1", {}, "ratchet.toml line 1: unknown setting min_feedback; did you mean triggers.min_feedback?"),
    (
        "triggers.min_feedbak = 1",
        {},
        "ratchet.toml line 1: unknown setting triggers.min_feedbak; did you mean triggers.min_feedback?",
    ),
    ("[serving]\nzzz = 1", {}, "ratchet.toml line 2: unknown setting serving.zzz"),
    ("[serving]\nport = 'x'", {}, "ratchet.toml line 2: serving.port = 'x': expected a whole number"),
    ("[serving]\nport = 99999", {}, "ratchet.toml line 2: serving.port = 99999: expected less than or equal to 65535"),
    ("[model]\ntask = 'sorting'", {}, "ratchet.toml line 2: model.task = 'sorting': expected 'classification', "),
    ("[dataset]\ndomain = ['a', 3]", {}, "ratchet.toml line 2: dataset.domain[1] = 3: expected text in quotes"),
    ("serving = 3", {}, "ratchet.toml line 1: serving = 3: expected a table"),
    ("[serving]\nport = 1\nport = 2", {}, "ratchet.toml line 3: not TOML: this key is set twice: 'port = 2'"),
    ("[serving]\n[model]\n[serving]", {}, "ratchet.toml line 3: not TOML: this table is written twice"),
    ("[serving]\nhost = localhost", {}, "ratchet.toml line 2: not TOML: text needs double quotes: 'host = localhost'"),
    ("[serving]\nport 3", {}, "ratchet.toml line 2: not TOML: expected KEY = VALUE: 'port 3'"),
    (
        "",
        {"RATCHET_TRIGGERS__MIN_FEEDBAK": "3"},
        "RATCHET_TRIGGERS__MIN_FEEDBAK: unknown setting triggers.min_feedbak; did you mean",
    ),
    ("", {"RATCHET_TRIGERS__CRON": "x"}, "RATCHET_TRIGERS__CRON: unknown setting trigers; did you mean triggers?"),
    ("", {"RATCHET_TRIGGERS_CRON": "x"}, "RATCHET_TRIGGERS_CRON sets nothing: .* did you mean RATCHET_TRIGGERS__CRON"),
    ("", {"RATCHET_SERVING__PORT": "x"}, "RATCHET_SERVING__PORT: serving.port = 'x': expected a whole number"),
]


@pytest.mark.parametrize(("text", "environ", "said"), SAID)
def test_a_mistake_is_named_with_its_line_and_the_way_out(text: str, environ: dict[str, str], said: str) -> None:
    pattern = said if ".*" in said else said.replace("[", r"\[").replace("?", r"\?")
    with pytest.raises(SettingsError, match=f"^{pattern}") as refused:
        load_settings(text, environ, root=Path())
    assert "\n" not in str(refused.value)


def test_two_mistakes_are_both_named() -> None:
    with pytest.raises(
        SettingsError, match=r"line 2: serving\.port = 0: .*; ratchet.toml line 3: unknown setting serving\.prot"
    ):
        load_settings("[serving]\nport = 0\nprot = 1", {}, root=Path())


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_file_is_read_as_editors_save_it(encoding: str, newline: str) -> None:
    raw = newline.join(["# größe", "[serving]", "port = 4000"]).encode(encoding)
    assert load_settings(raw, {}, root=Path()).serving.port == 4000


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ("[model]\n# größe".encode("latin-1"), "ratchet.toml line 2: not UTF-8: save the file as UTF-8"),
        ("[model]".encode("utf-16-le"), "ratchet.toml: contains zero bytes, as UTF-16 without a byte-order mark does"),
    ],
)
def test_an_encoding_that_cannot_be_known_is_refused(raw: bytes, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        load_settings(raw, {}, root=Path())


def test_a_policy_is_explained_likewise() -> None:
    with pytest.raises(
        BadPolicy, match=r"^policy\.toml line 2: unknown setting superiority\.alhpa; did you mean superiority\.alpha\?$"
    ):
        load_policy(b"\xef\xbb\xbf[superiority]\r\nalhpa = 0.1\r\n")
    with pytest.raises(
        BadPolicy,
        match=r"^policy\.toml line 2: superiority\.metric = 'acc': expected 'accuracy_or_brier', 'accuracy', ",
    ):
        load_policy("[superiority]\nmetric = 'acc'")


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("postgresql+psycopg://u:geheim@h:5432/db is away", "postgresql+psycopg://u:***@h:5432/db is away"),
        ("redis://:geheim@h:6379", "redis://:***@h:6379"),
        ("postgresql://h/db?user=u&password=geheim&x=1", "postgresql://h/db?user=u&password=***&x=1"),
        ("host=h password='ge heim' dbname=d", "host=h password=*** dbname=d"),
        ("RATCHET_SECRET=geheim", "RATCHET_SECRET=***"),
        ("http://127.0.0.1:3000 does not answer", "http://127.0.0.1:3000 does not answer"),
        ("the feedback token has expired", "the feedback token has expired"),
    ],
)
def test_passwords_are_not_shown(line: str, shown: str) -> None:
    assert redacted(line) == shown
