"""Calibration: maps from logits to probabilities that can be believed, and sets with promised coverage.

maps.py fits none, temperature, vector, Platt or isotonic scaling and chooses by cross-validated NLL (Guo et al.
2017); conformal.py fits the scores of prediction sets; intervals.py those of numbers; sequence_confidence.py the
confidence of a generated text. Fitting happens here, application in serving/inference/calibration.py.
"""
