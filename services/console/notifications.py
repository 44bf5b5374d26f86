"""Notifications: signed webhooks about rounds and champions, tried again until a receiver confirms them.

Turns what the registry holds into deliveries, and deliveries into POST requests. The state is looked at, not hooked into: a
console that was down sends what it missed. Each body is signed with HMAC-SHA-256 over time and body (the header
`X-Ratchet-Signature: t=…,v1=…`). Slack's addresses get the `text` alone.
"""

import hashlib
import hmac
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import httpx

from schemas.records import Champion, RoundRecord
from services.console.curves import drift_sentence, live_drift
from services.console.project import Project
from services.console.recommendation import advise
from serving.keys_file import secret
from serving.registry.registry import RegistryUnavailable
from serving.registry.review.deliveries import Delivery

log = logging.getLogger("ratchet.console")

SECRET = "RATCHET_WEBHOOK_SECRET"
LOOK_S = 2.0
TIMEOUT_S = 10.0
ROUNDS = 50
SLACK = "hooks.slack.com"

Post = Callable[[str, bytes, dict[str, str]], int]


class Notifier:
    """Notices events and sends them. `post` returns the receiver's status; it may raise."""

    def __init__(self, project: Project, post: Post | None = None, clock: Callable[[], float] = time.time) -> None:
        self._project = project
        self._post = post or _post
        self._clock = clock
        self._secret = secret(SECRET, project.settings.path(project.settings.access.keys), os.environ)
        wanted = project.settings.console.webhooks
        if wanted and not self._secret:
            log.error("no webhook is sent: write %s=... into keys.env, so that receivers can check it", SECRET)
        self.is_on = bool(wanted and self._secret)

    def run(self, stop: threading.Event) -> None:
        """Notice and send until `stop` is set. Never raises."""
        while not stop.wait(LOOK_S):
            try:
                self.notice()
                self.send()
            except RegistryUnavailable as error:
                log.warning("webhooks wait: %s", error)
            except Exception:
                log.exception("webhooks wait")

    def notice(self) -> int:
        """Add a delivery for each new event and receiver; return their number."""
        deliveries = self._project.registry.deliveries
        since, settings = deliveries.since(), self._project.settings.console
        fresh = [
            Delivery(delivery_id=f"{event}:{subject}:{_host(url)}", url=url, event=event, body=json.dumps(body))
            for event, subject, at, body in self._events()
            if event in settings.webhook_events and at > since.timestamp()
            for url in settings.webhooks
        ]
        return deliveries.add(fresh)

    def send(self) -> int:
        """Try every delivery that is due; return how many were confirmed."""
        deliveries, confirmed = self._project.registry.deliveries, 0
        for one in deliveries.due():
            try:
                status = self._post(one.url, *self._signed(one))
            except Exception as error:  # one receiver's address must not hold back the others
                deliveries.failed(one, f"{type(error).__name__}: {error}")
                continue
            if 200 <= status < 300:
                deliveries.delivered(one)
                confirmed += 1
            else:
                deliveries.failed(one, f"status {status}")
        return confirmed

    def _signed(self, one: Delivery) -> tuple[bytes, dict[str, str]]:
        body = one.body.encode()
        if urlsplit(one.url).hostname == SLACK:
            body = json.dumps({"text": json.loads(one.body)["text"]}).encode()
        at = str(int(self._clock()))
        headers = {
            "content-type": "application/json",
            "x-ratchet-delivery": one.delivery_id,
            "x-ratchet-event": one.event.replace(" ", "-"),
            "x-ratchet-signature": f"t={at},v1={sign(self._secret, at, body)}",
        }
        return body, headers

    def _events(self) -> Iterator[tuple[str, str, float, dict[str, object]]]:
        """Yield event, subject, Unix seconds and body of what the newest rounds and champions say."""
        history, name = self._project.registry.history, self._project.settings.model.name
        champion = self._project.registry.champion()
        for _, record in history.rounds_page(limit=ROUNDS):
            at = record.finished_at or record.heartbeat_at or record.created_at
            yield record.state.value, record.round_id, at.timestamp(), self._about_round(name, record, champion)
        for one in history.recent_promotions(ROUNDS):
            if one.round_id is None:
                text = f"{name}: {one.actor} rolled back to {one.model_version}, generation {one.generation}."
                body: dict[str, object] = {
                    "event": "rolled back",
                    "model": name,
                    "version": one.model_version,
                    "by": one.actor,
                    "text": text,
                }
                yield "rolled back", f"{one.generation}", one.promoted_at.timestamp(), body
        if "drift" in self._project.settings.console.webhook_events:
            yield from self._drifted()

    def _drifted(self) -> Iterator[tuple[str, str, float, dict[str, object]]]:
        """Yield the event `drift` while the live version's traffic has drifted; its subject changes once a day."""
        settings, now = self._project.settings, self._project.registry.database.clock()
        try:
            seen = live_drift(self._project)
        except OSError as error:
            log.warning("drift is not looked at: %s", error)
            return
        if seen is None or settings.console.drift is None or seen.psi <= settings.console.drift:
            return
        name, url = settings.model.name, self._project.console_url()
        body: dict[str, object] = {
            "event": "drift",
            "model": name,
            "version": seen.model_version,
            "psi_answers": seen.answers,
            "psi_confidence": seen.confidence,
            "threshold": settings.console.drift,
            "window": seen.window,
            "url": url,
            "text": f"{name}: {drift_sentence(seen, settings.console.drift)} {url}",
        }
        yield "drift", f"{seen.model_version}:{now:%Y-%m-%d}", now.timestamp(), body

    def _about_round(self, name: str, record: RoundRecord, champion: Champion | None) -> dict[str, object]:
        advice = advise(record, champion.model_version if champion else None)
        url = f"{self._project.console_url()}/rounds/{record.round_id}"
        return {
            "event": record.state.value,
            "model": name,
            "round": record.round_id,
            "version": record.candidate_version,
            "detail": record.detail,
            "recommendation": advice.sentence,
            "url": url,
            "text": f"{name}: {record.state.value}. {advice.sentence} {url}",
        }


def sign(secret: str, at: str, body: bytes) -> str:
    """Return the signature of a body sent at a Unix second: a receiver computes it too, and compares."""
    return hmac.new(secret.encode(), at.encode() + b"." + body, hashlib.sha256).hexdigest()


def _post(url: str, body: bytes, headers: dict[str, str]) -> int:
    with httpx.Client(timeout=TIMEOUT_S, follow_redirects=False) as client:
        return client.post(url, content=body, headers=headers).status_code


def _host(url: str) -> str:
    """Return what tells receivers apart in an id, without the secret that an address may hold."""
    return f"{urlsplit(url).hostname}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"
