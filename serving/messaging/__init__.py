"""Messaging: events to Kafka through a durable outbox, and from Kafka to the consumer.

outbox.py takes events from requests, writes them to one SQLite file a worker (outbox_store.py, outbox_disk.py) and
publishes them. The embedded broker loses everything when it stops, so an event stays on disk until the event log's
position has passed it. When a topic's id changes, events that are not stored are published again under the same id. A
damaged file is set aside and its readable events recovered (outbox_salvage.py). publisher.py and consumer.py are the
only modules that import kafka; every wait in them is bounded.
"""
