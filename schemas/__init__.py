"""Schemas: every shape that crosses a process boundary.

events.py holds the CloudEvents on Kafka, manifests.py what lies on disk, records.py what the registry keeps,
reports.py what gates and reviewers read, targets.py the one canonical text of a label, a set of labels, a number or a
text. settings.py loads `ratchet.toml`; unknown keys are refused by name. pydantic and the standard library alone: no
I/O, no framework. `make schemas` writes JSON Schemas and the AsyncAPI document from the models.
"""
