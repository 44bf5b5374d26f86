"""Announce a promotion: on the topic `<model>.promotions`, beside the artefacts, and to MLflow where there is one.

Turns a champion into a `ModelPromoted` message and into records elsewhere. Rounds, approvals and rollbacks call it after the
registry holds the promotion, so a failure here is logged and undoes nothing. Publishing takes 2 seconds at most.
"""

import logging
from collections.abc import Callable

from schemas.cloudevents import HEADERS
from schemas.events import ModelPromoted, PromotionData
from schemas.records import Champion
from schemas.settings import Settings
from serving.registry.registry import Registry

log = logging.getLogger("ratchet.announce")

TIMEOUT_S = 2.0


def announce(settings: Settings, registry: Registry, champion: Champion) -> None:
    """Publish the promotion if there is a broker, update marker and audit head, move MLflow's alias. Never raises."""
    steps: tuple[tuple[Callable[[Settings, Registry, Champion], None], str], ...] = (
        (_publish, "the promotion of %s was not announced in Kafka, and serving follows the registry alone: %s"),
        (
            _mark,
            "%s serves, but the file beside the artefacts by which an older registry is noticed was not written: %s",
        ),
        (_keep_head, "%s serves, but the audit log's head was not written: %s"),
        (_follow, "%s serves, but MLflow was not told: %s"),
    )
    for step, failure in steps:
        try:
            step(settings, registry, champion)
        except Exception as error:
            log.warning(failure, champion.model_version, error)


def _follow(settings: Settings, _registry: Registry, champion: Champion) -> None:
    from pipelines.report.mlflow_tracking import follow_champion

    follow_champion(settings, champion.model_version)


def _mark(settings: Settings, registry: Registry, _champion: Champion) -> None:
    """Write the registry's state beside the artefacts."""
    from serving.artifacts import ArtifactStore
    from serving.registry.safeguards.marker import keep

    keep(registry, ArtifactStore(settings.location(settings.artifacts.url)))


def _keep_head(settings: Settings, registry: Registry, _champion: Champion) -> None:
    """Write the audit log's head to where the settings say."""
    from services.audit_heads import HeadKeeper
    from services.projects import broker_of

    HeadKeeper(settings, registry, broker_of(settings) if settings.registry.audit_head_topic else None).write()


def _publish(settings: Settings, registry: Registry, champion: Champion) -> None:
    from services.projects import broker_of

    broker = broker_of(settings)
    if broker is None:
        return
    from serving.messaging.publisher import Outgoing, Publisher, Topics

    publisher = Publisher(broker, timeout_s=TIMEOUT_S)
    try:
        before = next((c for c in registry.promotions() if c.generation < champion.generation), None)
        data = PromotionData(
            model_name=settings.model.name,
            model_version=champion.model_version,
            previous_version=before.model_version if before else None,
            generation=champion.generation,
            round_id=champion.round_id,
            actor=champion.actor,
        )
        event = ModelPromoted(
            source=f"ratchet/{settings.model.name}/registry", subject=champion.model_version, data=data
        )
        topic = Topics.of(settings.stream_name).promotions
        value = event.model_dump_json().encode()
        publisher.publish_many([Outgoing(topic, settings.model.name.encode(), value, HEADERS)])
    finally:
        publisher.close()
