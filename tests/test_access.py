"""Who may call which route: every role and every route, tokens, unknown predictions, rates and quotas, over a real model."""

import asyncio
import contextlib
import hmac
import os
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from starlette.testclient import TestClient

from schemas.records import NamedKey, Role
from schemas.setting_groups import AccessSettings
from serving.api import Api
from serving.http.access import Keys, issue_token, keyed_hash, read_keys, store_keys, write_keys
from serving.http.asgi import Message, Refused, Request
from serving.http.counters import Counters
from serving.http.guard import LOOKUP_EVERY_S, Guard
from serving.http.keyring import MACHINE, Keyring
from serving.http.metrics import Metrics
from serving.http.prediction_ids import is_ours, new_prediction_id
from serving.named_keys import key_hash, make_key
from tests.support.fakes import free_port
from tests.support.workers import WorkerParts

PREDICT = {"items": [{"text": "the oven"}]}
LATER = 4_000_000_000
ROUTES = {
    "/": ("GET", None),
    "/openapi.json": ("GET", None),
    "/model": ("GET", None),
    "/predict": ("POST", PREDICT),
    "/feedback": ("POST", {"kind": "rating", "value": "up"}),
}
OPEN = {"/", "/openapi.json"}
PUBLIC = {"/livez", "/readyz", "/metrics", "/feedback.js"}  # answered in front of these routes, for everybody
ANSWERS = {"/feedback": 202}
ALLOWED = {
    "predict": {"/predict", "/model"},
    "feedback": {"/feedback", "/model"},
    "review": {"/model"},
    "admin": {"/predict", "/feedback", "/model"},
    "predict feedback": {"/predict", "/feedback", "/model"},
    "review feedback": {"/feedback", "/model"},
    "machine": {"/predict", "/feedback", "/model"},
}


class Site(WorkerParts):
    """A served project with named keys, whose clock and settings of access a test may set."""

    def __init__(self, root: Path, version: Path) -> None:
        super().__init__(root, version)
        self.outbox.start()
        self.keys = {
            roles: self.registry.people.add(roles.replace(" ", "-"), roles.split())
            for roles in ALLOWED
            if roles != "machine"
        }
        self.keys["machine"] = self.own.api_key

    @contextlib.contextmanager
    def client(self, key: str | None, counters: Counters | None = None, **access: object) -> Iterator[TestClient]:
        settings = self.settings.model_copy(update={"access": AccessSettings.model_validate(access)})
        keyring = Keyring(self.own, lambda: (self.registry.people.all_keys(), self.registry.signed_since()))
        keyring.refresh()
        counters = counters or Counters("m", None, settings.path("state/cache/token-uses.db"))
        # A busy machine reads late, which is answered with 503: see the keys' outages.
        guard = Guard(settings, self.own.secret, keyring, counters, lookup_s=60)
        metrics = Metrics("m", CollectorRegistry())
        api = Api(settings, self.own, self.live, self.batcher, self.generation, self.outbox, metrics, guard)
        headers = {"Authorization": f"Bearer {key}"} if key is not None else {}
        with TestClient(api, headers=headers) as client:
            yield client
        counters.close()

    def close(self) -> None:
        super().close()
        self.outbox.close(5)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, version: Path) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("access"), version)
    yield made
    made.close()


def call(site: Site, client: TestClient, path: str) -> int:
    method, given = ROUTES[path]
    body: dict[str, object] = dict(given) if given else {}
    if path == "/feedback":
        body["prediction_id"] = new_prediction_id(site.own.secret)
    return client.request(method, path, json=body or None).status_code


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("roles", ALLOWED)
def test_each_role_opens_its_routes_and_no_other(site: Site, roles: str, path: str) -> None:
    allowed = path in OPEN or path in ALLOWED[roles]
    with site.client(site.keys[roles]) as client:
        assert call(site, client, path) == (ANSWERS.get(path, 200) if allowed else 403)


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("key", [None, "", "wrong", "ratchet_abcdefghij_" + "A" * 43])
def test_without_a_valid_key_only_the_open_routes_answer(site: Site, key: str | None, path: str) -> None:
    with site.client(key) as client:
        assert call(site, client, path) == (200 if path in OPEN else 401)


def test_the_routes_of_the_table_are_all_routes(site: Site) -> None:
    with site.client(site.keys["admin"]) as client:
        documented = set(client.get("/openapi.json").json()["paths"])
        assert documented <= set(ROUTES) | PUBLIC
        for path in ROUTES:
            assert client.options(path).status_code == 204


