"""People with named keys: who is known, by which key, until when; and who acts on the command line."""

import json
import os
import pwd
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from schemas.records import Role
from schemas.settings import render_settings
from services.cli.identity import KEY, operator
from services.cli.main import cli
from serving.http.access import write_keys
from serving.named_keys import key_id_of
from serving.registry.registry import PersonExists, Registry, UnknownPerson
from tests.support import registries
from tests.support.registries import Clock, statement

url, clock, registry = registries.url, registries.clock, registries.registry


def test_a_key_identifies_its_holder_and_is_stored_as_a_hash_alone(registry: Registry, url: str) -> None:
    key = registry.people.add("ann", [Role.REVIEW, "predict"], by="operator")
    person = registry.people.verify(key)
    assert person is not None
    assert (person.name, person.roles) == ("ann", (Role.PREDICT, Role.REVIEW))
    assert [person.may(role) for role in Role] == [True, False, True, False]
    [stored] = registry.people.list()
    assert key not in str(stored.model_dump())
    assert key.split("_", 2)[2] not in str([row.model_dump() for row in registry.audit_rows()])
    assert registry.verify_audit() == []


def test_an_admin_may_do_everything(registry: Registry) -> None:
    person = registry.people.verify(registry.people.add("root@ops", ["admin"]))
    assert person is not None
    assert all(person.may(role) for role in Role)


@pytest.mark.parametrize("change", ["last", "id", "case", "more", "less", "space", "none"])
def test_a_key_that_differs_in_a_character_identifies_nobody(registry: Registry, change: str) -> None:
    key = registry.people.add("ann", ["admin"])
    other = registry.people.add("bob", ["admin"])
    forged = {
        "last": key[:-1] + ("A" if key[-1] != "A" else "B"),
        "id": key.replace(str(key_id_of(key)), str(key_id_of(other))),
        "case": key.swapcase(),
        "more": key + "A",
        "less": key[:-1],
        "space": key + " ",
        "none": "",
    }[change]
    assert registry.people.verify(forged) is None


def test_after_a_rotation_both_keys_work_until_the_earlier_one_ends(registry: Registry, clock: Clock) -> None:
    first = registry.people.add("shop", ["predict"], rate="10/second")
    second = registry.people.rotate("shop", overlap_s=60)
    for key in (first, second):
        person = registry.people.verify(key)
        assert person is not None
        assert (person.name, person.roles, person.rate) == ("shop", (Role.PREDICT,), "10/second")
    clock.advance(59)
    registry.people.rotate("shop", overlap_s=3600)
    clock.advance(2)
    assert registry.people.verify(first) is None, "a later rotation gives it no more time"
    assert registry.people.verify(second) is not None
    assert len(registry.people.list()) == 2


def test_a_revoked_person_has_no_key_and_may_come_back_with_another(registry: Registry) -> None:
    keys = [registry.people.add("ann", ["review"]), registry.people.rotate("ann")]
    registry.people.revoke("ann")
    assert [registry.people.verify(key) for key in keys] == [None, None]
    assert registry.people.list() == []
    with pytest.raises(UnknownPerson):
        registry.people.revoke("ann")
    with pytest.raises(UnknownPerson):
        registry.people.rotate("ann")
    assert registry.people.verify(registry.people.add("ann", ["review"])) is not None
    assert [registry.people.verify(key) for key in keys] == [None, None]


