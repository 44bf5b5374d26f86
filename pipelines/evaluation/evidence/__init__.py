"""Evidence: one model's predictions on the rows of a split, and paired comparisons of two models.

evidence.py is the interface for gates, report and compression. classification.py, multilabel.py, regression.py and
generation.py implement it; labels.py is what classification and multilabel share.
"""
