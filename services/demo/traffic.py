"""The demo's outside world: apps that ask, people who answer, over HTTP alone.

Turns texts into requests to the inference API and predictions into simulated feedback. demo.py drives it. It deliberately
knows nothing of the project's insides: what it counts is what a client sees. No request is tried twice.
"""

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx

CALLERS = 6
CORRECTS = 0.85  # of wrong answers, by an honest person
CONFIRMS = 0.15  # of right answers
PEOPLE = 30
LIARS = frozenset({7, 19})  # these two label at random, and often


@dataclass(frozen=True)
class Article:
    """A text and what it is about."""

    text: str
    topic: str


@dataclass
class Seen:
    """What clients saw: every answer's time, worker and version, and every failure. Guarded by its lock."""

    answers: list[tuple[float, str, str]] = field(default_factory=list)
    events: int = 0
    failures: list[tuple[float, str]] = field(default_factory=list)
    requests: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def near(self, moment: float, seconds: float) -> int:
        """Requests within `seconds` of a Unix time."""
        return sum(abs(at - moment) <= seconds for at in self.requests)

    def first_answers(self, version: str) -> dict[str, float]:
        """For each worker, when it first answered with a version."""
        first: dict[str, float] = {}
        for at, worker, answered in self.answers:
            if answered == version:
                first[worker] = min(at, first.get(worker, at))
        return first


class Traffic:
    """A few callers with a connection each, spread over the workers, and the people behind them."""

    def __init__(self, url: str, api_key: str, topics: Sequence[str], workers: int) -> None:
        self.seen = Seen()
        self._url = url
        self._headers = {"Authorization": f"Bearer {api_key}"}
        self._topics = list(topics)
        self._draw = random.Random(11)  # noqa: S311 - a simulation
        self._callers = self._spread(workers)
        self._pool = ThreadPoolExecutor(CALLERS)

    def close(self) -> None:
        """End the callers."""
        self._pool.shutdown()
        for caller in self._callers:
            caller.close()

    def predict(self, n: int, article: Article, user: str) -> dict[str, str] | None:
        """Ask for one prediction; None if it failed."""
        body = {"items": [{"text": article.text}], "user": user}
        answer = self._post(n, "/predict", body, 200)
        if answer is None:
            return None
        found: dict[str, str] = answer.json()[0]
        with self.seen.lock:
            self.seen.answers.append((time.time(), answer.headers["X-Ratchet-Worker"], found["model_version"]))
        return found

    def correct(self, n: int, prediction_id: str, label: str, user: str) -> None:
        """Send one correction (or confirmation)."""
        body = {"prediction_id": prediction_id, "kind": "correction", "value": label, "user": user}
        self._post(n, "/feedback", body, 202)

    def live(self, n: int, article: Article, *, with_feedback: bool) -> None:
        """One visit: a prediction, and perhaps what the person says of it."""
        with self.seen.lock:
            person = self._draw.randrange(PEOPLE)
            chance, lie = self._draw.random(), self._draw.choice([t for t in self._topics if t != article.topic])
        user = f"reader-{person}"
        found = self.predict(n, article, user)
        if found is None or not with_feedback:
            return
        if person in LIARS:
            if chance < CORRECTS:
                self.correct(n, found["prediction_id"], lie, user)
        elif chance < (CONFIRMS if found["label"] == article.topic else CORRECTS):
            self.correct(n, found["prediction_id"], article.topic, user)

    def poison(self, n: int, article: Article) -> None:
        """One visit of the poisoner: always the same wrong topic for what was answered."""
        found = self.predict(n, article, "poisoner")
        if found is not None:
            wrong = self._topics[(self._topics.index(article.topic) + 1) % len(self._topics)]
            self.correct(n, found["prediction_id"], wrong, "poisoner")

    def submit(self, visit: Callable[..., None], n: int, article: Article, **options: bool) -> None:
        """Make a visit on one of the callers' threads."""
        self._pool.submit(visit, n, article, **options)

    def drain(self) -> None:
        """Wait for what was submitted."""
        self._pool.shutdown(wait=True)
        self._pool = ThreadPoolExecutor(CALLERS)

    def _post(self, n: int, path: str, body: Mapping[str, object], expected: int) -> httpx.Response | None:
        failure = None
        try:
            answer = self._callers[n % CALLERS].post(path, json=body)
            if answer.status_code != expected:
                failure = f"{path} answered {answer.status_code}: {answer.text[:200]}"
        except httpx.HTTPError as error:
            failure = f"{path}: {type(error).__name__} {error}"
        with self.seen.lock:
            self.seen.requests.append(time.time())
            if failure:
                self.seen.failures.append((time.time(), failure))
                return None
            self.seen.events += 1
        return answer

    def _spread(self, workers: int) -> list[httpx.Client]:
        """Callers whose connections reach every worker: which one accepts a connection is the kernel's choice."""
        by_worker: dict[str, list[httpx.Client]] = {}
        spare: list[httpx.Client] = []
        for _ in range(300):
            client = httpx.Client(base_url=self._url, headers=self._headers, timeout=15, trust_env=False)
            worker = client.get("/model").headers["X-Ratchet-Worker"]
            held = by_worker.setdefault(worker, [])
            (held if len(held) < CALLERS // workers else spare).append(client)
            if len(by_worker) == workers and all(len(held) == CALLERS // workers for held in by_worker.values()):
                break
        chosen = [client for held in by_worker.values() for client in held]
        while len(chosen) < CALLERS:
            chosen.append(spare.pop())
        for client in spare:
            client.close()
        return chosen
