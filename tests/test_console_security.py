"""Attacks on the console: forged forms, markup from outside, paths, other people's rights, guessed keys."""

import html
import http.client
import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pyarrow as pa
import pytest

from pipelines.feature_store.event_log import SCHEMAS, EventLog
from schemas.settings import SettingsError, load_settings
from services.console.pages.audit import plain
from services.console.sessions import COOKIE
from services.console.throttle import Throttle
from tests.support import consoles
from tests.support.consoles import Console, Visitor

MARKUP = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\"><svg onload=alert(1)>",
    "'><iframe srcdoc='<script>alert(1)</script>'>",
    "</textarea><script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "{{ 7919*7907 }}{% include '/etc/passwd' %}",
    "javascript:alert(1)//",
    "<a href=\"javascript:alert(1)\">x</a>",
    "<details open ontoggle=alert(1)>&lt;b&gt;",
)  # fmt: skip
ESCAPES = (
    "../../../keys.env", "..%2f..%2f..%2fkeys.env", "%2e%2e/%2e%2e/keys.env", "....//....//keys.env",
    "/etc/passwd", "..\\..\\keys.env", "model.onnx/../../../keys.env", "manifest.json%00.onnx",
    "adapter/../../../../ratchet.toml", "file:///etc/passwd",
)  # fmt: skip
CHANGES = (
    "/rounds/{round}/approve", "/rounds/{round}/reject", "/rounds/{round}/overrule", "/rounds/{round}/stop",
    "/rounds/{round}/retry", "/rounds/start", "/models/{version}/rollback", "/feedback/quarantine", "/feedback/replay",
    "/feedback/letters/replay", "/feedback/letters/remove", "/queue/x",
)  # fmt: skip
DANGEROUS = re.compile(r"<(script|img|svg onload|iframe srcdoc|details open)|javascript:alert\(1\)\"", re.IGNORECASE)


