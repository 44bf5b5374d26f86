"""Evaluation: measure the exact artefact that would serve, on the reference set.

evaluators.py calibrates and scores artefacts of each task; text_evaluator.py does so for generation, on at most 200 rows.
robustness.py counts predictions that change under harmless edits. smoke_test.py loads the artefact in a fresh process and
measures latency and memory. The gates decide on the results.
"""
