"""The feature store: the event log in Delta Lake, and Feast over it.

event_log.py commits a micro-batch's rows together with the Kafka positions that they stand for, so a position is
never ahead of its rows. event_rows.py turns events into rows. offline_store.py lets Feast read one consistent
snapshot; online_store.py keeps the newest value by event time. store.py answers what rounds, triggers and the
consumer ask, and effective_feedback.py says in SQL which feedback counts. Only this room imports feast and deltalake.
"""
