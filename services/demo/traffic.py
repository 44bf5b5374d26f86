"""The demo's traffic: simulated apps and their users, over HTTP alone.

Turns texts into requests to the inference API and predictions into simulated feedback. walk.py drives it. It counts what a
client sees; no request is retried.
"""

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx

from services.demo.articles import Article

CALLERS = 6
CORRECTS = 0.85  # share of wrong predictions that an honest user corrects
CONFIRMS = 0.15  # share of right predictions that an honest user confirms
PEOPLE = 30
LIARS = frozenset({7, 19})  # users who send random labels


@dataclass
class Seen:
    """What clients saw: time, worker and version of every prediction, and every failure. Guarded by `lock`."""

    answers: list[tuple[float, str, str]] = field(default_factory=list)
    events: int = 0
    failures: list[tuple[float, str]] = field(default_factory=list)
    requests: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def near(self, moment: float, seconds: float) -> int:
        """Return the number of requests within `seconds` of a Unix time."""
        return sum(abs(at - moment) <= seconds for at in self.requests)

    def first_answers(self, version: str) -> dict[str, float]:
        """Return, for each worker, the Unix time of its first answer with a version."""
        first: dict[str, float] = {}
        for at, worker, answered in self.answers:
            if answered == version:
                first[worker] = min(at, first.get(worker, at))
        return first


class Traffic:
    """Sends requests from CALLERS clients, spread over the workers, as PEOPLE users."""

    def __init__(self, url: str, api_key: str, topics: Sequence[str], workers: int) -> None:
        self.seen = Seen()
        self._url = url
        self._headers = {"Authorization": f"Bearer {api_key}"}
        self._topics = list(topics)
        self._draw = random.Random(11)  # noqa: S311 - a simulation
        self._callers = self._spread(workers)
        self._pool = ThreadPoolExecutor(CALLERS)

    def close(self) -> None:
        """Wait for running visits and close the clients."""
        self._pool.shutdown()
        for caller in self._callers:
            caller.close()

    def predict(self, n: int, article: Article, user: str) -> dict[str, str] | None:
        """Request one prediction and return it; None if the request failed."""
        body = {"items": [{"text": article.text}], "user": user}
        answer = self._post(n, "/predict", body, 200)
        if answer is None:
            return None
        prediction: dict[str, str] = answer.json()[0]
        with self.seen.lock:
            self.seen.answers.append((time.time(), answer.headers["X-Ratchet-Worker"], prediction["model_version"]))
        return prediction

    def correct(self, n: int, prediction_id: str, label: str, user: str) -> None:
        """Send one correction (or confirmation)."""
        body = {"prediction_id": prediction_id, "kind": "correction", "value": label, "user": user}
        self._post(n, "/feedback", body, 202)

    def live(self, n: int, article: Article, *, with_feedback: bool) -> None:
        """Make one visit: a prediction, and feedback with the probability of its user."""
        with self.seen.lock:
            person = self._draw.randrange(PEOPLE)
            chance, lie = self._draw.random(), self._draw.choice([t for t in self._topics if t != article.topic])
        user = f"reader-{person}"
        prediction = self.predict(n, article, user)
        if prediction is None or not with_feedback:
            return
        if person in LIARS:
            if chance < CORRECTS:
                self.correct(n, prediction["prediction_id"], lie, user)
        elif chance < (CONFIRMS if prediction["label"] == article.topic else CORRECTS):
            self.correct(n, prediction["prediction_id"], article.topic, user)

    def poison(self, n: int, article: Article) -> None:
        """Make one visit of the poisoner, who always corrects to the next topic."""
        prediction = self.predict(n, article, "poisoner")
        if prediction is not None:
            wrong = self._topics[(self._topics.index(article.topic) + 1) % len(self._topics)]
            self.correct(n, prediction["prediction_id"], wrong, "poisoner")

    def submit(self, visit: Callable[..., None], n: int, article: Article, **options: bool) -> None:
        """Run a visit on one of the callers' threads."""
        self._pool.submit(visit, n, article, **options)

    def drain(self) -> None:
        """Wait for every submitted visit."""
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
        """Return clients whose connections reach every worker; the kernel chooses which one accepts a connection."""
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
