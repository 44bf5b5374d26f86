"""Metrics: point metrics, probabilistic metrics and paired tests, as pure functions.

point.py gives accuracy, F1, BLEU, chrF and related metrics. probabilistic.py gives NLL, Brier score and calibration errors,
each with a bootstrap interval and the value of a perfectly calibrated model. paired_tests.py compares two models on the same
rows: exact McNemar, paired differences, bootstrap. gain_tests.py looks for a gain in accuracy or in a loss by one test.
stability.py measures how far counts have moved.
"""
