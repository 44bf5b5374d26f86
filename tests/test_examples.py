"""The runnable examples against a live server: the ticket router, the batch job, and the page in a real browser."""

import contextlib
import csv
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from schemas.events import FeedbackReceived, parse_event
from tests.support.fakes import TOPICS, free_port, wait_until
from tests.support.served import Served, make_project, served

REPOSITORY = Path(__file__).parent.parent
EXAMPLES = REPOSITORY / "examples"
CLIENT = REPOSITORY / "serving/client"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PAGE_PORT = free_port()
SOME_ID = "01900000-0000-7000-8000-000000000000"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, version: Path) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("examples") / "project"
    config = make_project(root, version, workers=1, cors_origins=[f"http://127.0.0.1:{PAGE_PORT}"])
    with served(config) as running:
        yield running


def environment(server: Served, **more: str) -> dict[str, str]:
    access = {"RATCHET_URL": server.url, "RATCHET_API_KEY": server.keys.api_key, "PYTHONPATH": str(CLIENT)}
    return {**os.environ, **access, **more}


def accepted(server: Served) -> dict[str, float]:
    """Return how much feedback the server has accepted, by kind."""
    found = re.findall(r'ratchet_feedback_total\{kind="(\w+)".*?\} (\S+)', httpx.get(f"{server.url}/metrics").text)
    return {kind: float(count) for kind, count in found}


