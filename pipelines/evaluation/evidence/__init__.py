"""Evidence: one model's answers on the rows of a split, and how two models differ there.

evidence.py says what gates, report and compression may ask; classification.py, multilabel.py, regression.py and
generation.py answer by task, and labels.py holds what the first two share.
"""
