"""The feature store: the event log in Delta Lake, and Feast over it.

event_log.py commits the rows of a micro-batch together with their Kafka positions (positions.py), so no position is ahead of
its rows. event_rows.py turns events into rows. A tail damaged by a power cut is set aside (event_log_repair.py).

store.py is the entry for rounds, triggers and the consumer. effective_feedback.py selects in SQL the feedback that counts,
unchallenged.py the predictions that nobody answered.
feast_views.py calls Feast, which reads one consistent snapshot (offline_store.py) and keeps the newest value by event time
(online_store.py); feast_import.py imports it without what it is not used for. Only this folder imports feast and deltalake.
"""
