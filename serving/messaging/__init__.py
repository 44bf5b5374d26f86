"""Messaging: events to Kafka through a durable outbox, and from Kafka to the consumer.

outbox.py takes events from requests and writes them to one SQLite file a worker (outbox_store.py, outbox_disk.py);
outbox_sender.py publishes them. A Kafka cluster keeps what it has confirmed, so an event stays on disk until then. The
embedded broker loses everything when it stops: there it stays until the event log's position has passed it, and is
published again under the same id when its topic's id changes. A damaged file is set aside and its readable events
recovered (outbox_salvage.py).

connection.py makes clients with the options of security.py. probe.py connects once before them (wire.py) and names what
fails; causes.py writes the line, rights.py compares rights for `ratchet doctor`.

record_batches.py decodes what consumer.py fetches, in bounded memory (decompression.py); membership.py completes joins of its
group. project_topics.py and cluster_topics.py create topics, topic_checks.py checks those of others. Every wait is bounded.
"""
