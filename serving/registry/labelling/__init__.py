"""Labelling: the rows, votes and items behind the registry's queue.

votes.py turns the labels of several people into the label that counts. rows.py keeps items and votes in the database, and
shuffles an item's answers once. items.py serves rounds and datasets, which know whose answer is whose;
queue.py serves reviewers, who do not.
"""
