"""Safeguards of the registry against loss, and against whoever takes over one of its users or processes.

marker.py keeps the registry's identity beside the artefacts, and notices a lost, replaced or older registry.
audit_heads.py keeps the end of the audit log's hash chain elsewhere and finds out from it that rows are gone or were written
again. database_role.py gives serving a Postgres user that reads what a worker needs and writes heartbeats, nothing else.
"""
