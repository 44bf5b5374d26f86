"""Ingestion: Kafka messages to rows of the event log, each exactly once.

micro_batch.py turns messages into rows and positions; feedback_gate.py checks feedback by the rules of
`POST /feedback`. isolation.py finds messages that cannot be stored; dead_letters.py sets them aside with a reason, and
replay.py publishes them again.
Between batches feedback_upkeep.py runs live_counts.py, which joins feedback to its prediction, and orphans.py, which
expires feedback without one; their failures never stop ingestion. feedback_counts.py caches counts for `ratchet status`.
stored_positions.py compares the registry's positions with the log, continuity.py the log with the broker's; topic_watch.py
checks the topics, progress.py whether ingestion is stuck, troubles.py counts losses. metrics.py exports Prometheus metrics.
"""