def test_a_refusal_names_the_role_that_is_missing(site: Site) -> None:
    with site.client(site.keys["predict"]) as client:
        refused = client.post("/feedback", json={})
    assert refused.json()["detail"] == [
        {"field": "Authorization", "message": "this needs the role feedback, and predict has predict"}
    ]


def token(kind: str, secret: str, prediction: str) -> str:
    right = issue_token(secret, prediction, LATER)
    return {
        "right": right,
        "forged": issue_token("another secret", prediction, LATER),
        "foreign": issue_token(secret, new_prediction_id(secret), LATER),
        "changed": right[:-1] + ("0" if right[-1] != "0" else "1"),
        "prolonged": f"{LATER + 1}.{right.split('.')[1]}",
        "expired": issue_token(secret, prediction, int(time.time()) - 1),
        "nonsense": "nonsense",
        "empty": "",
    }[kind]


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("forged", 403),
        ("foreign", 403),
        ("changed", 403),
        ("prolonged", 403),
        ("nonsense", 403),
        ("empty", 403),
        ("expired", 401),
        ("right", 202),
    ],
)
def test_a_token_that_is_forged_expired_or_of_another_prediction_is_refused(site: Site, kind: str, status: int) -> None:
    prediction = new_prediction_id(site.own.secret)
    body = {"prediction_id": prediction, "kind": "rating", "value": "up"}
    headers = {"X-Feedback-Token": token(kind, site.own.secret, prediction)}
    for key in (None, site.keys["machine"]):  # a key beside it does not mend a wrong token
        with site.client(key) as client:
            assert client.post("/feedback", json=body, headers=headers).status_code == status


def test_uses_of_a_token_are_counted_across_workers(site: Site) -> None:
    prediction = new_prediction_id(site.own.secret)
    body = {"prediction_id": prediction, "kind": "rating", "value": "up"}
    headers = {"X-Feedback-Token": issue_token(site.own.secret, prediction, LATER)}
    statuses = []
    with site.client(None, token_uses=5) as one, site.client(None, token_uses=5) as other:
        for client in [one, other] * 4:
            statuses.append(client.post("/feedback", json=body, headers=headers).status_code)
    assert statuses == [202] * 5 + [429] * 3


@pytest.mark.parametrize(("setting", "status"), [("refuse", 404), ("accept", 202)])
def test_a_prediction_that_nobody_made_is_unknown_unless_a_setting_accepts_it(
    site: Site, setting: str, status: int
) -> None:
    with site.client(site.keys["feedback"], unknown_predictions=setting) as client:
        for unknown in (str(uuid.uuid4()), "01900000-0000-7000-8000-000000000000", new_prediction_id("another secret")):
            body = {"prediction_id": unknown, "kind": "rating", "value": "up"}
            assert client.post("/feedback", json=body).status_code == status, unknown


def test_a_prediction_is_known_at_once_and_in_another_worker(site: Site) -> None:
    with site.client(site.keys["machine"]) as one, site.client(site.keys["feedback"]) as other:
        [prediction] = one.post("/predict", json=PREDICT).json()
        for written in (prediction["prediction_id"], prediction["prediction_id"].upper()):
            body = {"prediction_id": written, "kind": "rating", "value": "up"}
            assert other.post("/feedback", json=body).status_code == 202


def test_an_id_of_before_the_checksums_is_known_by_its_time() -> None:
    since = datetime(2026, 1, 1, tzinfo=UTC)
    before, after = (
        str(uuid.UUID(int=int((since + timedelta(days=days)).timestamp() * 1000) << 80 | 7 << 76 | 2 << 62 | 5))
        for days in (-1, 1)
    )
    assert is_ours("s", before, since)
    assert not is_ours("s", after, since)
    assert not is_ours("s", before, None)
    assert not is_ours("s", str(uuid.uuid4()), since), "it has no time"
    assert not is_ours("s", "ffffffff-ffff-7fff-bfff-ffffffffffff", since)
    assert is_ours("s", new_prediction_id("s"), None)
    assert len({new_prediction_id("s") for _ in range(20_000)}) == 20_000


def test_a_rate_counts_requests_and_a_quota_texts_by_person(site: Site) -> None:
    with site.client(site.keys["machine"], rate="3/hour", quota="4/day") as client:
        twice = {"items": PREDICT["items"] * 2}
        statuses = [client.post("/predict", json=twice) for _ in range(4)]
        assert [answer.status_code for answer in statuses] == [200, 200, 429, 429]
        assert [answer.json()["error"] for answer in statuses[2:]] == ["too many texts", "too many requests"]
        assert 1 <= int(statuses[3].headers["retry-after"]) <= 3600
        admin = {"Authorization": f"Bearer {site.keys['admin']}"}
        assert client.post("/predict", json=PREDICT, headers=admin).status_code == 200, "another person"


