"""The registry: the state that all processes share, in SQL (SQLite or Postgres).

Model versions, the champion pointer with its generation, rounds and their states, labels, the split ledger, leases,
worker heartbeats, stored positions and the audit log. Transactions are short and serialised. At most one unfinished
round per model, held by a unique index. Promotion compares the champion with the version that the candidate was gated
against, checks the scheduler's fencing token, moves the pointer, ends the round and appends to the hash-chained audit
log in one transaction.

registry.py is the door: it composes the nouns, one module each, over one database object (database.py). Schema changes
are migrations by Alembic.
"""
