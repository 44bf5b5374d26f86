"""keys.env: read as people leave it, explained in itself, renewed by a command that says what that costs."""

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from schemas.settings import Settings, render_settings
from services.cli.identity import operator
from serving.http.access import Keys, read_keys, store_keys, write_keys
from serving.keys_file import KeysMissing
from serving.registry.registry import Registry

KEYS = Keys(api_key="key-1_a", secret="s3cret")


@pytest.mark.parametrize(
    "text",
    [
        "RATCHET_API_KEY=key-1_a\nRATCHET_SECRET=s3cret\n",
        "\ufeff# keys\r\nexport RATCHET_API_KEY=key-1_a\r\nexport RATCHET_SECRET=s3cret\r\n",
        "RATCHET_API_KEY='key-1_a'  # of the shop\nRATCHET_SECRET=\"s3cret\"",
        "# RATCHET_API_KEY=old\n\nRATCHET_SECRET = s3cret\nRATCHET_API_KEY = key-1_a # note\nOTHER=1\n",
    ],
)
def test_keys_are_read_as_people_leave_them(text: str, tmp_path: Path) -> None:
    (tmp_path / "keys.env").write_text(text, encoding="utf-8", newline="")
    assert read_keys(tmp_path / "keys.env") == KEYS


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (None, r"keys\.env is missing: restore it, or make new keys with `ratchet access keys`$"),
        (b"", r"keys\.env holds no keys: .*`ratchet access keys --renew all`$"),
        (b"RATCHET_API_KEY=a\n", r"keys\.env lacks RATCHET_SECRET: .*`ratchet access keys`$"),
        (b"RATCHET_API_KEY=\nRATCHET_SECRET=b\n", r"keys\.env lacks RATCHET_API_KEY"),
        (b"\xff\xfe\x00", r"keys\.env is not text in UTF-8"),
        ("RATCHET_API_KEY=schlüssel\nRATCHET_SECRET=b".encode(), r"RATCHET_API_KEY needs printable ASCII"),
    ],
)
def test_what_is_wrong_with_keys_is_one_line_with_the_command(raw: bytes | None, said: str, tmp_path: Path) -> None:
    if raw is not None:
        (tmp_path / "keys.env").write_bytes(raw)
    with pytest.raises(KeysMissing, match=said) as refused:
        read_keys(tmp_path / "keys.env")
    assert "\n" not in str(refused.value)


def test_the_file_explains_itself_and_a_shell_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "keys.env"
    keys = write_keys(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text(encoding="utf-8").count("#") >= 4
    shell = f". {path} && printf '%s %s' $RATCHET_API_KEY $RATCHET_SECRET"
    printed = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True, encoding="utf-8").stdout
    assert printed == f"{keys.api_key} {keys.secret}"
    os.chmod(path, 0o644)
    store_keys(path, KEYS)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["keys.env"], "nothing with keys in it is left beside"


def _access(settings: Settings, *arguments: str) -> Result:
    from services.cli.main import cli

    return CliRunner().invoke(cli, ["access", "keys", *arguments, "-c", str(settings.root)])


@pytest.fixture
def project(tmp_path: Path) -> Settings:
    """A folder with settings, keys and a registry, and nothing else."""
    (tmp_path / "ratchet.toml").write_text(render_settings({"model": {"name": "m"}}), encoding="utf-8")
    store_keys(tmp_path / "keys.env", KEYS)
    registry = Registry(f"sqlite:///{tmp_path}/state/registry.db", "m")
    registry.migrate()
    registry.close()
    return Settings(root=tmp_path)


def test_keys_are_renewed_only_by_a_flag_and_never_more_than_asked_for(project: Settings) -> None:
    path = project.path("keys.env")
    refused = _access(project)
    assert refused.exit_code == 1
    assert "holds both keys: name the one to replace with --renew api-key|secret|all" in refused.output
    assert read_keys(path) == KEYS

    renewed = _access(project, "--renew", "api-key")
    assert renewed.exit_code == 0
    assert "pseudonyms" not in renewed.output
    found = read_keys(path)
    assert found.secret == KEYS.secret
    assert found.api_key != KEYS.api_key
    assert found.api_key not in renewed.output

    path.unlink()
    made = _access(project)
    assert "users get new pseudonyms" in made.output, "what a new secret costs"
    assert read_keys(path).secret != KEYS.secret


def test_half_a_file_is_completed_and_noise_is_replaced_only_on_demand(project: Settings) -> None:
    path = project.path("keys.env")
    path.write_text("RATCHET_SECRET=s3cret\n", encoding="utf-8")
    assert _access(project).exit_code == 0
    assert read_keys(path).secret == "s3cret", "what users' pseudonyms hang on stays"
    path.write_bytes(b"\xff\xfe")
    assert _access(project).exit_code == 1
    assert path.read_bytes() == b"\xff\xfe"
    assert _access(project, "--renew", "all").exit_code == 0
    read_keys(path)


def test_the_audit_log_knows_who_made_which_key_and_not_the_key(project: Settings) -> None:
    _access(project, "--renew", "api-key")
    import sqlite3

    rows = (
        sqlite3.connect(project.path("state/registry.db")).execute("SELECT actor, action, detail FROM audit").fetchall()
    )
    assert [(actor, action, json.loads(detail)) for actor, action, detail in rows] == [
        (operator(), "access keys", {"made": ["RATCHET_API_KEY"]})
    ]
