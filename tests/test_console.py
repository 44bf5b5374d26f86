"""The console over a real project: pages, decisions, roles, API. Without a browser; test_console_browser.py has one."""

import csv
import inspect
import io
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from pipelines.feature_store.feedback_search import Wanted
from schemas.queue import NewItem
from schemas.records import RoundRecord, RoundState, VersionState
from services.console import actions, api
from services.console.pages import overview
from services.console.pages.try_it import VISITOR
from services.console.sessions import COOKIE, Sessions
from tests.support import consoles, settling_rounds
from tests.support.consoles import Console, Visitor
from tests.support.running_up import until

PAGES = (
    "/", "/rounds", "/rounds?state=open", "/queue", "/models", "/feedback", "/feedback?q=oven&kind=correction",
    "/feedback/quarantine", "/feedback/orphans", "/audit", "/try",
)  # fmt: skip


@pytest.fixture(scope="module")
def console(console_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    settings = consoles.copied(console_project, tmp_path_factory.mktemp("console") / "p")
    with consoles.served(settings) as running:
        yield running


@pytest.fixture
def fresh(console_project: Path, tmp_path: Path) -> Iterator[Console]:
    """A console of its own, for tests that decide."""
    with consoles.served(consoles.copied(console_project, tmp_path / "p")) as running:
        yield running


def waiting(console: Console) -> str:
    record = console.registry.unfinished_round()
    assert record is not None
    assert record.state is RoundState.AWAITING_APPROVAL
    return record.round_id


@pytest.mark.parametrize("path", PAGES)
def test_a_reviewer_sees_every_page(console: Console, path: str) -> None:
    answer = Visitor(console, "rita").get(path)
    assert answer.status_code == 200, answer.text
    assert "Undefined" not in answer.text
    assert len(answer.content) < 150_000


def test_the_overview_says_what_serves_and_what_waits(console: Console) -> None:
    text = Visitor(console, "rita").get("/").text
    champion = console.registry.champion()
    assert champion
    assert champion.model_version in text
    assert "A candidate waits for a decision" in text
    assert "no worker is running" in text


def test_the_overview_counts_the_workers_that_have_followed(fresh: Console) -> None:
    champion = fresh.registry.champion()
    assert champion
    for worker, generation in (("1", champion.generation - 1), ("2", champion.generation)):
        fresh.registry.heartbeat(worker, "h", model_version="v", generation=generation, error=None)
    assert "1 of 2 workers serve it" in Visitor(fresh, "rita").get("/").text
    fresh.registry.heartbeat("1", "h", model_version="v", generation=champion.generation, error=None)
    assert "2 of 2 workers serve it" in Visitor(fresh, "rita").get("/").text


def test_the_overview_shows_the_live_accuracy_of_the_audit_sample(fresh: Console) -> None:
    champion = fresh.registry.champion()
    assert champion
    consoles.add_events(fresh.project.settings, 30, start=240, version=champion.model_version)
    stored = fresh.project.events.feedback(Wanted(limit=200)).rows
    said = [row for row in stored if row["model_version"] == champion.model_version][:20]
    items = [NewItem(kind="audit", task="classification", key=row["text"], text=row["text"]) for row in said]
    assert fresh.registry.queue_items.add(items) == 20
    right = {row["text"]: row["predicted_label"] for row in said}
    wrong = {"football": "money", "money": "cooking", "cooking": "football"}
    for n in range(20):
        item = fresh.registry.queue.next("rita")
        assert item
        label = right[item.text] if n else wrong[right[item.text]]
        fresh.registry.queue.label(item.item_id, label, reviewer="rita")
    live = overview.look(fresh.project).live
    assert live
    assert (live.hits, live.n) == (19, 20)
    assert live.interval == pytest.approx((0.764, 0.991), abs=0.001)
    assert "on 20 audited texts" in Visitor(fresh, "rita").get("/").text


def test_the_first_page_is_light(console: Console) -> None:
    visitor = Visitor(console, "rita")
    page = visitor.get("/")
    files = [part.split('"')[0] for part in page.text.split('="/static/')[1:]]
    total = len(page.content) + sum(len(visitor.get(f"/static/{name}").content) for name in files)
    assert len(files) == 4
    assert total < 150_000


def test_the_review_shows_the_report_the_advice_and_the_trend(console: Console) -> None:
    visitor, round_id = Visitor(console, "rita"), waiting(console)
    text = visitor.get(f"/rounds/{round_id}").text
    assert "Approve: every blocking gate passed" in text
    assert "<svg" in text
    report = visitor.get(f"/rounds/{round_id}/report")
    assert report.status_code == 200
    assert "frame-ancestors 'self'" in report.headers["content-security-policy"]
    assert "script" not in report.headers["content-security-policy"]
    assert visitor.get(f"/rounds/{round_id}/dataset").status_code == 200


def test_approving_promotes_and_is_recorded(fresh: Console) -> None:
    visitor, round_id = Visitor(fresh, "rita"), waiting(fresh)
    assert visitor.post(f"/rounds/{round_id}/approve", reason=" ").status_code == 422
    answer = visitor.post(f"/rounds/{round_id}/approve", reason="better on every slice")
    assert answer.status_code == 303, answer.text
    champion = fresh.registry.champion()
    assert champion
    assert (champion.generation, champion.actor, champion.round_id) == (2, "rita", round_id)
    text = visitor.get(f"/rounds/{round_id}").text
    assert "better on every slice" in text
    assert "Nothing to do" in text
    again = visitor.post(f"/rounds/{round_id}/approve", reason="again")
    assert again.status_code == 409
    assert not fresh.registry.verify_audit()


def settling(console: Console, texts: int = 12) -> RoundRecord:
    """A round that waits for labels on `texts` texts, to which the candidate says `money` and the champion `cooking`."""
    registry = console.registry
    registry.reject(waiting(console), actor="rita", reason="another waits for labels")
    settling_rounds.candidate(registry, "challenger")
    record = settling_rounds.wait_for_labels(registry, "challenger")
    answers = {"champion_answer": "cooking", "candidate_answer": "money"}
    common = {"kind": "disagreement", "task": "classification", "round_id": record.round_id, **answers}
    added = [NewItem.model_validate({**common, "key": f"key {n}", "text": f"text {n}"}) for n in range(texts)]
    assert registry.queue_items.add(added) == texts
    return record


@pytest.mark.parametrize(
    ("label", "state", "advice"),
    [
        ("cooking", RoundState.REJECTED, "Keep the champion: 7 labels show that the candidate is worse"),
        ("money", RoundState.PROMOTED, "Nothing to do: challenger is live"),
    ],
)
def test_the_label_that_suffices_settles_the_round_at_once(
    fresh: Console, label: str, state: RoundState, advice: str
) -> None:
    record, visitor = settling(fresh), Visitor(fresh, "rita")
    assert "A round waits for labels." in visitor.get("/").text
    assert "open the queue" in visitor.get(f"/rounds/{record.round_id}").text
    for _ in range(12):
        item = fresh.registry.queue.next("rita")
        assert item
        answer = visitor.http.post(
            f"/queue/{item.item_id}", data={"csrf": visitor.csrf, "label": label}, headers={"hx-request": "true"}
        )
        assert answer.status_code == 200
        if "settled the round" in answer.text:
            break
        assert "favour" not in answer.text  # neither wins nor losses before the verdict
    done = fresh.registry.round(record.round_id)
    assert done.state is state
    review = visitor.get(f"/rounds/{record.round_id}").text
    assert advice in review
    assert "open the queue" not in review
    assert "about" not in review.split("Keep the champion")[-1].split("</section>")[0]  # no rows are missing any more
    late = next(i for i in fresh.registry.queue.items(round_id=record.round_id) if i.label is None)
    answer = visitor.post(f"/queue/{late.item_id}", label=label)
    assert answer.headers["location"] == f"/rounds/{record.round_id}"  # it came too late, and the round says why


def test_rejecting_overruling_and_rolling_back(fresh: Console) -> None:
    visitor, round_id = Visitor(fresh, "rita"), waiting(fresh)
    first = fresh.registry.champion()
    assert first
    assert visitor.post(f"/rounds/{round_id}/reject", reason="wrong on refunds").status_code == 303
    assert fresh.registry.round(round_id).state is RoundState.REJECTED
    assert visitor.post(f"/rounds/{round_id}/approve", reason="after all").status_code == 409
    answer = visitor.post(f"/rounds/{round_id}/overrule", reason="the refunds were mislabelled")
    assert answer.status_code == 303, answer.text
    second = fresh.registry.champion()
    assert second
    assert second.generation == 2
    overruled = next(row for row in fresh.registry.audit_rows() if row.action == "round approve")
    assert overruled.detail["overruled"] == "rejected"
    answer = visitor.post(f"/models/{first.model_version}/rollback", reason="complaints")
    assert answer.status_code == 303, answer.text
    third = fresh.registry.champion()
    assert third
    assert (third.model_version, third.generation) == (first.model_version, 3)
    assert fresh.registry.version(second.model_version).state is VersionState.ROLLED_BACK
    refused = visitor.post("/models/nothing/rollback", reason="x")
    assert refused.status_code == 404


def test_stopping_starting_and_retrying(fresh: Console) -> None:
    visitor, round_id = Visitor(fresh, "adam"), waiting(fresh)
    assert visitor.post("/rounds/start", reason="now").status_code == 422  # another is unfinished
    assert visitor.post(f"/rounds/{round_id}/stop", reason="x").status_code == 422  # it waits, it does not run
    assert visitor.post(f"/rounds/{round_id}/reject", reason="no").status_code == 303
    started = visitor.post("/rounds/start", reason="fresh labels")
    assert started.status_code == 303, started.text
    running = fresh.registry.unfinished_round()
    assert running
    assert "waiting to start" in visitor.get(f"/rounds/{running.round_id}").text
    assert visitor.post(f"/rounds/{running.round_id}/stop", reason="wrong day").status_code == 303
    stopped = fresh.registry.round(running.round_id)
    assert stopped.state is RoundState.SKIPPED
    assert stopped.detail == "stopped by adam: wrong day"
    assert visitor.post(f"/rounds/{running.round_id}/retry", reason="another go").status_code == 303
    actions = [row.action for row in fresh.registry.audit_rows()]
    assert actions[-3:] == ["round start", "round stop", "round start"]


def test_a_running_round_shows_its_loss_and_log(fresh: Console) -> None:
    visitor, registry = Visitor(fresh, "adam"), fresh.registry
    visitor.post(f"/rounds/{waiting(fresh)}/reject", reason="no")
    claimed = registry.claim_round(reason="60 of 60 labelled feedback", cut={}, token=None)
    assert claimed
    registry.start_round(claimed.round_id)
    registry.update_round(claimed.round_id, step="training", progress=0.4, pace={"loss": 0.31, "eta_s": 42.0})
    folder = fresh.project.settings.path("state/rounds") / claimed.round_id
    folder.mkdir(parents=True)
    lines = [{"at": n, "step": "training", "share": n / 10, "loss": 1 / (n + 1)} for n in range(8)]
    trace = "".join(json.dumps(line) + "\n" for line in lines) + '{"at": 9, "lo'
    (folder / "progress.jsonl").write_text(trace, encoding="utf-8")
    log = fresh.project.settings.path("state/logs") / f"round-{claimed.round_id}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("  1.0 s  training 40 %\n", encoding="utf-8")
    text = visitor.get(f"/rounds/{claimed.round_id}").text
    assert "42 s" in text
    assert "40 %" in text
    assert "training 40 %" in text
    assert "polyline" in text


def test_quarantined_people_are_released_and_rejected_in_bulk(fresh: Console) -> None:
    visitor = Visitor(fresh, "adam")
    chosen = [row["user"] for row in fresh.project.events.people(2)]
    answer = visitor.post("/feedback/quarantine", user=chosen, decision="released", reason="our own testers")
    assert answer.status_code == 303, answer.text
    assert fresh.registry.trust.trusted().released == frozenset(chosen)
    assert "our own testers" in visitor.get("/feedback/quarantine").text
    visitor.post("/feedback/quarantine", user=chosen[:1], decision="rejected", reason="spam")
    assert fresh.registry.trust.trusted().rejected == frozenset(chosen[:1])
    assert visitor.post("/feedback/quarantine", user=chosen, decision="sideways", reason="x").status_code == 422
    assert visitor.post("/feedback/quarantine", decision="released", reason="x").status_code == 422


def test_a_dead_letter_is_removed_with_a_reason_and_named_exactly(fresh: Console) -> None:
    visitor = Visitor(fresh, "adam")
    listed = visitor.get("/feedback/letters")
    assert listed.status_code == 200
    assert "no broker is running" in listed.text
    assert visitor.post("/feedback/letters/remove", position="t/0/1", reason=" ").status_code == 422
    assert visitor.post("/feedback/letters/remove", position="all of them", reason="spam").status_code == 422
    assert visitor.post("/feedback/letters/remove", position="t/0/1", reason="spam").status_code == 303
    removed = list(fresh.registry.audit_rows())[-1]
    assert (removed.actor, removed.action) == ("adam", "dead letter remove")
    assert removed.detail == {"position": "t/0/1", "reason": "spam"}
    assert visitor.post("/feedback/letters/replay", position="t/0/1").status_code == 422  # without a broker


def test_feedback_is_searched_and_a_person_shown(console: Console) -> None:
    visitor = Visitor(console, "rita")
    assert "oven" in visitor.get("/feedback?q=OVEN").text
    assert "Nothing matches" in visitor.get("/feedback?q=no-such-word").text
    by_name = visitor.get("/feedback?user=u3").text
    user = by_name.split("/feedback/people/")[1].split('"')[0]
    assert visitor.get(f"/feedback?user={user}").text.count("/feedback/people/") == by_name.count("/feedback/people/")
    person = visitor.get(f"/feedback/people/{user}").text
    assert "labels given" in person


def test_versions_are_compared_on_the_same_rows(console: Console) -> None:
    visitor = Visitor(console, "rita")
    second, first = [version.model_version for version in console.registry.versions()]
    path = f"/api/compare?first={first}&second={second}"
    until_done = until(lambda: visitor.get(path).status_code == 200, 120)
    assert until_done
    compared = visitor.get(path).json()
    assert compared["error"] is None
    assert compared["n"] > 100
    gain = next(one for one in compared["metrics"] if one["name"] == "accuracy")
    both = {name: report["accuracy"] for name, report in compared["reports"].items()}
    assert gain["change"] == pytest.approx(both["second"] - both["first"])
    assert gain["low"] <= gain["change"] <= gain["high"]
    waiting_part = visitor.http.get(
        f"/models/compare?first={second}&second={first}", headers={"hx-request": "true"}
    ).text
    assert "<html" not in waiting_part
    text = visitor.get(f"/models/compare?first={first}&second={second}").text
    assert "Right before, wrong now" in text


def test_files_are_downloaded_and_the_card_is_made(console: Console) -> None:
    visitor = Visitor(console, "rita")
    version = console.registry.versions()[-1].model_version
    page = visitor.get(f"/models/{version}").text
    assert "model.onnx" in page
    card = visitor.get(f"/models/{version}/files/card.md").text
    for heading in ("## Data", "## Measures", "## Limits", "## Cost"):
        assert heading in card
    onnx = visitor.get(f"/models/{version}/files/model.onnx")
    assert onnx.status_code == 200
    assert "attachment" in onnx.headers["content-disposition"]
    assert len(onnx.content) > 10_000


def test_the_audit_log_is_listed_filtered_and_exported(console: Console) -> None:
    visitor = Visitor(console, "rita")
    assert "the chain is intact" in visitor.get("/audit").text
    assert "promote" not in visitor.get("/audit?action=access+add").text.split("<table")[1]
    rows = list(csv.DictReader(io.StringIO(visitor.get("/audit.csv").text)))
    assert [int(row["sequence"]) for row in rows] == list(range(1, len(rows) + 1))


def test_the_api_offers_what_the_pages_do_with_the_same_checks(fresh: Console) -> None:
    round_id = waiting(fresh)

    def called(who: str | None, method: str, path: str, **body: object) -> httpx.Response:
        headers = {"authorization": f"Bearer {fresh.keys[who]}"} if who else {}
        return httpx.request(method, f"{fresh.url}/api{path}", headers=headers, json=body or None, trust_env=False)

    assert called("rita", "GET", "/overview").json()["unfinished_round"] == round_id
    assert called(None, "GET", "/overview").status_code == 401
    assert called("app", "GET", "/overview").status_code == 403
    assert called("rita", "POST", "/rounds", reason="now").status_code == 403
    invalid = called("rita", "POST", f"/rounds/{round_id}/approve")
    assert invalid.status_code == 422
    assert invalid.json()["detail"][0]["field"] == "reason"
    assert called("rita", "GET", "/rounds/none").status_code == 404
    shown = called("rita", "GET", f"/rounds/{round_id}").json()
    assert shown["recommendation"].startswith("Approve")
    done = called("rita", "POST", f"/rounds/{round_id}/approve", reason="ok")
    assert done.status_code == 200, done.text
    assert done.json()["champion"]["generation"] == 2
    assert called("rita", "GET", "/queue/next").json() is None
    document = httpx.get(f"{fresh.url}/api/openapi.json", trust_env=False).json()
    assert "/rounds/{round_id}/approve" in document["paths"]


def test_every_action_is_in_the_api_too() -> None:
    made = [name for name, one in inspect.getmembers(actions, inspect.isfunction) if one.__module__ == actions.__name__]
    public = [name for name in made if not name.startswith("_")]
    assert len(public) >= 12
    source = inspect.getsource(api)
    assert [name for name in public if f"actions.{name}(" not in source] == []


def test_the_api_searches_feedback_and_adds_labels(fresh: Console) -> None:
    def called(who: str, method: str, path: str, **body: object) -> httpx.Response:
        headers = {"authorization": f"Bearer {fresh.keys[who]}"}
        return httpx.request(method, f"{fresh.url}/api{path}", headers=headers, json=body or None, trust_env=False)

    first = called("rita", "GET", "/feedback?words=OVEN&limit=2").json()
    assert [("oven" in row["text"]) for row in first["feedback"]] == [True, True]
    second = called("rita", "GET", f"/feedback?words=oven&limit=2&before={first['before']}").json()
    assert not {row["feedback_id"] for row in first["feedback"]} & {row["feedback_id"] for row in second["feedback"]}
    assert called("app", "GET", "/feedback").status_code == 403
    assert called("rita", "GET", "/feedback?since=yesterday").status_code == 422
    assert called("rita", "POST", "/labels", label="weather").status_code == 201
    assert "weather" in fresh.registry.active_labels()
    assert called("app", "POST", "/labels", label="sport").status_code == 403
    assert called("rita", "GET", "/dead-letters").status_code == 422  # without a broker


def test_the_operator_decides_only_while_there_is_no_reviewer(console_project: Path, tmp_path: Path) -> None:
    with consoles.served(consoles.copied(console_project, tmp_path / "p"), people=False) as alone:
        assert Visitor(alone, "operator").post(f"/rounds/{waiting(alone)}/reject", reason="mine").status_code == 303
    with consoles.served(consoles.copied(console_project, tmp_path / "q")) as team:
        refused = Visitor(team, "operator").post(f"/rounds/{waiting(team)}/reject", reason="mine")
        assert refused.status_code == 403
        assert "rita" in refused.text


def test_a_session_ends_with_its_key_and_its_time(fresh: Console) -> None:
    visitor = Visitor(fresh, "rita")
    fresh.registry.people.revoke("rita", by="adam")
    assert visitor.get("/rounds").status_code == 303
    now = [1000.0]
    sessions = Sessions("secret", hours=1, clock=lambda: now[0])
    cookie = sessions.issue("key:abc")
    read = sessions.read(cookie)
    assert read
    assert read.subject == "key:abc"
    assert sessions.read(cookie[:-1] + ("0" if cookie[-1] != "0" else "1")) is None
    assert Sessions("other", hours=1, clock=lambda: now[0]).read(cookie) is None
    now[0] += 3601
    assert sessions.read(cookie) is None


def test_try_needs_a_person_unless_it_is_open(console_project: Path, tmp_path: Path) -> None:
    with consoles.served(consoles.copied(console_project, tmp_path / "p")) as closed:
        assert httpx.get(f"{closed.url}/try", trust_env=False).headers["location"] == "/sign-in?next=/try"
        assert Visitor(closed, "app").get("/try").status_code == 200
    with consoles.served(consoles.copied(console_project, tmp_path / "q", try_page="open")) as opened:
        answer = httpx.get(f"{opened.url}/try", trust_env=False)
        assert answer.status_code == 200
        assert VISITOR in answer.cookies
        assert COOKIE not in answer.cookies
        down = httpx.post(f"{opened.url}/try", data={"text": "an oven"}, cookies=answer.cookies, trust_env=False)
        assert down.status_code == 502
    with consoles.served(consoles.copied(console_project, tmp_path / "r", try_page="off")) as off:
        assert Visitor(off, "operator").get("/try").status_code == 404
