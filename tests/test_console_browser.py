"""The console in Chromium, on a running `ratchet up` with a tiny real model: what people click, see and type.

One project runs for the whole module. What a reviewer does in a day is one test, because each step needs the one before: approve,
watch the workers converge, roll back, overrule, release from quarantine. The others begin wherever that has come to, also on a
project of their own: label, try, label until a round settles. Every page is checked for accessibility in two sizes and two colour
schemes.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from pipelines.feature_store.store import FeatureStore
from pipelines.round_inputs import round_folder
from pipelines.round_settling import answers as answers_of
from schemas.queue import NewItem
from schemas.records import RoundRecord, RoundState
from services.rounds.queue_filling import fill
from serving.artifacts import ArtifactStore
from serving.http.access import pseudonym, read_keys
from serving.inference.loading import open_version
from serving.model_directory import read_manifest
from serving.registry.registry import Registry
from tests.support import browsers, consoles, settling_rounds
from tests.support.fakes import TOPICS, free_port, toy_rows
from tests.support.running_up import RunningUp, stored_ids, until
from tests.support.versions import copied

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser
IMPACTS = {"serious", "critical"}
SETTLING_TEXTS = 60
LIARS = ("liar0", "liar1")


@dataclass
class Stack:
    """A running project: its console's address, people's keys, and its registry."""

    url: str
    up: RunningUp
    keys: dict[str, str]
    registry: Registry


@pytest.fixture(scope="module")
def stack(console_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("browser") / "p"
    consoles.copied(console_project, folder)
    port = free_port()
    consoles.configure(
        folder,
        serving={"port": free_port(), "workers": 2},
        console={"port": port},
        gates={"approval": "manual"},
        triggers={"min_feedback": 1_000_000},
        training={"nice": 0},  # beside other loads
    )
    settings = consoles.with_console(folder, port=port)
    registry = Registry(settings.registry_url, settings.model.name)
    registry.migrate()
    keys = {name: registry.people.add(name, roles) for name, roles in consoles.ROLES.items()}
    up = RunningUp(settings)
    up.start()
    try:
        up.ready()
        url = f"http://127.0.0.1:{port}"
        assert until(lambda: answers(f"{url}/livez"), 60)
        yield Stack(url, up, keys, registry)
    finally:
        up.stop()
        registry.close()


def answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="module")
def chromium() -> "Iterator[Browser]":
    with browsers.browser() as launched:
        yield launched


def test_a_day_of_reviewing(stack: Stack, chromium: "Browser") -> None:
    for step in (
        approve_and_watch_every_worker_follow,
        roll_back_and_look_at_the_log,
        start_a_round_reject_and_overrule_it,
        release_people_in_bulk,
        trust_a_person,
    ):
        step(stack, chromium)


def signed_in(page: "Page", stack: Stack, who: str) -> "Page":
    page.goto(f"{stack.url}/sign-in")
    page.fill("#key", stack.keys[who])
    page.keyboard.press("Enter")
    page.wait_for_url(lambda url: "sign-in" not in url)
    return page


def decided(page: "Page", key: str, reason: str) -> None:
    """Press a key, read the confirmation, give a reason and confirm."""
    page.keyboard.press(key)
    page.wait_for_selector("dialog[open]")
    page.fill("dialog textarea", reason)
    page.click("dialog button:not([type=button])")
    page.wait_for_selector(".notice")


def approve_and_watch_every_worker_follow(stack: Stack, chromium: "Browser") -> None:
    record = stack.registry.unfinished_round()
    assert record
    with browsers.page(chromium) as page:
        signed_in(page, stack, "rita")
        page.wait_for_selector("text=2 of 2 workers serve it")
        page.click("text=A candidate waits for a decision")
        page.wait_for_selector("text=Approve: every blocking gate passed")
        assert page.frame_locator("iframe").locator("h1").inner_text() == record.candidate_version
        page.keyboard.press("a")
        assert "Every worker follows within seconds" in page.inner_text("dialog")
        page.keyboard.press("Escape")
        page.wait_for_selector("dialog[open]", state="hidden")
        assert stack.registry.champion() is not None
        assert stack.registry.round(record.round_id).state is RoundState.AWAITING_APPROVAL
        decided(page, "a", "better on every slice")
        page.click("nav >> text=Overview")
        page.wait_for_selector(f".title >> text={record.candidate_version}")
        page.wait_for_selector("text=2 of 2 workers serve it")  # it updates by itself
    champion = stack.registry.champion()
    assert champion
    assert (champion.model_version, champion.actor) == (record.candidate_version, "rita")
    live = httpx.get(f"{stack.up.url}/model", headers={"authorization": f"Bearer {stack.up.key}"}, trust_env=False)
    assert live.json()["model_version"] == record.candidate_version


def roll_back_and_look_at_the_log(stack: Stack, chromium: "Browser") -> None:
    first = stack.registry.versions()[-1].model_version
    with browsers.page(chromium) as page:
        signed_in(page, stack, "rita")
        page.goto(f"{stack.url}/models/{first}")
        decided(page, "b", "complaints about refunds")
        page.goto(f"{stack.url}/audit")
        assert "complaints about refunds" in page.inner_text("main")
        assert "the chain is intact" in page.inner_text("main")
    champion = stack.registry.champion()
    assert champion
    assert champion.model_version == first


def pseudonym_of(stack: Stack, user: str) -> str:
    """Who a user is in events, and so on the console."""
    return pseudonym(read_keys(stack.up.settings.path(stack.up.settings.access.keys)).secret, user)


def inference(stack: Stack) -> httpx.Client:
    """An app that holds the API key."""
    headers = {"Authorization": f"Bearer {stack.up.key}"}
    return httpx.Client(base_url=stack.up.url, headers=headers, trust_env=False, timeout=30)


def correct(stack: Stack, rows: list[tuple[str, str]], people: Sequence[str]) -> None:
    """Correct a prediction on each row, by people in turn, and wait until all are stored: a round needs something new."""
    stored = len(stored_ids(stack.up.settings)[1]) + len(rows)
    with inference(stack) as client:
        for n, (text, label) in enumerate(rows):
            [made] = client.post("/predict", json={"items": [{"text": text}]}).json()
            user = people[n % len(people)]
            body = {"prediction_id": made["prediction_id"], "kind": "correction", "value": label, "user": user}
            assert client.post("/feedback", json=body).status_code == 202
    assert until(lambda: len(stored_ids(stack.up.settings)[1]) >= stored, 60)


def start_a_round_reject_and_overrule_it(stack: Stack, chromium: "Browser") -> None:
    correct(stack, toy_rows(40, seed=77), [f"new{n}" for n in range(9)])
    turned = dict(zip(TOPICS, [*list(TOPICS)[1:], next(iter(TOPICS))], strict=True))
    correct(stack, [(text, turned[label]) for text, label in toy_rows(50, seed=78)], LIARS)
    with browsers.page(chromium) as page:
        signed_in(page, stack, "adam")
        page.goto(f"{stack.url}/rounds")
        page.click("text=Start a round")
        page.fill("dialog textarea", "a fresh look")
        page.click("dialog button:not([type=button])")
        page.wait_for_selector("text=Round in progress")
        record = stack.registry.unfinished_round()
        assert record
        page.wait_for_selector("text=Approve", timeout=400_000)  # it becomes its review by itself
        decided(page, "r", "not today")
        assert stack.registry.round(record.round_id).state is RoundState.REJECTED
        page.keyboard.press("o")
        assert "did not pass" in page.inner_text("dialog")
        page.fill("dialog textarea", "the reference was mislabelled")
        page.click("dialog button:not([type=button])")
        page.wait_for_selector(".notice")
    ended = stack.registry.round(record.round_id)
    assert ended.state is RoundState.PROMOTED
    overruled = [row for row in stack.registry.audit_rows() if row.action == "round approve"][-1]
    assert (overruled.actor, overruled.detail["overruled"]) == ("adam", "rejected")


def release_people_in_bulk(stack: Stack, chromium: "Browser") -> None:
    liars = {pseudonym_of(stack, name) for name in LIARS}
    record = stack.registry.history.rounds_page(limit=1)[0][1]
    assert record.dataset
    assert set(record.dataset.quarantined_people) == liars
    with browsers.page(chromium) as page:
        signed_in(page, stack, "adam")
        page.goto(f"{stack.url}/feedback/quarantine")
        page.check("input[data-all=user]")
        assert page.locator("input[name=user]:checked").count() == len(LIARS)
        page.fill("#reason", "they tried the form")
        page.click("text=Release")
        page.wait_for_selector("text=2 people: released")
        assert page.locator("input[name=user]").count() == 0
        assert page.locator("text=they tried the form").count() == len(LIARS)
    assert stack.registry.trust.trusted().released == liars
    rows = [row for row in stack.registry.audit_rows() if row.detail.get("reason") == "they tried the form"]
    assert {row.actor for row in rows} == {"adam"}


def trust_a_person(stack: Stack, chromium: "Browser") -> None:
    with browsers.page(chromium) as page:
        signed_in(page, stack, "adam")
        page.goto(f"{stack.url}/feedback/quarantine")
        page.click(f'a[href="/feedback/people/{pseudonym_of(stack, "new0")}"]')
        page.click("text=Trust")
        page.fill("dialog textarea", "our own tester")
        page.click("dialog button:not([type=button])")
        page.wait_for_selector(".notice")
        assert "our own tester" in page.inner_text("main")
    assert len(stack.registry.trust.trusted().released) == 1 + len(LIARS)


def test_items_are_labelled_by_keyboard(stack: Stack, chromium: "Browser") -> None:
    texts = ["a goal in the league", "the bank and the loan", "an oven for bread", "who knows", "later"]
    added = [NewItem(kind="audit", task="classification", key=f"key {n}", text=text) for n, text in enumerate(texts)]
    assert stack.registry.queue_items.add(added) == len(texts)
    with browsers.page(chromium, "phone") as page:
        signed_in(page, stack, "rita")
        page.goto(f"{stack.url}/queue")
        waiting, expected = dict(zip(texts, "123su", strict=True)), stack.registry.queue.progress().labels
        while waiting:
            before = page.inner_text(".sample")
            key = waiting.pop(before, "1")  # texts of the traffic come between them
            expected += key.isdigit()
            page.keyboard.press(key)
            page.wait_for_function(
                "text => !document.querySelector('.sample') || document.querySelector('.sample').innerText !== text",
                arg=before,
            )
    assert stack.registry.queue.progress().labels == expected


def test_a_refused_label_says_why(stack: Stack, chromium: "Browser") -> None:
    item = NewItem(kind="audit", task="classification", key="gone", text="a text that is erased meanwhile")
    assert stack.registry.queue_items.add([item]) == 1
    with browsers.page(chromium) as page:
        signed_in(page, stack, "rita")
        page.goto(f"{stack.url}/queue")
        page.wait_for_selector(".sample")
        assert stack.registry.queue_items.erase([page.inner_text(".sample")]) == 1
        page.keyboard.press("1")
        page.wait_for_selector("text=Nothing is here")


def test_each_role_is_refused_what_is_not_its_own(stack: Stack, chromium: "Browser") -> None:
    with browsers.page(chromium) as page:
        signed_in(page, stack, "app")
        page.goto(f"{stack.url}/rounds")
        page.wait_for_selector("text=This is not yours to do")
    with browsers.page(chromium) as page:
        signed_in(page, stack, "rita")
        page.goto(f"{stack.url}/rounds")
        page.wait_for_selector("text=promoted")
        assert page.locator("text=Start a round").count() == 0
        page.goto(f"{stack.url}/feedback/quarantine")
        page.click("table a >> nth=0")
        page.wait_for_selector("text=labels given")
        assert page.locator("main button").count() == 0


def test_somebody_tries_it_and_corrects_the_answer(stack: Stack, chromium: "Browser") -> None:
    with browsers.page(chromium, "phone", "dark") as page:
        signed_in(page, stack, "app")
        assert page.url.endswith("/try")
        page.fill("#text", "the oven and the butter")
        page.click("text=Ask")
        page.wait_for_selector(".answer b")
        page.select_option("#value", index=1)
        page.click("text=Correct it")
        page.wait_for_selector("text=Thank you")
        assert until(lambda: reloaded(page, "the oven and the butter"), 60)
        assert "the next round considers it" in page.inner_text("main")


def reloaded(page: "Page", text: str) -> bool:
    page.reload()
    return text in page.inner_text("main")


def disagreements(stack: Stack, guesses: Path, seed: int) -> tuple[RoundRecord, dict[str, dict[str, str]]]:
    """A round that settles between the champion and the version `guesses`, its texts queued from served traffic.

    Returns it, and by text what "champion" and "candidate" answer. Its items are queued as `ratchet queue fill` does, which
    the scheduler starts once a minute.
    """
    settings, registry = stack.up.settings, stack.registry
    if (waiting := registry.unfinished_round()) is not None:
        registry.finish_round(waiting.round_id, RoundState.REJECTED, detail="the desk is cleared")
    store = ArtifactStore(settings.location(settings.artifacts.url))
    champion = registry.champion()
    assert champion
    digest = store.put(guesses)
    registry.register_version(read_manifest(guesses), digest, servable=False)
    record = settling_rounds.wait_for_labels(registry, read_manifest(guesses).model_version)
    folder = round_folder(settings, record.round_id)
    folder.mkdir(parents=True)
    (folder / "rows.jsonl").write_bytes(b"")  # a text near a row that trained would not be queued
    texts = [text for text, _ in toy_rows(SETTLING_TEXTS, seed=seed)]
    with inference(stack) as client:
        assert client.post("/predict", json={"items": [{"text": text} for text in texts]}).status_code == 200
    features = FeatureStore(settings)
    assert until(lambda: set(texts) <= set(features.new_texts(record.created_at, None, 1000)[0]), 60)
    assert until(lambda: fill(settings, registry, features) is not None, 60)  # the scheduler may be filling it
    cache, digests = settings.path(settings.artifacts.cache), {"champion": champion.digest, "candidate": digest}
    given = {name: answers_of(open_version(store.fetch(one, cache), one), texts) for name, one in digests.items()}
    return record, {text: {name: given[name][n] for name in given} for n, text in enumerate(texts)}


@pytest.mark.parametrize("favoured", ["champion", "candidate"])
def test_labels_on_disagreements_settle_a_round(
    stack: Stack, chromium: "Browser", version: Path, tmp_path: Path, favoured: str
) -> None:
    names = {"model_name": stack.up.settings.model.name, "model_version": f"guess-{favoured[:2]}"}
    guesses = copied(version, tmp_path / "guesses", **names)  # whose head is random
    record, given = disagreements(stack, guesses, seed=100 + len(favoured))
    with browsers.page(chromium) as page:
        signed_in(page, stack, "rita")
        page.wait_for_selector("text=A round waits for labels")
        page.click("text=Label →")
        while page.locator(".verdict").count() == 0:
            text = page.inner_text(".sample")
            shown = page.inner_text("#queue form >> nth=0")
            assert not any(word in shown for word in ("champion", "candidate", "guess"))  # blind
            key: str | None = "s"  # an item of the audit sample that rita was shown before comes first
            if text in given:
                button = page.locator(f'button[name=label][value="{given[text][favoured]}"]')
                key = button.get_attribute("data-key")
            page.keyboard.press(key or "")
            page.wait_for_function(
                "text => document.querySelector('.verdict') || document.querySelector('.sample').innerText !== text",
                arg=text,
            )
        assert "labels settled the round" in page.inner_text(".verdict")
        page.click("text=Review guess")
        ended = stack.registry.round(record.round_id)
        assert ended.settling
        if favoured == "champion":
            assert ended.state is RoundState.REJECTED
            page.wait_for_selector("text=labels show that the candidate is worse")
            assert ended.settling.losses == ended.settling.labels
            return
        assert ended.settling.wins == ended.settling.labels
        page.wait_for_selector("text=Approve: labels settled what the reference set left open")
        decided(page, "a", "blind labels favour it")
    assert stack.registry.round(record.round_id).state is RoundState.PROMOTED


@pytest.mark.parametrize("size", browsers.SIZES)
@pytest.mark.parametrize("scheme", browsers.SCHEMES)
def test_every_page_is_accessible_fits_and_is_quick(stack: Stack, chromium: "Browser", size: str, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    record, version = stack.registry.history.rounds_page(limit=1)[0][1], stack.registry.versions()[0].model_version
    paths = ["/", "/rounds", f"/rounds/{record.round_id}", "/queue", "/models", f"/models/{version}", "/feedback"]
    paths += ["/feedback/quarantine", "/feedback/orphans", "/audit", "/try"]
    axe, problems, slow = Axe(), list[str](), list[tuple[str, float]]()
    with browsers.page(chromium, size, scheme) as page:
        page.goto(f"{stack.url}/sign-in")
        problems += violations(axe, page, "/sign-in")
        signed_in(page, stack, "rita")
        for path in paths:
            began = time.monotonic()
            page.goto(stack.url + path, wait_until="domcontentloaded")
            slow.append((path, time.monotonic() - began))
            page.wait_for_load_state("load")
            problems += violations(axe, page, path)
            wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert wide <= 0, f"{path} is {wide} pixels wider than the screen"
    assert not problems, problems
    assert min(seconds for _, seconds in slow) < 1.0, slow


def violations(axe: "Axe", page: "Page", path: str) -> list[str]:  # type: ignore[name-defined]  # noqa: F821
    """Serious and critical violations of a page."""
    found = axe.run(page, options={"iframes": False}).response["violations"]
    return [
        f"{path}: {one['id']} {one['nodes'][0]['html'][:160]} {(one['nodes'][0].get('failureSummary') or '')[:240]}"
        for one in found
        if one["impact"] in IMPACTS
    ]
