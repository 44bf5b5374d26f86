"""The registry: the state that all processes share, in SQL (SQLite or Postgres).

Model versions and their states, the champion pointer with its generation, rounds, people and their keys, labels, the split
ledger, leases, worker heartbeats, stored positions and the audit log. Transactions are short and serialised. At most one
unfinished round per model, held by a unique index.

decisions.py promotes, approves, rejects and rolls back. Each compares the champion with the version that the caller saw, moves
the pointer, ends the round and appends to the hash-chained audit log in one transaction. ids.py resolves prefixes.

registry.py is the entry point: it combines a module for each kind of record over one database object (database.py). Schema
changes are migrations by Alembic.
"""