@pytest.mark.parametrize(
    ("name", "roles", "limits", "said"),
    [
        ("", ["admin"], {}, "name ''"),
        ("a b", ["admin"], {}, "name 'a b'"),
        ("=cmd", ["admin"], {}, "name '=cmd'"),
        ("Gates", ["admin"], {}, "is reserved"),
        ("ann", [], {}, "at least one of predict, feedback, review, admin, got none"),
        ("ann", ["root"], {}, "got root"),
        ("ann", ["predict"], {"rate": "fast"}, "limit 'fast'"),
        ("ann", ["predict"], {"quota": "0/day"}, "limit '0/day'"),
    ],
)
def test_what_is_wrong_with_a_person_is_named(
    registry: Registry, name: str, roles: list[str], limits: dict[str, str], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        registry.people.add(name, roles, **limits)
    assert registry.people.all_keys() == []


def test_a_name_has_one_holder(registry: Registry) -> None:
    registry.people.add("ann", ["review"])
    with pytest.raises(PersonExists, match="ratchet access rotate ann"):
        registry.people.add("ann", ["admin"])


def test_a_key_belongs_to_one_model(registry: Registry, url: str) -> None:
    key = registry.people.add("ann", ["admin"])
    other = Registry(url, "other")
    assert other.people.verify(key) is None
    other.close()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with settings, keys.env and an empty registry."""
    monkeypatch.delenv(KEY, raising=False)
    (tmp_path / "ratchet.toml").write_text(render_settings({"model": {"name": "m"}}), encoding="utf-8")
    write_keys(tmp_path / "keys.env")
    with_tables = Registry(f"sqlite:///{tmp_path}/state/registry.db", "m")
    with_tables.migrate()
    with_tables.set_labels(["a", "b", "c"])
    with_tables.close()
    return tmp_path


def run(project: Path, *arguments: str, key: str = "") -> Result:
    return CliRunner().invoke(cli, [*arguments, "-c", str(project)], env={KEY: key})


def test_a_key_is_printed_once_and_alone(project: Path) -> None:
    added = run(project, "access", "add", "ann", "--roles", "review,admin")
    assert added.exit_code == 0, added.output
    assert key_id_of(added.stdout.strip())
    listed = run(project, "access", "list", "--json")
    [person] = json.loads(listed.stdout)
    assert (person["name"], person["roles"]) == ("ann", ["review", "admin"])
    assert "key_hash" not in person
    rotated = run(project, "access", "rotate", "a", "--json", "--overlap-hours", "1")
    assert json.loads(rotated.stdout)["name"] == "ann"
    assert run(project, "access", "revoke", person["key_id"][:4]).exit_code == 0
    assert "nobody yet" in run(project, "access", "list").stdout


def test_the_operator_decides_until_there_is_a_reviewer(project: Path) -> None:
    assert run(project, "labels", "retire", "a").exit_code == 0
    assert run(project, "access", "add", "shop", "--roles", "predict").exit_code == 0
    assert run(project, "labels", "add", "a").exit_code == 0, "an app is no reviewer"
    ann = run(project, "access", "add", "ann", "--roles", "review").stdout.strip()
    refused = run(project, "labels", "retire", "a")
    assert (refused.exit_code, "a reviewer has to decide this (ann)" in refused.output) == (1, True)
    assert run(project, "labels", "retire", "a", key=ann).exit_code == 0
    assert run(project, "access", "revoke", "ann").exit_code == 0, "a lost key locks nobody out"
    opened = Registry(f"sqlite:///{project}/state/registry.db", "m")
    actors = [row.actor for row in opened.audit_rows() if row.action.startswith("labels") or "label" in row.action]
    assert actors == [operator(), operator(), "ann"]
    opened.close()


@pytest.mark.parametrize(
    ("name", "holder", "said"),
    [
        ("ann", None, "--as ann needs ann's key: set RATCHET_KEY"),
        ("bob", "ann", "RATCHET_KEY is ann's key, not bob's"),
        (None, "nobody", "RATCHET_KEY is not a valid key of this project"),
        (None, "shop", "this needs the role review, and shop has predict"),
    ],
)
def test_a_name_without_its_key_is_refused(project: Path, name: str | None, holder: str | None, said: str) -> None:
    keys = {
        "ann": run(project, "access", "add", "ann", "--roles", "review").stdout.strip(),
        "shop": run(project, "access", "add", "shop", "--roles", "predict").stdout.strip(),
        "nobody": "ratchet_abcdefghij_" + "A" * 43,
    }
    claimed = ["--as", name] if name else []
    refused = run(project, "labels", "retire", "a", *claimed, key=keys[holder] if holder else "")
    assert refused.exit_code == 1
    assert said in refused.output


def test_the_operator_is_who_the_kernel_says(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("LOGNAME", "USER", "USERNAME", "LNAME"):
        monkeypatch.setenv(variable, "eve")
    assert operator() == f"operator:{pwd.getpwuid(os.getuid()).pw_name}"


def test_who_cannot_read_the_keys_file_is_not_the_operator(project: Path) -> None:
    (project / "keys.env").unlink()
    refused = run(project, "labels", "retire", "a")
    assert refused.exit_code == 1
    assert "keys.env is missing" in str(refused.exception or refused.output)


def test_a_tampered_role_does_not_survive_the_audit(registry: Registry, url: str) -> None:
    registry.people.add("shop", ["predict"])
    statement(url, "UPDATE people SET roles = 'admin'")
    [row] = registry.audit_rows()
    assert row.detail["roles"] == ["predict"], "the log names the roles that were given"
