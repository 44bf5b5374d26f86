"""The dataset report: profile.py measures, page.py renders, write.py stores both beside a round.

It shows what a round was given, which rows were dropped and why, and the drift of the training rows. The page is HTML without
scripts; texts in it are escaped.
"""