@contextlib.contextmanager
def running(command: list[str], url: str, environment: dict[str, str], folder: Path) -> Iterator[None]:
    """Run an example's server until the block ends."""
    with (folder / "example.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT)

    def answers() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(url).status_code < 500
        return False

    try:
        wait_until(answers)
        yield
    finally:
        process.kill()
        process.wait(10)


def test_the_ticket_router_learns_from_moved_tickets(server: Served, tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(EXAMPLES), "ticket_router:app", "--port", str(port)]
    with (
        running(command, f"{url}/docs", environment(server, CERTAIN="0.0"), tmp_path),
        httpx.Client(base_url=url) as desk,
    ):
        ticket = desk.post("/tickets", json={"text": "the loan and the bank", "customer": "c1"})
        assert ticket.status_code == 201
        assert ticket.json()["queue"] in TOPICS
        assert desk.post("/tickets", json={"text": " ", "customer": "c1"}).status_code == 422
        moved = desk.put(f"/tickets/{ticket.json()['id']}/queue", json={"queue": "cooking", "agent": "a"})
        assert moved.json()["queue"] == "cooking"
        wrong = desk.put(f"/tickets/{ticket.json()['id']}/queue", json={"queue": "astronomy", "agent": "a"})
        assert wrong.status_code == 422
        assert "not a label in use" in wrong.json()["detail"]
        assert desk.put("/tickets/99/queue", json={"queue": "money", "agent": "a"}).status_code == 404


def test_the_ticket_router_keeps_tickets_while_ratchet_is_away(server: Served, tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(EXAMPLES), "ticket_router:app", "--port", str(port)]
    away = environment(server, RATCHET_URL=f"http://127.0.0.1:{free_port()}")
    with running(command, f"{url}/docs", away, tmp_path):
        ticket = httpx.post(f"{url}/tickets", json={"text": "loan", "customer": "c1"}, timeout=40)
        assert (ticket.status_code, ticket.json()["queue"]) == (201, "triage")


def write_table(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def job(server: Served, tmp_path: Path) -> Callable[..., str]:
    """Run the batch job in `tmp_path`, and return what it printed."""

    def run(*arguments: str) -> str:
        command = [sys.executable, str(EXAMPLES / "batch_job.py"), *arguments]
        done = subprocess.run(
            command, env=environment(server), cwd=tmp_path, capture_output=True, encoding="utf-8", check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    return run


def test_the_batch_job_labels_resumes_and_sends_reviews_once(job: Callable[..., str], tmp_path: Path) -> None:
    texts = [f"{words[n % 12]}, {words[(n + 1) % 12]}\nline {n}" for n in range(25) for words in TOPICS.values()]
    write_table(tmp_path / "in.csv", [{"id": str(n), "text": text} for n, text in enumerate(texts)])

    assert "75 rows added" in job("predict", "in.csv", "out.csv")
    whole = (tmp_path / "out.csv").read_bytes()
    (tmp_path / "out.csv").write_bytes(whole[: len(whole) // 2])  # as a crash in the middle of a row leaves it
    again = job("predict", "in.csv", "out.csv")
    assert 30 < int(re.findall(r"(\d+) rows added", again)[0]) < 45
    rows = read_table(tmp_path / "out.csv")
    assert [row["text"] for row in rows] == texts
    assert len({row["prediction_id"] for row in rows}) == 75

    reviews = [row | {"correct": "cooking" if n == 3 else "astronomy" if n == 4 else ""} for n, row in enumerate(rows)]
    write_table(tmp_path / "reviewed.csv", reviews)
    printed = job("correct", "reviewed.csv", "--user", "r1")
    assert "1 corrections stored" in printed
    assert "row 6: 422: not a label in use" in printed


def test_the_batch_job_leaves_blank_cells_out_and_goes_on_behind_them(job: Callable[..., str], tmp_path: Path) -> None:
    texts = ["", "loan", " \n", *(["bank", "\t"] * 70), "oven"]
    write_table(tmp_path / "in.csv", [{"id": str(n), "text": text} for n, text in enumerate(texts)])
    written = [(str(n), text) for n, text in enumerate(texts) if text.strip()]

    def labelled() -> list[tuple[str, str]]:
        return [(row["id"], row["text"]) for row in read_table(tmp_path / "out.csv") if row["label"] in TOPICS]

    assert f"{len(written)} rows added" in job("predict", "in.csv", "out.csv")
    assert labelled() == written
    lines = (tmp_path / "out.csv").read_bytes().splitlines(keepends=True)
    (tmp_path / "out.csv").write_bytes(b"".join(lines[:21]))  # the names of the columns and 20 rows
    assert f"{len(written) - 20} rows added" in job("predict", "in.csv", "out.csv")
    assert labelled() == written
    assert "0 rows added" in job("predict", "in.csv", "out.csv")


def test_a_reviewer_who_changes_a_label_back_is_heard_and_an_unchanged_file_counts_once(
    job: Callable[..., str], server: Served, tmp_path: Path
) -> None:
    write_table(tmp_path / "in.csv", [{"text": "loan"}])
    job("predict", "in.csv", "out.csv")
    [row] = read_table(tmp_path / "out.csv")

    def stored() -> list[object]:
        """Each correction of the row that the server keeps, once, oldest first."""
        kept = dict[str, object]()
        for path in (server.log.parent / "state/outbox").glob("outbox-*.db"):
            with contextlib.closing(sqlite3.connect(path)) as disk:
                for (value,) in disk.execute("SELECT value FROM events ORDER BY sequence"):
                    event = parse_event(value)
                    if isinstance(event, FeedbackReceived) and event.data.prediction_id == row["prediction_id"]:
                        kept.setdefault(event.data.feedback_id, event.data.value)
        return list(kept.values())

    for n, label in enumerate(("cooking", "football", "cooking"), start=1):
        write_table(tmp_path / "reviewed.csv", [row | {"correct": label}])
        for _ in range(2):
            assert "1 corrections stored" in job("correct", "reviewed.csv", "--user", "r1")
            assert stored() == ["cooking", "football", "cooking"][:n]


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is missing")
def test_the_page_sends_thumbs_and_a_correction_from_a_browser(server: Served, tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    before = accepted(server)
    url = f"http://127.0.0.1:{PAGE_PORT}/"
    command = [sys.executable, str(EXAMPLES / "feedback_page/serve.py"), str(PAGE_PORT)]
    with running(command, url, environment(server), tmp_path), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        problems: list[str] = []
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(url)
        page.get_by_label("Your question").fill("the <b>loan</b>")
        page.get_by_role("button", name="Ask").click()
        page.get_by_role("button", name="No, it is wrong").click()
        page.get_by_role("status").get_by_text("Thank you.").wait_for()
        page.get_by_label("What is the right answer?").select_option("cooking")
        page.get_by_role("button", name="Send").click()
        page.get_by_label("What is the right answer?").wait_for(state="hidden")
        page.get_by_role("button", name="Yes, it is right").click()
        page.wait_for_function("document.querySelector('ratchet-feedback').thumbs.up.ariaPressed === 'true'")
        # A forged token is refused, and the page's script learns why.
        refused = page.evaluate(
            "([url, body]) => Ratchet.sendFeedback(url, '4000000000.' + '0'.repeat(32), body).catch((e) => e.message)",
            [f"{server.url}/", {"prediction_id": SOME_ID, "kind": "rating", "value": "up"}],
        )
        browser.close()
    after = accepted(server)
    assert refused == "the feedback token belongs to another prediction"
    assert {kind: after[kind] - before.get(kind, 0) for kind in ("rating", "correction")} == {
        "rating": 2,
        "correction": 1,
    }
    assert [text for text in problems if "403" not in text and "favicon" not in text and "404" not in text] == []


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is missing")
def test_the_service_may_lie_below_a_path_with_or_without_a_slash(server: Served, tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    port = free_port()
    url = f"http://127.0.0.1:{port}/"
    command = [sys.executable, str(EXAMPLES / "feedback_page/serve.py"), str(port)]
    with running(command, url, environment(server), tmp_path), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        sent: list[str] = []
        page.on("request", lambda request: sent.append(request.url) if request.method == "POST" else None)
        page.goto(url)
        refused = [
            page.evaluate("url => Ratchet.sendFeedback(url, 'token', {kind: 'rating'}).catch((e) => e.message)", given)
            for given in (f"{url}ratchet", f"{url}ratchet/", "/ratchet", "ratchet", "./ratchet/")
        ]
        browser.close()
    assert refused == ["status 404"] * 5, "the page's own server has no such address"
    assert sent == [f"{url}ratchet/feedback"] * 5
