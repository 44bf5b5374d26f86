"""Messaging: events to Kafka through a durable outbox, and from Kafka to the consumer.

outbox.py takes events off the request's path, writes them to one SQLite file a worker (outbox_store.py,
outbox_disk.py) and publishes them. With the embedded broker, which forgets everything when it stops, an event stays
on disk until the event log's position has passed it; when a topic's identity changes, what was not stored is
published again under the same id. A damaged file is set aside and read out (outbox_salvage.py). publisher.py and
consumer.py are the only modules that import kafka; every wait in them is bounded.
"""
