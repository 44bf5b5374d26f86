"""A key is rotated under load, on a real server with two workers: no request is dropped, and the earlier key ends by itself."""

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from schemas.settings import Settings, load_settings
from serving.registry.registry import Registry
from tests.support.fakes import wait_until
from tests.support.served import Served, make_project, served

CALLERS, ROTATIONS, OVERLAP_S = 4, 4, 8.0  # no request takes as long, on a loaded machine either


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, version: Path) -> Iterator[tuple[Settings, Served]]:
    root = tmp_path_factory.mktemp("rotated") / "project"
    config = make_project(root, version, workers=2)
    with served(config) as running:
        yield load_settings(config.read_text(encoding="utf-8"), {}, root=root), running


def test_a_key_is_rotated_under_load_and_no_request_is_dropped(project: tuple[Settings, Served]) -> None:
    settings, server = project
    statuses: Counter[tuple[int, str]] = Counter()
    stop = threading.Event()
    with contextlib.closing(Registry(settings.registry_url, "m")) as registry:
        newest = [registry.people.add("shop", ["predict"])]
        given = list(newest)

        def call() -> None:
            with httpx.Client(base_url=server.url, timeout=30) as client:
                while not stop.is_set():
                    headers = {"Authorization": f"Bearer {newest[0]}"}
                    answer = client.post("/predict", json={"items": [{"text": "oven"}]}, headers=headers)
                    statuses[answer.status_code, answer.headers["x-ratchet-worker"]] += 1

        callers = [threading.Thread(target=call) for _ in range(CALLERS)]
        for caller in callers:
            caller.start()

        def load() -> None:
            answered = sum(list(statuses.values()))
            wait_until(lambda: sum(list(statuses.values())) >= answered + 10 * CALLERS)

        for _ in range(ROTATIONS):
            load()
            newest[0] = registry.people.rotate("shop", overlap_s=OVERLAP_S)  # callers use it from the next request on
            given.append(newest[0])
        load()
        stop.set()
        for caller in callers:
            caller.join(60)

    assert {status for status, _ in statuses} == {200}, statuses

    def status(key: str) -> set[int]:
        headers = {"Authorization": f"Bearer {key}"}
        return {httpx.get(f"{server.url}/model", headers=headers, timeout=30).status_code for _ in range(4)}

    wait_until(lambda: all(status(key) == {401} for key in given[:-1]))
    assert status(given[-1]) == {200}


def test_a_revoked_key_is_refused_within_seconds_by_every_worker(project: tuple[Settings, Served]) -> None:
    settings, server = project
    with contextlib.closing(Registry(settings.registry_url, "m")) as registry:
        key = registry.people.add("leaver", ["predict"])
        headers = {"Authorization": f"Bearer {key}"}
        assert httpx.get(f"{server.url}/model", headers=headers, timeout=30).status_code == 200
        registry.people.revoke("leaver")

    def refused_everywhere() -> bool:
        answers = [httpx.get(f"{server.url}/model", headers=headers, timeout=30) for _ in range(10)]
        return {answer.status_code for answer in answers} == {401}

    wait_until(refused_everywhere)


def test_named_keys_work_while_the_registry_is_away(project: tuple[Settings, Served]) -> None:
    settings, server = project
    with contextlib.closing(Registry(settings.registry_url, "m")) as registry:
        key = registry.people.add("steady", ["predict"])
    headers = {"Authorization": f"Bearer {key}"}

    def predicts() -> int:
        body = {"items": [{"text": "oven"}]}
        return httpx.post(f"{server.url}/predict", json=body, headers=headers, timeout=30).status_code

    assert {predicts() for _ in range(10)} == {200}
    kept = settings.path("state/cache/keys-m.json")
    wait_until(lambda: "steady" in kept.read_text(encoding="utf-8"))
    database = settings.path("state/registry.db")
    away = database.with_name("moved.db")
    database.rename(away)
    try:
        assert {predicts() for _ in range(20)} == {200}
        unknown = {"Authorization": "Bearer ratchet_abcdefghij_" + "A" * 43}
        assert httpx.get(f"{server.url}/model", headers=unknown, timeout=30).status_code == 503
        assert key not in kept.read_text(encoding="utf-8")
    finally:
        away.rename(database)