def test_a_persons_own_rate_replaces_the_settings(site: Site) -> None:
    with contextlib.suppress(KeyError):
        site.registry.people.revoke("slow")
    key = site.registry.people.add("slow", ["predict"], rate="1/day")
    with site.client(key, rate="1000/second") as client:
        assert [client.post("/predict", json=PREDICT).status_code for _ in range(2)] == [200, 429]
    second = site.registry.people.rotate("slow")
    assert key != second


def redis_address() -> str:
    address = os.environ.get("RATCHET_TEST_REDIS")
    if not address:
        pytest.skip("RATCHET_TEST_REDIS is not set")
    return f"redis://{address}/0"


@pytest.mark.redis
def test_in_redis_all_workers_count_together(site: Site, tmp_path: Path) -> None:
    name, address = f"test-{uuid.uuid4().hex}", redis_address()
    prediction = new_prediction_id(site.own.secret)
    body = {"prediction_id": prediction, "kind": "rating", "value": "up"}
    token = {"X-Feedback-Token": issue_token(site.own.secret, prediction, int(time.time()) + 60)}
    settings = {"rate": "5/minute", "token_uses": 3}
    workers = [Counters(name, address, tmp_path / f"{n}.db") for n in range(2)]  # another file: another machine
    asked, used = [], []
    with (
        site.client(site.keys["machine"], workers[0], **settings) as one,
        site.client(site.keys["machine"], workers[1], **settings) as other,
    ):
        for client in [one, other] * 4:
            asked.append(client.get("/model").status_code)
            used.append(client.post("/feedback", json=body, headers=token).status_code)
    assert asked == [200] * 5 + [429] * 3
    assert used == [202] * 3 + [429] * 5


