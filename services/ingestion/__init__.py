"""Ingestion: Kafka messages to rows of the event log, each exactly once.

feedback_gate.py holds feedback from Kafka to the rules of `POST /feedback`. micro_batch.py turns messages into rows
and positions; dead_letters.py sets aside what cannot be read or stored, with its reason. Between batches
feedback_upkeep.py lets live_counts.py join feedback to its prediction and orphans.py expire feedback whose prediction
never came; neither can stop ingestion. stored_positions.py compares the registry's positions with the log. metrics.py
tells Prometheus.
"""
