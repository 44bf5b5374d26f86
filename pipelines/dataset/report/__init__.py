"""The dataset report: profile.py counts, page.py draws, write.py leaves both beside a round.

It shows what a round was given, which rows were dropped and why, and near-equal labels. The page is HTML without
scripts; texts in it are escaped.
"""
