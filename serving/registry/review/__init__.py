"""Review: what the console reads and records beside rounds and versions.

history.py reads pages of rounds, versions and the audit log. trust.py keeps decisions about people who give feedback,
deliveries.py the webhooks to send. registry.py composes them like every noun.
"""
