"""Evaluation: the exact artefact that would serve, measured on the reference set.

evaluators.py calibrates and scores artefacts of each task; text_evaluator.py does so for generation, on 200 rows at
most. robustness.py counts answers that change under harmless edits; smoke_test.py loads the artefact in a fresh
process and measures latency and memory. Nothing here decides: gates do.
"""
