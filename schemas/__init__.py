"""Schemas: the data types that cross a process boundary.

events.py holds the CloudEvents on Kafka, manifests.py the manifests of datasets and model versions, records.py the
registry's rows, reports.py the reports of rounds, targets.py the canonical text of a label, label set, number or
text. labels.py is the taxonomy, consumer_reports.py what consumers report. settings.py loads `ratchet.toml` into the
groups of setting_groups.py and configuration/; unknown keys are refused by name. Only pydantic and the standard library
are imported. `make schemas` and `make docs` write JSON Schemas, the AsyncAPI document and docs/settings.md from the models.
"""
