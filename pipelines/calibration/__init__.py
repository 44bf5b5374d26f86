"""Calibration: maps from logits to calibrated probabilities, and sets with promised coverage.

maps.py fits no map, temperature, vector, Platt or isotonic scaling and chooses by cross-validated NLL (Guo et al. 2017).
conformal.py fits the scores of prediction sets, intervals.py those of regression, sequence_confidence.py the confidence of a
generated text, thresholds.py the probabilities from which a multilabel model answers a label. refit_null.py adds a fitted map's
error to the null of its ECE. serving/inference/calibration.py applies what is fitted here.
"""