@pytest.fixture(scope="module")
def console(console_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    settings = consoles.copied(console_project, tmp_path_factory.mktemp("attacked") / "p")
    poison(EventLog(settings.location(settings.feature_store.event_log)))
    with consoles.served(settings) as running:
        running.registry.set_labels(MARKUP)
        for payload in MARKUP:
            running.registry.audit(payload, "note", {"reason": payload, payload: "x"})
            running.registry.show_ingestion("stuck", {payload: payload}, prefix=payload)
        yield running


def poison(log: EventLog) -> None:
    """Store predictions and feedback whose text, label, metadata, value and user are markup."""
    n = len(MARKUP)
    now = pa.scalar(4_000_000_000_000_000, pa.timestamp("us", tz="UTC")).as_py()
    position = {"topic_id": ["x"] * n, "partition": [0] * n, "offset": list(range(n))}
    common = {
        **position,
        "prediction_id": [f"evil{k}" for k in range(n)],
        "event_timestamp": [now] * n,
        "created_timestamp": [now] * n,
    }
    predictions = {
        **common, "model_version": list(MARKUP), "generation": [1] * n, "text": list(MARKUP), "confidence": [0.5] * n,
        "predicted_label": list(MARKUP), "probabilities": ["{}"] * n, "user": list(MARKUP), "audit": [False] * n,
        "metadata": [json.dumps({payload: payload}) for payload in MARKUP],
    }  # fmt: skip
    feedback = {
        **common, "feedback_id": list(MARKUP), "kind": ["comment"] * n, "value": [json.dumps(p) for p in MARKUP],
        "user": list(MARKUP),
    }  # fmt: skip
    for name, rows in (("predictions", predictions), ("feedback", feedback)):
        log.append(name, pa.Table.from_pydict(rows, schema=SCHEMAS[name]))


@pytest.mark.parametrize(
    "path", ["/", "/feedback", "/feedback/quarantine", "/feedback/orphans", "/audit", "/queue", "/try", "/models"]
)
def test_markup_from_outside_stays_text(console: Console, path: str) -> None:
    page = Visitor(console, "rita").get(path)
    assert page.status_code == 200
    assert_harmless(page.text)


@pytest.mark.parametrize("payload", MARKUP)
def test_markup_in_a_request_stays_text(console: Console, payload: str) -> None:
    visitor, coded = Visitor(console, "rita"), quote(payload, safe="")
    paths = [
        f"/feedback?q={coded}&user={coded}&label={coded}&kind={coded}&since={coded}&skip={coded}",
        f"/audit?actor={coded}&action={coded}",
    ]
    paths += [
        f"/feedback/people/{coded}",
        f"/rounds?state={coded}&before={coded}",
        f"/rounds/{coded}",
        f"/models/{coded}",
    ]
    paths += [f"/models/compare?first={coded}&second={coded}", f"/?done={coded}", f"/sign-in?next={coded}"]
    for path in paths:
        assert_harmless(visitor.get(path).text)


@pytest.mark.parametrize("payload", MARKUP)
def test_markup_in_an_items_text_labels_and_metadata_stays_text(console: Console, payload: str) -> None:
    from schemas.queue import NewItem

    item = NewItem(kind="audit", task="classification", key=f"k{payload}", text=payload, metadata={"note": payload})
    assert console.registry.queue_items.add([item]) in (0, 1)
    page = Visitor(console, "rita").get("/queue").text
    assert "Nothing to label" not in page
    assert_harmless(page)


def test_a_reason_with_markup_stays_text(console_project: Path, tmp_path: Path) -> None:
    with consoles.served(consoles.copied(console_project, tmp_path / "p")) as fresh:
        record = fresh.registry.unfinished_round()
        assert record
        visitor = Visitor(fresh, "rita")
        visitor.post(f"/rounds/{record.round_id}/reject", reason=" ".join(MARKUP))
        for path in (f"/rounds/{record.round_id}", "/rounds", "/audit", "/"):
            page = visitor.get(path).text
            assert_harmless(page)
        assert html.escape(MARKUP[1], quote=False) in visitor.get(f"/rounds/{record.round_id}").text


@pytest.mark.parametrize("name", MARKUP)
def test_nobody_is_named_by_markup(console: Console, name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        console.registry.people.add(name, ["review"])


def assert_harmless(page: str) -> None:
    """Fail if a payload stands in the page as markup, or as an address that a browser would run."""
    ours = re.sub(r'<(script src="/static/[^"]+" defer>|svg viewBox[^>]*>|img src="/static)', "", page)
    assert not DANGEROUS.search(ours), DANGEROUS.search(ours)
    assert str(7919 * 7907) not in page


@pytest.mark.parametrize("path", CHANGES)
def test_a_forged_form_changes_nothing(console: Console, path: str) -> None:
    record, champion = console.registry.unfinished_round(), console.registry.champion()
    assert record
    assert champion
    path = path.format(round=record.round_id, version=champion.model_version)
    form = {"reason": "mine", "decision": "released", "user": "x", "label": "x", "position": "t/0/1"}
    victim, other = Visitor(console, "adam"), Visitor(console, "rita")
    before = console.registry.audit_head()
    for token in ("", "0" * 64, other.csrf):
        answer = victim.http.post(path, data={**form, "csrf": token})
        assert answer.status_code == 403, (path, token, answer.text)
    for headers in ({"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}, {"origin": "null"}):
        answer = victim.http.post(path, data={**form, "csrf": victim.csrf}, headers=headers)
        assert answer.status_code == 403, (path, headers)
    assert console.registry.audit_head() == before
    assert console.registry.round(record.round_id).state is record.state


def test_the_api_takes_a_cookie_only_with_its_token(console: Console) -> None:
    record = console.registry.unfinished_round()
    assert record
    victim = Visitor(console, "rita")
    path = f"/api/rounds/{record.round_id}/reject"
    assert victim.http.post(path, json={"reason": "mine"}).status_code == 403
    assert victim.http.post(path, json={"reason": "mine"}, headers={"x-csrf-token": "0" * 64}).status_code == 403
    assert (
        victim.http.post("/sign-in", data={"key": "x"}, headers={"origin": "https://evil.example"}).status_code == 403
    )


@pytest.mark.parametrize("name", ESCAPES)
def test_downloads_stay_within_the_version(console: Console, name: str) -> None:
    visitor = Visitor(console, "rita")
    version = console.registry.versions()[-1].model_version
    status, body = raw(console, visitor, f"/models/{version}/files/{name}")
    assert status in (400, 404), (status, body[:200])
    secret = console.project.keys.secret.encode()
    assert secret not in body
    assert b"root:" not in body
    status, body = raw(console, visitor, f"/static/{name}")
    assert status in (400, 404)
    assert secret not in body


def raw(console: Console, visitor: Visitor, path: str) -> tuple[int, bytes]:
    """Ask for a path exactly as it is written: clients would tidy it."""
    host = console.url.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=30)
    connection.putrequest("GET", path.replace(" ", "%20").replace("\\", "%5c"), skip_host=False)
    connection.putheader("cookie", f"{COOKIE}={visitor.http.cookies[COOKIE]}")
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, answer.read()


@pytest.mark.parametrize(
    ("who", "refused"),
    [
        ("api", ["/", "/rounds", "/queue", "/models", "/feedback", "/audit", "/audit.csv", "/events", *CHANGES]),
        ("app", ["/", "/rounds", "/queue", "/models", "/feedback", "/audit", "/audit.csv", "/events", *CHANGES]),
        (
            "rita",
            [
                "/rounds/{round}/stop",
                "/rounds/{round}/retry",
                "/rounds/start",
                "/feedback/quarantine!",
                "/feedback/replay",
                "/feedback/letters/replay",
                "/feedback/letters/remove",
            ],
        ),
        (None, ["/", "/rounds", "/queue", "/models", "/feedback", "/audit", "/audit.csv", "/events", *CHANGES]),
    ],
)
def test_nobody_does_what_is_not_theirs(console: Console, who: str | None, refused: list[str]) -> None:
    record, champion = console.registry.unfinished_round(), console.registry.champion()
    assert record
    assert champion
    visitor, before = Visitor(console, who), console.registry.audit_head()
    for pattern in refused:
        changes = pattern in CHANGES or pattern.endswith("!")
        path = pattern.rstrip("!").format(round=record.round_id, version=champion.model_version)
        form = {"reason": "x", "decision": "released", "user": "x", "label": "x", "position": "t/0/1"}
        answer = visitor.post(path, **form) if changes else visitor.get(path)
        if who is None and path != "/events":
            assert answer.status_code == 303, path
            assert answer.headers["location"].startswith("/sign-in")
        else:
            assert answer.status_code == 403, (path, answer.status_code)
    assert console.registry.audit_head() == before


def test_keys_are_not_guessed(console_project: Path, tmp_path: Path) -> None:
    with consoles.served(consoles.copied(console_project, tmp_path / "p"), tries=5) as guarded:
        statuses = [
            httpx.post(f"{guarded.url}/sign-in", data={"key": f"guess {n}"}, trust_env=False).status_code
            for n in range(8)
        ]
        assert statuses == [403] * 5 + [429] * 3
        right = httpx.post(f"{guarded.url}/sign-in", data={"key": guarded.keys["rita"]}, trust_env=False)
        assert right.status_code == 429  # a right guess is not told apart
        assert int(right.headers["retry-after"]) > 0
        spoofed = {"x-forwarded-for": "10.0.0.9"}
        again = httpx.post(f"{guarded.url}/sign-in", data={"key": "x"}, headers=spoofed, trust_env=False)
        assert again.status_code == 429
        by_api = httpx.get(f"{guarded.url}/api/overview", headers={"authorization": "Bearer x"}, trust_env=False)
        assert by_api.status_code == 429


def test_a_throttle_refills_and_bounds_everybody_together() -> None:
    now = [0.0]
    throttle = Throttle(2, 2, 4, clock=lambda: now[0])
    assert [throttle.wait_s("a") for _ in range(3)] == [0, 0, 30]
    assert [throttle.wait_s("b") for _ in range(2)] == [0, 0]
    assert throttle.wait_s("c") > 0
    now[0] += 30
    assert throttle.wait_s("a") == 0


def test_cookies_and_headers_are_strict(console: Console, console_project: Path, tmp_path: Path) -> None:
    answer = httpx.post(f"{console.url}/sign-in", data={"key": console.keys["rita"]}, trust_env=False)
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert "secure" not in cookie  # plain http on loopback
    policy = answer.headers["content-security-policy"]
    assert "'unsafe-inline'" not in policy
    assert "'unsafe-eval'" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    public = consoles.copied(console_project, tmp_path / "p", public_url="https://ratchet.example")
    with consoles.served(public) as behind:
        answer = httpx.post(
            f"{behind.url}/sign-in",
            data={"key": behind.keys["rita"]},
            headers={"origin": "https://ratchet.example"},
            trust_env=False,
        )
        assert "secure" in answer.headers["set-cookie"].lower()
        assert "max-age" in answer.headers["strict-transport-security"]


@pytest.mark.parametrize(
    "target", ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:alert(1)", "\n/x"]
)
def test_signing_in_leads_nowhere_else(console: Console, target: str) -> None:
    answer = httpx.post(f"{console.url}/sign-in", data={"key": console.keys["rita"], "next": target}, trust_env=False)
    assert answer.headers["location"] == "/"


def test_long_bodies_are_refused(console: Console) -> None:
    visitor = Visitor(console, "rita")
    assert visitor.post("/try", text="x" * 1_100_000).status_code == 413
    many = {f"f{n}": "x" for n in range(3000)}
    assert visitor.post("/try", **many).status_code == 400


def test_a_reachable_console_needs_tls(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="public_url"):
        load_settings('[console]\nhost = "0.0.0.0"', {}, root=tmp_path)
    with pytest.raises(SettingsError, match="password"):
        load_settings('[console]\nwebhooks = ["https://u:p@example.org"]', {}, root=tmp_path)
    assert load_settings(
        '[console]\nhost = "0.0.0.0"\npublic_url = "https://r.example"', {}, root=tmp_path
    ).console.is_secure


@pytest.mark.parametrize("cell", ["=1+1", "+1", "-1", "@x", "\t=1"])
def test_no_cell_is_a_formula(cell: str) -> None:
    assert plain(cell) == f"'{cell}"
    assert plain("plain") == "plain"