def test_a_redis_that_is_away_stops_nobody_and_each_worker_counts(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counters = Counters("m", f"redis://127.0.0.1:{free_port()}/0", tmp_path / "uses.db")
    with site.client(site.keys["machine"], counters, rate="2/minute") as client:
        assert [client.get("/model").status_code for _ in range(3)] == [200, 200, 429]
    warnings = [record for record in caplog.records if "access.counters cannot be reached" in record.getMessage()]
    assert len(warnings) == 1


def test_a_file_of_uses_that_cannot_be_written_leaves_each_worker_counting(site: Site, tmp_path: Path) -> None:
    (tmp_path / "folder.db").mkdir()
    prediction = new_prediction_id(site.own.secret)
    body = {"prediction_id": prediction, "kind": "rating", "value": "up"}
    headers = {"X-Feedback-Token": issue_token(site.own.secret, prediction, LATER)}
    with site.client(None, Counters("m", None, tmp_path / "folder.db"), token_uses=2) as client:
        assert [client.post("/feedback", json=body, headers=headers).status_code for _ in range(3)] == [202, 202, 429]


def test_a_key_works_from_the_moment_it_is_made(site: Site) -> None:
    with site.client(site.keys["machine"]) as client:
        for n in range(3):
            key = site.registry.people.add(f"new-{n}", ["predict"])
            assert client.get("/model", headers={"Authorization": f"Bearer {key}"}).status_code == 200


@pytest.mark.parametrize("outage", ["unreachable", "slow", "broken"])
def test_a_new_key_gets_503_and_not_401_while_the_registry_cannot_say_whose_it_is(site: Site, outage: str) -> None:
    ends = threading.Event()
    known: list[NamedKey] = []

    def read() -> tuple[list[NamedKey], None]:
        if outage == "slow":
            ends.wait(60)
        elif not ends.is_set():
            raise {"unreachable": ConnectionError, "broken": ValueError}[outage]("the registry is away")
        return known, None

    keyring = Keyring(site.own, read)
    counters = Counters("m", None, Path("unused"))
    hasty, patient = (
        Guard(site.settings, site.own.secret, keyring, counters, lookup_s=seconds) for seconds in (0.05, 60)
    )
    key, stored = named()
    request = Request("GET", {b"authorization": f"Bearer {key}".encode()}, nothing)

    async def call() -> None:
        for _ in range(2):
            with pytest.raises(Refused) as refused:
                await hasty.admit(request)
            assert (refused.value.status, refused.value.headers["Retry-After"]) == (503, "2")
        known.append(stored)
        ends.set()
        assert (await patient.admit(request)).name == "ann"

    asyncio.run(call())


def test_forged_keys_cause_few_reads_of_the_registry(site: Site) -> None:
    reads: list[float] = []

    def read() -> tuple[list[NamedKey], None]:
        reads.append(time.monotonic())
        return [], None

    guard = Guard(site.settings, site.own.secret, Keyring(site.own, read), Counters("m", None, Path("unused")))

    async def attack() -> list[int]:
        async def one() -> int:
            headers = {b"authorization": f"Bearer {make_key()[1]}".encode()}
            with pytest.raises(Refused) as refused:
                await guard.admit(Request("GET", headers, nothing))
            return refused.value.status

        return [status for _ in range(4) for status in await asyncio.gather(*(one() for _ in range(200)))]

    assert set(asyncio.run(attack())) == {401}
    assert len(reads) <= 2 + (reads[-1] - reads[0]) / LOOKUP_EVERY_S, "at most four a second"


# --- the keyring ---------------------------------------------------------------------------------------------------------


def named(roles: tuple[Role, ...] = (Role.PREDICT,), **fields: object) -> tuple[str, NamedKey]:
    key_id, key = make_key()
    made = {"name": "ann", "roles": roles, "key_id": key_id, "key_hash": key_hash(key), "created_at": datetime.now(UTC)}
    return key, NamedKey.model_validate({**made, **fields})


async def nothing() -> Message:
    return {"type": "http.disconnect"}


OWN = Keys(api_key="own", secret="s")


def test_a_worker_learns_new_and_revoked_keys_without_a_restart() -> None:
    (first, stored), (second, rotated) = named(), named()
    known: list[NamedKey] = [stored]
    keyring = Keyring(OWN, lambda: (known, None))
    keyring.refresh()
    assert keyring.identify(b"Bearer own") == MACHINE
    assert keyring.identify(f"bearer {first}".encode()) == stored.person()
    assert keyring.identify(f"Bearer {second}".encode()) is None
    known[:] = [stored.model_copy(update={"revoked_at": datetime.now(UTC)}), rotated]
    keyring.refresh()
    assert keyring.identify(f"Bearer {first}".encode()) is None
    assert keyring.identify(f"Bearer {second}".encode()) == rotated.person()


def test_a_renewed_api_key_is_taken_from_its_file_and_a_missing_file_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "keys.env"
    first = write_keys(path)
    keyring = Keyring(first, api_key=lambda: read_keys(path).api_key)
    store_keys(path, Keys(api_key="renewed", secret=first.secret))
    keyring.refresh_api_key()
    assert keyring.identify(b"Bearer renewed") == MACHINE
    assert keyring.identify(f"Bearer {first.api_key}".encode()) is None
    path.unlink()
    keyring.refresh_api_key()
    assert keyring.identify(b"Bearer renewed") == MACHINE


def test_an_expired_key_is_refused_though_the_registry_is_down() -> None:
    ends = datetime(2026, 1, 1, tzinfo=UTC)
    key, stored = named(expires_at=ends)
    now = [ends - timedelta(seconds=1)]
    keyring = Keyring(OWN, lambda: ([stored], None), clock=lambda: now[0])
    keyring.refresh()
    assert keyring.identify(f"Bearer {key}".encode()) is not None
    now[0] = ends
    assert keyring.identify(f"Bearer {key}".encode()) is None


def test_a_worker_that_starts_without_the_registry_knows_the_last_keys(tmp_path: Path) -> None:
    key, stored = named()
    file, since = tmp_path / "keys.json", datetime(2026, 1, 1, tzinfo=UTC)

    def away() -> tuple[list[NamedKey], None]:
        raise ConnectionError("down")

    Keyring(OWN, lambda: ([stored], since), file).refresh()
    assert key not in file.read_text(encoding="utf-8")
    assert file.stat().st_mode & 0o077 == 0
    restarted = Keyring(OWN, away, file)
    restarted.start()
    assert restarted.identify(f"Bearer {key}".encode()) == stored.person()
    assert restarted.signed_since == since
    assert not restarted.refresh()
    assert restarted.identify(f"Bearer {key}".encode()) == stored.person(), "an outage takes no key away"
    restarted.close()
    file.write_text("{", encoding="utf-8")
    damaged = Keyring(OWN, away, file)
    damaged.start()
    assert damaged.identify(b"Bearer own") == MACHINE
    assert damaged.identify(f"Bearer {key}".encode()) is None
    damaged.close()


@pytest.mark.parametrize("secret", ["", "s" * 43, "s" * 64, "s" * 65, "ü" * 40])
def test_keyed_hashes_are_the_hmac_of_purpose_and_value(secret: str) -> None:
    assert keyed_hash(secret, "user", "u1") == hmac.digest(secret.encode(), b"user\0u1", "sha256")
    assert keyed_hash(secret, "user", "u1") == hmac.digest(secret.encode(), b"user\0u1", "sha256"), "state is kept"
